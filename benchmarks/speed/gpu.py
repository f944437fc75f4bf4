"""Check the CUDA kernels on this machine's GPU, then measure them: ``python -m benchmarks.speed.gpu``.

Nothing is measured before the kernels have passed all checks. Every case is timed with CUDA events, all contenders in
turns, beside a plain copy of the same number of bytes, which is the roof.
"""

from __future__ import annotations

import json
import os
import platform
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import torch
from tabulate import tabulate
from torch import Tensor, nn

if __name__ == "__main__":  # the rival is the host's Triton kernel; read when spikingjelly is imported
    os.environ.setdefault("SJ_IF_CUDA_IMPLEMENTATION", "triton")

from spikingjelly.activation_based import functional, neuron

from recipes.lib.cli import Count, NewFolder
from recipes.lib.command import command, run_main
from recipes.lib.files import replacing, save_text
from recipes.lib.options import known_device
from snn_ext import functional as definition
from snn_ext.ops import adaptive_spiking, implementation, integrate_and_fire, use_implementation
from snn_ext.spikingjelly import ATIFuNode
from tests.ops.asn import cases as asn_cases
from tests.ops.integrate_and_fire import cases

from .cases import _resnet18
from .contenders import BASELINE, Contender, available, compiled_loop, hosts, ours
from .measuring import Timing, measure, ratio
from .report import measured_with

ROOT = Path(__file__).resolve().parents[2]
COPY, COMPILE, FLEX = "copy of as many bytes", "torch.compile", "SpikingJelly FlexSN"
MANY = 50
Clock = Callable[[dict[str, Callable[[], object]], int], dict[str, Timing]]


@dataclass(frozen=True)
class Row:
    """One contender in one case."""

    case: str
    contender: str
    milliseconds: float
    roof: float | None = None
    """Part of the bandwidth of a copy, for the bytes that a layer has to move."""
    speedup: float | None = None
    """Speed-up over SpikingJelly's IFNode."""
    demand: str = ""
    met: bool | None = None
    megabytes: float | None = None
    """Peak memory."""


@dataclass(frozen=True)
class Setting:
    """Device and sizes of a measurement."""

    device: torch.device
    neurons: int = 1 << 24
    rounds: int = 15
    images: int = 64


@dataclass(kw_only=True)
class Options:
    """Options."""

    device: Annotated[str, known_device, "cuda, cuda:1 ..."] = "cuda"
    neurons: Annotated[Count, "neurons of a layer (16.8 million)"] = 1 << 24
    rounds: Count = 15
    images: Annotated[Count, "batch of the ResNet-18"] = 64
    out: Annotated[NewFolder, "folder for the results"] = ROOT / "runs" / "benchmarks-gpu"


@command
def main(options: Options) -> int:
    """Return the exit status: 1 if a check fails, 2 if there is no GPU to run on."""
    found = implementation("integrate_and_fire", options.device)
    if not found.name.startswith("cuda-"):
        print(f"No CUDA kernel runs on {options.device}, and nothing is measured:", file=sys.stderr)
        for name in ("cuda-cupy", "cuda-nvrtc"):
            print(f"  {name}: {found.unavailable[name]}", file=sys.stderr)
        return 2
    setting = Setting(torch.device(options.device), options.neurons, options.rounds, options.images)
    about = environment(setting)
    print("\n".join(f"{name}: {value}" for name, value in about.items()))
    try:
        check(setting.device)
    except AssertionError as error:
        print(f"The kernels fail their checks, and nothing is measured: {error}", file=sys.stderr)
        return 1
    rows: list[Row] = []
    for case in CASES:
        print(f"{case.__name__} ...", file=sys.stderr, flush=True)
        rows += case(setting, gpu_clock)
        write(rows, about, options.out)
    print(to_markdown(rows, about))
    print(f"Written: {options.out / 'gpu.json'}, {options.out / 'gpu.md'}", file=sys.stderr)
    return 0


def check(device: torch.device) -> None:
    """Hold every CUDA implementation that runs here to the definition; raises AssertionError."""
    for name in (name for name in available(device) if name.startswith("cuda-")):
        with use_implementation(name):
            for operator, step in (
                ("integrate_and_fire", cases.Case.check_all),
                ("integrate_and_fire", cases.check_reproducible),
                ("integrate_and_fire", cases.check_side_stream),
                ("integrate_and_fire", cases.check_graph),
                ("adaptive_spiking", asn_cases.Case.check_all),
                ("adaptive_spiking", asn_cases.check_graph),
            ):
                print(f"{name}: {operator}, {step.__name__} ...", file=sys.stderr, flush=True)
                step(device)


def gpu_clock(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, Timing]:
    """Time every call once a round by CUDA events, in another order each round, after three to warm up."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    shuffled = random.Random(0)
    for turn in range(rounds + 3):
        for name in shuffled.sample(list(calls), len(calls)):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            torch.cuda._sleep(5_000_000)  # some milliseconds in which launches queue up, so that they are not timed
            start.record()
            calls[name]()
            end.record()
            torch.cuda.synchronize()
            if turn >= 3:
                times[name].append(start.elapsed_time(end) / 1e3)
    return {name: Timing(tuple(seconds)) for name, seconds in times.items()}


# -- one layer ---------------------------------------------------------------------------------------------------------


def inference(setting: Setting, clock: Clock) -> list[Row]:
    """Forward pass without gradients at T = 4, against everybody."""
    rows = []
    for dtype, demand in ((torch.float32, 1.5), (torch.bfloat16, 2.0)):
        x_seq = _input(setting, 4, dtype)
        contenders = _contenders(setting.device)
        calls = {name: partial(contender.infer, x_seq) for name, contender in contenders.items()}
        demands = {"operator": (demand, 2.0, 0.9)}
        rows += _layer(f"inference, {_name(x_seq)}", x_seq, 2, _working(calls), demands, setting.rounds, clock)
    return rows


def training(setting: Setting, clock: Clock) -> list[Row]:
    """Forward and backward pass at T = 4 with the gradient of the threshold, against everybody."""
    rows = []
    for dtype, demand in ((torch.float32, 1.3), (torch.bfloat16, 1.7)):
        x_seq = _input(setting, 4, dtype).requires_grad_()
        gradient = torch.randn_like(x_seq)
        contenders = _contenders(setting.device)
        calls = {name: partial(contender.train, x_seq, gradient) for name, contender in contenders.items()}
        demands = {"operator": (demand, 2.0, None)}
        rows += _layer(f"training, {_name(x_seq)}", x_seq, 5, _working(calls), demands, setting.rounds, clock)
    return rows


def backward(setting: Setting, clock: Clock) -> list[Row]:
    """The backward kernel alone, with every gradient."""
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        x_seq = _input(setting, 4, dtype)
        calls = {f"operator, {name}": _backward_call(name, x_seq, 1) for name in available(setting.device)}
        demands = {"operator": (None, None, 0.8)}
        rows += _layer(f"backward, {_name(x_seq)}", x_seq, 3, calls, demands, setting.rounds, clock)
    return rows


def steps(setting: Setting, clock: Clock) -> list[Row]:
    """Other numbers of steps, and a threshold for each step."""
    rows = []
    for time_steps in (1, 8, 16, 32):
        small = Setting(setting.device, max(4 * setting.neurons // time_steps, 1))
        for dtype in (torch.float32, torch.bfloat16):
            x_seq = _input(small, time_steps, dtype)
            forward = partial(_operator, thresholds=torch.ones(time_steps, device=setting.device))
            calls: dict[str, Callable[[], object]] = {
                f"operator, {name}, T thresholds": partial(Contender(forward, name).infer, x_seq)
                for name in available(setting.device)
            }
            rows += _layer(f"inference, {_name(x_seq)}", x_seq, 2, calls, {}, setting.rounds, clock)
            calls = {
                f"operator, {name}, T thresholds": _backward_call(name, x_seq, time_steps)
                for name in available(setting.device)
            }
            rows += _layer(f"backward, {_name(x_seq)}", x_seq, 3, calls, {}, setting.rounds, clock)
    return rows


def adaptive(setting: Setting, clock: Clock) -> list[Row]:
    """The adaptive neuron over 500 steps of a millisecond; the plain loop is the definition."""
    x_seq = 0.3 * _input(Setting(setting.device, max(4 * setting.neurons // 500, 1)), 500, torch.float32)
    loop = Contender(lambda x: definition.adaptive_spiking(x)[0])
    mine = {
        f"adaptive operator, {name}": Contender(lambda x: adaptive_spiking(x)[0], name)
        for name in available(setting.device)
    }
    rows = []
    for case, passes in (("inference", 2), ("training", 5)):
        x_seq, gradient = x_seq.detach().requires_grad_(case == "training"), torch.randn_like(x_seq)
        calls = {
            name: partial(c.infer, x_seq) if case == "inference" else partial(c.train, x_seq, gradient)
            for name, c in {"plain loop": loop, **mine}.items()
        }
        rows += _layer(f"adaptive neuron, {case}, {_name(x_seq)}", x_seq, passes, calls, {}, setting.rounds, clock)
    return rows


def _layer(
    case: str,
    x_seq: Tensor,
    passes: int,
    calls: dict[str, Callable[[], object]],
    demands: dict[str, tuple[float | None, float | None, float | None]],
    rounds: int,
    clock: Clock,
) -> list[Row]:
    """Time a case; ``passes`` is how often a layer has to read or write all of its input, a copy does so twice.

    Demands by the beginning of a name: times as fast as IFNode, times as fast as FlexSN, part of the roof.
    """
    target = torch.empty_like(x_seq, requires_grad=False)
    timings = clock({COPY: partial(target.copy_, x_seq.detach()), **calls}, rounds)
    rows = []
    for name, timing in timings.items():
        roof = passes / 2 * ratio(timings[COPY], timing).median
        speedup = ratio(timings[BASELINE], timing).median if BASELINE in timings else None
        over_flex = ratio(timings[FLEX], timing).median if FLEX in timings else None
        wanted = demands.get(name.split(",")[0], (None, None, None)) if "cuda" in name else (None, None, None)
        pairs = [
            (f">= {want:g}{unit}", have >= want)
            for want, have, unit in zip(
                wanted, (speedup, over_flex, roof), ("x IFNode", "x FlexSN", " of the copy"), strict=True
            )
            if want is not None and have is not None
        ]
        demand, met = ", ".join(text for text, _ in pairs), all(good for _, good in pairs) if pairs else None
        shown = 1.0 if name == COPY else roof
        rows.append(Row(case, name, 1e3 * timing.median, shown, speedup, demand, met))
    return rows


# -- many launches, and a whole net ------------------------------------------------------------------------------------


def graph(setting: Setting, clock: Clock) -> list[Row]:
    """Time on the host of forward and backward of a small layer, launched one by one and as a CUDA graph."""
    x_seq = torch.randn(4, 1024, device=setting.device)
    rows = []
    for name in (name for name in available(setting.device) if name.startswith("cuda-")):
        with use_implementation(name):
            run = partial(cases.training_results, x_seq)
            run()
            torch.cuda.synchronize(setting.device)
            captured = torch.cuda.CUDAGraph()
            with torch.cuda.graph(captured):
                run()
            calls = {"one by one": run, "as a graph": captured.replay}
            timings = measure(
                {how: partial(_many, call, setting.device) for how, call in calls.items()}, setting.rounds
            )
        rows += [
            Row("launches, forward and backward", f"operator, {name}, {how}", 1e3 * timing.median / MANY)
            for how, timing in timings.items()
        ]
    return rows


def _many(call: Callable[[], object], device: torch.device) -> None:
    for _ in range(MANY):
        call()
    torch.cuda.synchronize(device)


def resnet18(setting: Setting, clock: Clock) -> list[Row]:
    """A training step of a spiking ResNet-18 at T = 4 on images of 32 x 32, under autocast in bfloat16."""
    images = torch.randn(4, setting.images, 3, 32, 32, device=setting.device)
    labels = torch.randint(10, (setting.images,), device=setting.device)
    calls: dict[str, Callable[[], object]] = {}
    peaks: dict[str, float] = {}
    for name, node, chosen in (
        (BASELINE, neuron.IFNode, None),
        *((f"ATIFuNode, {name}", ATIFuNode, name) for name in available(setting.device)),
    ):
        calls[name] = partial(_step, _resnet18(node).to(setting.device), chosen, images, labels)
        peaks[name] = _peak_memory(calls[name], setting.device)
    timings = clock(calls, setting.rounds)
    rows = []
    for name, timing in timings.items():
        speedup = ratio(timings[BASELINE], timing).median
        mine = name != BASELINE and "cuda" in name
        demand, met = ("less memory than IFNode", peaks[name] < peaks[BASELINE]) if mine else ("", None)
        case = f"ResNet-18 training step, T = 4, batch {setting.images}"
        rows.append(Row(case, name, 1e3 * timing.median, None, speedup, demand, met, peaks[name]))
    return rows


def _step(net: nn.Module, chosen: str | None, images: Tensor, labels: Tensor) -> None:
    functional.reset_net(net)
    for parameter in net.parameters():
        parameter.grad = None
    contender = Contender(net, chosen)
    with contender.forced(), torch.autocast(images.device.type, dtype=torch.bfloat16):
        loss = nn.functional.cross_entropy(contender.forward(images).mean(0), labels)
    with contender.forced():
        loss.backward()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter -= 1e-3 * parameter.grad


def _peak_memory(call: Callable[[], object], device: torch.device) -> float:
    """Return the peak of the allocated memory in megabytes, above what was there before."""
    if device.type != "cuda":
        return 0.0
    call()
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - before) / 1e6


CASES = (inference, training, backward, steps, adaptive, graph, resnet18)

# -- contenders --------------------------------------------------------------------------------------------------------


def _contenders(device: torch.device) -> dict[str, Contender]:
    rivals = {name: contender for name, contender in hosts(device).items() if "Leaky" not in name}
    mine = {name: contender for name, contender in ours(device).items() if name.startswith("operator")}
    return {**rivals, COMPILE: compiled_loop(device), **mine}


def _working(calls: dict[str, Callable[[], object]]) -> dict[str, Callable[[], object]]:
    """Leave out who cannot do the case, with a line on why; ours have to."""
    found = {}
    for name, call in calls.items():
        try:
            call()
        except Exception as error:
            if name.startswith("operator"):
                raise
            print(f"{name} is left out: {type(error).__name__}: {str(error).splitlines()[:1]}", file=sys.stderr)
        else:
            found[name] = call
    return found


def _operator(x_seq: Tensor, thresholds: Tensor) -> Tensor:
    return integrate_and_fire(x_seq, 0.0, thresholds)[0]


def _backward_call(name: str, x_seq: Tensor, thresholds: int) -> Callable[[], object]:
    """Return a call of the backward operator alone, on what the forward operator keeps."""
    settings = ("subtract", True, False, 0, 4.0, 1.0, "add")
    v, thetas = torch.zeros((), device=x_seq.device), torch.ones(thresholds, device=x_seq.device)
    with use_implementation(name), torch.no_grad():
        kept = torch.ops.snn_ext.integrate_and_fire(x_seq, v, thetas, *[None] * 5, *settings, True)[2]
    gradient = torch.randn_like(x_seq)

    def call() -> None:
        with use_implementation(name), torch.no_grad():
            torch.ops.snn_ext.integrate_and_fire_backward(
                gradient, None, x_seq, v, thetas, *[None] * 5, kept, *settings, [True, False, True, *[False] * 4]
            )

    return call


def _input(setting: Setting, time_steps: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(time_steps, setting.neurons, device=setting.device).to(dtype)


def _name(x_seq: Tensor) -> str:
    return f"T = {x_seq.shape[0]}, {x_seq.shape[1]} neurons, {str(x_seq.dtype).removeprefix('torch.')}"


# -- what comes out ----------------------------------------------------------------------------------------------------


def environment(setting: Setting) -> dict[str, str | int]:
    """Return what the numbers depend on: the GPU, versions, sizes."""
    about: dict[str, str | int] = {"device": str(setting.device)}
    if setting.device.type == "cuda":
        properties = torch.cuda.get_device_properties(setting.device)
        about["device"] = properties.name
        about["architecture"] = f"sm_{properties.major}{properties.minor}"
        about["memory"] = f"{properties.total_memory / 2**30:.0f} GiB"
        about["CUDA of torch"] = str(torch.version.cuda)
    for name in ("torch", "triton", "spikingjelly", "cupy-cuda12x", "cupy-cuda13x"):
        try:
            about[name] = version(name)
        except ModuleNotFoundError:  # PackageNotFoundError is one
            continue
    about |= {"python": platform.python_version(), "rounds": setting.rounds}
    about["implementation"] = implementation("integrate_and_fire", setting.device).name
    about["IFNode by"] = os.environ.get("SJ_IF_CUDA_IMPLEMENTATION", "auto")
    return about


def to_markdown(rows: Sequence[Row], about: dict[str, str | int]) -> str:
    """Return one short table, with a line on where it was measured."""
    table = [
        (
            row.case,
            row.contender,
            f"{row.milliseconds:.3g}",
            "" if row.roof is None else f"{100 * row.roof:.0f} %",
            "" if row.speedup is None else f"{row.speedup:.2f}",
            "" if row.megabytes is None else f"{row.megabytes:.0f}",
            row.demand,
            {True: "yes", False: "NO", None: ""}[row.met],
        )
        for row in rows
    ]
    headers = ("case", "", "ms", "of the copy", "x IFNode", "peak MB", "demand", "met")
    used = [i for i in range(len(headers)) if i < 3 or any(line[i] for line in table)]
    measured = measured_with(about)
    return f"{measured}\n\n" + tabulate(
        [[line[i] for i in used] for line in table], [headers[i] for i in used], tablefmt="github"
    )


def write(rows: Sequence[Row], about: dict[str, str | int], folder: Path) -> None:
    """Write ``gpu.json`` and ``gpu.md``, each whole or not at all."""
    with replacing(folder / "gpu.json") as path:
        content = {"about": about, "rows": [asdict(row) for row in rows]}
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    save_text(to_markdown(rows, about) + "\n", folder / "gpu.md")


if __name__ == "__main__":
    run_main(main)
