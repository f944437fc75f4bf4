"""Speed of simulations of converted nets, and of their search.

A conversion is counted in passes of its net. The engine stands against the host's loop. Spike-Norm and the search of
pre-charges stand against searches that run the net anew for each layer.

Contenders of a case run in one process, in turns. The tests of what is measured run first; when one fails nothing is
measured.
"""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from spikingjelly.activation_based import functional
from spikingjelly.activation_based.ann2snn import Converter, RateCodingRecipe
from tabulate import tabulate
from torch import Tensor, fx, nn

from recipes.lib.cli import Count, NewFile, Positive
from recipes.lib.command import command, run_main
from recipes.lib.files import replacing, save_text
from recipes.models.adaptive import layout_net
from snn_ext import convert, evaluate
from snn_ext.conversion import ConvertedNet, optimize_precharge
from snn_ext.conversion.methods.spike_norm import spike_norm
from snn_ext.hosts import is_neuron
from snn_ext.simulation import Simulation

from .cases import Settings
from .measuring import measure, ratio
from .plain_adaptive import plain, plain_loop
from .report import environment, measured_with

ROOT = Path(__file__).resolve().parents[2]
TESTS = (
    "tests/ops/spike_convolution/test_spike_convolution.py",
    "tests/simulation/test_engine.py",
    "tests/simulation/test_counts.py",
    "tests/conversion/methods/test_spike_norm.py",
    "tests/conversion/test_precharge.py",
    "tests/conversion/methods/test_adsnn.py",
)
LAYOUT: tuple[int | str, ...] = (64, 64, "A", 128, 128, "A", 256, 256, 256, "A", 512, 512, 512, "A", 512, 512, 512, "A")
STEPS, MILLISECONDS = 32, 500


@dataclass(kw_only=True)
class Options:
    """Options."""

    rounds: Count = 9
    width: Annotated[Positive, "factor on the channels of the simulated net"] = 0.5
    cases: Annotated[list[str], CASES] = field(default_factory=lambda: list(CASES))
    time_steps: Annotated[Count, "T of the case memory, which takes some minutes"] = 2500
    cpu_time: Annotated[bool, "of adsnn: the processor's time, on a busy machine"] = False
    out: NewFile = ROOT / "runs" / "benchmarks" / "conversion.json"
    markdown: Annotated[NewFile | None, "file for the table"] = None
    unchecked: Annotated[bool, "do not run the tests first"] = False


@command
def main(options: Options) -> int:
    """Return the exit status."""
    if not options.unchecked and not _correct():
        print("The tests fail: nothing is measured.", file=sys.stderr)
        return 1
    rows: list[dict[str, Any]] = []
    for name in options.cases:
        print(f"{name} ...", file=sys.stderr, flush=True)
        rows += CASES[name](options)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        save_text(json.dumps(rows, indent=1), options.out)
    about = measured_with(environment(Settings(options.rounds)))
    page = f"{about}\n\n{tabulate(rows, headers='keys', tablefmt='github')}\n"
    print(page)
    if options.markdown is not None:
        with replacing(options.markdown) as file:
            title = "# Converted nets: benchmark results\n\n    python -m benchmarks conversion-speed\n\n"
            file.write_text(title + page, encoding="utf-8")
    return 0


# -- cases -----------------------------------------------------------------------------------------------------------


def simulation(options: Options) -> list[dict[str, Any]]:
    """Measure 32 steps of a VGG-like net against ``for t in range(T): net(x)`` over the host's converted net."""
    torch.manual_seed(1)
    ann = vgg(LAYOUT[:12], options.width)
    calibration = torch.rand(8, 3, 32, 32)
    host = Converter(RateCodingRecipe([calibration])).convert(ann)
    ours = convert(ann, calibration, method="data-norm")
    rows = []
    for samples, wanted in ((1, 3.0), (4, 2.0), (16, 1.6)):
        x = torch.rand(samples, 3, 32, 32)
        rows.append(
            _row(
                f"simulate, N = {samples}",
                {
                    "host": lambda x=x: _host_loop(host, x),
                    "ours": lambda x=x: list(Simulation(ours).run(x, STEPS)),
                },
                options.rounds, wanted,
            )
        )  # fmt: skip
    return rows


def evaluation(options: Options) -> list[dict[str, Any]]:
    """Measure ``evaluate`` of several batches of that net against the same loop: the processor's time, one thread."""
    torch.manual_seed(1)
    ann, calibration = vgg(LAYOUT[:12], options.width), torch.rand(8, 3, 32, 32)
    host = Converter(RateCodingRecipe([calibration])).convert(ann)
    ours = convert(ann, calibration, method="data-norm")
    rows = []
    for samples, count, wanted in ((1, 16, 3.0), (4, 8, 2.0), (16, 4, 1.6)):
        batches = [(torch.rand(samples, 3, 32, 32), torch.arange(samples) % 10) for _ in range(count)]
        contenders = {
            "host": lambda batches=batches: [_host_loop(host, x) for x, _ in batches],
            "ours": lambda batches=batches: evaluate(ours, batches, STEPS, progress=False),
        }
        case = f"evaluate, N = {samples}, {count} batches"
        rows.append(_row(case, contenders, max(3, options.rounds // 3), wanted, clock=time.process_time))
    return rows


def thresholds(options: Options) -> list[dict[str, Any]]:
    """Measure Spike-Norm on a net of 16 layers against a simulation from the input for every layer."""
    x = torch.rand(4, 3, 32, 32)
    net = convert(vgg(LAYOUT, 0.25), x, method="data-norm", readout="spikes", fold_scales=False)
    steps = 32

    def keep(name: str, maximum: Tensor) -> Tensor:
        net.get_submodule(name).v_threshold = maximum.clamp_min(1e-3)
        return maximum

    contenders = {
        "host": lambda: _spike_norm_from_the_input(net, x, steps, keep),
        "ours": lambda: spike_norm(net, [x], steps, keep),
    }
    return [_row(f"Spike-Norm, {len(_layers(net))} layers", contenders, max(3, options.rounds // 3), 5.0)]


def precharges(options: Options) -> list[dict[str, Any]]:
    """Measure the search of pre-charges against layers 0..l for every candidate; that is done for 1 of 51 of them."""
    x = torch.rand(2, 3, 32, 32)
    net = convert(vgg(LAYOUT, 0.125), x, method="data-norm", readout="spikes")
    steps, candidates = 64, 51
    contenders = {
        "host": lambda: _one_candidate_a_layer(net, x, steps),
        "ours": lambda: optimize_precharge(copy.deepcopy(net), None, x, time_steps=steps, candidates=candidates),
    }
    name = f"pre-charge, {len(_layers(net))} layers"
    return [_row(name, contenders, max(3, options.rounds // 3), 20.0, factor=candidates)]


def phased(options: Options) -> list[dict[str, Any]]:
    """Measure ``evaluate`` of an exact net, T = 4, 20 batches, against its analog net, and one batch against steps."""
    ann = vgg(LAYOUT, 0.25)
    batches = [(torch.rand(50, 3, 32, 32), torch.arange(50) % 10) for _ in range(20)]
    net = convert(ann, batches[0][0], method="data-norm", schedule="phased", time_steps=4)

    def evaluated(count: int, **how: Any) -> Callable[[], object]:
        return lambda: evaluate(net, batches[:count], net.latency, progress=False, **how)

    @torch.no_grad()
    def analog() -> object:
        return [ann(x) for x, _ in batches]

    clock, rounds = time.process_time if options.cpu_time else time.perf_counter, max(3, options.rounds // 3)
    alone, compared = ({"host": analog, "ours": evaluated(20, compare=compare)} for compare in (False, True))
    return [
        _row("exact VGG-16 / 4 by counts, the analog net", alone, options.rounds, 0.67, clock=clock),
        _row("exact VGG-16 / 4 and its analog net, the latter", compared, options.rounds, 0.4, clock=clock),
        _row("exact VGG-16 / 4, by steps", {"host": evaluated(1, chunk=32), "ours": evaluated(1)}, rounds, 1.0),
    ]


def adaptive(options: Options) -> list[dict[str, Any]]:
    """Measure 500 ms of adaptive nets against a plain loop over the milliseconds, of the same net."""
    torch.manual_seed(1)
    rows = []
    for layout, inputs, batches in (
        ("8c3-m2-16c3-16c3-m2-d64", (1, 28, 28), (1, 16)),
        ("64c3-m2-128c3-128c3-m2-d256-d50", (1, 28, 28), (1,)),
        ("d64-d64", (60,), (1, 16, 128)),
    ):
        ann = layout_net(layout, inputs, 10)
        with torch.no_grad():  # running statistics, so that activity is that of a net
            for _ in range(20):
                ann(torch.rand(64, *inputs))
        ours = convert(ann.eval(), torch.rand(8, *inputs), method="adsnn")
        theirs = plain(ours)
        for samples in batches:
            x = torch.rand(samples, *inputs)
            # In float64: in float32 a spike may come a step later, for the currents are summed in another order.
            exact = x.double(), copy.deepcopy(ours).double(), copy.deepcopy(theirs).double()
            result = torch.cat(list(Simulation(exact[1]).run(exact[0], 100)))
            want = torch.stack(plain_loop(exact[2], exact[0], 100))
            if not torch.allclose(result, want, rtol=1e-9, atol=1e-9):
                raise RuntimeError(f"{layout}: the two ways differ by {float((result - want).abs().max()):.3g}")
            contenders = {
                "host": lambda x=x, net=theirs: plain_loop(net, x, MILLISECONDS),
                "ours": lambda x=x, net=ours: list(Simulation(net).run(x, MILLISECONDS)),
            }
            clock = time.process_time if options.cpu_time else time.perf_counter
            case, rounds = f"AdSNN {layout}, N = {samples}", max(3, options.rounds // 2)
            rows.append(_row(case, contenders, rounds, 10.0, clock=clock))
    return rows


LONG_RUN = """
import resource, sys, torch
from benchmarks.speed.measuring import peak_memory
from recipes.models.convertible import vgg16
from snn_ext import convert, evaluate
torch.manual_seed(0)
ann, x = vgg16().eval(), torch.rand(16, 3, 32, 32)
for layer in ann:       # random weights, but activity down to the last layer
    x = layer(x).detach()
    if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear)):
        scale = 2.0 / x.std()
        layer.weight.data *= scale
        x = x * scale
x = torch.rand(16, 3, 32, 32)
snn = convert(ann, x, method="data-norm", precharge=0.5)
with open("/proc/self/statm") as file:
    before = int(file.read().split()[1]) * resource.getpagesize()
found = evaluate(snn, [(x, torch.arange(16) % 10)], int(sys.argv[1]), ann=ann)
assert float(found.layers[-1].spikes[-1]) > 0, "the last layer is silent: nothing is simulated"
print((peak_memory() - before) // 1024)
"""


def memory(options: Options) -> list[dict[str, Any]]:
    """Evaluate VGG-16 in CIFAR shape, 16 images: the peak of a process of its own less what it held before (Linux)."""
    command = [sys.executable, "-c", LONG_RUN, str(options.time_steps)]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    case = f"evaluate VGG-16, N = 16, T = {options.time_steps}"
    return [{"case": case, "more MiB": int(done.stdout) // 1024, "wanted": "<= 1024"}]


CONVERSION = """
import json, sys, time, torch
from benchmarks.speed.measuring import peak_memory
from torchvision.models import resnet50
from snn_ext import convert
torch.manual_seed(0)
ann, x = resnet50().train(), torch.rand(32, 3, 64, 64)

def peak():
    return peak_memory() // 2**20

def timed(function):
    start = time.process_time()
    function()
    return time.process_time() - start

with torch.no_grad():
    for module in ann.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
    ann(x)
    ann.eval()
    one = min(timed(lambda: ann(x)) for _ in range(5))
before = peak()
whole = timed(lambda: convert(ann, x, method=sys.argv[1], memory=1 << 28))
print(json.dumps([one, whole, before, peak()]))
"""


def conversion(options: Options) -> list[dict[str, Any]]:
    """Convert ResNet-50 with 32 images of 64 x 64 pixels: the processor's time in passes of the net, and the peak."""
    rows = []
    for method in ("data-norm", "calibrated", "spike-norm"):
        command = [sys.executable, "-c", CONVERSION, method]
        done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
        one, whole, before, peak = json.loads(done.stdout)
        times = {"one pass, s": round(one, 2), "ours, passes": round(whole / one)}
        memory = {"net alone, MiB": before, "ours, MiB": peak, "wanted": f"<= {2 * before + 256} MiB"}
        rows.append({"case": f"convert ResNet-50, {method}", **times, **memory})
    return rows


CASES: dict[str, Callable[[Options], list[dict[str, Any]]]] = {
    "simulation": simulation,
    "evaluation": evaluation,
    "spike-norm": thresholds,
    "pre-charge": precharges,
    "phased": phased,
    "adsnn": adaptive,
    "memory": memory,
    "conversion": conversion,
}


def _row(
    case: str,
    contenders: dict[str, Callable[[], object]],
    rounds: int,
    wanted: float,
    factor: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    """Measure two contenders; the first one's time counts ``factor`` times."""
    times = measure(contenders, rounds, clock=clock)
    found = ratio(times["host"], times["ours"])
    return {
        "case": case,
        "they, ms": round(1e3 * times["host"].median * factor, 1),
        "ours, ms": round(1e3 * times["ours"].median, 1),
        "times as fast": round(found.median * factor, 2),
        "quartiles": f"{found.low * factor:.2f} to {found.high * factor:.2f}",
        "best to best": round(found.best * factor, 2),
        "wanted": wanted,
    }


# -- what the package is held against -------------------------------------------------------------------------------


def _host_loop(net: nn.Module, x: Tensor) -> list[Tensor]:
    functional.reset_net(net)
    with torch.no_grad():
        return [net(x) for _ in range(STEPS)]


def _spike_norm_from_the_input(net: ConvertedNet, x: Tensor, steps: int, keep: Callable[[str, Tensor], Tensor]) -> None:
    """Simulate from the input for every layer, with the package's own engine."""
    simulation = Simulation(net)
    for node in _layers(net):
        top = max(values[node.args[0]].max() for values in simulation.stream(x, steps, [node.args[0]]))
        keep(str(node.target), top.reshape(1))


def _one_candidate_a_layer(net: ConvertedNet, x: Tensor, steps: int) -> None:
    """Run layers 0..l for one pre-charge of each layer l and sum up its error, with the package's own engine."""
    simulation = Simulation(net)
    for node in _layers(net):
        count, error = torch.zeros(()), 0.0
        for values in simulation.stream(x, steps, [node]):
            for t, spikes in enumerate(values[node], 1):
                count = count + spikes
                error += float((count / t - 0.5).square().mean())


def _layers(net: fx.GraphModule) -> list[Any]:
    return [n for n in net.graph.nodes if n.op == "call_module" and is_neuron(net.get_submodule(str(n.target)))]


def vgg(layout: Sequence[int | str], width: float) -> nn.Module:
    """Build a VGG for 32x32 images with batch norm and average pooling; the full one has two hidden linear layers."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    channels = 3
    for entry in layout:
        if entry == "A":
            layers.append(nn.AvgPool2d(2))
        else:
            outputs = max(4, round(int(entry) * width))
            layers += [nn.Conv2d(channels, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
            channels = outputs
    size = channels * (32 >> list(layout).count("A")) ** 2
    layers.append(nn.Flatten())
    if len(layout) == len(LAYOUT):
        layers += [nn.Linear(size, size), nn.ReLU(), nn.Linear(size, size), nn.ReLU()]
    net = nn.Sequential(*layers, nn.Linear(size, 10))
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    with torch.no_grad():  # running statistics as after training, so that activity does not die out with depth
        net(torch.rand(32, 3, 32, 32))
    return net.eval()


def _correct() -> bool:
    command = [sys.executable, "-m", "pytest", "-q", "-x", *TESTS]
    return subprocess.run(command, cwd=ROOT, check=False).returncode == 0


if __name__ == "__main__":
    run_main(main)
