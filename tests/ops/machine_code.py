"""The CUDA kernels as machine code, without a GPU: ``python -m tests.ops.machine_code --help``.

Compiles variants with NVRTC, and reads registers, spills and the order of loads out of them with the disassembler that
Triton brings along.
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

from snn_ext.ops.cuda_execution import kernel_source, options
from snn_ext.ops.nvrtc import load_nvrtc

ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_120")
Variant = tuple[int, ...]


@dataclass(frozen=True)
class Usage:
    """What the compiler's report says of a kernel."""

    registers: int
    spilled: int
    shared: int


@functools.lru_cache(maxsize=64)
def compile_variant(variant: Variant, architecture: str) -> bytes:
    """Return the machine code of a variant."""
    return load_nvrtc().compile(kernel_source(), options(variant), architecture)


def usage(code: bytes) -> Usage:
    """Read registers, bytes of spills and bytes of shared memory."""
    text = _run("cuobjdump", "--dump-resource-usage", code)
    found = {name: int(re.search(rf"{name}:(\d+)", text)[1]) for name in ("REG", "STACK", "SHARED")}
    return Usage(found["REG"], found["STACK"], found["SHARED"])


def instructions(code: bytes) -> list[str]:
    """Return the machine instructions, without operands: LDG.E.128.CONSTANT."""
    lines = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([\w.]+)", _run("nvdisasm", "-c", code))
    assert lines, "nvdisasm gave nothing"
    return lines


def tool(name: str) -> Path | None:
    """Return one of NVIDIA's tools that Triton's package holds."""
    spec = importlib.util.find_spec("triton")
    path = Path(spec.origin).parent / "backends" / "nvidia" / "bin" / name if spec and spec.origin else None
    return path if path and path.exists() else None


def _run(name: str, option: str, code: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        done = subprocess.run([str(tool(name)), option, file.name], capture_output=True, text=True, check=True)
    return done.stdout


# -- all variants that the launcher can ask for ------------------------------------------------------------------------


def geometries() -> Iterator[Variant]:
    """Yield direction, dtype, static steps (0: any) and vector width."""
    for backward, dtype, steps in itertools.product((0, 1), (0, 1, 2), range(17)):
        width = 4 if dtype == 0 else 8
        if backward:
            width = min(width, 2 if steps == 0 or steps > 8 else 4 if steps > 4 else 8)
        elif steps == 0:
            width = min(width, 4)
        while width:
            yield backward, dtype, steps, width
            width //= 2


def settings(backward: int) -> list[Variant]:
    """Return per-step thresholds, scale, reset, tie rule, detached reset, surrogate: every combination."""
    last = (range(2), range(7)) if backward else (range(1), range(1))
    return list(itertools.product(range(2), range(2), range(3), range(2), *last))


def variants(every: bool) -> Iterator[Variant]:
    """Yield every geometry with every setting, or with two settings in turn, which are all used in the end."""
    turns = {backward: itertools.cycle(settings(backward)) for backward in (0, 1)}
    for geometry in geometries():
        backward = geometry[0]
        chosen = settings(backward) if every else itertools.islice(turns[backward], 3 if backward else 2)
        for setting in chosen:
            yield *geometry, *setting


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile; returns 1 if a kernel for up to four steps spills registers."""
    parser = argparse.ArgumentParser("python -m tests.ops.machine_code", description=__doc__)
    parser.add_argument("--architectures", nargs="+", default=ARCHITECTURES, metavar="sm_NN")
    parser.add_argument(
        "--every", action="store_true", help="the whole product: 50000 variants, hours for an architecture"
    )
    parser.add_argument("--part", default="1/1", metavar="K/N", help="only every N-th variant, starting at the K-th")
    chosen = parser.parse_args(arguments)
    part, parts = map(int, chosen.part.split("/"))
    bad = 0
    for architecture in chosen.architectures:
        count = worst = 0
        for variant in itertools.islice(variants(chosen.every), part - 1, None, parts):
            found = usage(compile_variant(variant, architecture)) if tool("cuobjdump") else None
            if found is None:
                compile_variant(variant, architecture)
            elif found.spilled:
                worst = max(worst, found.spilled)
                if 0 < variant[2] <= 4:
                    bad += 1
                    print(f"{architecture} {variant}: {found.spilled} bytes spilled")
            count += 1
        spills = f"at most {worst} bytes spilled" if tool("cuobjdump") else "spills not looked at: no cuobjdump"
        print(f"{architecture}: {count} variants compiled, {spills}", flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
