"""Figures of single neurons and of spikes in a net: staircase, potential with threshold, raster."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .._errors import bad_type, bad_value, check_count, check_real
from ..functional import Sigmoid, postsynaptic_potential
from ..functional.integrate_and_fire import charged
from ..hosts import host_of
from ..neurons import AdaptiveSpikingNeuron, IntegrateAndFireNeuron
from ..simulation import Simulation
from ..simulation.advance import advance
from .style import COLOURS, finish, legend_beside, look, new_figure, step_axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_staircase", "potential", "raster", "staircase"]

_SETTLED_MS = 4000  # of an adaptive neuron, whose first quarter is left out


def staircase(
    neurons: Mapping[str, nn.Module], time_steps: int = 4, *, limit: float | None = None, title: str = ""
) -> Figure:
    """Draw what neurons decode from constant inputs, one panel each, beside the ReLU.

    The decoded value is the firing rate times the threshold (ATIF-nu: times p_1); of adaptive neurons it is the mean of
    their filtered spikes.

    Parameters
    ----------
    neurons : mapping of str to nn.Module
        Neurons of either host, ours or the host's, by their label; none is changed.
    time_steps : int
        T.
    limit : float, optional
        Inputs go up to it; by default a quarter beyond the largest threshold.
    title : str
        Of the figure.

    Examples
    --------
    >>> from snn_ext.spikingjelly import ATIFuNode
    >>> figure = staircase({"floor": ATIFuNode(), "rounding": ATIFuNode(v_init=0.5)})
    >>> [axes.get_title() for axes in figure.axes]
    ['floor', 'rounding']
    """
    if not neurons:
        bad_value("neurons", neurons, "at least one")
    end = max(1.25 * _clip_level(neuron) for neuron in neurons.values()) if limit is None else limit
    x = torch.linspace(-0.15 * end, check_real("limit", end, "a number > 0", 1e-30), 1001)
    figure = new_figure(3.3 * len(neurons), 3.2, title)
    panels = figure.subplots(1, len(neurons), sharey=True, squeeze=False)[0]
    for place, (axes, (name, neuron)) in enumerate(zip(panels, neurons.items(), strict=True)):
        axes.plot(x, x.clamp_min(0.0), color="black", ls="--", lw=1, label="ReLU")
        draw_staircase(axes, neuron, x, time_steps, color=look(place)["color"], lw=2, label="decoded")
        axes.set(title=name, xlabel="constant input")
        finish(axes)
    panels[0].set_ylabel("decoded value")
    return figure


@torch.no_grad()
def draw_staircase(axes: Axes, neuron: nn.Module, x: Tensor, time_steps: int, **line: Any) -> None:
    """Draw what a neuron decodes from the constant inputs ``x``, into a panel; a line for each channel of its own."""
    check_count("time_steps", time_steps)
    channels = max((p.numel() for p in (getattr(neuron, "v_init", None),) if isinstance(p, Tensor)), default=1)
    current = x.unsqueeze(1).expand(-1, channels)
    if isinstance(neuron, AdaptiveSpikingNeuron):
        decoded = _settled(neuron, current)
    else:
        spikes, _ = advance(neuron, current.expand(time_steps, -1, -1), None)
        scale = 1.0 if getattr(neuron, "scale_output", False) else _clip_level(neuron)
        decoded = spikes.mean(0) * scale
    axes.plot(x, decoded, **line)


@torch.no_grad()
def potential(neuron: nn.Module, x_seq: Tensor, *, title: str = "") -> Figure:
    """Draw the membrane potential of one neuron step by step, with its threshold and its spikes.

    Of an adaptive neuron the signal S, what its spikes have encoded, and the threshold of their difference are drawn.

    Parameters
    ----------
    neuron : nn.Module
        A neuron of this package, of either host; it is not changed.
    x_seq : Tensor
        Its input at each step, ``[T]``.
    title : str
        Of the figure.

    Examples
    --------
    >>> import torch
    >>> from snn_ext.spikingjelly import PCMPIFNode
    >>> figure = potential(PCMPIFNode(precharge=0.5), torch.full((8,), 0.3))
    >>> figure.axes[0].get_xlabel()
    'time step'
    """
    if not isinstance(x_seq, Tensor) or x_seq.ndim != 1 or not len(x_seq):
        bad_value("x_seq", x_seq, "a tensor [T], the input of one neuron at each step")
    figure = new_figure(6.4, 3.6, title)
    axes = figure.subplots()
    if isinstance(neuron, AdaptiveSpikingNeuron):
        _draw_adaptive(axes, neuron, x_seq.reshape(-1, 1))
    elif isinstance(neuron, IntegrateAndFireNeuron):
        _draw_potential(axes, neuron, x_seq.reshape(-1, 1))
    else:
        bad_type("neuron", neuron, "a neuron of this package")
    finish(axes, legend=False)
    legend_beside(figure, axes)
    return figure


@torch.no_grad()
def raster(net: nn.Module, x: Tensor, time_steps: int, *, neurons: int = 20, title: str = "") -> Figure:
    """Draw the spikes of some neurons of every layer for one sample, a panel for each layer by its name.

    Parameters
    ----------
    net : nn.Module
        A converted net, or any net that :func:`snn_ext.evaluate` takes; it is not changed.
    x : Tensor
        One sample as a batch, ``[1, ...]``.
    time_steps : int
        T.
    neurons : int
        How many of a layer, evenly spaced.
    title : str
        Of the figure.

    Examples
    --------
    >>> import torch
    >>> from snn_ext import convert
    >>> ann = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> snn = convert(ann, torch.rand(16, 4), time_steps=4, progress=False)
    >>> len(raster(snn, torch.rand(1, 4), 4).axes)
    1
    """
    if not isinstance(x, Tensor) or x.ndim < 2 or len(x) != 1:
        bad_value("x", x, "one sample as a batch, [1, ...]")
    check_count("time_steps", time_steps)
    check_count("neurons", neurons)
    found: dict[str, list[Tensor]] = {}

    def keep(name: str, module: nn.Module, spikes: Tensor) -> None:
        found.setdefault(name, []).append(spikes.flatten(1).cpu() != 0)

    for _ in Simulation(net).run(x, time_steps, keep):
        pass
    if not found:
        bad_value("net", net, "a net with layers that emit spikes")
    figure = new_figure(6.4, 0.5 + 1.15 * len(found), title)
    panels = figure.subplots(len(found), 1, sharex=True, squeeze=False)[:, 0]
    for place, (axes, (name, chunks)) in enumerate(zip(panels, found.items(), strict=True)):
        spikes = torch.cat(chunks)
        shown = torch.linspace(0, spikes.shape[1] - 1, min(neurons, spikes.shape[1])).round().long()
        times = [(torch.nonzero(spikes[:, i]).flatten() + 1).tolist() for i in shown]
        axes.eventplot(times, colors=COLOURS[place % len(COLOURS)], linelengths=0.8, linewidths=1.6)
        axes.set(yticks=[], ylim=(-1, len(shown)))
        axes.set_ylabel(f"{name}\n{len(shown)} of {spikes.shape[1]:,}", rotation=0, ha="right", va="center", fontsize=8)
        step_axis(axes, time_steps)
        axes.set_xlim(0.5, time_steps + 0.5)
        axes.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xlabel("time step")
    return figure


def _draw_potential(axes: Axes, neuron: IntegrateAndFireNeuron, x_seq: Tensor) -> None:
    thresholds = neuron.thresholds(x_seq.unsqueeze(1))
    state, leak = neuron.start(x_seq.unsqueeze(1), thresholds), neuron.leak(x_seq.unsqueeze(1))
    times, values, spikes = [0.0], [float(state.v.flatten()[0])], []
    for t, x in enumerate(x_seq.unsqueeze(1), 1):
        before = charged(torch.as_tensor(state.v), x, leak.decay, leak.charge)
        spike, state = neuron.integrate(x.unsqueeze(0), state, thresholds, Sigmoid(4.0), False)
        times += [t, t]
        values += [float(before.flatten()[0]), float(state.v.flatten()[0])]
        if bool(spike.any()):
            spikes.append((t, values[-2]))
    steps = len(x_seq)
    axes.plot(times, values, color=COLOURS[0], lw=1.6, label="potential")
    levels = thresholds.of_steps.expand(steps) if thresholds.of_steps.numel() == 1 else thresholds.of_steps[:steps]
    axes.step([0.5, *(t + 0.5 for t in range(1, steps + 1))], [float(levels[0]), *levels.tolist()], where="pre",
              color=COLOURS[1], ls="--", lw=1.4, label="threshold")  # fmt: skip
    axes.plot([t for t, _ in spikes], [v for _, v in spikes], "^", color=COLOURS[6], ms=7, label="spike")
    step_axis(axes, steps)
    axes.set_xlim(-0.3, steps + 0.6)
    axes.set(xlabel="time step", ylabel="membrane potential")


def _draw_adaptive(axes: Axes, neuron: AdaptiveSpikingNeuron, x_seq: Tensor) -> None:
    state, rows, spikes = neuron.start(x_seq.unsqueeze(1)), [], []
    at_rest = float((neuron.theta_0 * neuron._raw_threshold()).flatten()[0])
    for t, x in enumerate(x_seq.unsqueeze(1), 1):
        threshold = at_rest + float(state.adaptation.flatten()[0])
        spike, state = neuron.integrate(x.unsqueeze(0), state, Sigmoid(4.0), True)
        s_hat = float(state.s_hat.flatten()[0])
        rows.append((float(neuron.unencoded(state).flatten()[0]) + s_hat, s_hat, threshold))
        if bool(spike.any()):
            spikes.append(t)
    time = [neuron.dt * t for t in range(1, len(rows) + 1)]
    names = ("signal S", "encoded by spikes", "threshold")
    for place, (name, values) in enumerate(zip(names, zip(*rows, strict=True), strict=True)):
        axes.plot(time, values, color=COLOURS[place], ls=("-", "-", "--")[place], lw=1.4, label=name)
    below = -0.06 * max(max(row) for row in rows)
    axes.plot([neuron.dt * t for t in spikes], [below] * len(spikes), "|", color=COLOURS[6], ms=8, label="spike")
    axes.set(xlabel="time (ms)", ylabel="signal")


def _settled(neuron: Any, current: Tensor) -> Tensor:
    """Return the mean of the filtered spikes of an adaptive neuron under constant signals ``[K, channels]``."""
    neuron = copy.deepcopy(neuron)
    neuron.analog_input, neuron.bias, steps = True, None, round(_SETTLED_MS / neuron.dt)
    spikes, _ = neuron.integrate(current.expand(steps, -1, -1), neuron.start(current.unsqueeze(0)), Sigmoid(4.0), True)
    filtered, _ = postsynaptic_potential(spikes, tau_beta=neuron.tau_beta, tau_phi=0.0, dt=neuron.dt)
    return filtered[steps // 4 :].mean(0) * (1.0 if neuron.scale_output else neuron.h)


def _clip_level(neuron: Any) -> float:
    """Return the value of T spikes of T: the threshold, or the first point of ATIF-nu."""
    if isinstance(neuron, IntegrateAndFireNeuron):
        return float(neuron.thresholds().clip_level.detach())
    if isinstance(neuron, AdaptiveSpikingNeuron):
        return 2.0 * float(neuron._raw_threshold().detach().flatten()[0])
    host = host_of(neuron)
    if host is None:
        bad_type("neuron", neuron, "a spiking neuron of SpikingJelly or snnTorch")
    return float(neuron.v_threshold if host == "spikingjelly" else neuron.threshold)
