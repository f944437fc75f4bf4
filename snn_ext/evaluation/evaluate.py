"""Evaluation of a spiking net on a data set: :func:`evaluate` simulates it and sums up decisions and spikes."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence, Sized
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._errors import bad_type, bad_value, check_bool, check_count
from ..simulation.analog import AnalogTwin
from ..simulation.counts import PhasedSimulation
from ..simulation.engine import Simulation
from ..simulation.graph import as_graph, evaluating, smoothed_readout, step_length
from .arousal import Arousal, ArousedSimulation
from .batches import check_finite, check_finite_weights, check_labels, numbered
from .fingerprint import fingerprint
from .metrics import LayerSums, ReadoutSums
from .result import Evaluation, LayerEvaluation
from .resume import ResumeFile
from .synapses import Synapses, count_synapses

__all__ = ["evaluate"]


@torch.no_grad()
def evaluate(
    snn: nn.Module,
    loader: Iterable[Any],
    time_steps: int,
    *,
    ann: nn.Module | None = None,
    delay: int | Sequence[int] = 0,
    chunk: int | None = None,
    memory: int = 1 << 30,
    correlation_steps: Sequence[int] = (),
    top: Sequence[int] = (1,),
    arousal: Arousal | None = None,
    resume: Path | str | None = None,
    progress: bool = True,
) -> Evaluation:
    """Simulate a spiking net and measure accuracy, latency, rates and operations at every step.

    The output is summed up over time; the class with the largest sum is the decision, of equal ones the first. One
    simulation gives every stopping time of every delay. A read-out that is smoothed, as that of adaptive spiking
    neurons, decides by its value at each step instead.

    Parameters
    ----------
    snn : nn.Module
        A converted net, a trained :class:`snn_ext.ConstantInputNet`, or any traceable net of SpikingJelly neurons. It
        runs in eval mode, step by step, and is reset; its modes are restored.
    loader : iterable
        Batches ``(inputs, labels)``, or inputs alone: then there are errors and operations, and no accuracy. Samples
        have one shape, batches any size.
    time_steps : int
        T. All steps are counted.
    ann : nn.Module, optional
        The analog net whose accuracy the latencies refer to. By default it is that of the spiking net's own graph,
        with ReLUs in place of its neurons.
    delay : int or sequence of int
        Steps at the start whose output is not counted (delayed evaluation); several are all evaluated.
    chunk : int, optional
        Steps that are simulated at a time; by default as many as ``memory`` allows.
    memory : int
        Bytes that the simulation of a converted net may take.
    correlation_steps : sequence of int
        Steps at which the rate of every neuron is compared with its analog activation.
    top : sequence of int
        ``(1, 5)`` counts decisions also as right if the label is among the five largest.
    arousal : Arousal, optional
        For a net of adaptive spiking neurons: uncertain samples get a higher precision.
    resume : Path or str, optional
        A file in which the sums are saved after every batch. If it is there from an interrupted call with the same
        nets, settings and batches, that call is continued; the file of another call is refused. It is removed at the
        end.
    progress : bool
        Show a progress bar (tqdm).

    Returns
    -------
    Evaluation

    Raises
    ------
    ValueError
        Also if inputs, weights or outputs are not finite: a neuron with a potential of NaN is silent, and a comparison
        with NaN decides for any class.

    Notes
    -----
    A phased net that runs for its latency is evaluated by integer counts, which takes about as long as an analog net
    (:class:`snn_ext.simulation.PhasedSimulation`), unless ``chunk`` or ``correlation_steps`` ask for single steps.

    Rates and activations are in units of the thresholds. Source of the metrics: Hwang et al. 2021 and Sengupta et al.
    2019.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from snn_ext import evaluate
    >>> from snn_ext.spikingjelly import PCMPIFNode
    >>> net = nn.Sequential(nn.Linear(2, 4), PCMPIFNode(precharge=0.5), nn.Linear(4, 2))
    >>> batch = torch.rand(8, 2), torch.randint(2, (8,))
    >>> evaluation = evaluate(net, [batch], 16, progress=False)
    >>> evaluation.accuracy.shape, len(evaluation.layers)
    (torch.Size([16]), 1)
    """
    delays = (delay,) if isinstance(delay, int) else tuple(delay)
    top, correlation_steps = tuple(top), tuple(sorted(correlation_steps))
    _check(time_steps, delays, top, correlation_steps, memory)
    check_bool("progress", progress)
    if ann is not None and not isinstance(ann, nn.Module):
        bad_type("ann", ann, "an nn.Module, or None")
    graph = as_graph(snn, "snn")
    smoothed = smoothed_readout(graph)
    if delays != (0,) and smoothed:
        bad_value("delay", delay, "0 for a read-out that is smoothed: no output is summed up, so none is left out")
    simulation: Simulation | ArousedSimulation = Simulation(graph, chunk=chunk, memory=memory)
    if arousal is not None:
        if not isinstance(arousal, Arousal):
            bad_type("arousal", arousal, "an Arousal, or None")
        simulation = ArousedSimulation(graph, arousal, chunk=chunk, memory=memory)
    if not set(simulation.events.kinds.values()) - {"pool"}:
        bad_value("snn", type(snn).__name__, "a net with at least one spiking neuron")
    nets = {"snn": simulation.graph} if ann is None else {"snn": simulation.graph, "ann": ann}
    for name, net in nets.items():
        check_finite_weights(name, net)
    with evaluating([m for net in nets.values() for m in net.modules() if m is not simulation.graph]):
        run = _Run(simulation, ann, ReadoutSums(time_steps, delays, top, smoothed), correlation_steps)
        if resume is None:
            for number, x, labels in _progress(numbered(loader), loader, progress):
                run.add(number, x, labels)
            return run.result()
        settings = {"time_steps": time_steps, "delays": delays, "top": top, "correlation_steps": correlation_steps}
        hashes = {"arousal": repr(arousal), "snn": fingerprint(simulation.graph), "ann": fingerprint(ann)}
        file = ResumeFile(resume, settings | hashes)
        file.restore(run)
        for number, x, labels, done in _progress(file.batches(loader), loader, progress):
            run.add(number, x, labels, done)
            if not done:
                file.save(run)
        result = run.result()
        file.remove()
        return result


class _Run:
    """The sums of one evaluation."""

    def __init__(
        self,
        simulation: Simulation | ArousedSimulation,
        ann: nn.Module | None,
        readout: ReadoutSums,
        correlation_steps: tuple[int, ...],
    ) -> None:
        self.simulation, self.ann, self.readout = simulation, ann, readout
        graph, self.correlation_steps, self.aroused = simulation.graph, correlation_steps, 0
        self.twin = AnalogTwin(graph, keep=bool(correlation_steps))
        time_steps, kinds = readout.time_steps, simulation.events.kinds
        self.by_counts: PhasedSimulation | None = None
        if not correlation_steps and isinstance(simulation, Simulation) and simulation.chunk is None:
            if PhasedSimulation.admits(simulation, time_steps):
                self.by_counts = PhasedSimulation(simulation)
        self.layers = {name: LayerSums(time_steps, correlation_steps) for name in kinds}
        self.synapses: Synapses | None = None
        self.labelled: bool | None = None  # not known yet
        self._is_counted, self._sample = False, torch.empty(0)
        self.device = next((t.device for t in (*graph.parameters(), *graph.buffers())), torch.device("cpu"))

    def add(self, number: int, x: Tensor, labels: Tensor | None, done: bool = False) -> None:
        """Simulate a batch and add it to the sums, unless they hold it already."""
        if self.labelled not in (None, labels is not None):
            bad_value("loader", "batches with and without labels", "labels in all of them or in none")
        self.labelled = labels is not None
        self._sample = x[:1]
        if done:
            return
        x, labels = x.to(self.device), None if labels is None else labels.to(self.device)
        self._count_synapses()
        place = f"in batch {number}"
        self._begin(x, labels, place)
        t = 0
        for output in self._outputs(x):
            check_finite("snn", output, f"an output in steps {t + 1} to {t + len(output)} {place}")
            self.readout.add(output)
            t += len(output)
        for layer in self.layers.values():
            layer.end()
        if isinstance(self.simulation, ArousedSimulation):
            self.aroused += int(self.simulation.aroused.sum())

    def _outputs(self, x: Tensor) -> Iterator[Tensor]:
        time_steps = self.readout.time_steps
        if self.by_counts is None:
            return self.simulation.run(x, time_steps, self._observe)
        return self.by_counts.run(x, time_steps, self._observe_counts)

    def _begin(self, x: Tensor, labels: Tensor | None, place: str) -> None:
        """Run the analog nets, and hand their outputs and activations to the sums."""
        analog = self.twin(x)
        if not isinstance(analog, Tensor):
            bad_value("snn", f"an output of type {type(analog).__name__}", "one tensor [N, ...]")
        for name, total in self.twin.sums.items():
            if not math.isfinite(total):
                bad_value("snn", f"NaN or infinite activations of {name} {place}", "finite numbers")
        check_finite("snn", analog, f"an analog output {place}")
        if labels is not None:
            scores = analog if self.ann is None else self.ann(x)
            labels = check_labels(labels, scores)
            check_finite("ann", scores, f"an output {place}")
            self.readout.count_analog(scores, labels)
        self.readout.begin(analog, labels)
        for name, layer in self.layers.items():
            layer.begin(self.twin.sums.get(name), self.twin.activations.get(name))

    def _observe(self, name: str, module: nn.Module, spikes: Tensor) -> None:
        self.layers[name].add(spikes)

    def _observe_counts(self, name: str, start: int, counts: Tensor) -> None:
        assert self.by_counts is not None
        self.layers[name].add_counts(start, counts, self.by_counts.graph.time_steps)

    def _count_synapses(self) -> None:
        """Count the synapses once, at the shape that all samples have."""
        if self._is_counted:
            return
        try:
            self.synapses = count_synapses(self.simulation.graph, self._sample.to(self.device), self.simulation.events)
        except ValueError as error:
            warnings.warn(f"{error}; synaptic operations are left out", stacklevel=5)
        fan_out = {} if self.synapses is None else self.synapses.fan_out
        for name in self.layers.keys() & fan_out.keys():
            self.layers[name].fan_out = fan_out[name].flatten().double().to(self.device)
        self._is_counted = True

    def state_dict(self) -> dict[str, Any]:
        layers = {name: layer.state_dict() for name, layer in self.layers.items()}
        readout = self.readout.state_dict()
        return {"readout": readout, "layers": layers, "labelled": self.labelled, "aroused": self.aroused}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["layers"].keys() != self.layers.keys():
            raise ValueError(f"layers: got {[*state['layers']]}, want {[*self.layers]}")
        self.readout.load_state_dict(state["readout"])
        self.labelled, self.aroused = state["labelled"], state["aroused"]
        for name, layer in state["layers"].items():
            self.layers[name].load_state_dict(layer)

    def result(self) -> Evaluation:
        """Turn the sums into means."""
        if not self.readout.samples:
            bad_value("loader", "no batch", "at least one")
        self._count_synapses()  # if the sums held all batches
        readout, samples, known = self.readout, self.readout.samples, self.synapses
        correct = analog = None
        if self.labelled:
            correct = readout.correct.double() / samples
            for row, delay in enumerate(readout.delays):
                correct[:, row, :delay] = torch.nan
            analog = tuple((readout.analog_correct.double() / samples).tolist())
        return Evaluation(
            time_steps=readout.time_steps,
            samples=samples,
            delays=readout.delays,
            top=readout.top,
            correct=correct,
            analog_correct=analog,
            mse=readout.squared_error / samples,
            layers=[self._layer(name, sums) for name, sums in self.layers.items()],
            macs=None if known is None else known.macs,
            input_macs=None if known is None else known.input_macs,
            dt=step_length(self.simulation.graph),
            selectivity=self.aroused / samples if isinstance(self.simulation, ArousedSimulation) else None,
        )

    def _layer(self, name: str, sums: LayerSums) -> LayerEvaluation:
        samples, fan_out = self.readout.samples, sums.fan_out
        pairs = torch.cat(sums.scatter, dim=2) if sums.scatter else None
        correlation = sums.correlation().tolist() if sums.analog else []
        return LayerEvaluation(
            name=name,
            kind=self.simulation.events.kinds[name],
            neurons=sums.neurons,
            spikes=sums.spikes.cumsum(0) / samples,
            synops=torch.full_like(sums.synops, torch.nan) if fan_out is None else sums.synops.cumsum(0) / samples,
            mean_activation=sums.activation / (samples * sums.neurons) if sums.analog else None,
            fan_out=None if fan_out is None else float(fan_out.mean()),
            fed_macs=0 if self.synapses is None else self.synapses.fed_macs.get(name, 0),
            correlation=dict(zip(self.correlation_steps, correlation, strict=False)),
            scatter={} if pairs is None else dict(zip(self.correlation_steps, pairs, strict=True)),
        )


def _check(
    time_steps: int, delays: tuple[int, ...], top: tuple[int, ...], correlation_steps: tuple[int, ...], memory: int
) -> None:
    check_count("time_steps", time_steps)
    check_count("memory", memory)
    if not delays or any(isinstance(d, bool) or not isinstance(d, int) or not 0 <= d < time_steps for d in delays):
        bad_value("delay", delays, f"ints in [0, {time_steps})")
    if len(set(delays)) < len(delays):
        bad_value("delay", delays, "different ones")
    if not top or any(isinstance(k, bool) or not isinstance(k, int) or k < 1 for k in top):
        bad_value("top", top, "ints >= 1")
    if any(isinstance(t, bool) or not isinstance(t, int) or not 1 <= t <= time_steps for t in correlation_steps):
        bad_value("correlation_steps", correlation_steps, f"ints in [1, {time_steps}]")


def _progress(batches: Iterator[Any], loader: Iterable[Any], progress: bool) -> Iterator[Any]:
    """Yield the batches, with a progress bar if one is wanted."""
    if not progress:
        return batches
    from tqdm import tqdm  # SpikingJelly requires it

    total = None
    with suppress(TypeError):  # a loader of a stream has a length that it does not know
        total = len(loader) if isinstance(loader, Sized) else None
    return iter(tqdm(batches, "evaluate", total, unit="batch", dynamic_ncols=True))
