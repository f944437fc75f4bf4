"""Training on clips of words, in either host."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from ..data.augment import Augment
from ..data.features import features, to_float
from ..data.keyword_batches import FeatureBatches, KeywordBatches
from ..data.mfcc import MFCC
from ..data.speech_commands import Corpus, load
from .clip_cost import clip_cost, confusion
from .files import feature_cache
from .snntorch_trainer import SnnTorchTrainer
from .spiking_trainer import SpikingTrainer
from .spotter import RECURRENT, build_keyword_net

__all__ = ["HOSTS", "KeywordTrainer", "SnnTorchKeywordTrainer"]


class KeywordTrainer(SpikingTrainer):
    """Trains on clips of words; the best epoch is the best on the validation set, the result is of the test set."""

    watched = "validation"
    same_net = ("data", "words", "unheard", "model", "width", "frames")

    def read_data(self, args: Any) -> Corpus:
        try:
            corpus = load(args.data, args.data_dir)
        except (ValueError, FileNotFoundError) as error:
            raise type(error)(f"--data: {str(error).removeprefix('corpus: ')}") from error
        try:
            corpus = corpus.divided(args.words, args.unheard)
        except ValueError as error:
            raise ValueError(f"--{error}") from error
        if self.rank == 0:
            print(corpus)
        return corpus

    def set_loaders(self, args: Any) -> None:
        self.front_end = MFCC(args.frames).to(self.device)
        corpus: Corpus = self.data
        parts = {"train": corpus.train, "validation": corpus.validation, "test": corpus.test}
        found = {part: features(clips, self.front_end, feature_cache()) for part, clips in parts.items()}
        mean, std = found["train"].mean((0, 1, 2)), found["train"].std((0, 1, 2))
        self.statistics = mean, std
        self.train_loader = KeywordBatches(
            corpus.train, args.batch_size, self.front_end, mean, std, _augment(args, corpus.noise),
            background=args.background, unknown=corpus.unknown, unknown_share=args.unknown, mixup=args.mixup_alpha,
            seed=args.seed, rank=self.rank, processes=self.processes,
        )  # fmt: skip

        def batches(part: str, size: int, **options: int) -> FeatureBatches:
            return FeatureBatches(found[part], parts[part].labels, size, mean, std, device=self.device, **options)

        self.test_loader = batches("validation", args.batch_size, rank=self.rank, processes=self.processes)
        self.calibration_loader = batches("train", 100, shuffle=args.seed)  # in order, the first clips are of few words
        self.whole_test = batches("test", 100)

    def load_model(self, args: Any, num_classes: int) -> nn.Module:
        if args.model != RECURRENT:
            return super().load_model(args, num_classes)
        self.neurons = []
        return build_keyword_net(args, num_classes)

    def build_net(self, options: Any, classes: int) -> Any:
        return build_keyword_net(options, classes)

    def about(self) -> dict[str, Any]:
        mean, std = (statistic.tolist() for statistic in self.statistics)
        return super().about() | {"words": list(self.data.classes), "mean": mean, "std": std}

    def note_epoch(self, seconds: float) -> dict[str, Any]:
        return {"data_share": self.train_loader.seconds / seconds}

    def measured_loader(self) -> Iterable[tuple[Tensor, Tensor]]:
        return self.whole_test

    def measure(self, args: Any) -> dict[str, Any]:
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


def _augment(args: Any, noise: Tensor) -> Augment:
    masks = int(args.spec_augment)
    return Augment(
        shift=args.time_shift, noise_share=args.noise_share, noise=to_float(noise) if len(noise) else None,
        time_masks=masks, band_masks=masks,
    )  # fmt: skip
