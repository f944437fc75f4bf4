"""The CUDA kernels as machine code, without a GPU: ``python -m tests.ops.machine_code --help``.

Compiles variants with NVRTC, whose report has registers and spills. The order of loads is read out of the code with the
disassembler that Triton brings along.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import itertools
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from snn_ext.ops.adaptive_cuda import AdaptiveCudaExecution
from snn_ext.ops.cuda_execution import CudaExecution
from snn_ext.ops.cuda_launcher import CudaKernels
from snn_ext.ops.nvrtc import load_nvrtc
from snn_ext.ops.transfer_cuda import TransferCudaExecution

ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_120")
OPERATORS = {kernels.operator: kernels for kernels in (CudaExecution, AdaptiveCudaExecution, TransferCudaExecution)}
Variant = tuple[int, ...]


@dataclass(frozen=True)
class Compiled:
    """The machine code of a kernel, and what the compiler's report says of it."""

    code: bytes
    registers: int
    spilled: int
    """Bytes of a thread that are stored to memory because registers ran out."""


@functools.lru_cache(maxsize=64)
def compile_variant(variant: Variant, architecture: str, kernels: type[CudaKernels] = CudaExecution) -> Compiled:
    """Compile a variant, with a report."""
    options = (*kernels.options(variant), "--ptxas-options=-v")
    code, report = load_nvrtc().compile_with_log(kernels.source(), options, architecture)
    registers, stack, stores = (
        int(re.search(pattern, report)[1])
        for pattern in (r"Used (\d+) registers", r"(\d+) bytes stack frame", r"(\d+) bytes spill stores")
    )
    return Compiled(code, registers, max(stack, stores))


def instructions(code: bytes) -> list[str]:
    """Return the machine instructions, without operands: LDG.E.128.CONSTANT."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        done = subprocess.run([str(disassembler()), "-c", file.name], capture_output=True, text=True, check=True)
    lines = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([\w.]+)", done.stdout)
    assert lines, "nvdisasm gave nothing"
    return lines


def disassembler() -> Path | None:
    """Return NVIDIA's nvdisasm, which Triton's package holds."""
    spec = importlib.util.find_spec("triton")
    path = Path(spec.origin).parent / "backends" / "nvidia" / "bin" / "nvdisasm" if spec and spec.origin else None
    return path if path and path.exists() else None


# -- all variants that the launcher can ask for ------------------------------------------------------------------------


def geometries(kernels: type[CudaKernels] = CudaExecution) -> Iterator[Variant]:
    """Yield direction, dtype, static steps (0: any) and vector width."""
    for backward, dtype, steps in itertools.product((0, 1), (0, 1, 2), (1,) if _is_transfer(kernels) else range(17)):
        width = 4 if dtype == 0 else 8
        if backward and kernels is AdaptiveCudaExecution:
            width = 4 if 0 < steps <= 4 else 2
        elif backward and not _is_transfer(kernels):
            width = min(width, 2 if steps == 0 or steps > 8 else 4 if steps > 4 else 8)
        elif steps == 0:
            width = 4
        while width:
            yield backward, dtype, steps, width
            width //= 2


def _is_transfer(kernels: type[CudaKernels]) -> bool:
    return kernels is TransferCudaExecution


def settings(backward: int, kernels: type[CudaKernels] = CudaExecution) -> list[Variant]:
    """Return every combination of the other macros, in their order."""
    curves = range(7) if backward else range(1)
    if _is_transfer(kernels):
        return [()]
    if kernels is CudaExecution:
        return list(itertools.product(range(2), range(2), range(3), range(2), range(1 + backward), curves))
    spiking = itertools.product(range(2), range(2), range(2), range(1 + backward), curves)
    return [*spiking, *itertools.product((2,), range(2), range(2), (0,), (0,))]


def variants(every: bool, kernels: type[CudaKernels] = CudaExecution) -> Iterator[Variant]:
    """Yield every geometry with every setting, or with two settings in turn, which are all used in the end."""
    turns = {backward: itertools.cycle(settings(backward, kernels)) for backward in (0, 1)}
    for geometry in geometries(kernels):
        backward = geometry[0]
        count = 1 if _is_transfer(kernels) else 3 if backward else 2
        chosen = settings(backward, kernels) if every else itertools.islice(turns[backward], count)
        for setting in chosen:
            yield *geometry, *setting


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile; returns 1 if a kernel for up to four steps spills registers."""
    parser = argparse.ArgumentParser("python -m tests.ops.machine_code", description=__doc__)
    parser.add_argument("--operator", choices=OPERATORS, default="integrate_and_fire")
    parser.add_argument("--architectures", nargs="+", default=ARCHITECTURES, metavar="sm_NN")
    parser.add_argument(
        "--every", action="store_true", help="the whole product: 50000 variants, hours for an architecture"
    )
    parser.add_argument("--part", default="1/1", metavar="K/N", help="only every N-th variant, starting at the K-th")
    chosen = parser.parse_args(arguments)
    kernels = OPERATORS[chosen.operator]
    part, parts = map(int, chosen.part.split("/"))
    bad = 0
    for architecture in chosen.architectures:
        count = worst = registers = 0
        for variant in itertools.islice(variants(chosen.every, kernels), part - 1, None, parts):
            found = compile_variant(variant, architecture, kernels)
            worst, registers, count = max(worst, found.spilled), max(registers, found.registers), count + 1
            if found.spilled and 0 < variant[2] <= 4:
                bad += 1
                print(f"{architecture} {variant}: {found.spilled} bytes spilled")
        print(
            f"{architecture}: {count} variants compiled, at most {registers} registers and {worst} bytes spilled, "
            f"{bad} spill at up to four steps",
            flush=True,
        )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
