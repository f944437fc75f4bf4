"""Neurons as quantisers: figures 1 to 5 of Castagnetti et al. 2023, one more, and the inputs of a trained net.

``python -m benchmarks quantizer --out runs/quantizer`` takes about two minutes on a CPU.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

import snn_ext
from recipes import fit_quantizer
from recipes.data import FASHION_MNIST_SUBSET, fashion_mnist_subset
from recipes.data.distributions import SIGMA, input_samples
from recipes.fit_quantizer import TIME_STEPS
from recipes.lib.cli import NewFolder
from recipes.lib.command import command, run_main
from recipes.lib.files import save_figure, write_json
from recipes.lib.quantizer_fits import table
from recipes.lib.run_folder import own_folder
from recipes.lib.training import seed_everything, train
from recipes.models import small_cnn

from . import quantizer_figures as figures

RECORDED = f"second spiking layer of a small ReLU net, {FASHION_MNIST_SUBSET}"


@dataclass(kw_only=True)
class Options(fit_quantizer.Options):
    """Study."""

    out: Annotated[NewFolder, "folder"] = Path("runs/quantizer")
    recorded: Annotated[bool, "fit to the recorded inputs of a net, too"] = True


@command
def main(options: Options) -> dict[str, dict[str, Any]]:
    """Fit, draw, print and return ``{input: {"optima": ..., "fits": ...}}``."""
    started = time.perf_counter()
    with own_folder(options.out, "quantizer"):
        samples = input_samples()
        if options.recorded:
            samples["recorded"] = recorded_sample()
        results = fit_quantizer.fit_all(samples, options)
        gaussian, inputs = results["Gaussian"], samples["Gaussian"]
        for name, figure in {
            "figure_1_staircases": figures.staircases(),
            "figure_2_errors": figures.errors(inputs, SIGMA, TIME_STEPS),
            "figure_3_uniform_training": figures.uniform_training(gaussian, SIGMA, TIME_STEPS),
            "figure_4_steps": figures.steps(gaussian, inputs, SIGMA, TIME_STEPS),
            "figure_5_nonuniform_training": figures.nonuniform_training(gaussian, SIGMA, TIME_STEPS),
            "figure_6_inputs": figures.inputs(results, samples, SIGMA, TIME_STEPS),
        }.items():
            save_figure(figure, options.out / f"{name}.png")
        content = fit_quantizer.as_json(results, options)
        content["setting"] |= {"recorded": RECORDED, "seconds": time.perf_counter() - started}
        write_json(options.out / "results.json", content)
    print(f"SQNR in dB at T = {TIME_STEPS}, positive inputs of RMS {SIGMA}\n\n{table(results, TIME_STEPS)}\n")
    if options.recorded:
        print(f"recorded: {RECORDED}")
    print(f"{content['setting']['seconds']:.0f} s; written to {options.out}")
    return results


def recorded_sample(size: int = 20_001) -> Tensor:
    """Train a small ReLU net for two epochs and return the positive inputs of its second layer, scaled to one RMS."""
    generator = seed_everything(0)
    train_set, _ = fashion_mnist_subset()
    net = small_cnn()
    optimizer = torch.optim.AdamW(net.parameters(), 4e-3)
    train(net, DataLoader(train_set, 64, shuffle=True, generator=generator), optimizer, 2, name="ReLU net")
    inputs = list(snn_ext.record_inputs(net, DataLoader(train_set, 100, sampler=range(1000))).values())[1]
    inputs = inputs[inputs > 0].sort().values
    inputs = inputs[torch.linspace(0, len(inputs) - 1, size).round().long()]
    return inputs * (SIGMA / inputs.square().mean().sqrt())


if __name__ == "__main__":
    run_main(main)
