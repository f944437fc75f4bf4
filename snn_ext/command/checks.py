"""Independent checks of a machine, each a function that yields what it found; :data:`CHECKS` lists them.

A check imports what it looks at by itself, so that one broken package hides nothing else.
"""

from __future__ import annotations

import errno
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path
from typing import Literal

from .._errors import first_line

__all__ = ["CHECKS", "Check", "Finding", "check", "examine"]

Status = Literal["ok", "note", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """A finding of a check, and what helps."""

    check: str
    status: Status
    found: str
    remedy: str | None = None


Check = Callable[[], Iterator[Finding]]

CHECKS: list[Check] = []
"""In the order in which they are printed."""

HOSTS = {"spikingjelly": ("2.0", "3"), "snntorch": ("1.0", "2")}
"""The versions of the hosts: at least, and below."""
CACHE_BYTES = 1 << 20
"""Size of the compiled operators."""


def check(function: Check) -> Check:
    """Enter a check into the list."""
    CHECKS.append(function)
    return function


def examine(function: Check) -> Iterator[Finding]:
    """Run a check; one that fails itself is a finding, too."""
    try:
        yield from function()
    except Exception as error:  # whatever a broken installation raises
        if isinstance(error, ModuleNotFoundError) and error.name == "torch":  # which a check of its own tells
            yield Finding(function.__name__, "note", "not looked at: torch is not installed")
            return
        yield Finding(function.__name__, "error", f"the check fails: {first_line(error)}")


# -- what is installed -------------------------------------------------------------------------------------------------


@check
def snn_ext() -> Iterator[Finding]:
    """Look for a second copy of this package."""
    from .. import __file__ as place
    from .. import __version__

    there = installed("snn_ext")
    about = f"{__version__}, in {Path(place).parent}"
    if there not in (None, __version__):
        yield Finding("snn_ext", "warning", f"{about}; pip has installed {there}", "pip install it again, here")
    else:
        yield Finding("snn_ext", "ok", about)
    yield Finding("python", "ok", f"{platform.python_version()}, {platform.system()} on {platform.machine()}")


@check
def torch() -> Iterator[Finding]:
    """Look for torch, without which nothing runs."""
    there = installed("torch")
    if there is None:
        yield Finding("torch", "error", "not installed", "pip install 'torch>=2.11'")
        return
    if _number(there) < _number("2.11"):
        yield Finding("torch", "error", f"{there}, and 2.11 is the oldest that fits", "pip install -U 'torch>=2.11'")
        return
    try:
        module = import_module("torch")
    except Exception as error:
        yield Finding("torch", "error", f"{there} does not import: {first_line(error)}", "install torch again")
        return
    built = f"for CUDA {module.version.cuda}" if module.version.cuda else "without CUDA"
    yield Finding("torch", "ok", f"{there}, built {built}, {module.get_num_threads()} threads")


@check
def hosts() -> Iterator[Finding]:
    """Look for SpikingJelly and snnTorch, one of which the neurons need."""
    there = {name: installed(name) for name in HOSTS}
    if not any(there.values()):
        yield Finding(
            "hosts", "error", "neither spikingjelly nor snntorch is installed, and the neurons are those of a host",
            "pip install 'snn_ext[spikingjelly]' or 'snn_ext[snntorch]'",
        )  # fmt: skip
        return
    for name, version in there.items():
        low, high = HOSTS[name]
        remedy = f"pip install -U '{name}>={low},<{high}'"
        if version is None:
            lost = "; snn_ext.convert needs it" if name == "spikingjelly" else ""
            yield Finding(name, "note", f"not installed{lost}", f"pip install 'snn_ext[{name}]'")
        elif not _number(low) <= _number(version) < _number(high):
            old = "too old" if _number(version) < _number(low) else "too new"
            yield Finding(name, "error", f"{version} is {old}: at least {low} and below {high} is wanted", remedy)
        else:
            yield _imports(name, version, f"snn_ext.{name}", remedy)


def _imports(name: str, version: str, module: str, remedy: str) -> Finding:
    try:
        import_module(module)
    except Exception as error:  # whatever a broken installation raises
        return Finding(name, "error", f"{version} does not import: {first_line(error)}", remedy)
    return Finding(name, "ok", version)


@check
def torch_companions() -> Iterator[Finding]:
    """Look whether torchvision and torchaudio are those of this torch: a later pip install may replace torch alone."""
    uses = {"torchvision": "the recipes need it", "torchaudio": "spikingjelly.datasets needs it, snn_ext does not"}
    for name, use in uses.items():
        version = installed(name)
        if version is None:
            yield Finding(name, "note", f"not installed; {use}")
            continue
        try:
            import_module(name)
        except Exception as error:
            remedy = f"pip install {name} of the release of torch {installed('torch')}, or pip uninstall {name}"
            reason = f"{version} does not import beside torch {installed('torch')}; {use}: {first_line(error)}"
            yield Finding(name, "warning", reason, remedy)
        else:
            yield Finding(name, "ok", version)


@check
def extras() -> Iterator[Finding]:
    """Look which optional parts are whole."""
    for extra in ("recipes", "plots", "timm"):
        wanted = requirements(extra)
        wrong = [name for name, low in wanted.items() if _number(installed(name) or "") < _number(low)]
        if not wanted:
            yield Finding(extra, "note", "what it needs is not known: the package is not installed by pip")
        elif not wrong:
            yield Finding(extra, "ok", f"all {len(wanted)} packages")
        else:
            half = "half installed" if len(wrong) < len(wanted) else "not installed"
            named = ", ".join(f"{name} {installed(name) or 'is missing'}" for name in wrong)
            status: Status = "warning" if len(wrong) < len(wanted) else "note"
            yield Finding(extra, status, f"{half}: {named}", f"pip install 'snn_ext[{extra}]'")


def installed(name: str) -> str | None:
    """Return the version of a package that pip has installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def requirements(extra: str) -> dict[str, str]:
    """Return the packages of an extra, also of those that it takes in, and the lowest version of each."""
    found: dict[str, str] = {}
    try:
        lines = metadata.requires("snn_ext") or []
    except metadata.PackageNotFoundError:
        return found
    for line in lines:
        requirement, _, condition = line.partition(";")
        name = re.match(r"[\w.-]+", requirement)
        if re.search(rf"""extra == ['"]{extra}['"]""", condition) is None or name is None:
            continue
        if name[0].replace("-", "_") != "snn_ext":
            low = re.search(r">=\s*([\d.]+)", requirement)
            found[name[0]] = low[1] if low else "0"
            continue
        inner = re.search(r"\[(.*)\]", requirement)
        for other in inner[1].split(",") if inner else ():
            found |= requirements(other.strip())
    return found


def _number(version: str) -> tuple[int, ...]:
    """Return the numbers of a version, to compare; those of no version are below all others.

    Examples
    --------
    >>> _number("0.0.0.0.14") < _number("2.0") < _number("2.14.1+cu130")
    True
    """
    release = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, release[0].split("."))) if release else ()


# -- what the operators run on -----------------------------------------------------------------------------------------


@check
def compiler() -> Iterator[Finding]:
    """Look for the compiler of the operators in C."""
    from ..ops.machine.build import BuildError, find_compiler

    try:
        command = find_compiler()
    except (BuildError, ValueError) as error:
        yield Finding(
            "compiler", "warning", f"{error}; the operators run in torch, which is slower",
            "install gcc or clang, or name a compiler in CC",
        )  # fmt: skip
    else:
        yield Finding("compiler", "ok", shutil.which(command[0]) or command[0])


@check
def cache() -> Iterator[Finding]:
    """Look whether compiled operators can be kept."""
    from ..ops.machine.build import cache_folder, why_not_trusted

    remedy = "SNN_EXT_CACHE=FOLDER names another folder; without one every process compiles again"
    try:
        folder = cache_folder()
    except RuntimeError as error:
        yield Finding("cache", "warning", str(error), remedy)
        return
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        reason = why_not_trusted(folder)
        if reason is None:
            fill(folder)
    except OSError as error:
        reason = f"it cannot be written ({error.strerror})"
        if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
            reason = "its disk is full"
            remedy = f"make room, or {remedy}"
    if reason is None:
        yield Finding("cache", "ok", str(folder))
    else:
        yield Finding("cache", "warning", f"{folder}: {reason}", remedy)


def fill(folder: Path) -> None:
    """Write as much as compiled operators take, and take it away."""
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(CACHE_BYTES))
        file.flush()
        os.fsync(file.fileno())


@check
def gpu() -> Iterator[Finding]:
    """Look why CUDA kernels run, or do not, and whether CuPy fits torch."""
    import torch

    from ..ops.machine.cuda_setup import why_not_cuda

    reason = why_not_cuda(torch.device("cuda", 0))
    if reason is None:
        yield Finding("gpu", "ok", torch.cuda.get_device_name(0))
    else:
        yield Finding(
            "gpu", "note", reason, "use device='cpu', or install the driver of an NVIDIA GPU and a torch for it"
        )
    yield from _cupy(reason)


def _cupy(no_gpu: str | None) -> Iterator[Finding]:
    import torch

    from ..ops.machine.cuda_setup import cupy_wheels, why_not_cupy

    wheels = cupy_wheels()
    if not wheels:
        yield Finding("cupy", "note", "not installed; it is optional: the CUDA driver is called without it")
        return
    if torch.version.cuda is None:
        remedy = f"pip uninstall {' '.join(wheels)}, or install a torch for CUDA"
        yield Finding("cupy", "warning", f"{wheels[0]} is installed, and torch is built without CUDA", remedy)
        return
    why_not_cupy.cache_clear()  # of a process that has asked before
    reason = why_not_cupy()
    if reason is not None:
        remedy = f"keep one package that fits: pip uninstall {' '.join(wheels)}"
        if no_gpu is None or "CUDA" in reason:
            remedy += f", pip install cupy-cuda{torch.version.cuda.split('.')[0]}x"
        yield Finding("cupy", "warning", reason, remedy)
    elif no_gpu is not None:
        remedy = f"install the driver, or pip uninstall {' '.join(wheels)}"
        yield Finding("cupy", "warning", f"{wheels[0]} is installed and cannot run: {no_gpu}", remedy)
    else:
        yield Finding("cupy", "ok", f"{wheels[0]} {installed(wheels[0])}")


@check
def operators() -> Iterator[Finding]:
    """Ask for each operator which implementation runs, and why another does not."""
    import torch

    from .. import ops
    from ..ops.registry import IMPLEMENTATIONS, NAMES, VARIABLE

    for device in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])):
        found: dict[tuple[Status, str], list[str]] = {}
        for name in IMPLEMENTATIONS:
            try:
                chosen = ops.implementation(name, device)
            except (RuntimeError, ValueError) as error:
                found.setdefault(("error", first_line(error).removeprefix(f"{name}: ")), []).append(name)
                continue
            faster = [other for other in NAMES[: NAMES.index(chosen.name)] if device in other]
            reasons = {other: chosen.unavailable[other] for other in faster if other in chosen.unavailable}
            wanted = {other: why for other, why in reasons.items() if "not part of this version" not in why}
            text = f"{chosen.name} runs" + "".join(f"; not {other}: {why}" for other, why in wanted.items())
            found.setdefault(("warning" if wanted else "ok", text), []).append(name)
        for (status, text), names in found.items():
            remedy = f"unset {VARIABLE}, or set it to one of {', '.join(NAMES)} that can run here"
            where = f"{', '.join(names)} on {device}: {text}"
            yield Finding("operators", status, where, remedy if status == "error" else None)


@check
def self_test() -> Iterator[Finding]:
    """Compare the operators that run here with the definitions, forwards and backwards, on a grid that has ties."""
    import torch

    from .. import functional, ops

    try:
        ops.implementation("integrate_and_fire", "cpu")
    except (RuntimeError, ValueError):
        yield Finding("self-test", "note", "not run: no implementation runs on cpu, see above")
        return
    x = (torch.randint(-16, 33, (8, 257), generator=torch.Generator().manual_seed(0)) / 16).requires_grad_()
    results = []
    for module in (functional, ops):
        spikes, v = module.integrate_and_fire(x, 0.5, torch.ones(1))
        (gradient,) = torch.autograd.grad(spikes.sum() + v.square().sum(), x)
        results.append((spikes, v, gradient))
    (spikes, v, wanted), (ours, our_v, gradient) = results
    if torch.equal(spikes, ours) and torch.equal(v, our_v) and torch.allclose(wanted, gradient, rtol=1e-5, atol=1e-6):
        yield Finding(
            "self-test", "ok", f"{int(ours.sum()):,} spikes and the gradients of them are those of the definition"
        )
    else:
        yield Finding(
            "self-test", "error", "the operators disagree with the definition",
            "SNN_EXT_IMPLEMENTATION=torch runs the slow one; please report it with the output of snn-ext doctor --json",
        )  # fmt: skip
