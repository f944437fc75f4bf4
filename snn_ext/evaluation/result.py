"""The result of :func:`snn_ext.evaluate`: figures over time, and figures and files made of them."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .._errors import bad_value
from .._files import intact, replacing, sealed, unsealed
from .energy import ENERGY_45NM, EnergyModel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Evaluation", "LayerEvaluation", "first_crossing", "last_crossing"]


def first_crossing(values: Tensor, level: float) -> int | None:
    """Return the first step (from 1) at which a curve reaches a level, ``None`` if it does not.

    Examples
    --------
    >>> first_crossing(torch.tensor([0.1, 0.9, 0.8, 0.9]), 0.9)
    2
    """
    reached = torch.nonzero(values >= level - 1e-9)
    return int(reached[0]) + 1 if len(reached) else None


def last_crossing(values: Tensor, level: float) -> int | None:
    """Return the step (from 1) from which on a curve stays at a level, ``None`` if it ends below.

    Examples
    --------
    >>> last_crossing(torch.tensor([0.1, 0.9, 0.8, 0.9]), 0.9)
    4
    """
    below = torch.nonzero(~(values >= level - 1e-9))
    step = int(below[-1]) + 2 if len(below) else 1
    return step if step <= len(values) else None


@dataclass
class LayerEvaluation:
    """Figures of one layer that emits spikes, means over the samples.

    Attributes
    ----------
    name : str
        Name of the module in the net.
    kind : {"neuron", "input", "pool"}
        A layer of neurons, one that encodes the image, or a max pooling that lets some spikes pass.
    neurons : int
        Number of neurons, for one sample.
    spikes, synops : Tensor
        Sums for one sample in steps 1..t, ``[T]``. The operations are NaN where the synapses are not known.
    mean_activation : float or None
        Mean activation of the analog net in units of the threshold, over neurons and samples.
    fan_out : float or None
        Synapses of a neuron, mean over the layer.
    fed_macs : int
        Multiply-accumulates, in one pass of the analog net, of the layers that it feeds.
    correlation : dict of int to float
        Pearson's coefficient of rate and activation over neurons and samples, by step.
    scatter : dict of int to Tensor
        An evenly spaced sample of them, ``[2, n]``: rates, activations.
    """

    name: str
    kind: str
    neurons: int
    spikes: Tensor
    synops: Tensor
    mean_activation: float | None = None
    fan_out: float | None = None
    fed_macs: int = 0
    correlation: dict[int, float] = field(default_factory=dict)
    scatter: dict[int, Tensor] = field(default_factory=dict)

    @property
    def spikes_per_neuron(self) -> float:
        """Mean number of spikes of a neuron in all steps."""
        return float(self.spikes[-1]) / self.neurons

    @property
    def normalised_rate(self) -> Tensor:
        """Mean firing rate in steps 1..t over the mean analog activation, ``[T]``; it tends to 1."""
        if not self.mean_activation:
            return torch.full_like(self.spikes, torch.nan)
        steps = torch.arange(1, len(self.spikes) + 1, device=self.spikes.device)
        return self.spikes / (steps * self.neurons * self.mean_activation)


@dataclass
class Evaluation:
    """Figures of a spiking net on a data set, at every step.

    Attributes
    ----------
    time_steps, samples : int
        T, and the number of samples.
    delays : tuple of int
        Steps at the start whose output is not counted, one row of the read-out each.
    top : tuple of int
        A decision is right if the label is among this many of the largest scores.
    correct : Tensor or None
        Share of right decisions by ``metric``, ``[len(top), D, T]``, NaN for t <= delay; ``None`` for data without
        labels.
    analog_correct : tuple of float or None
        The same of the analog net; ``None`` without labels too, or with ``compare=False``.
    mse : Tensor
        Mean squared difference between the mean output since the delay and that of the analog net, ``[D, T]``; in
        the units of the output. While nothing is counted the mean output is 0. NaN with ``compare=False``.
    layers : list of LayerEvaluation
        In the order of the forward pass.
    macs, input_macs, step_macs : int or None
        Multiply-accumulates of one pass of the analog net; those behind an analog input that does not change, spent
        once; and those spent at every step, behind frames and behind weighted sums of spikes. ``None`` where the
        synapses are not known.
    dt : float or None
        Length of a step in ms; ``None`` for neurons whose steps have no length.
    selectivity : float or None
        Share of the samples that were switched to a higher precision; see :class:`snn_ext.evaluation.Arousal`.
    metric : str
        Which decisions are right.
    """

    time_steps: int
    samples: int
    delays: tuple[int, ...]
    top: tuple[int, ...]
    correct: Tensor | None
    analog_correct: tuple[float, ...] | None
    mse: Tensor
    layers: list[LayerEvaluation]
    macs: int | None
    input_macs: int | None
    step_macs: int | None = 0
    dt: float | None = None
    selectivity: float | None = None
    metric: str = "class"

    # -- the read-out ------------------------------------------------------------------------------------------------

    @property
    def accuracy(self) -> Tensor:
        """Share of right decisions at each step, ``[T]``, at the first of the delays."""
        return self.accuracy_at(self.delays[0])

    @property
    def analog_accuracy(self) -> float:
        """Share of right decisions of the analog net."""
        return self._analog_correct()[0]

    def accuracy_at(self, delay: int = 0, top: int | None = None) -> Tensor:
        """Return the share of right decisions at each step, ``[T]``, NaN for steps at which nothing is counted yet."""
        if self.correct is None:
            bad_value("loader", "data without labels", "batches (inputs, labels) for an accuracy")
        top = self.top[0] if top is None else top
        if top not in self.top:
            bad_value("top", top, f"one of those that were counted, {self.top}")
        return self.correct[self.top.index(top), self._row(delay)]

    @property
    def latency(self) -> dict[float, int | None]:
        """First step that reaches 99.0, 99.5 and 99.9 % of the analog accuracy; ``None`` if none does."""
        return self.latency_at()

    def latency_at(
        self,
        delay: int | None = None,
        levels: tuple[float, ...] = (99.0, 99.5, 99.9),
        *,
        last: bool = False,
        top: int | None = None,
    ) -> dict[float, int | None]:
        """Return the step that reaches each level, in percent of the analog accuracy.

        Parameters
        ----------
        delay : int, optional
            One of ``delays``, the first by default; its steps are counted in the latency.
        levels : tuple of float
            Percent of the analog accuracy.
        last : bool
            Return the step from which on the accuracy stays at the level instead of the first that reaches it.
        top : int, optional
            Which of ``top``, the first by default.
        """
        accuracy = self.accuracy_at(self.delays[0] if delay is None else delay, top)
        analog = self._analog_correct()[0 if top is None else self.top.index(top)]
        crossing = last_crossing if last else first_crossing
        return {level: crossing(accuracy, level / 100 * analog) for level in levels}

    def mse_at(self, delay: int = 0) -> Tensor:
        """Return the mean squared error of the output at each step, ``[T]``."""
        return self.mse[self._row(delay)]

    def steps_to_mse(self, reference: float, delay: int = 0) -> int | None:
        """Return the first step whose mean squared error is not above a reference."""
        reached = torch.nonzero(self.mse_at(delay) <= reference * (1 + 1e-9))
        return int(reached[0]) + 1 if len(reached) else None

    def _analog_correct(self) -> tuple[float, ...]:
        self.accuracy_at(self.delays[0])  # which raises for data without labels
        if self.analog_correct is None:
            bad_value("compare", False, "True for the accuracy of the analog net")
        return self.analog_correct

    def _row(self, delay: int) -> int:
        if delay not in self.delays:
            bad_value("delay", delay, f"one of those that were evaluated, {self.delays}")
        return self.delays.index(delay)

    # -- in milliseconds ---------------------------------------------------------------------------------------------

    @property
    def firing_rate(self) -> float:
        """Spikes of a neuron in a second, averaged over all neurons, samples and the whole stimulus, in Hz."""
        neurons = sum(layer.neurons for layer in self.layers if layer.kind != "pool")
        return float(self.spikes[-1]) / (neurons * self.time_steps * self._milliseconds()) * 1e3

    def matching_time(self, level: float = 99.0) -> float | None:
        """Return the time in ms at which the accuracy first reaches ``level`` percent of its own maximum.

        Source: Zambrano et al. 2017, matching time.
        """
        dt, accuracy = self._milliseconds(), self.accuracy
        step = first_crossing(accuracy, level / 100 * float(accuracy[~accuracy.isnan()].max()))
        return None if step is None else step * dt

    def stability(self, level: float = 99.0) -> float:
        """Return the standard deviation of the accuracy from the matching time to the end."""
        time = self.matching_time(level)
        assert time is not None  # the maximum is reached
        kept = self.accuracy[round(time / self._milliseconds()) - 1 :]
        return float(kept.std(correction=0))

    def _milliseconds(self) -> float:
        if self.dt is None:
            bad_value("snn", "a net whose steps have no length", "adaptive neurons: convert(..., method='adsnn')")
        return self.dt

    # -- operations --------------------------------------------------------------------------------------------------

    @property
    def spikes(self) -> Tensor:
        """Spikes of all neurons for one sample in steps 1..t, ``[T]``: the count of operations of Hwang et al. 2021."""
        return torch.stack([layer.spikes for layer in self.layers if layer.kind != "pool"]).sum(0)

    @property
    def synops(self) -> Tensor:
        """Synaptic operations for one sample in steps 1..t, ``[T]``: each spike times its true fan-out."""
        return torch.stack([layer.synops for layer in self.layers]).sum(0)

    @property
    def ac_mac_ratio(self) -> Tensor:
        """Accumulates of the spiking net over multiply-accumulates of the analog one, in steps 1..t, ``[T]``.

        Sum over the layers of neurons of (mean cumulative spikes per neuron times the multiply-accumulates of the
        layers that they feed), over the multiply-accumulates of one analog pass; the spikes of an input encoder are
        left out. A multiply-accumulate that is spent at every step counts as an accumulate. NaN where the synapses are
        not known. Source: Sengupta et al. 2019.
        """
        fed = [layer.spikes / layer.neurons * layer.fed_macs for layer in self.layers if layer.kind != "input"]
        return sum(fed, self.multiply_accumulates - _or_nan(self.input_macs)) / _or_nan(self.macs)

    @property
    def multiply_accumulates(self) -> Tensor:
        """Multiply-accumulates of the spiking net for one sample in steps 1..t, ``[T]``; NaN where not known."""
        steps = torch.arange(1, self.time_steps + 1, dtype=torch.float64, device="cpu")
        return _or_nan(self.input_macs) + _or_nan(self.step_macs) * steps

    def energy(self, model: EnergyModel = ENERGY_45NM) -> Tensor:
        """Return the energy in picojoule for one sample in steps 1..t, ``[T]``."""
        return model.accumulate * self.synops + model.multiply_accumulate * self.multiply_accumulates

    def analog_energy(self, model: EnergyModel = ENERGY_45NM) -> float:
        """Return the energy in picojoule of one pass of the analog net."""
        return model.analog(_or_nan(self.macs))

    # -- files -------------------------------------------------------------------------------------------------------

    def to_json(self, path: Path | str | None = None) -> str:
        """Return all figures as JSON (NaN as null), and write them to a file if one is named, whole or not at all.

        The last entry, ``sha256``, is a digest of all others, by which :meth:`from_json` notices damage.
        """
        content = {name: value for name, value in vars(self).items() if name != "layers"}
        content["layers"] = [vars(layer) for layer in self.layers]
        text = json.dumps(sealed(_plain(content)), allow_nan=False)
        if path is not None:
            with replacing(Path(path)) as temporary:
                temporary.write_text(text + "\n", encoding="utf-8")
        return text

    @classmethod
    def from_json(cls, text: str) -> Evaluation:
        """Build an evaluation from the text of :meth:`to_json`; ``ValueError`` if anything in it has changed."""
        with intact("text", "what Evaluation.to_json wrote", "evaluate again"):
            content = unsealed(json.loads(text))
            layers = []
            for layer in content.pop("layers"):
                layer["spikes"], layer["synops"] = _tensor(layer["spikes"]), _tensor(layer["synops"])
                layer["correlation"] = {int(t): torch.nan if r is None else r for t, r in layer["correlation"].items()}
                layer["scatter"] = {int(t): _tensor(pairs).float() for t, pairs in layer["scatter"].items()}
                layers.append(LayerEvaluation(**layer))
            for name in ("correct", "mse"):
                content[name] = None if content[name] is None else _tensor(content[name])
            for name in ("delays", "top", "analog_correct"):
                content[name] = None if content[name] is None else tuple(content[name])
            return cls(layers=layers, **content)

    def to_csv(self, path: Path | str) -> None:
        """Write one line for each step: the accuracy of every delay, its error, and operations by layer."""
        columns: dict[str, Tensor] = {"step": torch.arange(1, self.time_steps + 1, device="cpu")}
        for delay in self.delays:
            for k in self.top if self.correct is not None else ():
                columns[f"top{k}_delay{delay}"] = self.accuracy_at(delay, k)
            columns[f"mse_delay{delay}"] = self.mse_at(delay)
        columns |= {"spikes": self.spikes, "synops": self.synops, "ac_mac_ratio": self.ac_mac_ratio}
        columns["energy_pj"] = self.energy()
        for layer in self.layers:
            columns[f"spikes_{layer.name}"], columns[f"synops_{layer.name}"] = layer.spikes, layer.synops
            columns[f"normalised_rate_{layer.name}"] = layer.normalised_rate
        with replacing(Path(path)) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(zip(*(values.tolist() for values in columns.values()), strict=True))

    def plot(self, path: Path | str | None = None) -> Figure:
        """Draw accuracy, normalised rates, operations over time, and spikes by depth; needs matplotlib.

        Parameters
        ----------
        path : Path or str, optional
            A file to write the figure to, whole or not at all.
        """
        from ..plots import overview

        figure = overview(self)
        if path is not None:
            with replacing(Path(path)) as temporary:
                figure.savefig(temporary, dpi=150)
        return figure

    def __repr__(self) -> str:
        text = f"Evaluation({self.samples:,} samples, T = {self.time_steps}"
        if self.correct is not None:
            text += f", {self.accuracy[-1]:.2%}"
        if self.analog_correct is not None:
            text += f" (analog {self.analog_accuracy:.2%}), latency {self.latency}"
        text += f", {self.spikes[-1]:,.0f} spikes and {self.synops[-1]:,.0f} SynOps a sample"
        return text + (f", {self.step_macs:,} MACs a step)" if self.step_macs else ")")


def _or_nan(number: int | None) -> float:
    return torch.nan if number is None else number


def _plain(value: Any) -> Any:
    """Return a value in the types of JSON; a number that is not finite becomes null."""
    if isinstance(value, Tensor):
        return _plain(value.tolist())
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and value - value != 0 else value


def _tensor(values: Any) -> Tensor:
    def numbers(value: Any) -> Any:
        return [numbers(v) for v in value] if isinstance(value, list) else torch.nan if value is None else value

    return torch.tensor(numbers(values), dtype=torch.float64, device="cpu")
