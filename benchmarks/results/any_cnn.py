"""All nets of torchvision, and small ones of the families of timm: converted, or refused with the reason.

``python -m benchmarks any-cnn --markdown docs/any-cnn-results.md`` keeps the nets that are done, so it can be
interrupted and started again. timm is optional: ``pip install '.[timm]'``.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision import models

import snn_ext
from recipes.lib.cli import Count, NewFile, NewFolder, Seed
from recipes.lib.command import command, run_main
from recipes.lib.files import read_json, save_text, write_json
from recipes.lib.run_folder import own_folder
from snn_ext.conversion.canonicalize import canonicalize
from snn_ext.simulation import AnalogTwin, Simulation

from .pages import command_line, provenance, table

KINDS = {"classification": models, "segmentation": models.segmentation, "video": models.video}
SIZES: dict[str, tuple[int, ...]] = {"video": (16, 56, 56), "s3d": (16, 224, 224), "mvit": (16, 224, 224)}
SIZES |= {"inception": (96, 96), "vit": (224, 224), "maxvit": (224, 224)}
"""Sizes of the inputs of a kind, or of nets by the beginning of their name; 64 x 64 for others."""
TIMM = """
resnet10t resnet18 resnet50 resnext50_32x4d seresnext26t_32x4d ecaresnet26t resnetblur18 resnetaa34d resnetv2_18
resnetv2_50d_evos nf_resnet26 skresnet18 resnest14d gcresnext26ts legacy_seresnet18 legacy_xception vgg11 vgg11_bn
densenet121 densenetblur121d dla34 dla60_res2net res2net50_14w_8s res2next50 regnetx_002 regnety_002 regnetz_005
mobilenetv1_100 mobilenetv2_035 mobilenetv3_small_050 mobilenetv4_conv_small efficientnet_lite0 tf_efficientnet_lite0
efficientnet_es efficientnet_b0 ghostnet_050 repghostnet_050 repvgg_a0 mobileone_s0 hrnet_w18_small cspresnet50
cspdarknet53 darknet53 inception_v3 inception_v4 inception_resnet_v2 xception41 dpn48b dpn68 selecsls42 tresnet_m
hardcorenas_a mixnet_s mnasnet_small semnasnet_075 fbnetc_100 convnext_atto ese_vovnet19b_slim hgnetv2_b0 rexnet_100
lcnet_050 nasnetalarge fasternet_t0
""".split()
"""Of each family of convolutional nets in timm a small one."""
METHOD: dict[str, Any] = {"method": "data-norm", "precharge": 0.5, "channel_wise": True}
PAGE = """\
# Any convolutional net: results

Which nets of torchvision{others} convert, what the others are refused for, and how
far the output of a converted net is from that of the analog net after T steps. Weights are random, and batch norm has
the statistics of random images. So the figures show that conversions are right and how their error falls; they say
nothing about accuracy on real images. Deep nets of random weights are the hard case: their error may even rise before
it falls. Images are of {size} x {size} pixels where a net takes them. The error is
the root mean square over the outputs for {samples} image(s) that thresholds were found on, relative to that of the
outputs of the analog net; the limit is the error of exact rates, which is approached with T. Thresholds are the maxima
of channels, the pre-charge is 0.5. Errors are measured for nets of up to {measured} million parameters, for video of
up to a tenth of that; of the others the table says that they convert.

"""


@dataclass(kw_only=True)
class Options:
    """Study."""

    out: Annotated[NewFolder, "folder"] = Path("runs/any_cnn")
    nets: Annotated[list[str], "beginnings of the names of the nets, none: all"] = field(default_factory=list)
    time_steps: Annotated[list[Count], "T of the errors"] = field(default_factory=lambda: [8, 32, 128])
    size: Annotated[Count, "pixels of an image"] = 64
    samples: Annotated[Count, "on which the error is measured"] = 1
    largest: Annotated[Count, "millions of parameters of the largest net that is tried"] = 150
    measured: Annotated[Count, "millions of parameters of the largest net whose errors are measured"] = 150
    seed: Seed = 0
    markdown: Annotated[NewFile | None, "file for the page"] = None


@dataclass
class Row:
    """What came out of one net: errors by T and in the limit of exact rates, or the reason against it."""

    kind: str
    name: str
    parameters: float
    reason: str | None = None
    errors: list[float] = field(default_factory=list)
    limit: float | None = None
    gates: bool = False
    seconds: float = 0.0


@command
def main(options: Options) -> list[Row]:
    """Try net after net, print a line for each, and write the page."""
    rows: list[Row] = []
    setting = {
        name: getattr(options, name) for name in ("time_steps", "size", "samples", "largest", "measured", "seed")
    }
    with own_folder(options.out, "any_cnn"):
        file = options.out / "results.json"
        found = read_json(file, "the nets that are done", "remove it to try them again") if file.exists() else {}
        kept = [Row(**row) for row in found.get("rows", []) if found["setting"] == setting]
        done = {(row.kind, row.name): row for row in kept}  # resnet18 is in torchvision and in timm
        for kind, name in names(options.nets):
            rows.append(done.get((kind, name)) or tried(kind, name, options))
            print(f"{kind:<15}{name:<32}{rows[-1].reason or _errors(rows[-1])}", flush=True)
            done[kind, name] = rows[-1]
            write_json(file, {"setting": setting, "rows": [asdict(row) for row in done.values()]})
    if options.markdown is not None:
        save_text(page(rows, options), options.markdown)
    return rows


def names(chosen: Iterable[str] = ()) -> Iterator[tuple[str, str]]:
    """Yield kind and name of all nets, or of those whose names begin with one of ``chosen``."""
    every = [(kind, name) for kind, module in KINDS.items() for name in models.list_models(module=module)]
    if find_spec("timm") is None:
        print(f"timm is not installed: its {len(TIMM)} nets are left out (pip install '.[timm]')")
    else:
        every += [("timm", name) for name in TIMM]
    beginnings = tuple(chosen) or ("",)
    yield from ((kind, name) for kind, name in every if name.startswith(beginnings))


def tried(kind: str, name: str, options: Options) -> Row:
    """Convert one net and measure it; a refusal is a result."""
    torch.manual_seed(options.seed)
    started = time.perf_counter()
    row = Row(kind, name, parameters(kind, name) / 1e6)
    if row.parameters > options.largest:
        row.reason = f"not tried: more than {options.largest} million parameters"
        return row
    size = next((s for k, s in SIZES.items() if name.startswith(k) or kind == k), (options.size, options.size))
    size = next((s for k, s in SIZES.items() if name.startswith(k)), size)
    net, x = made(kind, name).eval(), torch.randn(16, 3, *size)
    output = "out" if kind == "segmentation" else None
    try:
        canonicalize(net, x[:1], output=output)  # the part of the conversion that may refuse a net
        if row.parameters > options.measured * (0.1 if kind == "video" else 1.0):
            return row
        with_statistics(net, x[: 4 if kind == "video" else len(x)])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            snn = snn_ext.convert(net, x[:4], **METHOD, time_steps=1, output=output)
        row.gates = any("gate" in str(warning.message) for warning in caught)
        row.errors, row.limit = errors(net, snn, x[: options.samples], options.time_steps, output)
    except (ValueError, RuntimeError) as error:
        row.reason = " ".join(str(error).split()).removeprefix("ann: got ")
    row.seconds = time.perf_counter() - started
    return row


def parameters(kind: str, name: str) -> int:
    """Return the number of parameters of a net, without making it."""
    if kind != "timm":
        return int(models.get_model_weights(name).DEFAULT.meta["num_params"])
    with torch.device("meta"):
        return sum(p.numel() for p in made(kind, name).parameters())


def made(kind: str, name: str) -> nn.Module:
    """Return a net with random weights."""
    if kind == "timm":
        import timm

        net: nn.Module = timm.create_model(name)
        return net
    options: dict[str, Any] = {"weights": None}
    options |= {"weights_backbone": None} if kind == "segmentation" else {}
    options |= {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    return models.get_model(name, **options)


@torch.no_grad()
def with_statistics(net: nn.Module, x: Tensor) -> None:
    """Give batch norm the statistics of some images."""
    norms = [module for module in net.modules() if isinstance(module, _BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over batches
        norm.train()
    net(x)
    net.eval()


@torch.no_grad()
def errors(net: nn.Module, snn: Any, x: Tensor, time_steps: list[int], output: str | None) -> tuple[list[float], float]:
    """Return the relative error of the mean output after each of some numbers of steps, and that of exact rates."""
    wanted: Any = net(x)
    wanted, total, step, found = wanted if output is None else wanted[output], 0, 0, list[float]()

    def error(y: Tensor) -> float:
        return float((y - wanted).norm() / wanted.norm())

    for chunk in Simulation(snn).run(x, max(time_steps)):
        for y in chunk:
            total, step = total + y, step + 1
            if step in time_steps:
                found.append(error(total / step))
    return found, error(AnalogTwin(snn, keep=False)(x))


def page(rows: list[Row], options: Options) -> str:
    """Return the page: how many convert, their errors, and the reasons of the others."""
    timm = any(row.kind == "timm" for row in rows)
    others = f" and {len(TIMM)} small nets of the families of timm" if timm else ""
    parts = [PAGE.format(others=others, size=options.size, samples=options.samples, measured=options.measured)]
    parts.append(provenance(command_line(options), options.seed))
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torchvision", *["timm"] * timm))
    parts.append(f"\nNets of {libraries}.\n")
    kinds = list(dict.fromkeys(row.kind for row in rows))
    counts = [[row.reason is None for row in rows if row.kind == kind] for kind in kinds]
    parts.append(
        f"\n{table([(k, sum(c), len(c)) for k, c in zip(kinds, counts, strict=True)], ['', 'convert', 'of'])}\n"
    )
    header = ["net", "parameters, millions", *(f"error, T = {t}" for t in options.time_steps), "limit"]
    for kind in kinds:
        own = [row for row in rows if row.kind == kind]
        good = [[_name(row), f"{row.parameters:.1f}", *_cells(row, options)] for row in own if row.reason is None]
        bad = [[r.name, r.reason] for r in own if r.reason]
        parts.append(f"\n## {kind.capitalize()}\n")
        parts += [f"\n{table(good, header)}\n"] if good else []
        parts += [f"\n{table(bad, ['net', 'reason'])}\n"] if bad else []
    if any(row.gates for row in rows):
        parts.append("\n\\* with gates (squeeze-and-excitation, split attention), which are approximated.\n")
    return "".join(parts)


def _name(row: Row) -> str:
    return f"{row.name} \\*" if row.gates else row.name


def _cells(row: Row, options: Options) -> list[str | None]:
    if row.limit is None:
        return [None] * (len(options.time_steps) + 1)
    return [*(f"{error:.3f}" for error in row.errors), f"{row.limit:.0e}"]


def _errors(row: Row) -> str:
    return (
        "converts"
        if row.limit is None
        else ", ".join(f"{error:.3f}" for error in row.errors) + f"  ({row.seconds:.0f} s)"
    )


if __name__ == "__main__":
    run_main(main)
