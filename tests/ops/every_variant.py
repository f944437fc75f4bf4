"""Every geometry of the CUDA kernels on the CPU, settings in turn: ``python -m tests.ops.every_variant --help``.

Each variant runs on data full of ties, in both orders of the threads, between guard zones, and
with g++'s sanitizer of undefined behaviour, which ends the process at the first misaligned access.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator, Sequence
from typing import get_args

import torch

from snn_ext.functional.integrate_and_fire import Charge, Reset
from snn_ext.ops.machine.cuda import options
from tests.ops.asn.cases import make_case
from tests.ops.emulation import OPERATORS, Emulator, check, emulated, recorded, untested
from tests.ops.harness import DTYPES, SURROGATES, Case
from tests.ops.integrate_and_fire import cases
from tests.ops.machine_code import Variant, variants

SANITIZER = ("-fsanitize=undefined",)
TOGETHER = 40
"""Variants that are compiled in one unit."""


def integrate_and_fire_case(variant: Variant) -> Case:
    """Return a call that takes a variant; its settings, where it is a forward kernel."""
    _, code, steps, width, per_step, each, scaled, normed, _, reset, at, detach, curve, charge = variant
    time_steps, size, dtype = steps or 33, 131 * width, DTYPES[code]  # two blocks, the second almost empty
    generator = torch.Generator().manual_seed(sum(variant))
    shape = (1, size) if each else (time_steps if per_step else 1,)
    thresholds = torch.randint(4, 13, shape, generator=generator) / 8
    x_seq = cases.make_input("sixteenths", time_steps, size, thresholds, sum(variant)).to(dtype)
    v = torch.randint(-4, 5, (size,), generator=generator) / 8 if sum(variant) % 2 else 0.25
    settings = {
        "reset": get_args(Reset)[reset],
        "fire_at_threshold": bool(at),
        "detach_reset": bool(detach),
        "surrogate": SURROGATES[curve],
        "charge": get_args(Charge)[charge],
    }
    decay = (None, 2.0, 2.0, 0.5, 0.5, 0.5)[charge]
    decay = torch.full((size,), decay) if charge and sum(variant) % 3 else decay
    case = cases.Case(x_seq, v, thresholds, 0.75 if scaled else None, settings, decay)
    return cases.normed(case, channels=131, last=bool(sum(variant) % 2)) if normed else case


def adaptive_case(variant: Variant) -> Case:
    """Return the same for the adaptive neuron; random where neurons differ, for then nothing is dyadic."""
    _, code, steps, width, stride, output, analog, detach, curve = variant
    kind, constants = ("sixteenths", "dyadic") if not stride else ("random", "by neuron")
    heights = ("fixed", "adaptive", "none")[output]
    settings = {"analog_input": bool(analog)}
    if output != 2:
        settings |= {"detach_adaptation": bool(detach), "surrogate": SURROGATES[curve]}
    return make_case(kind, steps or 33, 131 * width, DTYPES[code], constants=constants, height=heights, **settings)


CASES = {"integrate_and_fire": integrate_and_fire_case, "adaptive_spiking": adaptive_case}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run them all; the first that is wrong raises."""
    parser = argparse.ArgumentParser("python -m tests.ops.every_variant", description=__doc__)
    parser.add_argument("--operator", choices=CASES, default="integrate_and_fire")
    parser.add_argument("--part", default="1/1", metavar="K/N", help="only every N-th variant, starting at the K-th")
    given = parser.parse_args(arguments)
    part, parts = map(int, given.part.split("/"))
    torch.use_deterministic_algorithms(True)  # what nobody writes is NaN
    chosen = itertools.islice(variants(False, given.operator), part - 1, None, parts)
    run(given.operator, chosen, *SANITIZER, "-fno-sanitize-recover=all")
    return 0


def run(operator: str, chosen: Iterator[Variant], *flags: str) -> int:
    """Check variants; return how many."""
    count = never = 0
    while group := list(itertools.islice(chosen, TOGETHER)):
        cases = {variant: CASES[operator](variant) for variant in group}
        wanted = {variant: recorded(operator, case.run_gradients) for variant, case in cases.items()}
        emulator = Emulator(itertools.chain(*wanted.values()), *flags)
        for variant, case in cases.items():
            if options(OPERATORS[operator].op, variant) not in [flags for _, flags, _ in wanted[variant]]:
                never += 1  # T thresholds at T = 1 are one
                continue
            with untested():
                check(emulated(operator, emulator), emulator, case)
            count += 1
        print(f"{count} variants are the definition, {never} are never asked for", flush=True)
    return count


if __name__ == "__main__":
    sys.exit(main())
