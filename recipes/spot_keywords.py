"""Train a spiking net to tell spoken words apart, after Castagnetti et al. 2023.

``python -m recipes.spot_keywords --data sample --neuron atif-u --v-init 0.5 --out runs/words``

``--data speech-commands`` is Google's corpus, ``synthetic`` is synthetic speech made on this machine, ``sample`` a
small piece of that which always works. ``--host snntorch`` trains the same net through snnTorch, and ``--resume``
continues an interrupted run exactly. ``python -m recipes.listen --checkpoint runs/words/best.pt speech.wav`` then finds
the words.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .lib.clip_cost import clip_cost, confusion

from .data.augment import Augment
from .data.features import features, to_float
from .data.keyword_batches import FeatureBatches, KeywordBatches
from .data.mfcc import MFCC
from .data.speech_commands import Corpus, load
from .lib.command import command, run_main
from .lib.files import feature_cache
from .lib.neurons import add_neuron_arguments, check_neuron_arguments
from .lib.options import (
    FRACTION,
    add_run_arguments,
    add_training_arguments,
    check_run_arguments,
    check_training_arguments,
    integer,
    number,
)
from .lib.spotter import MODELS, RECURRENT, build_keyword_net
from .train_images import ImageTrainer, run
from .train_images_snntorch import NEUTRAL, TRAINERS, SnnTorchTrainer, check_snntorch_arguments

__all__ = ["KeywordTrainer", "argument_parser", "main", "parse_arguments"]

# Castagnetti et al. 2023 state: SGD of rate 1e-3, times 0.1 every 20 epochs, 80 epochs, mixup of alpha 1, ResNet-18,
# T = 4. What their crops are for a spectrogram is not stated; here clips move in time. Momentum and batch size are
# those of the authors' later configurations.
PAPER: dict[str, Any] = {
    "model": "resnet18", "epochs": 80, "opt": "sgd", "lr": 1e-3, "momentum": 0.9, "weight_decay": 0.0,
    "batch_size": 64, "lr_scheduler": "step", "lr_step_size": 20, "lr_gamma": 0.1, "mixup_alpha": 1.0,
    "time_shift": 0.1, "noise_share": 0.0, "spec_augment": False, "background": 0.0,
}  # fmt: skip
SHORT: dict[str, Any] = {
    "model": "separable", "epochs": 20, "opt": "adamw", "lr": 4e-3, "momentum": 0.9, "weight_decay": 1e-2,
    "batch_size": 64, "lr_scheduler": "cosa", "lr_step_size": 20, "lr_gamma": 0.1, "mixup_alpha": 0.0,
    "time_shift": 0.1, "noise_share": 0.8, "spec_augment": True, "background": 0.1,
}  # fmt: skip
PRESETS = {"short": SHORT, "paper": PAPER}
RECURRENT_STEPS = 200


@dataclass(frozen=True)
class KeywordData:
    """A corpus with the name that results have, and its words."""

    corpus: Corpus

    @property
    def name(self) -> str:
        return self.corpus.name

    @property
    def classes(self) -> tuple[str, ...]:
        return self.corpus.train.words


class KeywordTrainer(ImageTrainer):
    """Trains on clips of words; the best epoch is the best on the validation set, the result is of the test set."""

    watched = "validation"
    same_net = ("data", "model", "width", "frames")

    def read_data(self, args: argparse.Namespace) -> KeywordData:
        return KeywordData(load(args.data, args.data_dir))

    def set_loaders(self, args: argparse.Namespace) -> None:
        self.front_end = MFCC(args.frames).to(self.device)
        corpus: Corpus = self.data.corpus
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

    def load_model(self, args: argparse.Namespace, num_classes: int) -> nn.Module:
        if args.model != RECURRENT:
            return super().load_model(args, num_classes)
        self.neurons = []
        return build_keyword_net(args, num_classes)

    def build_net(self, args: argparse.Namespace, num_classes: int) -> Any:
        return build_keyword_net(args, num_classes)

    def defaults(self, args: argparse.Namespace) -> dict[str, Any]:
        return vars(parse_arguments(["--out", str(args.out), "--preset", args.preset]))

    def about(self) -> dict[str, Any]:
        mean, std = (statistic.tolist() for statistic in self.statistics)
        return {"words": list(self.data.classes), "mean": mean, "std": std}

    def note_epoch(self, seconds: float) -> dict[str, Any]:
        return {"data_share": self.train_loader.seconds / seconds}

    def measured_loader(self) -> Iterable[tuple[Tensor, Tensor]]:
        return self.whole_test

    def measure(self, args: argparse.Namespace) -> dict[str, Any]:
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

    def defaults(self, args: argparse.Namespace) -> dict[str, Any]:
        return vars(parse_arguments(["--out", str(args.out), "--preset", args.preset, "--host", "snntorch"]))


HOSTS = {"spikingjelly": KeywordTrainer, "snntorch": SnnTorchKeywordTrainer}


def _augment(args: argparse.Namespace, noise: Tensor) -> Augment:
    masks = int(args.spec_augment)
    return Augment(
        shift=args.time_shift, noise_share=args.noise_share, noise=to_float(noise) if len(noise) else None,
        time_masks=masks, band_masks=masks,
    )  # fmt: skip


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser; the options of the training are those of ``recipes.train_images``."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.spot_keywords", description=__doc__.split("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    add_run_arguments(parser, PRESETS)
    parser.add_argument("--host", choices=HOSTS, default="spikingjelly", help="whose neurons and training loop")
    parser.add_argument("--trainer", choices=TRAINERS, default="snn_ext", help="of --host snntorch: which BPTT")
    data = parser.add_argument_group("data")
    data.add_argument("--data", default="sample", help="sample, synthetic, speech-commands, or a folder of that layout")
    data.add_argument(
        "--data-dir", type=Path, help="folder of the corpus (default: its own in SNN_EXT_DATA or the cache)"
    )
    data.add_argument("--frames", type=int, choices=(48, 49), default=48, help="of 20 ms")
    net = parser.add_argument_group("net")
    net.add_argument("--model", choices=(*MODELS, RECURRENT), help="default: the preset")
    net.add_argument("--width", type=number(above=0.0), default=1.0, help=f"factor on all widths; not of {RECURRENT}")
    net.add_argument("--from", dest="start", type=Path, metavar="CHECKPOINT", help="start from this trained ReLU net")
    net.add_argument("--calibration-images", type=integer(), default=1000, help="clips for the thresholds, with --from")
    add_neuron_arguments(parser, more=("lif",))
    group = add_training_arguments(parser)
    group.add_argument("--threshold-lr", type=number(0.0), help="of the thresholds (default: --lr)")
    group.add_argument("--time-shift", type=FRACTION, metavar="SECONDS", help="clips are moved by up to so much")
    group.add_argument("--noise-share", type=FRACTION, help="share of the clips that get noise, 5 to 30 dB below them")
    group.add_argument("--spec-augment", action=argparse.BooleanOptionalAction, help="mask frames and mel bands")
    group.add_argument("--background", type=FRACTION, help="sounds that are no word, as a share of the clips")
    return parser


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse and check the command line; what is wrong is named before anything starts."""
    parser = argument_parser()
    known = parser.parse_known_args(argv)[0]
    parser.set_defaults(**PRESETS[known.preset])
    if known.model == RECURRENT:
        parser.set_defaults(neuron="lif", time_steps=RECURRENT_STEPS)
    if known.host == "snntorch":
        parser.set_defaults(**{name: value for name, value in NEUTRAL.items() if name != "benchmark_step"})
    args = parser.parse_args(argv)
    check_neuron_arguments(parser, args)
    check_training_arguments(parser, args)
    check_run_arguments(args)
    if (args.neuron == "lif") != (args.model == RECURRENT):
        parser.error(f"argument --neuron: got {args.neuron} with --model {args.model}, want lif with {RECURRENT} alone")
    if args.host == "snntorch":
        check_snntorch_arguments(parser, args)
        if args.model == RECURRENT:
            parser.error(f"argument --host: got snntorch with --model {RECURRENT}, which is a layer of SpikingJelly")
    elif args.trainer != "snn_ext":
        parser.error(f"argument --trainer: got {args.trainer} with --host spikingjelly, want --host snntorch")
    if args.data_dir is not None and args.data not in ("synthetic", "speech-commands"):
        parser.error(f"argument --data-dir: got {args.data_dir} with --data {args.data}, which has its own place")
    if args.start is not None and args.model == RECURRENT:
        parser.error(f"argument --from: got {args.start} with --model {RECURRENT}, which has no ReLU twin")
    if args.start is not None and not args.resume and not args.start.is_file():
        parser.error(f"argument --from: got {args.start}, want a checkpoint that exists")
    return args


@command
def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Parse the command line and run."""
    args = parse_arguments(argv)
    return run(HOSTS[args.host](), args)


if __name__ == "__main__":
    run_main(main, "--resume continues")
