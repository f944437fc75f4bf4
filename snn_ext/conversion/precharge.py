"""Pre-charged membrane potentials: the search, layer by layer, and the baseline of lowered thresholds."""

from __future__ import annotations

import copy
from typing import Any

import torch
from spikingjelly.activation_based import base
from torch import Tensor, fx, nn

from .._errors import bad_type, bad_value, check_count, check_real
from .._progress import bar
from .._together import all_or_nothing
from ..neurons import IntegrateAndFireNeuron
from ..simulation.analog import AnalogTwin
from .batches import Batches
from .canonicalize import canonicalize
from .layerwise import Layerwise
from .modules import over_channels
from .net import ConvertedNet
from .report import LayerReport
from .spiking import INPUT, OUTPUT, neurons
from .weights import multiply

__all__ = ["lower_thresholds", "optimize_precharge", "precharge_errors"]


@torch.no_grad()
def optimize_precharge(
    snn: ConvertedNet,
    ann: nn.Module | None,
    loader: Any,
    *,
    time_steps: int = 255,
    candidates: int = 51,
    memory: int = 1 << 30,
    output: str | int | None = None,
    progress: bool = True,
) -> list[float]:
    r"""Find the pre-charge of one layer after the other, and set it.

    For each layer l the candidate in ``linspace(0, 0.5, candidates)`` with the smallest

    .. math:: J_l(v) = \sum_{t=1}^{T} \left\langle [r^l(t; v) - a^l]^2 \right\rangle

    is taken, with :math:`r` the rates up to step t, :math:`a` the normalised activations of the analog net, and the
    layers before l at the pre-charges already found. One pass over the current into the layer runs all candidates.

    Parameters
    ----------
    snn : ConvertedNet
        A net of the streaming schedule; its pre-charges are replaced, those of quantised activations too.
    ann : nn.Module or None
        The net that it was converted from; with ``None`` the spiking net's graph with rectifiers for neurons.
    loader : Tensor, iterable or callable
        Inputs, as for :func:`snn_ext.convert`.
    time_steps : int
        T.
    candidates : int
        Number of values, 0 and 0.5 included.
    memory : int
        Bytes for spike trains.
    output : str or int, optional
        The output of ``ann`` that was converted, of several.
    progress : bool
        Show a progress bar (tqdm) on a terminal.

    Returns
    -------
    list of float
        The pre-charge of each layer in units of its threshold, in the order of ``snn.report``.

    Notes
    -----
    Source: Hwang et al. 2021, algorithm 1 and equation 6.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> import snn_ext
    >>> from snn_ext.conversion import optimize_precharge
    >>> ann, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.rand(64, 4)
    >>> snn = snn_ext.convert(ann, x, method="data-norm")
    >>> len(optimize_precharge(snn, ann, x, time_steps=32))
    1
    """
    reported = _reported_neurons(snn)
    if snn.schedule != "streaming":
        bad_value("snn", f"the schedule {snn.schedule!r}", "'streaming': the phased one is exact as it is")
    if ann is not None and not isinstance(ann, nn.Module):
        bad_type("ann", ann, "an nn.Module, or None")
    check_count("time_steps", time_steps)
    if check_count("candidates", candidates) < 2:
        bad_value("candidates", candidates, "at least 2")
    batches = list(Batches(loader, _device(snn)))
    values = torch.linspace(0.0, 0.5, candidates, dtype=torch.float32)
    analog = AnalogTwin(snn)
    targets = [analog.rates(x) for x in batches] if ann is None else _activations_of(ann, snn, batches, output)
    shared = (t for t in (*snn.parameters(), *base.memories(snn)) if isinstance(t, Tensor))
    trial = copy.deepcopy(snn, {id(t): t for t in shared})  # an interruption leaves the net itself unchanged
    layers = Layerwise(trial, batches, time_steps, memory)
    found: list[float] = []
    for node in bar("find pre-charges", "layer", layers.layers(), progress=progress):
        neuron: Any = trial.get_submodule(str(node.target))
        errors = torch.zeros(candidates, dtype=torch.float64)
        for batch, activations in enumerate(targets):
            errors += precharge_errors(layers, node, batch, neuron, activations[str(node.target)], values)
        best = float(values[int(errors.argmin())])
        neuron.v_init = torch.full_like(neuron.v_init[:1], best)
        found.append(best)
        for _ in layers.finish(node):
            pass
    places = [place for layer, neuron in reported for place in ((layer, "precharge"), (neuron, "v_init"))]
    with all_or_nothing(places):
        for (layer, neuron), value in zip(reported, found, strict=True):
            neuron.v_init = torch.full_like(neuron.v_init[:1], value)
            layer.precharge = value
    return found


def precharge_errors(
    layers: Layerwise, node: fx.Node, batch: int, neuron: IntegrateAndFireNeuron, activation: Tensor, values: Tensor
) -> Tensor:
    """Return for each candidate the squared error of the rates, averaged over neurons and summed over time."""
    errors, search, time = torch.zeros(len(values), dtype=torch.float64), None, 0
    for current in layers.current(node, batch):
        if search is None:
            search = _Candidates(neuron, current, activation, values)
        errors += search.advance(current, time)
        time += len(current)
    return errors / len(activation[0].flatten()) / sum(map(len, layers.batches))


# Candidates times neurons that are advanced at a time: the state stays in the second-level cache.
_BLOCK = 49_152


class _Candidates:
    """One layer at all pre-charges at once: the neuron's own arithmetic, with a row of states for each candidate."""

    def __init__(self, neuron: Any, current: Tensor, activation: Tensor, values: Tensor) -> None:
        theta = neuron.thresholds().of_steps
        if len(theta) > 1:
            bad_value("snn", "a neuron with a threshold for each step", "neurons with one threshold")
        if theta.ndim > 1:  # for each channel
            self.theta = neuron._of_step(neuron.thresholds(), 0, activation.shape).expand(activation.shape).flatten()
        else:
            self.theta = theta.reshape(())
        self.zero = neuron._reset_kind() == "zero"
        self.fires = torch.ge if neuron.fire_at_threshold else torch.gt
        self.activation = activation.flatten().to(theta.dtype)
        start = values.to(theta).unsqueeze(1) * self.theta
        self.v = start.expand(-1, self.activation.numel()).contiguous()
        self.count = torch.zeros_like(self.v)

    def advance(self, current: Tensor, time: int) -> Tensor:
        """Integrate a chunk; return the sum of squared errors over its steps and neurons."""
        rows, size = current.flatten(1), self.activation.numel()
        errors = torch.zeros(len(self.v), dtype=torch.float64, device=self.v.device)
        width = max(1, _BLOCK // len(self.v))
        for start in range(0, size, width):
            block = slice(start, min(start + width, size))
            theta = self.theta[block] if self.theta.ndim else self.theta
            v, count, a = self.v[:, block].contiguous(), self.count[:, block].contiguous(), self.activation[block]
            spike, gap = torch.empty_like(v), torch.empty_like(v)
            for step, x in enumerate(rows[:, block], time + 1):
                v += x
                self.fires(v, theta, out=spike)
                if self.zero:
                    v.masked_fill_(spike != 0, 0.0)
                else:
                    v.addcmul_(spike, theta, value=-1.0)
                count += spike
                torch.mul(count, 1.0 / step, out=gap).sub_(a)
                errors += torch.linalg.vector_norm(gap, dim=1).double().square()
            self.v[:, block], self.count[:, block] = v, count
        return errors.cpu()


def lower_thresholds(snn: ConvertedNet, factor: float) -> None:
    """Multiply all thresholds in place, without a change of the weights: the baseline beside pre-charge.

    Neurons then fire earlier, but their rates stay wrong: too high by ``1 / factor``.

    Parameters
    ----------
    snn : ConvertedNet
        Changed in place, with its report.
    factor : float
        In (0, 1].

    Notes
    -----
    Source: Hwang et al. 2021, who compare it with the pre-charged membrane potential.
    """
    reported = _reported_neurons(snn)
    if check_real("factor", factor, "a number in (0, 1]", 0.0, 1.0) <= 0:
        bad_value("factor", factor, "a number in (0, 1]")
    records = [(layer, name) for layer, _ in reported for name in ("threshold", "rule")]
    with all_or_nothing([*records, *((neuron, neuron.threshold_name) for _, neuron in reported)]):
        for layer, neuron in reported:
            multiply(neuron, neuron.threshold_name, torch.tensor(factor, dtype=torch.float64))
            old = layer.threshold
            layer.threshold = [t * factor for t in old] if isinstance(old, list) else old * factor
            layer.rule = f"{layer.rule}, lowered by {factor:g}"


def _reported_neurons(snn: ConvertedNet) -> list[tuple[LayerReport, Any]]:
    """Return the layers of integrate-and-fire neurons of a converted net, each with its record."""
    if not isinstance(snn, ConvertedNet):
        bad_type("snn", snn, "a converted net")
    found: dict[str, Any] = {name: snn.get_submodule(name) for name in neurons(snn.one_step())}
    for name, neuron in found.items():
        if not isinstance(neuron, IntegrateAndFireNeuron):
            bad_value("snn", f"{name} ({type(neuron).__name__})", "a net of integrate-and-fire neurons")
    if list(found) != [layer.name for layer in snn.report]:
        bad_value(
            "snn", f"a report of {len(snn.report)} layers", f"a net of convert(), whose report names {list(found)}"
        )
    return [(layer, found[layer.name]) for layer in snn.report]


def _activations_of(
    ann: nn.Module, snn: ConvertedNet, batches: list[Tensor], of: str | int | None
) -> list[dict[str, Tensor]]:
    """Return the activations of the net that a spiking one was converted from, in units of its thresholds."""
    analog = canonicalize(ann, batches[0], output=of)
    record: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda module, inputs, output: record.update({name: output})

    for name in analog.activations:
        analog.graph.get_submodule(name).register_forward_hook(keep(name))
    found: list[dict[str, Tensor]] = []
    for x in batches:
        output = analog.graph(x)
        values = record | {INPUT: x.clamp(0.0, 1.0), OUTPUT: output.relu()}
        missing = next((layer.name for layer in snn.report if layer.name not in values), None)
        if missing is not None:
            raise ValueError(
                f"ann: got {type(ann).__name__} without the activation {missing}, want the net that snn was "
                "converted from"
            )
        scales = {layer.name: torch.tensor(layer.scale).to(x) for layer in snn.report}
        found.append({n: values[n] / over_channels(scale, values[n].ndim) for n, scale in scales.items()})
    return found


def _device(net: nn.Module) -> torch.device | None:
    return next((t.device for t in (*net.parameters(), *net.buffers())), None)
