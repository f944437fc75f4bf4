"""Train a spiking net to tell spoken words apart, after Castagnetti et al. 2023.

``python -m recipes.spot_keywords --data sample --neuron atif-u --v-init 0.5 --out runs/words``

``--data speech-commands`` is Google's corpus, ``synthetic`` is synthetic speech made on this machine, ``sample`` a
small piece of that which always works. ``--host snntorch`` trains the same net through snnTorch, and ``--resume``
continues an interrupted run exactly. ``python -m recipes.listen --checkpoint runs/words/best.pt speech.wav`` then finds
the words.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from torch import Tensor, nn

from .data.augment import Augment
from .data.features import features, to_float
from .data.keyword_batches import FeatureBatches, KeywordBatches
from .data.mfcc import MFCC
from .data.speech_commands import Corpus, load
from .lib.cli import PRESET, Argument, Count, Fraction, Positive, fill
from .lib.clip_cost import clip_cost, confusion
from .lib.command import command, run_main
from .lib.files import feature_cache
from .lib.neurons import NEURONS
from .lib.options import RunOptions, TrainingOptions
from .lib.snntorch_trainer import SnnTorchTrainer
from .lib.spiking_trainer import SpikingOptions, SpikingTrainer, run
from .lib.spotter import MODELS, RECURRENT, build_keyword_net

__all__ = ["KeywordTrainer", "Options", "main"]

# Castagnetti et al. 2023 state: SGD of rate 1e-3, times 0.1 every 20 epochs, 80 epochs, mixup of alpha 1, ResNet-18,
# T = 4. What their crops are for a spectrogram is not stated; here clips move in time. Momentum and batch size are
# those of the authors' later configurations.
PAPER: dict[str, Any] = {
    "model": "resnet18", "epochs": 80, "opt": "sgd", "lr": 1e-3, "momentum": 0.9, "weight_decay": 0.0,
    "batch_size": 64, "lr_scheduler": "step", "lr_step_size": 20, "lr_gamma": 0.1, "lr_milestones": None,
    "mixup_alpha": 1.0, "time_shift": 0.1, "noise_share": 0.0, "spec_augment": False, "background": 0.0,
}  # fmt: skip
SHORT: dict[str, Any] = {
    "model": "separable", "epochs": 20, "opt": "adamw", "lr": 4e-3, "momentum": 0.9, "weight_decay": 1e-2,
    "batch_size": 64, "lr_scheduler": "cosa", "lr_step_size": 20, "lr_gamma": 0.1, "lr_milestones": None,
    "mixup_alpha": 0.0, "time_shift": 0.1, "noise_share": 0.8, "spec_augment": True, "background": 0.1,
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
    frames: Annotated[Literal[48, 49], "of 20 ms"] = 48
    model: Annotated[str, (*MODELS, RECURRENT)] = PRESET
    width: Annotated[Positive, f"factor on all widths; not of {RECURRENT}"] = 1.0
    neuron: Annotated[str, (*NEURONS, "lif"), "if: the host's, of fixed threshold (default: atif-u)"] = PRESET
    time_steps: Annotated[Count, Argument(metavar="T"), "(default: 4)"] = PRESET
    time_shift: Annotated[Fraction, Argument(metavar="SECONDS"), "clips are moved by up to so much"] = PRESET
    noise_share: Annotated[Fraction, "share of the clips that get noise, 5 to 30 dB below them"] = PRESET
    spec_augment: Annotated[bool, "mask frames and mel bands"] = PRESET
    background: Annotated[Fraction, "sounds that are no word, as a share of the clips"] = PRESET

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


class KeywordTrainer(SpikingTrainer):
    """Trains on clips of words; the best epoch is the best on the validation set, the result is of the test set."""

    watched = "validation"
    same_net = ("data", "model", "width", "frames")

    def read_data(self, args: Options) -> Corpus:
        return load(args.data, args.data_dir)

    def set_loaders(self, args: Options) -> None:
        self.front_end = MFCC(args.frames).to(self.device)
        corpus: Corpus = self.data
        parts = {"train": corpus.train, "validation": corpus.validation, "test": corpus.test}
        found = {part: features(clips, self.front_end, feature_cache()) for part, clips in parts.items()}
        mean, std = found["train"].mean((0, 1, 2)), found["train"].std((0, 1, 2))
        self.statistics = mean, std
        self.train_loader = KeywordBatches(
            corpus.train, args.batch_size, self.front_end, mean, std, _augment(args, corpus.noise),
            background=args.background, mixup=args.mixup_alpha, seed=args.seed, rank=self.rank,
            processes=self.processes,
        )  # fmt: skip

        def in_order(part: str, size: int, **share: int) -> FeatureBatches:
            return FeatureBatches(found[part], parts[part].labels, size, mean, std, device=self.device, **share)

        self.test_loader = in_order("validation", args.batch_size, rank=self.rank, processes=self.processes)
        self.calibration_loader, self.whole_test = in_order("train", 100), in_order("test", 100)

    def load_model(self, args: Options, num_classes: int) -> nn.Module:
        if args.model != RECURRENT:
            return super().load_model(args, num_classes)
        self.neurons = []
        return build_keyword_net(args, num_classes)

    def build_net(self, options: Options, classes: int) -> Any:
        return build_keyword_net(options, classes)

    def about(self) -> dict[str, Any]:
        mean, std = (statistic.tolist() for statistic in self.statistics)
        return {"words": list(self.data.classes), "mean": mean, "std": std}

    def note_epoch(self, seconds: float) -> dict[str, Any]:
        return {"data_share": self.train_loader.seconds / seconds}

    def measured_loader(self) -> Iterable[tuple[Tensor, Tensor]]:
        return self.whole_test

    def measure(self, args: Options) -> dict[str, Any]:
        """Accuracy, activity, cost of a clip and confusion matrix of the last epoch's net, over the test set."""
        result = super().measure(args)
        return {
            **result,
            "test_clips": len(self.whole_test.labels),
            "parameters": sum(p.numel() for p in self.model.parameters()),
            **clip_cost(self.model, self.whole_test, args.time_steps),
            "confusion": confusion(self.model, self.whole_test).tolist(),
            "words": list(self.data.classes),
        }


class SnnTorchKeywordTrainer(SnnTorchTrainer, KeywordTrainer):
    """The same with snnTorch's neurons and training loop."""


HOSTS = {"spikingjelly": KeywordTrainer, "snntorch": SnnTorchKeywordTrainer}


def _augment(args: Options, noise: Tensor) -> Augment:
    masks = int(args.spec_augment)
    return Augment(
        shift=args.time_shift, noise_share=args.noise_share, noise=to_float(noise) if len(noise) else None,
        time_masks=masks, band_masks=masks,
    )  # fmt: skip


@command
def main(options: Options) -> dict[str, Any]:
    """Train, and print and return the result."""
    return run(HOSTS[options.host](), options)


if __name__ == "__main__":
    run_main(main, "--resume continues")
