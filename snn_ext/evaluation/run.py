"""The sums of an evaluation: batch after batch is simulated, and what comes out is added up."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .._errors import bad_value, describe, first_line
from ..simulation.analog import AnalogTwin
from ..simulation.counts import PhasedSimulation
from ..simulation.engine import Simulation
from ..simulation.graph import output_of, step_length
from ..simulation.plan import ancestors
from ..simulation.steps import Steps
from .arousal import ArousedSimulation
from .batches import Frames, check_finite
from .metrics import LayerSums, ReadoutSums
from .result import Evaluation, LayerEvaluation
from .synapses import Synapses, count_synapses

__all__ = ["Run"]


class Run:
    """The sums of one evaluation."""

    def __init__(
        self,
        simulation: Simulation | ArousedSimulation,
        steps: Steps,
        ann: nn.Module | None,
        readout: ReadoutSums,
        correlation_steps: tuple[int, ...],
        frames: Frames,
        *,
        compare: bool = True,
    ) -> None:
        self.simulation, self.steps, self.ann, self.readout, self.compare = simulation, steps, ann, readout, compare
        self.frames, self._is_checked = frames, False
        graph, self.correlation_steps, self.aroused = simulation.graph, correlation_steps, 0
        self.twin = AnalogTwin(graph, keep=bool(correlation_steps))
        time_steps = readout.time_steps
        self.by_counts: PhasedSimulation | None = None
        if not correlation_steps and isinstance(simulation, Simulation) and simulation.chunk is None:
            if PhasedSimulation.admits(simulation, time_steps):
                self.by_counts = PhasedSimulation(simulation)
        used = ancestors([output_of(graph)])  # a net may call a neuron whose spikes go nowhere
        names = [name for node, name in simulation.events.sources.items() if node in used]
        self.layers = {name: LayerSums(time_steps, correlation_steps) for name in names}
        self.synapses: Synapses | None = None
        self.labelled: bool | None = None  # not known yet
        self._is_counted, self._sample = False, torch.empty(0)
        self._nothing: Tensor | None = None  # in the shape of the output, where there is no analog one
        self.device = next((t.device for t in (*graph.parameters(), *graph.buffers())), torch.device("cpu"))

    def add(self, number: int, x: Tensor, labels: Tensor | None, done: bool = False) -> None:
        """Simulate a batch and add it to the sums, unless they hold it already."""
        if self.labelled not in (None, labels is not None):
            bad_value("loader", "batches with and without labels", "labels in all of them or in none")
        self.labelled = labels is not None
        self._sample = x[:1] if self.frames is None else x[0, :1]
        if done:
            return
        x, labels = x.to(self.device), None if labels is None else labels.to(self.device)
        place = f"in batch {number}"
        self._begin(x if self.frames is None else x.mean(0), labels, place)
        self._check_steps(x)
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
        if self.frames is not None:
            assert isinstance(self.simulation, Simulation)
            return self.simulation.run_frames(x, self._observe)
        if self.by_counts is None:
            return self.simulation.run(x, time_steps, self._observe)
        return self.by_counts.run(x, time_steps, self._observe_counts)

    def _begin(self, x: Tensor, labels: Tensor | None, place: str) -> None:
        """Hand the analog output and activations for ``[N, ...]``, the mean of frames, to the sums."""
        analog = self._compared(x, place) if self.compare else self._not_compared(x, place)
        self._count_synapses()
        if labels is not None:
            scores = analog if self.ann is None else self.ann(x.clone())
            labels = self.readout.decision.check(labels, scores)
            if self.compare:
                check_finite("ann", scores, f"an output {place}")
                self.readout.count_analog(scores, labels)
        self.readout.begin(analog, labels)
        for name, layer in self.layers.items():
            layer.begin(self.twin.sums.get(name) if self.compare else None, self.twin.activations.get(name))

    def _compared(self, x: Tensor, place: str) -> Tensor:
        """Return the output of the analog net, and keep the sums of its activations."""
        analog = self._analog(x)
        if not isinstance(analog, Tensor):
            bad_value("snn", f"an output of type {type(analog).__name__}", "one tensor [N, ...]")
        if analog.shape[:1] != x.shape[:1]:
            bad_value("snn", f"an output of shape {[*analog.shape]} for {len(x)} samples", "one tensor [N, ...]")
        for name, total in self.twin.sums.items():
            if not math.isfinite(total):
                bad_value("snn", f"NaN or infinite activations of {name} {place}", "finite numbers")
        check_finite("snn", analog, f"an analog output {place}")
        return analog

    def _not_compared(self, x: Tensor, place: str) -> Tensor:
        """Return NaN in the shape of the output, which one sample tells."""
        if self._nothing is None:
            self._nothing = torch.full_like(self._compared(x[:1], place), torch.nan)
        return self._nothing.expand(len(x), *self._nothing.shape[1:])

    def _analog(self, x: Tensor) -> Any:
        try:
            return self.twin(x.clone())  # an operation may write to it
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, IndexError, TypeError, AttributeError) as error:  # it takes another input
            want = "inputs [N, ...] that the net takes"
            if self.frames is None:
                want += ", or frames='TN' or 'NT' for sequences of frames"
            raise ValueError(f"loader: got {describe(x)}, want {want} ({first_line(error)})") from error

    def _check_steps(self, x: Tensor) -> None:
        """Compare the net of one step with the forward pass that it was taken from, once, on a few samples."""
        if not self._is_checked:
            time_steps = self.steps.time_steps or self.readout.time_steps
            some = x[:, :8] if self.frames is not None else x[:8].expand(time_steps, *x[:8].shape)
            self.steps.check(some, "snn")
        self._is_checked = True

    def _observe(self, name: str, module: nn.Module, spikes: Tensor) -> None:
        self.layers[name].add(spikes)

    def _observe_counts(self, name: str, start: int, counts: Tensor) -> None:
        assert self.by_counts is not None
        if name in self.layers:
            self.layers[name].add_counts(start, counts, self.by_counts.graph.time_steps)

    def _count_synapses(self) -> None:
        """Count the synapses once, at the shape that all samples have."""
        if self._is_counted:
            return
        try:
            self.synapses = count_synapses(self.simulation.graph, self._sample.to(self.device), self.simulation.events)
        except ValueError as error:
            warnings.warn(f"{error}; synaptic operations are left out", stacklevel=6)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # of shapes: the batch is one sample
            want = "one for any number of samples, as with x.flatten(1) for x.view(N, -1)"
            reason = first_line(error)
            raise ValueError(f"snn: got a forward pass for batches of one size ({reason}), want {want}") from error
        fan_out = {} if self.synapses is None else self.synapses.fan_out
        for name in self.layers.keys() & fan_out.keys():
            self.layers[name].fan_out = fan_out[name].double().to(self.device)
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
        once, always = (None, None) if known is None else (known.input_macs, known.step_macs)
        if known is not None and self.frames is not None:  # the input is another one at every step
            once, always = 0, known.input_macs + known.step_macs
        correct = analog = None
        if self.labelled:
            correct = readout.correct / samples
            for row, delay in enumerate(readout.delays):
                correct[:, row, :delay] = torch.nan
            analog = tuple((readout.analog_correct / samples).tolist()) if self.compare else None
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
            input_macs=once,
            step_macs=always,
            dt=step_length(self.simulation.graph),
            selectivity=self.aroused / samples if isinstance(self.simulation, ArousedSimulation) else None,
            metric=readout.decision.name,
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
