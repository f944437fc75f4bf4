"""The registry of cases: ``CASES`` maps a name to a function of the settings that returns rows."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import snntorch
import torch
from snntorch import functional as SF
from snntorch import surrogate
from snntorch.backprop import BPTT
from spikingjelly.activation_based import functional, neuron
from spikingjelly.activation_based.model import spiking_resnet
from torch import Tensor, nn

from snn_ext import accelerate, ops
from snn_ext import functional as definition
from snn_ext.snntorch import bptt
from snn_ext.spikingjelly import ATIFuNode

from .contenders import BASELINE, Contender, available, compiled_loop, hosts, ours
from .measuring import Ratio, Timing, kept_bytes, measure, peak_memory, ratio

__all__ = ["CASES", "QUICK", "Row", "Settings"]


@dataclass(frozen=True)
class Settings:
    """Settings of a measurement."""

    rounds: int = 15
    seed: int = 0


@dataclass(frozen=True)
class Row:
    """One contender in one case."""

    case: str
    contender: str
    value: float
    unit: str
    speedup: Ratio | None = None
    """Speed-up over SpikingJelly's IFNode, or the other baseline of the case."""
    floor: Ratio | None = None
    """Time as a multiple of a copy of the input into memory that is there."""
    demand: str = ""
    met: bool | None = None


Case = Callable[[Settings], list[Row]]
CASES: dict[str, Case] = {}
QUICK: set[str] = set()
"""Names of the cases that ``--quick`` runs."""

COPY = "memcpy floor"
ACCELERATED = "accelerated"
SHAPES = ((4, 32, 64, 32, 32), (4, 32, 512, 4, 4), (32, 4, 64, 32, 32), (255, 1, 32, 32, 32))


def register(name: str, function: Case, quick: bool = False) -> None:
    """Add a case."""
    CASES[name] = function
    if quick:
        QUICK.add(name)


# -- one neuron layer ----------------------------------------------------------------------------------------------


def inference(shape: tuple[int, ...], demands: dict[str, float], floor: float) -> Case:
    """Forward pass without gradients: demanded speed-ups by contender, and times the floor for the native one."""

    def run(settings: Settings) -> list[Row]:
        x_seq = _input(shape, settings)
        target = torch.empty_like(x_seq)
        contenders = {**hosts(), **ours()}
        calls: dict[str, Callable[[], Any]] = {COPY: lambda: target.copy_(x_seq)}
        calls |= {name: _bind(contender.infer, x_seq) for name, contender in contenders.items()}
        timings = measure(calls, settings.rounds)
        return _rows(_name("inference", shape), timings, demands, floor)

    return run


def training(shape: tuple[int, ...], demands: dict[str, float]) -> Case:
    """Forward and backward pass, with the gradient of the threshold where there is one."""

    def run(settings: Settings) -> list[Row]:
        x_seq = _input(shape, settings).requires_grad_()
        gradient, target = torch.randn(shape), torch.empty(shape)
        calls: dict[str, Callable[[], Any]] = {COPY: lambda: target.copy_(x_seq.detach())}
        calls |= {name: _bind(c.train, x_seq, gradient) for name, c in {**hosts(), **ours()}.items()}
        timings = measure(calls, max(settings.rounds // 2, 2))
        return _rows(_name("training", shape), timings, demands, None)

    return run


def leaks(shape: tuple[int, ...], trained: bool, demand: float) -> Case:
    """Inference, or forward and backward, of a leaky node against the host's LIFNode and ParametricLIFNode."""

    def run(settings: Settings) -> list[Row]:
        rows = []
        for kind, learn_tau in ((neuron.LIFNode, False), (neuron.ParametricLIFNode, True)):
            host, ours_ = kind(2.0, v_reset=None, step_mode="m"), ATIFuNode(tau=2.0, learn_tau=learn_tau, step_mode="m")
            rows += _pair("", host, "leaky ATIFuNode", ours_, shape, trained, settings, demand)
        return rows

    return run


def accelerated(shape: tuple[int, ...], trained: bool) -> Case:
    """Inference, or forward and backward, of the host's own nodes, and of the same after ``accelerate``."""

    def run(settings: Settings) -> list[Row]:
        rows = []
        for make in (neuron.IFNode, neuron.LIFNode, neuron.ParametricLIFNode):
            host, twin = make(step_mode="m"), make(step_mode="m")
            accelerate(twin)
            rows += _pair("accelerate ", host, ACCELERATED, twin, shape, trained, settings)
        return rows

    return run


def channel_thresholds(shape: tuple[int, ...], trained: bool) -> Case:
    """Inference, or forward and backward, of a node with a threshold per channel, which no node of the host has."""

    def run(settings: Settings) -> list[Row]:
        ours_ = ATIFuNode(v_threshold=torch.linspace(0.5, 1.5, shape[2]), step_mode="m")
        host = neuron.IFNode(v_reset=None, step_mode="m")
        return _pair("thresholds per channel, ", host, "ATIFuNode", ours_, shape, trained, settings)

    return run


def _pair(
    title: str, host: nn.Module, name: str, other: nn.Module, shape: tuple[int, ...], trained: bool,
    settings: Settings, demand: float | None = None,
) -> list[Row]:  # fmt: skip
    """Measure a node of the host and another one on the same input."""
    x_seq, gradient = _input(shape, settings).requires_grad_(trained), torch.randn(shape)
    kind = type(host).__name__
    contenders = {f"SpikingJelly {kind}": Contender(_from_rest(host)), name: Contender(_from_rest(other))}
    calls = {
        label: _bind(c.train, x_seq, gradient) if trained else _bind(c.infer, x_seq) for label, c in contenders.items()
    }
    case = _name(f"{title}{'training' if trained else 'inference'} of {kind}", shape)
    demands = {} if demand is None else {name: demand}
    return _rows(case, measure(calls, max(settings.rounds // 2, 2)), demands, None, f"SpikingJelly {kind}")


def against_compile(shape: tuple[int, ...], demand: float | None) -> Case:
    """Inference against the plain loop under torch.compile: its wait at the first call, and its speed when warm."""

    def run(settings: Settings) -> list[Row]:
        case, x_seq = _name("compile", shape), _input(shape, settings)
        best = f"operator, {available()[0]}"
        contenders = {"torch.compile": compiled_loop(), best: ours()[best]}
        target = torch.empty_like(x_seq)
        rows = []
        for name, contender in contenders.items():
            start = time.perf_counter()
            contender.infer(x_seq)
            rows.append(Row(case, f"{name}, first call", time.perf_counter() - start, "s"))
        calls: dict[str, Callable[[], Any]] = {COPY: lambda: target.copy_(x_seq)}
        calls |= {name: _bind(c.infer, x_seq) for name, c in contenders.items()}
        timings = measure(calls, settings.rounds)
        rows.append(Row(case, COPY, 1e3 * timings[COPY].median, "ms"))
        faster = ratio(timings["torch.compile"], timings[best])
        met = None if demand is None else faster.median >= demand
        compiled = timings["torch.compile"]
        rows.append(Row(case, "torch.compile, warm", 1e3 * compiled.median, "ms", None, ratio(compiled, timings[COPY])))
        wanted = "" if demand is None else f">= {demand:g}x torch.compile"
        name, floor = f"{best}: {faster}x torch.compile", ratio(timings[best], timings[COPY])
        rows.append(Row(case, name, 1e3 * timings[best].median, "ms", None, floor, wanted, met))
        return rows

    return run


def adaptive(shape: tuple[int, ...], demand: float) -> Case:
    """Adaptive spiking neurons, forward and with backward pass, against the plain loop over the steps."""

    def run(settings: Settings) -> list[Row]:
        current_seq = (0.1 * _input(shape, settings)).requires_grad_()
        gradient = torch.randn(shape)
        contenders = {"plain loop": Contender(lambda x: definition.adaptive_spiking(x)[0])}
        for name in available():
            contenders[f"operator, {name}"] = Contender(lambda x: ops.adaptive_spiking(x)[0], name)
        rows = []
        for kind, calls in (
            ("inference", {name: _bind(c.infer, current_seq) for name, c in contenders.items()}),
            ("training", {name: _bind(c.train, current_seq, gradient) for name, c in contenders.items()}),
        ):
            timings = measure(calls, settings.rounds)
            for name, timing in timings.items():
                text, wanted, met = name, "", None
                if name != "plain loop":
                    faster = ratio(timings["plain loop"], timing)
                    text = f"{name}: {faster}x the plain loop"
                    if "native" in name and kind == "inference":
                        wanted, met = f">= {demand:g}x the plain loop", faster.median >= demand
                rows.append(Row(_name(f"ASN {kind}", shape), text, 1e3 * timing.median, "ms", demand=wanted, met=met))
        return rows

    return run


def kept(settings: Settings) -> list[Row]:
    """Bytes kept for the backward pass per neuron and step."""
    rows = []
    for shape, dtype in (
        ((4, 8, 64, 8, 8), torch.float32),
        ((4, 8, 64, 8, 8), torch.bfloat16),
        ((64, 8, 64, 4, 4), torch.float32),
    ):
        x_seq = _input(shape, settings).to(dtype).requires_grad_()
        for name, contender in {**hosts(), **ours()}.items():
            if dtype == torch.bfloat16 and "Leaky" in name:
                continue  # it computes in float32
            try:
                with contender.forced():
                    found = kept_bytes(_bind(contender.forward, x_seq)) / x_seq.numel()
            except (RuntimeError, ValueError) as error:
                print(f"{name} for {dtype}: {error}", file=sys.stderr)
                continue
            limit = x_seq.element_size() + (4 / 16 if shape[0] > 16 else 0)
            mine = contender.implementation is not None
            case = f"kept for backward, T = {shape[0]}, {str(dtype).removeprefix('torch.')}"
            demand, met = (f"<= {limit:g}", found <= limit + 0.01) if mine else ("", None)
            rows.append(Row(case, name, found, "bytes", demand=demand, met=met))
    return rows


def overhead(settings: Settings) -> list[Row]:
    """Time of one call on a tensor that is too small to matter."""
    x_seq, gradient = torch.rand(4, 2, 8, requires_grad=True), torch.ones(4, 2, 8)
    rows = []
    contenders = {**hosts(), **ours()}
    for case, calls in (
        ("overhead, inference", {name: _bind(c.infer, x_seq) for name, c in contenders.items()}),
        ("overhead, training", {name: _bind(c.train, x_seq, gradient) for name, c in contenders.items()}),
    ):
        timings = measure(calls, 4 * settings.rounds, repeat=20)
        for name, timing in timings.items():
            rows.append(Row(case, name, 1e6 * timing.median, "us", ratio(timings[BASELINE], timing)))
    return rows


def busy_neighbour(settings: Settings) -> list[Row]:
    """How much longer inference and training take while another process keeps one core busy."""
    shape = (4, 32, 64, 16, 16)
    x_seq = _input(shape, settings).requires_grad_()
    gradient = torch.randn(shape)
    contenders = {BASELINE: hosts()[BASELINE], **ours()}
    rows = []
    for kind, calls in (
        ("inference", {name: _bind(c.infer, x_seq) for name, c in contenders.items()}),
        ("training", {name: _bind(c.train, x_seq, gradient) for name, c in contenders.items()}),
    ):
        quiet = measure(calls, settings.rounds)
        with _one_busy_core():
            busy = measure(calls, settings.rounds)
        for name in calls:
            slower = busy[name].median / quiet[name].median
            rows.append(Row(f"busy neighbour, {kind}", name, slower, "x slower", ratio(busy[BASELINE], busy[name])))
    return rows


# -- a whole net -----------------------------------------------------------------------------------------------------


def resnet18(settings: Settings) -> list[Row]:
    """One training step of a spiking ResNet-18 at T = 4 on images of 32 x 32, batch of 4.

    "no neuron at all" is what the fastest imaginable neuron would leave: an identity in its place.
    """
    torch.manual_seed(settings.seed)
    images, labels = torch.randn(4, 4, 3, 32, 32), torch.randint(10, (4,))
    calls: dict[str, Callable[[], Any]] = {}
    for name, node, implementation in (
        (BASELINE, neuron.IFNode, None),
        *((f"ATIFuNode, {name}", ATIFuNode, name) for name in available()),
        ("no neuron at all", _NoNeuron, None),
    ):
        net = _resnet18(node)
        optimizer = torch.optim.SGD(net.parameters(), 1e-3, momentum=0.9)
        contender = Contender(net, implementation)

        def step(net: nn.Module = net, optimizer: Any = optimizer, contender: Contender = contender) -> None:
            functional.reset_net(net)
            optimizer.zero_grad()
            with contender.forced():
                nn.functional.cross_entropy(contender.forward(images).mean(0), labels).backward()
            optimizer.step()

        calls[name] = step
    timings = measure(calls, settings.rounds)
    return _rows("ResNet-18 training step, T = 4", timings, {f"ATIFuNode, {available()[0]}": 1.2}, None)


def accelerated_resnet18(settings: Settings) -> list[Row]:
    """One training step of a spiking ResNet-18 of the host's LIF nodes at T = 4, as it is and accelerated."""
    name = "SpikingJelly LIFNode"
    calls = {name: _lif_resnet18_step(settings.seed), ACCELERATED: _lif_resnet18_step(settings.seed, accelerate)}
    timings = measure(calls, settings.rounds)
    return _rows("accelerate ResNet-18 training step, T = 4", timings, {}, None, name)


def accelerated_memory(settings: Settings) -> list[Row]:
    """The peak memory of the same step over what there was before it, each in a process of its own."""
    case, name = "accelerate ResNet-18 training step, peak memory", "SpikingJelly LIFNode"
    code = "from benchmarks.speed import cases; print(cases.peak_of_training_step({}, {}))"
    found = {}
    for contender in (name, ACCELERATED):
        command = [sys.executable, "-c", code.format(settings.seed, contender == ACCELERATED)]
        found[contender] = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout) / 2**20
    share = found[ACCELERATED] / found[name]
    return [
        Row(case, name, found[name], "MiB"),
        Row(case, f"{ACCELERATED}: {share:.2f} of the host's", found[ACCELERATED], "MiB"),
    ]


def peak_of_training_step(seed: int, accelerated: bool) -> int:
    """Return by how many bytes the first training step of this process raises its peak."""
    warm = neuron.LIFNode(step_mode="m")  # libraries and the compiled operator are there before
    accelerate(warm)
    warm(torch.zeros(2, 2, requires_grad=True)).sum().backward()
    step = _lif_resnet18_step(seed, accelerate if accelerated else None, batch=16)
    before = peak_memory()
    step()
    return peak_memory() - before


def _lif_resnet18_step(
    seed: int, change: Callable[[nn.Module], Any] | None = None, batch: int = 4
) -> Callable[[], None]:
    torch.manual_seed(seed)
    images, labels = torch.randn(4, batch, 3, 32, 32), torch.randint(10, (batch,))
    net = _resnet18(neuron.LIFNode)
    if change is not None:
        change(net)
    optimizer = torch.optim.SGD(net.parameters(), 1e-3, momentum=0.9)

    def step() -> None:
        functional.reset_net(net)
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images).mean(0), labels).backward()
        optimizer.step()

    return step


def accelerated_tutorial(settings: Settings) -> list[Row]:
    """One step of the trainer on the net of snnTorch's tutorial on convolutions: 28 x 28, 25 steps, batch of 32."""
    torch.manual_seed(settings.seed)
    data = [(torch.rand(32, 1, 28, 28), torch.randint(10, (32,)))]
    name, calls = "snntorch.backprop.BPTT", dict[str, Callable[[], Any]]()
    for contender, trainer, change in ((name, BPTT, None), (ACCELERATED, bptt, accelerate)):
        leaky = partial(snntorch.Leaky, 0.5, spike_grad=surrogate.fast_sigmoid(slope=25), init_hidden=True)
        net = nn.Sequential(
            nn.Conv2d(1, 12, 5), nn.MaxPool2d(2), leaky(), nn.Conv2d(12, 64, 5), nn.MaxPool2d(2), leaky(),
            nn.Flatten(), nn.Linear(64 * 4 * 4, 10), leaky(output=True),
        )  # fmt: skip
        if change is not None:
            change(net)
        optimizer = torch.optim.Adam(net.parameters(), 1e-2)
        calls[contender] = partial(trainer, net, data, optimizer, SF.ce_rate_loss(), num_steps=25, time_var=False)
    timings = measure(calls, max(settings.rounds // 2, 2))
    return _rows("accelerate the tutorial's net of snnTorch, training step", timings, {}, None, name)


class _NoNeuron(nn.Identity):
    """Takes what the host's builder passes to a neuron."""

    step_mode = "m"


def _resnet18(node: type[nn.Module]) -> nn.Module:
    net = spiking_resnet.spiking_resnet18(spiking_neuron=node, num_classes=10, v_reset=None)
    # The stem for small images: the host's own halves them twice before the first block.
    net.conv1 = type(net.conv1)(3, 64, 3, padding=1, bias=False)
    net.maxpool = nn.Identity()
    functional.set_step_mode(net, "m")
    return net


# -- helpers ---------------------------------------------------------------------------------------------------------


def _input(shape: tuple[int, ...], settings: Settings) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(settings.seed))


def _from_rest(node: Any) -> Callable[[Tensor], Tensor]:
    def run(x_seq: Tensor) -> Tensor:
        node.reset()
        spike_seq: Tensor = node(x_seq)
        return spike_seq

    return run


def _bind(function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    return lambda: function(*arguments)


def _name(kind: str, shape: tuple[int, ...]) -> str:
    return f"{kind} [{','.join(map(str, shape))}]"


def _rows(
    case: str, timings: dict[str, Timing], demands: dict[str, float], floor: float | None, baseline: str = BASELINE
) -> list[Row]:
    rows = []
    for name, timing in timings.items():
        speedup = ratio(timings[baseline], timing)
        times_floor = ratio(timing, timings[COPY]) if COPY in timings else None
        demand, met = "", None
        if name in demands:
            demand, met = f">= {demands[name]:g}x", speedup.median >= demands[name]
            if floor is not None and "native" in name and times_floor is not None:
                demand, met = f"{demand}, <= {floor:g} floor", met and times_floor.median <= floor
        rows.append(Row(case, name, 1e3 * timing.median, "ms", speedup, times_floor, demand, met))
    return rows


@contextmanager
def _one_busy_core() -> Iterator[None]:
    neighbour = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        neighbour.kill()
        neighbour.wait()


for _shape, _forward, _training in zip(
    SHAPES,
    ({"operator, cpu": 6.0, "operator, torch": 3.0}, {}, {}, {"operator, cpu": 6.0}),
    ({"operator, cpu": 2.0, "operator, torch": 1.5}, {"operator, cpu": 2.0}, {}, {}),
    strict=True,
):
    register(_name("inference", _shape), inference(_shape, _forward, 2.5), quick=_shape == SHAPES[1])
    register(_name("training", _shape), training(_shape, _training), quick=_shape == SHAPES[1])
for _shape, _demand in (((4, 32, 64, 32, 32), 0.8), ((32, 4, 64, 32, 32), 3.0), ((255, 1, 32, 32, 32), 3.0)):
    register(_name("compile", _shape), against_compile(_shape, _demand))
for _shape, _forward_demand, _training_demand in ((SHAPES[0], 6.0, 2.5), (SHAPES[3], 8.0, 4.0)):
    register(_name("leak inference", _shape), leaks(_shape, False, _forward_demand))
    register(_name("leak training", _shape), leaks(_shape, True, _training_demand))
for _shape in (SHAPES[0], SHAPES[3]):
    register(_name("accelerate inference", _shape), accelerated(_shape, False))
    register(_name("accelerate training", _shape), accelerated(_shape, True))
    register(_name("channels inference", _shape), channel_thresholds(_shape, False))
    register(_name("channels training", _shape), channel_thresholds(_shape, True))
register("accelerate resnet18", accelerated_resnet18)
register("accelerate memory", accelerated_memory)
register("accelerate tutorial", accelerated_tutorial)
register("ASN [500,16,1024]", adaptive((500, 16, 1024), 10.0), quick=True)
register("kept", kept, quick=True)
register("overhead", overhead, quick=True)
register("busy", busy_neighbour)
register("resnet18", resnet18)
