"""Train a spiking net to tell spoken words apart, after Castagnetti et al. 2023.

``python -m recipes.spot_keywords --data sample --neuron atif-u --v-init 0.5 --out runs/words``

``--data speech-commands`` is Google's corpus, ``synthetic`` is synthetic speech made on this machine, ``sample`` a
small piece of that which always works. ``--host snntorch`` trains the same net through snnTorch, and ``--resume``
continues an interrupted run exactly. ``python -m recipes.listen --checkpoint runs/words/best.pt speech.wav`` then finds
the words.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from .lib.cli import PRESET, Argument, Count, Fraction, Positive, fill
from .lib.command import command, run_main
from .lib.keyword_trainer import HOSTS
from .lib.neurons import NEURONS
from .lib.options import RunOptions, TrainingOptions
from .lib.ranges import Different
from .lib.spiking_trainer import SpikingOptions, run
from .lib.spotter import MODELS, RECURRENT

__all__ = ["Options", "main"]

# Castagnetti et al. 2023 state: SGD of rate 1e-3, times 0.1 every 20 epochs, 80 epochs, mixup of alpha 1, ResNet-18,
# T = 4. What their crops are for a spectrogram is not stated; here clips move in time. Momentum and batch size are
# those of the authors' later configurations.
PAPER: dict[str, Any] = {
    "model": "resnet18", "epochs": 80, "opt": "sgd", "lr": 1e-3, "momentum": 0.9, "weight_decay": 0.0,
    "batch_size": 64, "lr_scheduler": "step", "lr_step_size": 20, "lr_gamma": 0.1, "lr_milestones": None,
    "mixup_alpha": 1.0, "time_shift": 0.1, "noise_share": 0.0, "spec_augment": False, "background": 0.0, "unknown": 0.0,
}  # fmt: skip
SHORT: dict[str, Any] = {
    "model": "separable", "epochs": 20, "opt": "adamw", "lr": 4e-3, "momentum": 0.9, "weight_decay": 1e-2,
    "batch_size": 64, "lr_scheduler": "cosa", "lr_step_size": 20, "lr_gamma": 0.1, "lr_milestones": None,
    "mixup_alpha": 0.0, "time_shift": 0.1, "noise_share": 0.8, "spec_augment": True, "background": 0.1, "unknown": 0.5,
}  # fmt: skip
PRESETS = {"short": SHORT, "paper": PAPER}
LIF = {"neuron": "lif", "time_steps": 200}
"""Neuron and steps of the recurrent layer, which has none of the neurons of the other nets."""


@dataclass(kw_only=True)
class Options(SpikingOptions, RunOptions, TrainingOptions):
    """Data, net and augmentation."""

    preset: Annotated[str, PRESETS, "defaults of the options of the training"] = "short"
    data: Annotated[str, "sample, synthetic, speech-commands, or a folder of that layout"] = "sample"
    data_dir: Annotated[Path | None, "folder of the corpus (default: its own in SNN_EXT_DATA or the cache)"] = None
    words: Annotated[
        list[str], Different, "the words to know (default: all); others are trained on as unknown ones"
    ] = field(default_factory=list)
    unheard: Annotated[list[str], Different, "words that are in no training, for benchmarks.results.listener"] = field(
        default_factory=list
    )
    frames: Annotated[Literal[48, 49], "frames of 20 ms that a clip is cut into"] = 48
    model: Annotated[str, (*MODELS, RECURRENT), "net"] = PRESET
    width: Annotated[Positive, f"factor on all widths; not of {RECURRENT}"] = 1.0
    neuron: Annotated[
        str, (*NEURONS, "lif"), "neuron of all layers; if: the host's, of fixed threshold (default: atif-u)"
    ] = PRESET
    time_steps: Annotated[Count, Argument(metavar="T"), "steps that a clip is shown (default: 4)"] = PRESET
    time_shift: Annotated[Fraction, Argument(metavar="SECONDS"), "clips are moved by up to so much"] = PRESET
    noise_share: Annotated[Fraction, "share of the clips that get noise, 5 to 30 dB below them"] = PRESET
    spec_augment: Annotated[bool, "mask frames and mel bands"] = PRESET
    background: Annotated[Fraction, "sounds that are no word, as a share of the clips"] = PRESET
    unknown: Annotated[Fraction, "clips of unknown words, as a share of the others; with --words"] = PRESET

    def __post_init__(self) -> None:
        fill(self, PRESETS[self.preset])
        fill(self, LIF if self.model == RECURRENT else {"neuron": "atif-u", "time_steps": 4})
        super().__post_init__()
        if (self.neuron == "lif") != (self.model == RECURRENT):
            raise ValueError(f"--neuron: got {self.neuron} with --model {self.model}, want lif with {RECURRENT} alone")
        if self.host == "snntorch" and self.model == RECURRENT:
            raise ValueError(f"--host: got snntorch with --model {RECURRENT}, which is a layer of SpikingJelly")
        if self.data_dir is not None and self.data not in ("synthetic", "speech-commands"):
            raise ValueError(f"--data-dir: got {self.data_dir} with --data {self.data}, which has its own place")
        if self.start is not None and self.model == RECURRENT:
            raise ValueError(f"--from: got {self.start} with --model {RECURRENT}, which has no ReLU twin")
        if same := set(self.words) & set(self.unheard):
            raise ValueError(f"--unheard: got {min(same)}, which is one of --words, want others")


@command
def main(options: Options) -> dict[str, Any]:
    """Train, and print and return the result."""
    return run(HOSTS[options.host](), options)


if __name__ == "__main__":
    run_main(main, "--resume continues")
