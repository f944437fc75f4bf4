"""Evaluation of a spiking net on a data set: :func:`evaluate` simulates it and sums up decisions and spikes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Sized
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from .._errors import bad_type, bad_value, check_bool, check_choice, check_count
from .._progress import bar
from ..hosts import host_of
from ..simulation.engine import Simulation
from ..simulation.graph import evaluating, output_of, smoothed_readout
from ..simulation.steps import Steps, steps_of
from .arousal import Arousal, ArousedSimulation
from .batches import Frames, check_finite_weights, numbered
from .decisions import Metric, decision
from .fingerprint import fingerprint, hash_of
from .metrics import ReadoutSums
from .result import Evaluation
from .resume import ResumeFile
from .run import Run

__all__ = ["evaluate"]


@torch.no_grad()
def evaluate(
    snn: nn.Module,
    loader: Iterable[Any],
    time_steps: int | None = None,
    *,
    frames: Frames = None,
    metric: Metric = "class",
    ann: nn.Module | None = None,
    compare: bool = True,
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
        A converted net, a trained :class:`snn_ext.ConstantInputNet`, or any traceable net of neurons of SpikingJelly or
        snnTorch. Its forward pass is that of one step, or runs a loop over the steps. It runs in eval mode, step by
        step, and is reset; its modes are restored. Arguments behind the input take their defaults.
    loader : iterable
        Batches ``(inputs, labels)``, or inputs alone: then there are errors and operations, and no accuracy. Samples
        have one shape, batches any size.
    time_steps : int, optional
        T. All steps are counted. By default the number of frames, or the net's own: that of a loop in its forward
        pass, or its ``latency`` or ``time_steps``.
    frames : {"TN", "NT"}, optional
        The inputs are sequences of frames, as of event data, with time in the first dimension, ``[T, N, ...]``, or in
        the second, ``[N, T, ...]``: frame t is shown at step t. By default ``[N, ...]`` is shown at every step.
    metric : str or callable
        Which decisions are right. "class": the label, a number, is among the ``top`` largest outputs. "sign": of an
        output of one logit, above 0 for the label 1, else for 0. "multilabel": the same for several logits and as many
        labels; the share of right ones is averaged. "multilabel-exact": all of them are right. Or a function of the
        mean outputs ``[N, ...]`` and the labels that returns a number in [0, 1] for each sample, such as
        ``lambda y, labels: (y - labels).abs().amax(1) < 0.1``.
    ann : nn.Module, optional
        The analog net whose accuracy the latencies refer to. By default it is that of the spiking net's own graph,
        with ReLUs in place of its neurons. Of frames, an analog net gets the mean.
    compare : bool
        Run the analog net. Without it there are no analog accuracy, latencies, errors and normalised rates, and an
        exact net takes half the time.
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
        Show a progress bar (tqdm) on a terminal.

    Returns
    -------
    Evaluation

    Raises
    ------
    TypeError, ValueError
        Also for a data set instead of a loader; for inputs that the net does not take; for labels that are not those of
        ``metric``; and if inputs, weights or outputs are not finite: a neuron with a potential of NaN is silent, and a
        comparison with NaN decides for any class.

    Notes
    -----
    A phased net that runs for its latency is evaluated by integer counts, which takes about as long as an analog net
    (:class:`snn_ext.simulation.PhasedSimulation`), unless ``chunk`` or ``correlation_steps`` ask for single steps. The
    analog net that it is compared with takes as long once more.

    A loop over the steps in the forward pass is taken apart by tracing, and compared with the net as it is on the first
    samples. It may return the outputs of all steps, their sum or mean, or the output of the last step, which then
    decides alone. Random numbers are drawn at every step anew.

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
    check_choice("frames", frames, (None, "TN", "NT"))
    check_bool("progress", progress)
    if ann is not None and not isinstance(ann, nn.Module):
        bad_type("ann", ann, "an nn.Module, or None")
    if not check_bool("compare", compare) and (ann is not None or correlation_steps):
        bad_value("compare", False, "True with an analog net, or with correlation_steps")
    batches, count = numbered(loader, frames), None
    if frames is not None:
        first = next(batches, None)
        if first is None:
            bad_value("loader", "no batch", "at least one")
        batches, count = chain([first], batches), len(first[1])
    steps = steps_of(snn, "snn", count)
    graph = steps.graph
    time_steps = _time_steps(time_steps, snn, steps, frames, count)
    _check(time_steps, delays, top, correlation_steps, memory)
    by_value = smoothed_readout(graph) or steps.last
    if delays != (0,) and by_value:
        bad_value("delay", delay, "0 for a read-out that is smoothed or of the last step: no output is summed up")
    simulation: Simulation | ArousedSimulation = Simulation(graph, chunk=chunk, memory=memory)
    if arousal is not None:
        simulation = _aroused(graph, arousal, frames, chunk, memory)
    if not set(simulation.events.kinds.values()) - {"pool"}:
        bad_value("snn", type(snn).__name__, "a net with at least one spiking neuron")
    rule = decision(metric, top)
    if rule.name in ("sign", "multilabel", "multilabel-exact") and simulation.events.arriving[output_of(graph)]:
        bad_value("metric", metric, "a function (outputs, labels): the output of the net is spikes, which have no sign")
    nets = {"snn": simulation.graph} if ann is None else {"snn": simulation.graph, "ann": ann}
    for name, net in nets.items():
        check_finite_weights(name, net)
    modules = [m for net in nets.values() for m in net.modules() if m is not simulation.graph]
    with evaluating(modules), simulation.unchanged():
        readout = ReadoutSums(time_steps, delays, top, by_value, rule)
        run = Run(simulation, steps, ann, readout, correlation_steps, frames, compare=compare)
        kept: Iterable[tuple[int, Tensor, Tensor | None, bool]] = ((*batch, False) for batch in batches)
        file = None
        if resume is not None:
            settings = {"time_steps": time_steps, "delays": delays, "top": top, "correlation_steps": correlation_steps}
            settings |= {"frames": frames, "metric": rule.name, "compare": compare}
            hashes = {"arousal": repr(arousal), "snn": fingerprint(simulation.graph), "ann": fingerprint(ann)}
            file = ResumeFile(resume, settings | hashes | {"function": hash_of(metric)})
            file.restore(run)
            kept = file.batches(batches)
        for number, x, labels, done in bar("evaluate", "batch", kept, total=_length(loader), progress=progress):
            run.add(number, x, labels, done)
            if file is not None and not done:
                file.save(run)
        result = run.result()
        if file is not None:
            file.remove()
        return result


def _time_steps(given: int | None, snn: nn.Module, steps: Steps, frames: Frames, shown: int | None) -> int:
    """Return T: what is given, the number of frames, or the net's own."""
    if given is not None:
        check_count("time_steps", given)
    if shown is None and steps.frames is not None:
        bad_value("frames", None, f"'TN' or 'NT': a step of snn shows one of {steps.time_steps} frames")
    if shown is not None:
        loops = steps.time_steps is not None and steps.frames is None
        if loops or getattr(snn, "schedule", "streaming") != "streaming":
            bad_value("frames", frames, "None: snn shows one input at all of its steps")
        if steps.time_steps not in (None, shown):
            bad_value("loader", f"{shown} frames", f"{steps.time_steps}, the steps of the forward pass of snn")
        if given not in (None, shown):
            bad_value("time_steps", given, f"None, or {shown}, the number of frames")
        return shown
    own = given or steps.time_steps or getattr(snn, "latency", None) or getattr(snn, "time_steps", None)
    if not isinstance(own, int):
        bad_value("time_steps", None, "an int >= 1: snn has no number of steps of its own")
    return own


def _aroused(graph: fx.GraphModule, arousal: Any, frames: Frames, chunk: int | None, memory: int) -> ArousedSimulation:
    if not isinstance(arousal, Arousal):
        bad_type("arousal", arousal, "an Arousal, or None")
    if frames is not None:
        bad_value("frames", frames, "None with an arousal, which is defined for inputs that do not change")
    if any(host_of(module) == "snntorch" for module in graph.modules()):
        bad_value("snn", "neurons of snnTorch", "those of SpikingJelly with an arousal")
    return ArousedSimulation(graph, arousal, chunk=chunk, memory=memory)


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


def _length(loader: Iterable[Any]) -> int | None:
    with suppress(TypeError):  # a loader of a stream has a length that it does not know
        return len(loader) if isinstance(loader, Sized) else None
    return None
