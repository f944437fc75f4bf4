"""Common parts of ``snn-ext convert`` and ``evaluate``: options of images, figures, files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from ..evaluation.result import Evaluation
from ..recipes.lib.cli import Argument, Count
from ..recipes.lib.options import Options
from ..recipes.lib.ranges import number
from .images import Scaling

__all__ = ["ImageOptions", "figures", "new", "text", "write"]


@dataclass(kw_only=True)
class ImageOptions(Options):
    """Images."""

    image_size: Annotated[Count | None, Argument(metavar="PIXELS"), "images of a folder are cut to this square"] = None
    mean: Annotated[
        list[float] | None, number(), "images in [0, 1] are shifted by it, for each channel (default: as the net wants)"
    ] = None
    std: Annotated[
        list[float] | None, number(above=0.0), "and divided by it; floats of an .npz are taken as they are"
    ] = None
    images: Annotated[Count | None, "measure only a sample of so many"] = None
    batch_size: Annotated[Count, Argument("--batch-size", "-b"), "images at a time"] = 50

    def scaling(self, usual: Scaling) -> Scaling:
        """Return what is done to the images: what is asked for, else the usual."""
        return Scaling(
            self.image_size or usual.size,
            usual.mean if self.mean is None else self.mean,
            usual.std if self.std is None else self.std,
        )


def new(folder: Path) -> None:
    """Refuse a folder that holds something."""
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"--out: got {folder}, which holds files, want a new folder")


def figures(evaluation: Evaluation) -> dict[str, Any]:
    """Return the figures of an evaluation that are shown."""
    labelled = evaluation.correct is not None
    energy, macs = evaluation.energy(), evaluation.macs
    return {
        "time_steps": evaluation.time_steps,
        "analog_accuracy": evaluation.analog_accuracy if labelled else None,
        "accuracy": float(evaluation.accuracy[-1]) if labelled else None,
        "accuracy_at": {str(t): float(evaluation.accuracy[t - 1]) for t in _shown(evaluation)} if labelled else None,
        "latency": {str(level): step for level, step in evaluation.latency.items()} if labelled else None,
        "error": float(evaluation.mse_at(evaluation.delays[0])[-1]),
        "spikes": float(evaluation.spikes[-1]),
        "synops": float(evaluation.synops[-1]),
        "macs": macs,
        "energy_pj": float(energy[-1]),
    }


def text(evaluation: Evaluation, title: str) -> str:
    """Return the figures in a few lines."""
    found = figures(evaluation)
    lines = [f"{title}: {evaluation.samples:,} images"]
    if found["accuracy"] is None:
        lines.append(f"no labels; mean squared error of the outputs {found['error']:.3g} at step {found['time_steps']}")
    else:
        reached = evaluation.latency[99.0]
        when = f"99 % of that at step {reached}" if reached else f"99 % of that not within {found['time_steps']} steps"
        lines.append(f"accuracy {found['accuracy']:.2%} at step {found['time_steps']}")
        if earlier := [f"{value:.2%} at {t}" for t, value in found["accuracy_at"].items()][:-1]:
            lines.append(f"if it is read earlier: {', '.join(earlier)}")
        lines.append(f"analog net {found['analog_accuracy']:.2%}; {when}")
    macs = "" if found["macs"] is None else f"; the analog net takes {found['macs']:,} multiply-accumulates"
    lines.append(f"an image takes {found['spikes']:,.0f} spikes, {found['synops']:,.0f} synaptic operations{macs}")
    return "\n".join(lines)


def _shown(evaluation: Evaluation) -> list[int]:
    """Return the steps whose accuracy is shown: 1, 2, 4, 8, ... and the last one."""
    last = evaluation.time_steps
    return [*(1 << i for i in range((last - 1).bit_length())), last]


def write(evaluation: Evaluation, folder: Path) -> dict[str, Any]:
    """Write all figures into a folder, as JSON, as a table and as a plot, and return those that are shown."""
    evaluation.to_json(folder / "evaluation.json")
    evaluation.to_csv(folder / "evaluation.csv")
    evaluation.plot(folder / "evaluation.png")
    return figures(evaluation)
