"""The rebuilt picture of the autoencoder over time, with and without pre-charge and with a delay, and its errors.

``python -m benchmarks.results.autoencoder --out runs/autoencoder`` measures what ``recipes.autoencoder`` does, and
draws the picture after 50, 100, ... 255 steps.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from recipes import autoencoder
from recipes.autoencoder import Rebuilt, smallest_delay
from recipes.data.pictures import SIZE, tiles, untile
from recipes.lib.command import command, run_main
from recipes.lib.files import save_figure
from recipes.lib.run_folder import own_folder
from snn_ext.simulation import Simulation

from .conversion_plots import curves, images
from .pages import command_line, provenance, reduction, table, write_report

SNAPSHOTS = (50, 100, 150, 200, 255)
# Of Hwang et al. 2021, CIFAR-10: fewer spikes to the reference error with pre-charge by layer and a delay of 50 steps.
PAPER_SPIKES = "74 % (CIFAR-10, by layer and delay 50)"


@dataclass(kw_only=True)
class Options(autoencoder.Options):
    """Options."""


@command
def main(options: Options) -> str:
    """Rebuild the picture, write figures and the report, and return the report."""
    with own_folder(options.out, "autoencoder"):
        rebuilt = autoencoder.rebuild(options)
        steps = [t for t in SNAPSHOTS if t <= options.time_steps]
        columns = [*(f"step {t}" for t in steps), "analog", "original"]
        save_figure(
            images(_pictures(rebuilt, steps, options.device), columns, rebuilt.title), options.out / "pictures.png"
        )
        found, time = rebuilt.evaluations, range(1, options.time_steps + 1)
        lines = {label: (time, e.mse_at(0)) for label, e in found.items()}
        delay = smallest_delay(found["by layer"])
        lines[f"by layer, delay {delay}"] = (time, found["by layer"].mse_at(delay))
        figure = curves(lines, "time step", "mean squared error", rebuilt.title, log=True)
        save_figure(figure, options.out / "error.png")
        by_delay = {label: (e.delays, [float(e.mse_at(d)[-1]) for d in e.delays]) for label, e in found.items()}
        figure = curves(by_delay, "delay", "mean squared error at the end", rebuilt.title, log=True)
        save_figure(figure, options.out / "delay.png")
        text = f"### Autoencoder: {rebuilt.title}\n\n{_text(rebuilt, steps, options)}\n"
        return write_report(options.out, text + "\n" + provenance(command_line(options), options.seed))


def _pictures(rebuilt: Rebuilt, steps: Sequence[int], device: str) -> dict[str, list[Tensor]]:
    """Return a row of pictures for each net: after some steps, of the analog net, and the original."""
    x, columns = tiles(rebuilt.image).to(device), rebuilt.image.shape[2] // SIZE
    plain = rebuilt.conversions["no pre-charge"]()
    charged = copy.deepcopy(plain)
    for layer in rebuilt.layers["by layer"]:  # the search has been done, and its result is in the report
        neuron = charged.get_submodule(layer["name"])
        neuron.v_init = torch.full_like(neuron.v_init, layer["precharge"])
    with torch.no_grad():
        analog = torch.cat([rebuilt.net(part) for part in x.split(64)])
    scale = plain.report[-1].scale  # of the output in the units of the image
    delay = smallest_delay(rebuilt.evaluations["by layer"])
    nets = {"no pre-charge": (plain, 0), "by layer": (charged, 0), "by layer, delay": (charged, delay)}
    return {
        label: [
            *(untile(scale * y, columns).cpu() for y in rates(snn, x, steps, delay)),
            untile(analog, columns).cpu(), rebuilt.image,
        ]
        for label, (snn, delay) in nets.items()
    }  # fmt: skip


def rates(snn: nn.Module, x: Tensor, steps: Sequence[int], delay: int = 0, batch: int = 32) -> list[Tensor]:
    """Return the rates of the output since the delay, ``[N, ...]``, at some steps; zeros while nothing is counted."""
    simulation = Simulation(snn)
    found: list[list[Tensor]] = [[] for _ in steps]
    for part in x.split(batch):
        output = torch.cat(list(simulation.run(part, max(steps))))
        for parts, step in zip(found, steps, strict=True):
            parts.append((output[delay:step].sum(0) / max(step - delay, 1)).reshape_as(part))
    return [torch.cat(parts) for parts in found]


def _text(rebuilt: Rebuilt, steps: Sequence[int], options: Options) -> str:
    none = rebuilt.evaluations["no pre-charge"]
    reference, spent = float(none.mse_at(0)[-1]), float(none.spikes[-1])
    rows = []
    for label, evaluation in rebuilt.evaluations.items():
        for delay in sorted({0, smallest_delay(evaluation)}):
            step = evaluation.steps_to_mse(reference, delay)
            spikes = None if step is None else float(evaluation.spikes[step - 1])
            errors = [f"{float(evaluation.mse_at(delay)[t - 1]):.2e}" for t in steps]
            rows.append([label, delay, *errors, step, reduction(spikes, spent)])
    header = ["", "delay", *(f"MSE at {t}" for t in steps), "step of the reference", "fewer spikes"]
    return (
        f"Mean squared error between the rates of the output and the analog net's "
        f"activations in units of the output's threshold, over {none.samples} tiles. Reference: the error without "
        f"pre-charge at T = {options.time_steps}. By layer: Algorithm 1 on {options.search_images} images, "
        f"{options.search_steps} steps. The paper: {PAPER_SPIKES}.\n\n{table(rows, header)}"
    )


if __name__ == "__main__":
    run_main(main, "the same command continues")
