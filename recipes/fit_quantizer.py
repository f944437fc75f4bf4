"""Fit spiking neurons as quantisers to distributions of inputs, after Castagnetti et al. 2023.

``python -m recipes.fit_quantizer`` takes about two minutes on a CPU. It trains one threshold (ATIF-u), T points
(ATIF-nu) and one threshold with pre-charge by the surrogate gradient, and compares what the training reaches with the
optimum, which needs no gradient. ``python -m benchmarks quantizer`` draws figures 1 to 5 of the paper from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from spikingjelly.activation_based import functional
from torch import Tensor, nn
from tqdm import tqdm

from snn_ext.functional import Sigmoid, best_points, best_threshold, decode, nonuniform_staircase, sqnr, staircase
from snn_ext.spikingjelly import ATIFnuNode, ATIFuNode

from .data.distributions import SIGMA, input_samples
from .lib.cli import Count, NewFolder, Seed
from .lib.command import command, run_main
from .lib.files import save_figure, write_json
from .lib.quantizer_fits import Fit, table, training
from .lib.run_folder import own_folder

TIME_STEPS = 4
ALPHA = 10.0  # slope of the surrogate; with SpikingJelly's 4, ATIF-u stops 1.3 dB short of its optimum
LEARNING_RATE = 1e-3
BATCH = 1024

NEURONS: dict[str, Callable[..., nn.Module]] = {
    "ATIF-u": ATIFuNode,
    "ATIF-nu": lambda **common: ATIFnuNode(T=TIME_STEPS, recursion="min", **common),
    "ATIF-u, pre-charged": lambda **common: ATIFuNode(v_init=0.5, **common),
}


@dataclass(kw_only=True)
class Options:
    """Options."""

    iterations: Annotated[Count, "of each training"] = 2500
    seed: Annotated[Seed, "of all random numbers"] = 0
    out: Annotated[NewFolder, "folder"] = Path("runs/fit_quantizer")


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

    ``x`` is the sample that batches are drawn from, in ascending order; every ``every`` iterations all of it is
    evaluated. Source: Castagnetti et al. 2023, equation 13. The paper does not settle the slope of the surrogate; this
    is the setting documented for this project: alpha = 10, gradient through the spike in the reset, recursion "min".
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


def fit_all(samples: Mapping[str, Tensor], options: Options) -> dict[str, dict[str, Any]]:
    """Return ``{input: {"optima": ..., "fits": ...}}``."""
    results: dict[str, dict[str, Any]] = {name: {"optima": optima(x), "fits": {}} for name, x in samples.items()}
    jobs = [(name, kind) for name in samples for kind in NEURONS]
    for name, kind in (bar := tqdm(jobs, unit="fit", dynamic_ncols=True, disable=None)):
        bar.set_description(f"{kind}, {name}")
        results[name]["fits"][kind] = fit(NEURONS[kind], samples[name], options.iterations, seed=options.seed)
    return results


def as_json(results: Mapping[str, dict[str, Any]], options: Options) -> dict[str, Any]:
    """Return results with what they depend on."""
    setting = {
        "time_steps": TIME_STEPS, "sigma": SIGMA, "alpha": ALPHA, "learning_rate": LEARNING_RATE, "batch": BATCH,
        "iterations": options.iterations, "seed": options.seed,
    }  # fmt: skip
    inputs = {
        name: {"optima": result["optima"], "fits": {kind: vars(found) for kind, found in result["fits"].items()}}
        for name, result in results.items()
    }
    return {"setting": setting, "inputs": inputs}


@command
def main(options: Options) -> dict[str, dict[str, Any]]:
    """Fit every neuron to every input, print the table, and return what was found."""
    with own_folder(options.out, "fit_quantizer"):
        results = fit_all(input_samples(), options)
        save_figure(training(results["Gaussian"], TIME_STEPS), options.out / "training.png")
        write_json(options.out / "results.json", as_json(results, options))
    print(f"SQNR in dB at T = {TIME_STEPS}, positive inputs of RMS {SIGMA}\n\n{table(results, TIME_STEPS)}\n")
    print(f"written to {options.out}")
    return results


if __name__ == "__main__":
    run_main(main)
