"""Simulating a net on a data set and summing up what it does: :func:`evaluate`."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, fx, nn

from .._errors import bad_type, bad_value, check_bool, check_count
from .._files import intact, load_tensors, save_tensors
from ..simulation.analog import AnalogTwin
from ..simulation.engine import Simulation
from ..simulation.graph import as_graph, event_sources, is_spiking, module_of, smoothed_readout, step_length
from .arousal import Arousal, ArousedSimulation
from .batches import check_finite, check_finite_weights, check_labels, numbered
from .fingerprint import DataFingerprint, fingerprint
from .metrics import LayerSums, ReadoutSums
from .result import Evaluation, LayerEvaluation
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
        A converted net, or any traceable net of SpikingJelly neurons in step mode "s". It runs in eval mode and is
        reset; its modes are restored.
    loader : iterable
        Batches ``(inputs, labels)``, or inputs alone: then there are errors and operations, and no accuracy. Samples
        have one shape, batches any size.
    time_steps : int
        T, all of them counted.
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
        For a net of adaptive spiking neurons: samples of which it is not certain get a higher precision.
    resume : Path or str, optional
        A file in which the state is kept after every batch. If it is there from an interrupted call with the same
        nets, settings and batches, that call is continued, of others it is refused; it is removed at the end.
    progress : bool
        Show a progress bar (tqdm).

    Returns
    -------
    Evaluation

    Raises
    ------
    TypeError, ValueError
        Naming the argument, what came and what is wanted; also if inputs, weights or outputs are not finite: a
        neuron with a potential of NaN is silent, and a comparison of NaN decides for any class.

    Notes
    -----
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
    if not any(is_spiking(module_of(graph, node)) for node in graph.graph.nodes):
        bad_value("snn", type(snn).__name__, "a net with at least one spiking neuron")
    if delays != (0,) and smoothed_readout(graph):
        bad_value("delay", delay, "0 for a read-out that is smoothed: no output is summed up, so none is left out")
    simulation: Simulation | ArousedSimulation = Simulation(graph, chunk=chunk, memory=memory)
    if arousal is not None:
        if not isinstance(arousal, Arousal):
            bad_type("arousal", arousal, "an Arousal, or None")
        simulation = ArousedSimulation(graph, arousal, chunk=chunk, memory=memory)
        graph = simulation.low
    for name, net in (("snn", graph), ("ann", ann)):
        if net is not None:
            check_finite_weights(name, net)
    with _as_it_is_measured(graph, ann):
        run = _Run(graph, ann, time_steps, delays, top, correlation_steps, arousal)
        state = None if resume is None else _State(Path(resume), run.settings())
        batches = run.batches(loader, state)
        for x, labels in _progress(batches, loader, progress, run):
            run.batch(simulation, x, labels)
            if state is not None:
                state.save(run)
        result = run.result()
        if state is not None:
            state.remove()
        return result


@contextmanager
def _as_it_is_measured(graph: fx.GraphModule, ann: nn.Module | None) -> Iterator[None]:
    """Evaluation mode, and layers in step mode "s"; both are restored."""
    modules = [m for net in (graph, ann) if net is not None for m in net.modules()]
    training = [m.training for m in modules]
    sequential = [m for m in graph.modules() if m is not graph and getattr(m, "step_mode", "s") == "m"]
    try:
        for module in modules:
            module.training = False
        for module in sequential:
            module.step_mode = "s"  # type: ignore[assignment]
        yield
    finally:
        for module, mode in zip(modules, training, strict=True):
            module.training = mode
        for module in sequential:
            module.step_mode = "m"  # type: ignore[assignment]


class _Run:
    """The sums of one evaluation, and the batch that is under way."""

    def __init__(
        self,
        graph: fx.GraphModule,
        ann: nn.Module | None,
        time_steps: int,
        delays: tuple[int, ...],
        top: tuple[int, ...],
        correlation_steps: tuple[int, ...],
        arousal: Arousal | None = None,
    ) -> None:
        self.arousal, self.aroused = arousal, 0
        self.graph, self.ann, self.time_steps, self.correlation_steps = graph, ann, time_steps, correlation_steps
        self.readout = ReadoutSums(time_steps, delays, top, smoothed_readout(graph))
        self.layers: dict[str, LayerSums] = {}
        self.synapses: Synapses | None = None  # not known, or not yet
        self._prepared = False
        self.twin, self.sources = AnalogTwin(graph, keep=bool(correlation_steps)), event_sources(graph)
        self.labelled: bool | None = None
        self.done, self.digest = 0, ""
        parameter = next(graph.parameters(), next(graph.buffers(), None))
        self.device = torch.device("cpu") if parameter is None else parameter.device

    def settings(self) -> dict[str, Any]:
        """Return what an interrupted evaluation has to have in common with the one that continues it."""
        return {
            "time_steps": self.time_steps, "delays": self.readout.delays, "top": self.readout.top,
            "correlation_steps": self.correlation_steps, "arousal": repr(self.arousal),
            "snn": fingerprint(self.graph), "ann": fingerprint(self.ann),
        }  # fmt: skip

    def batches(self, loader: Iterable[Any], state: _State | None) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yield the batches that are still to do; those that are done have to be the same ones."""
        done, digest = state.restore(self) if state is not None else (0, "")
        data, number, first = DataFingerprint(), 0, torch.empty(0)
        for number, x, labels in numbered(loader):
            if self.labelled not in (None, labels is not None):
                bad_value("loader", "batches with and without labels", "labels in all of them or in none")
            self.labelled, self.done = labels is not None, number
            if state is not None:
                self.digest = data.add(x, labels)
            first = x if number == 1 else first
            if number > done:
                self._prepare(first.to(self.device))
                yield x.to(self.device), None if labels is None else labels.to(self.device)
            elif state is not None and number == done and self.digest != digest:
                state.refuse(f"of other data: its {done} batches are not the first {done} of loader")
        if state is not None and number < done:
            state.refuse(f"of other data: it has {done} batches, and loader {number}")
        if number == 0:
            bad_value("loader", "no batch", "at least one")
        self._prepare(first.to(self.device))  # where all were done

    def batch(self, simulation: Simulation | ArousedSimulation, x: Tensor, labels: Tensor | None) -> None:
        """Simulate a batch and add it to the sums."""
        analog = self.twin(x)
        if not isinstance(analog, Tensor):
            bad_value("snn", f"an output of type {type(analog).__name__}", "one tensor [N, ...]")
        for name, total in self.twin.sums.items():
            if not math.isfinite(total):
                bad_value("snn", f"NaN or infinite activations of {name} {self._place()}", "finite numbers")
        check_finite("snn", analog, f"an analog output {self._place()}")
        if labels is not None:
            scores = analog if self.ann is None else self.ann(x)
            labels = check_labels(labels, scores)
            check_finite("ann", scores, f"an output {self._place()}")
            self.readout.count_analog(scores, labels)
        self.readout.begin(analog, labels)
        for name, layer in self.layers.items():
            layer.begin(self.twin.sums.get(name), self.twin.activations.get(name))
        t = 0
        for output in simulation.run(x, self.time_steps, self._observe):
            check_finite("snn", output, f"an output in steps {t + 1} to {t + len(output)} {self._place()}")
            self.readout.add(output)
            t += len(output)
        for layer in self.layers.values():
            layer.end()
        if isinstance(simulation, ArousedSimulation):
            self.aroused += int(simulation.aroused.sum())

    def _place(self) -> str:
        return f"in batch {self.done}"

    def _observe(self, name: str, module: nn.Module, spikes: Tensor) -> None:
        self.layers[name].add(spikes)

    def _prepare(self, x: Tensor) -> None:
        """Count synapses at the shape of the first batch."""
        if self._prepared:
            return
        try:
            self.synapses = count_synapses(self.graph, x)
        except ValueError as error:
            warnings.warn(f"{error}; synaptic operations are left out", stacklevel=4)
        for name in self.sources:
            fan_out = None if self.synapses is None else self.synapses.fan_out.get(name)
            layer = self.layers.setdefault(name, LayerSums(self.time_steps, self.correlation_steps))
            layer.fan_out = None if fan_out is None else fan_out.flatten().double().to(self.device)
        self._prepared = True

    def state_dict(self) -> dict[str, Any]:
        layers = {name: layer.state_dict() for name, layer in self.layers.items()}
        return {
            "readout": self.readout.state_dict(), "layers": layers, "done": self.done, "digest": self.digest,
            "labelled": self.labelled, "aroused": self.aroused,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["layers"].keys() != self.sources.keys():
            raise ValueError(f"layers: got {[*state['layers']]}, want {[*self.sources]}")
        self.readout.load_state_dict(state["readout"])
        self.labelled, self.done, self.digest = state["labelled"], state["done"], state["digest"]
        self.aroused = state["aroused"]
        for name, layer in state["layers"].items():
            self.layers[name] = LayerSums(self.time_steps, self.correlation_steps)
            self.layers[name].load_state_dict(layer)

    def result(self) -> Evaluation:
        """Turn the sums into means."""
        readout, samples, known = self.readout, self.readout.samples, self.synapses
        macs, input_macs = (None, None) if known is None else (known.macs, known.input_macs)
        correct = analog = None
        if self.labelled:
            correct = readout.correct.double() / samples
            for row, delay in enumerate(readout.delays):
                correct[:, row, :delay] = torch.nan
            analog = tuple((readout.analog_correct.double() / samples).tolist())
        return Evaluation(
            self.time_steps, samples, readout.delays, readout.top, correct, analog, readout.squared_error / samples,
            [self._layer(name, sums) for name, sums in self.layers.items()],
            macs, input_macs, step_length(self.graph),
            None if self.arousal is None else self.aroused / samples,
        )  # fmt: skip

    def _layer(self, name: str, sums: LayerSums) -> LayerEvaluation:
        samples, fan_out = self.readout.samples, sums.fan_out
        pairs = torch.cat(sums.scatter, dim=2) if sums.scatter else None
        correlation = sums.correlation().tolist() if sums.analog else []
        return LayerEvaluation(
            name, self.sources[name], sums.neurons, sums.spikes.cumsum(0) / samples,
            sums.synops.cumsum(0) / samples if fan_out is not None else torch.full_like(sums.synops, torch.nan),
            sums.activation / (samples * sums.neurons) if sums.analog else None,
            None if fan_out is None else float(fan_out.mean()),
            0 if self.synapses is None else self.synapses.fed_macs.get(name, 0),
            dict(zip(self.correlation_steps, correlation, strict=False)),
            {} if pairs is None else dict(zip(self.correlation_steps, pairs, strict=True)),
        )  # fmt: skip


class _State:
    """The file of an evaluation that may be interrupted."""

    kind = "a state of snn_ext.evaluate", "remove it to start afresh"

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path, self.settings = path, settings
        if path.is_dir():
            bad_value("resume", str(path), "a file, that is there or not")

    def restore(self, run: _Run) -> tuple[int, str]:
        """Load the sums, and return how many batches are in them and their digest."""
        if not self.path.exists():
            return 0, ""
        content = load_tensors(self.path, *self.kind)
        with intact(self.path, *self.kind):
            state, found = content["run"], {name: content["settings"][name] for name in self.settings}
        for name, value in self.settings.items():
            if found[name] != value:
                told = {"snn": "another net", "ann": "another ann"}.get(name, f"{name}={found[name]!r}")
                self.refuse(f"with {told}")
        with intact(self.path, *self.kind):
            run.load_state_dict(state)
        return run.done, run.digest

    def refuse(self, difference: str) -> NoReturn:
        raise ValueError(
            f"resume: got {self.path}, the state of an evaluation {difference}, want the one that was interrupted; "
            "remove the file to begin anew"
        )

    def save(self, run: _Run) -> None:
        save_tensors({"settings": self.settings, "run": run.state_dict()}, self.path)

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


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


def _progress(
    batches: Iterator[tuple[Tensor, Tensor | None]], loader: Iterable[Any], progress: bool, run: _Run
) -> Iterator[tuple[Tensor, Tensor | None]]:
    if not progress:
        yield from batches
        return
    from tqdm import tqdm  # SpikingJelly requires it

    total = None
    with suppress(TypeError):  # a loader of a stream has a length that it does not know
        total = len(loader) if isinstance(loader, Sized) else None
    with tqdm(desc="evaluate", total=total, unit="batch", dynamic_ncols=True) as bar:
        for batch in batches:
            bar.update(run.done - 1 - bar.n)  # batches of an interrupted call, and those that are done now
            yield batch
        bar.update(run.done - bar.n)
