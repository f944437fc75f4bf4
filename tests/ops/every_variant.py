"""Every geometry of the CUDA kernels on the CPU, settings in turn: ``python -m tests.ops.every_variant --help``.

Each variant runs through the launcher on data full of ties, in both orders of the threads, between guard zones, and
with g++'s sanitizer of undefined behaviour, which ends the process at the first misaligned access.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator, Sequence
from functools import partial

import torch

from snn_ext.functional import state_dtype
from snn_ext.ops.cuda_execution import CudaExecution
from snn_ext.ops.cuda_launcher import CudaKernels
from tests.ops import adaptive_checks, checks
from tests.ops.emulation import Emulator, check, recorded, untested
from tests.ops.machine_code import OPERATORS, Variant, variants

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SANITIZER = ("-fsanitize=undefined",)
TOGETHER = 40
"""Variants that are compiled in one unit."""


def integrate_and_fire_case(variant: Variant) -> checks.Case:
    """Return a call that makes the launcher take a variant; its settings, where it is a forward kernel."""
    _, code, steps, width, per_step, scaled, reset, at, detach, curve = variant
    time_steps, size, dtype = steps or 33, 131 * width, DTYPES[code]  # two blocks, the second almost empty
    generator = torch.Generator().manual_seed(sum(variant))
    thresholds = torch.randint(4, 13, (time_steps if per_step else 1,), generator=generator) / 8
    x_seq = checks.make_input("sixteenths", time_steps, size, thresholds, sum(variant)).to(dtype)
    v = torch.randint(-4, 5, (size,), generator=generator) / 8 if sum(variant) % 2 else 0.25
    settings = {
        "reset": checks.RESETS[reset],
        "fire_at_threshold": bool(at),
        "detach_reset": bool(detach),
        "surrogate": checks.SURROGATES[curve],
    }
    return checks.Case(x_seq, v, thresholds, 0.75 if scaled else None, settings)


def integrate_and_fire_calls(case: checks.Case) -> None:
    """Make the calls of a case, forward and backward."""
    incoming = torch.zeros_like(case.x_seq), torch.zeros(case.x_seq.shape[1], dtype=state_dtype(case.x_seq.dtype))
    checks._gradients(case, checks.on("cpu"), *incoming)


def adaptive_case(variant: Variant) -> adaptive_checks.Case:
    """Return the same for the adaptive neuron; random where neurons differ, for then nothing is dyadic."""
    _, code, steps, width, output, analog, uniform, detach, curve = variant
    kind, constants = ("sixteenths", "dyadic") if uniform else ("random", "by neuron")
    heights = ("fixed", "adaptive", "none")[output]
    settings = {"analog_input": bool(analog)}
    if output != 2:
        settings |= {"detach_adaptation": bool(detach), "surrogate": checks.SURROGATES[curve]}
    return adaptive_checks.make_case(
        kind, steps or 33, 131 * width, DTYPES[code], constants=constants, height=heights, **settings
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run them all; the first that is wrong raises."""
    parser = argparse.ArgumentParser("python -m tests.ops.every_variant", description=__doc__)
    parser.add_argument("--operator", choices=("integrate_and_fire", "adaptive_spiking"), default="integrate_and_fire")
    parser.add_argument("--part", default="1/1", metavar="K/N", help="only every N-th variant, starting at the K-th")
    given = parser.parse_args(arguments)
    kernels = OPERATORS[given.operator]
    part, parts = map(int, given.part.split("/"))
    torch.use_deterministic_algorithms(True)  # what nobody writes is NaN
    chosen = itertools.islice(variants(False, kernels), part - 1, None, parts)
    run(chosen, *SANITIZER, "-fno-sanitize-recover=all", kernels=kernels)
    return 0


def run(chosen: Iterator[Variant], *flags: str, kernels: type[CudaKernels] = CudaExecution) -> int:
    """Check variants; return how many."""
    count = never = 0
    make, call = (
        (integrate_and_fire_case, integrate_and_fire_calls)
        if kernels is CudaExecution
        else (adaptive_case, adaptive_checks.run_gradients)
    )
    while group := list(itertools.islice(chosen, TOGETHER)):
        cases = {variant: make(variant) for variant in group}
        wanted = {variant: recorded(None, partial(call, case), kernels) for variant, case in cases.items()}
        emulator = Emulator(itertools.chain(*wanted.values()), *flags)
        for variant, case in cases.items():
            if kernels.options(variant) not in [options for _, options, _ in wanted[variant]]:
                never += 1  # T thresholds at T = 1 are one
                continue
            with untested():
                check(kernels(emulator), emulator, case)
            count += 1
        print(f"{count} variants are the definition, {never} are never asked for", flush=True)
    return count


if __name__ == "__main__":
    sys.exit(main())
