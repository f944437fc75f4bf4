"""Fit spiking neurons as quantisers to distributions of inputs: figures 1 to 5 of Castagnetti et al. 2023, one more.

``python -m recipes.fit_quantizer`` takes about two minutes on a CPU. It draws the staircases of a neuron and the two
kinds of quantisation error; trains one threshold (ATIF-u), T points (ATIF-nu) and one threshold with pre-charge by the
surrogate gradient; and compares what the training reaches with the optimum, which needs no gradient.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from spikingjelly.activation_based import functional
from tabulate import tabulate
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from benchmarks.results import fit_quantizer_plots as plots
from benchmarks.results.plots import save
from snn_ext import record_inputs
from snn_ext.functional import (
    Sigmoid,
    best_points,
    best_threshold,
    decode,
    nonuniform_staircase,
    sqnr,
    staircase,
)
from snn_ext.spikingjelly import ATIFnuNode, ATIFuNode

from .data import FASHION_MNIST_SUBSET, fashion_mnist_subset
from .lib.command import command, run_main
from .lib.files import replacing
from .lib.options import SEED, integer, new_folder
from .lib.run_folder import own_folder
from .lib.training import seed_everything, train
from .models import SmallCNN

__all__ = ["Fit", "fit", "input_samples", "main", "optima"]

TIME_STEPS = 4
SIGMA = 0.1  # root mean square of every input
ALPHA = 10.0  # slope of the surrogate; with SpikingJelly's 4, ATIF-u stops 1.3 dB short of its optimum
LEARNING_RATE = 1e-3
BATCH = 1024

RECORDED = f"second spiking layer of a small ReLU net, {FASHION_MNIST_SUBSET}"

NEURONS: dict[str, Callable[..., nn.Module]] = {
    "ATIF-u": ATIFuNode,
    "ATIF-nu": lambda **common: ATIFnuNode(T=TIME_STEPS, recursion="min", **common),
    "ATIF-u, pre-charged": lambda **common: ATIFuNode(v_init=0.5, **common),
}


@dataclass
class Fit:
    """One training: what it reached at each evaluation.

    Attributes
    ----------
    iterations : list of int
        When it was evaluated.
    sqnr_db : list of float
        On the whole sample.
    thresholds : list of list of float
        The threshold, or the points p_1..p_T.
    edges : list of list of float
        For n = 1..T the smallest input of the sample at which the neuron fires n times; NaN for none. For ATIF-nu they
        are its points, in reverse order, only where the recursion is exact: training is free to leave that region.
    """

    iterations: list[int] = field(default_factory=list)
    sqnr_db: list[float] = field(default_factory=list)
    thresholds: list[list[float]] = field(default_factory=list)
    edges: list[list[float]] = field(default_factory=list)


def input_samples(size: int = 20_001) -> dict[str, Tensor]:
    """Return the positive halves of the analytic distributions as evenly spaced quantiles, in order, of one RMS.

    The mean over such a sample is the expectation to within a few 1e-4 dB; there is no noise in it.
    """
    share = (torch.arange(size, dtype=torch.float64) + 0.5) / size
    samples = {
        "Gaussian": torch.special.ndtri(0.5 + share / 2),
        "Laplace": -torch.log1p(-share) / math.sqrt(2),
        "uniform": share * math.sqrt(3),
    }
    return {name: (SIGMA * sample).float() for name, sample in samples.items()}


def recorded_sample(size: int = 20_001) -> Tensor:
    """Train a small ReLU net for two epochs and return the positive inputs of its second layer, scaled to one RMS."""
    generator = seed_everything(0)
    train_set, _ = fashion_mnist_subset()
    net = SmallCNN()
    optimizer = torch.optim.AdamW(net.parameters(), 4e-3)
    train(net, DataLoader(train_set, 64, shuffle=True, generator=generator), optimizer, 2, name="ReLU net")
    inputs = list(record_inputs(net, DataLoader(train_set, 100, sampler=range(1000))).values())[1]
    inputs = inputs[inputs > 0].sort().values
    inputs = inputs[torch.linspace(0, len(inputs) - 1, size).round().long()]
    return inputs * (SIGMA / inputs.square().mean().sqrt())


def quantised(x: Tensor, threshold: float, time_steps: int = TIME_STEPS, v_init: float = 0.0) -> Tensor:
    """Return the decoded value of the uniform neuron at constant input: rate times threshold."""
    return decode(staircase(x, threshold, time_steps, v=v_init * threshold), threshold, time_steps)


def optima(x: Tensor) -> dict[str, tuple[float, list[float]]]:
    """Return for each way to quantise a sample the best SQNR in dB, and the threshold or points that give it."""
    x = x.double()
    found = {
        f"IF, threshold 1, T = {steps}": (float(sqnr(x, quantised(x, 1.0, steps))), [1.0])
        for steps in (TIME_STEPS, 8, 16, 20, 24)
    }
    for name, v_init in (("ATIF-u", 0.0), ("ATIF-u, pre-charged 0.25", 0.25), ("ATIF-u, pre-charged", 0.5)):
        threshold = best_threshold(x, TIME_STEPS, v_init=v_init)
        found[name] = float(sqnr(x, quantised(x, threshold, v_init=v_init))), [threshold]
    p = best_points(x, TIME_STEPS).double()
    found["ATIF-nu"] = float(sqnr(x, decode(nonuniform_staircase(x, p), p[0], TIME_STEPS))), p.tolist()
    return found


def fit(make: Callable[..., nn.Module], x: Tensor, iterations: int, *, seed: int = 0, every: int = 25) -> Fit:
    """Train one neuron to reproduce its constant input: RMS loss, Adam, threshold 1 at the start.

    Parameters
    ----------
    make : callable
        Makes the neuron from keywords that all kinds have.
    x : Tensor
        The sample that batches are drawn from, flat, in ascending order.
    iterations : int
        Steps of Adam.
    seed : int
        Of the draws.
    every : int
        Iterations between evaluations on the whole sample.

    Returns
    -------
    Fit

    Notes
    -----
    Source: Castagnetti et al. 2023, equation 13. The paper does not settle the slope of the surrogate; this is the
    setting documented for this project: alpha = 10, gradient through the spike in the reset, recursion "min".
    """
    node = make(
        v_threshold=1.0, surrogate_function=Sigmoid(ALPHA), detach_reset=False, step_mode="m", scale_output=True
    )
    (parameter,) = node.parameters()
    optimizer = torch.optim.Adam([parameter], LEARNING_RATE)
    generator = torch.Generator().manual_seed(seed)

    def spikes(x: Tensor) -> Tensor:
        functional.reset_net(node)
        return node(x.expand(TIME_STEPS, -1))

    result = Fit()
    for iteration in range(iterations + 1):
        if iteration % every == 0 or iteration == iterations:
            with torch.no_grad():
                spike_seq = spikes(x)
                result.iterations.append(iteration)
                result.sqnr_db.append(float(sqnr(x, spike_seq.mean(0))))
                result.thresholds.append(parameter.tolist())
                reached = spike_seq.count_nonzero(0) >= torch.arange(1, TIME_STEPS + 1)[:, None]
                result.edges.append([float(x[r][0]) if r.any() else math.nan for r in reached])
        batch = x[torch.randint(len(x), (BATCH,), generator=generator)]
        loss = (batch - spikes(batch).mean(0)).square().mean().sqrt()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return result


def table(results: dict[str, dict[str, Any]]) -> str:
    """Return optimum and training of every neuron and input, and the gains that the paper states."""
    lines = []
    for name, result in results.items():
        best, fits = result["optima"], result["fits"]
        fixed = best[f"IF, threshold 1, T = {TIME_STEPS}"][0]
        u, nu, charged = (fits[neuron].sqnr_db[-1] for neuron in NEURONS)
        pairs = [f"{best[neuron][0]:.2f} / {fits[neuron].sqnr_db[-1]:.2f}" for neuron in NEURONS]
        lines.append([name, f"{fixed:.2f}", *pairs, f"{u - fixed:+.2f}", f"{nu - u:+.2f}", f"{charged - u:+.2f}"])
    pairs = [f"{neuron}\noptimum / trained" for neuron in NEURONS]
    header = ["input", "IF,\nthreshold 1", *pairs, "gain\nu - IF", "gain\nnu - u", "gain\npre-charge"]
    return tabulate(lines, header, tablefmt="simple", disable_numparse=True)


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m recipes.fit_quantizer", description=__doc__.split("\n\n")[0])
    parser.add_argument("--iterations", type=integer(), default=2500, help="of each training (default: 2500)")
    parser.add_argument("--seed", type=SEED, default=0)
    parser.add_argument("--no-recorded", action="store_true", help="leave out the net whose inputs are recorded")
    parser.add_argument(
        "--out", type=new_folder, default=Path("runs/fit_quantizer"), help="default: runs/fit_quantizer"
    )
    return parser.parse_args(argv)


@command
def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Fit, draw, print and return ``{input: {"optima": ..., "fits": ...}}``."""
    args = parse_arguments(argv)
    with own_folder(args.out, "fit_quantizer"):
        return _run(args)


def _run(args: argparse.Namespace) -> dict[str, Any]:
    started = time.perf_counter()
    samples = input_samples()
    if not args.no_recorded:
        samples["recorded"] = recorded_sample()
    jobs = [(name, neuron) for name in samples for neuron in NEURONS]
    results: dict[str, dict[str, Any]] = {name: {"optima": optima(x), "fits": {}} for name, x in samples.items()}
    for name, neuron in (bar := tqdm(jobs, unit="fit", dynamic_ncols=True)):
        bar.set_description(f"{neuron}, {name}")
        results[name]["fits"][neuron] = fit(NEURONS[neuron], samples[name], args.iterations, seed=args.seed)

    gaussian, inputs = results["Gaussian"], samples["Gaussian"]
    for name, figure in {
        "figure_1_staircases": plots.staircases(),
        "figure_2_errors": plots.errors(inputs, SIGMA, TIME_STEPS),
        "figure_3_uniform_training": plots.uniform_training(gaussian, SIGMA, TIME_STEPS),
        "figure_4_steps": plots.steps(gaussian, inputs, SIGMA, TIME_STEPS),
        "figure_5_nonuniform_training": plots.nonuniform_training(gaussian, SIGMA, TIME_STEPS),
        "figure_6_inputs": plots.inputs(results, samples, SIGMA, TIME_STEPS),
    }.items():
        save(figure, args.out / f"{name}.png")
    setting = {
        "time_steps": TIME_STEPS, "sigma": SIGMA, "alpha": ALPHA, "learning_rate": LEARNING_RATE, "batch": BATCH,
        "iterations": args.iterations, "seed": args.seed, "recorded": RECORDED,
        "seconds": time.perf_counter() - started,
    }  # fmt: skip
    as_json = {
        name: {"optima": result["optima"], "fits": {neuron: vars(f) for neuron, f in result["fits"].items()}}
        for name, result in results.items()
    }
    with replacing(args.out / "results.json") as temporary:
        temporary.write_text(json.dumps({"setting": setting, "inputs": as_json}, indent=1) + "\n", encoding="utf-8")
    print(f"SQNR in dB at T = {TIME_STEPS}, positive inputs of RMS {SIGMA}\n\n{table(results)}\n")
    if not args.no_recorded:
        print(f"recorded: {RECORDED}")
    print(f"{setting['seconds']:.0f} s; written to {args.out}")
    return results


if __name__ == "__main__":
    run_main(main)
