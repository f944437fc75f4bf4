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
from dataclasses import dataclass, field
from pathlib import Path

from snn_ext.ops.machine.cuda import macros, options
from snn_ext.ops.machine.nvrtc import load_nvrtc
from tests.ops.emulation import OPERATORS, source_of

ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_120")
Variant = tuple[int, ...]


@dataclass(frozen=True)
class Compiled:
    """The machine code of a kernel, and what the compiler's report says of it."""

    code: bytes = field(repr=False)
    registers: int
    spilled: int
    """Bytes of a thread that are stored to memory because registers ran out."""


@functools.lru_cache(maxsize=64)
def compile_variant(operator: str, variant: Variant, architecture: str) -> Compiled:
    """Compile a variant, with a report."""
    flags = (*options(OPERATORS[operator].op, variant), "--ptxas-options=-v")
    code, report = load_nvrtc().compile_with_log(source_of(operator), flags, architecture)
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


# -- all variants that a call can ask for ------------------------------------------------------------------------


def geometries(operator: str) -> Iterator[Variant]:
    """Yield direction, dtype, static steps (0: any) and vector width."""
    found = OPERATORS[operator]
    for backward, dtype, steps in itertools.product((0, 1), (0, 1, 2), (1,) if found.op.timeless else range(17)):
        width = found.widest(bool(backward), steps or 17, 4 if dtype == 0 else 2)
        while width:
            yield backward, dtype, steps, width
            width //= 2


def settings(operator: str, backward: int) -> list[Variant]:
    """Return every combination of the other macros, in their order; without spikes there is no surrogate."""
    op = OPERATORS[operator].op
    counts = {setting.name: len(setting.values) or 2 for setting in op.settings} | {"surrogate": 7}
    counts |= dict.fromkeys(op.backward_only, 1) if not backward else {}
    names = macros(op)[4:]
    found = list(itertools.product(*(range(counts.get(name.lower(), 2)) for name in names)))
    if "CHARGE" in names:
        named = (dict(zip(names, each, strict=True)) for each in found)
        return [tuple(each.values()) for each in named if _may_be_given(each) and _may_leak(each, counts)]
    if "OUTPUT" not in names:
        return found
    potential = op.codes(op.Settings("potential", *[0] * 5))[0]
    output, unused = names.index("OUTPUT"), [names.index(name.upper()) for name in op.backward_only]
    return [each for each in found if each[output] != potential or not any(each[place] for place in unused)]


def _may_be_given(each: dict[str, int]) -> bool:
    """Return False for half a norm, and for thresholds of steps and of neurons; own ones have one tie rule.

    What comes after a norm does not know of it: it has one surrogate, and spikes of 1.
    """
    if each["HAS_NORM_GAIN"] != each["HAS_NORM_SHIFT"]:
        return False
    if each["HAS_NORM_GAIN"] and (each["SURROGATE"] or each["HAS_SCALE"]):
        return False
    return not each["THRESHOLDS_EACH"] or not (each["THRESHOLDS_STRIDE"] or each["FIRE_AT_THRESHOLD"])


def _may_leak(each: dict[str, int], counts: dict[str, int]) -> bool:
    """Return False for a delayed reset without beta or with a spike not detached; each leak has one surrogate."""
    if each["RESET"] == counts["reset"] - 1:
        last = {"CHARGE": counts["charge"] - 1, "DETACH_RESET": counts["detach_reset"] - 1}
        if any(each[name] != value for name, value in last.items()):
            return False
    return not each["CHARGE"] or each["SURROGATE"] == each["CHARGE"] % counts["surrogate"]


def variants(every: bool, operator: str) -> Iterator[Variant]:
    """Yield every geometry with every setting, or with a few settings in turn, which are all used in the end."""
    turns: dict[tuple[int, bool], Iterator[Variant]] = {}
    for geometry in geometries(operator):
        backward, width = geometry[0], geometry[-1]
        possible, narrow = settings(operator, backward), not backward or width <= 4
        if not narrow and macros(OPERATORS[operator].op)[-1] == "CHARGE":
            normed = macros(OPERATORS[operator].op).index("HAS_NORM_GAIN") - 4
            # with a leak or a norm a thread takes half as many neurons
            possible = [each for each in possible if not (each[-1] or each[normed])]
        turn = turns.setdefault((backward, narrow), itertools.cycle(possible))
        count = 1 if OPERATORS[operator].op.timeless else 8 if backward else 3
        chosen = possible if every else itertools.islice(turn, count)
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
    part, parts = map(int, chosen.part.split("/"))
    bad = 0
    for architecture in chosen.architectures:
        count = worst = registers = 0
        for variant in itertools.islice(variants(chosen.every, chosen.operator), part - 1, None, parts):
            found = compile_variant(chosen.operator, variant, architecture)
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
