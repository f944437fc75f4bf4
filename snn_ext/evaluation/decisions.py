"""Which decisions are right: by class, by the sign of logits, or by a function of the caller's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from .._errors import bad_type, bad_value, check_choice
from .batches import check_labels

__all__ = ["METRICS", "Decision", "Metric", "decision", "rank_of_label"]

Metric = str | Callable[[Tensor, Tensor], Tensor]
"""One of :data:`METRICS`, or ``metric(outputs, labels)``, ``[N, ...]`` to a number in [0, 1] for each sample."""

METRICS = ("class", "sign", "multilabel", "multilabel-exact")


class Decision(Protocol):
    """A rule by which decisions are right."""

    name: str

    def check(self, labels: Tensor, outputs: Tensor) -> Tensor:
        """Return the labels of a batch in the form that :meth:`count` takes; refuse those that do not fit."""

    def count(self, sums: Tensor, labels: Tensor, steps: Tensor) -> Tensor:
        """Return the right decisions of a batch, ``[rows, T']``, by outputs ``[T', N, ...]`` summed over ``steps``."""


def decision(metric: Metric, top: Sequence[int] = (1,)) -> Decision:
    """Return the rule of a name, or of a function.

    Examples
    --------
    >>> rule = decision("multilabel")
    >>> logits = torch.tensor([[1.0, -2.0, 0.5]])
    >>> rule.count(logits[None], rule.check(torch.tensor([[1, 0, 0]]), logits), torch.ones(1)).item()
    0.6666666666666666
    """
    if metric == "class":
        return _ByClass(tuple(top))
    if tuple(top) != (1,):
        bad_value("top", tuple(top), f"(1,): metric={metric!r} ranks no classes")
    if isinstance(metric, str):
        return _BySign(check_choice("metric", metric, METRICS))
    if not callable(metric):
        bad_type("metric", metric, f"one of {METRICS}, or a function (outputs, labels) of the right decisions")
    return _ByFunction(metric)


def rank_of_label(scores: Tensor, labels: Tensor) -> Tensor:
    """Return how many classes come before the right one, ``[..., N, K]`` and ``[N]`` to ``[..., N]``.

    Of equal scores the first class comes first, as with ``argmax``: a net that has not fired yet decides for class 0.
    NaN comes before any number, as with ``argmax``, and a class whose own score is not finite comes last: such a
    decision is never right.

    Examples
    --------
    >>> import torch
    >>> rank_of_label(torch.tensor([[1.0, 3.0, 3.0]]), torch.tensor([2]))
    tensor([1])
    >>> rank_of_label(torch.full((1, 3), torch.nan), torch.tensor([0]))
    tensor([3])
    """
    index = labels.expand(scores.shape[:-1])[..., None]
    own = scores.gather(-1, index)
    later = torch.arange(scores.shape[-1], device=scores.device) >= index
    behind = ((scores < own) | ((scores == own) & later)) & own.isfinite()
    return (~behind).sum(-1)


class _ByClass:
    """The label is among the largest outputs; one row for each of ``top``."""

    name = "class"

    def __init__(self, top: tuple[int, ...]) -> None:
        self.top = top

    def check(self, labels: Tensor, outputs: Tensor) -> Tensor:
        if outputs[0].numel() == 1:
            want = "'sign' for one logit, whose label is 0 or 1, or a function (outputs, labels)"
            bad_value("metric", f"'class' for one output {list(outputs.shape)}", want)
        if labels.shape == outputs.shape:
            want = "'multilabel' or 'multilabel-exact', or one class number for each output"
            bad_value("metric", f"'class' for labels {list(labels.shape)}", want)
        return check_labels(labels, outputs)

    def count(self, sums: Tensor, labels: Tensor, steps: Tensor) -> Tensor:
        rank = rank_of_label(sums, labels)
        return torch.stack([(rank < k).sum(1) for k in self.top]).double()


class _BySign:
    """A logit above 0 says 1, any other 0: of one logit, the share of right ones, or all of them right."""

    def __init__(self, name: str) -> None:
        self.name = name

    def check(self, labels: Tensor, outputs: Tensor) -> Tensor:
        if self.name == "sign" and outputs[0].numel() != 1:
            want = "'class', or 'multilabel' for several logits"
            bad_value("metric", f"'sign' for outputs {list(outputs.shape)}", want)
        one = self.name == "sign" and labels.shape == outputs.shape[:1]
        if not one and labels.shape != outputs.shape:
            bad_value("loader", labels, f"a label 0 or 1 for each of the outputs {list(outputs.shape)}")
        if labels.is_complex() or not bool(((labels == 0) | (labels == 1)).all()):
            bad_value("loader", f"labels {sorted(set(labels.flatten().tolist()))}", "labels 0 and 1")
        return labels.reshape(outputs.shape).bool()

    def count(self, sums: Tensor, labels: Tensor, steps: Tensor) -> Tensor:
        right = ((sums > 0) == labels).flatten(1).unflatten(1, (len(labels), -1))
        right &= ~sums.isnan().reshape(right.shape)
        each = right.all(2) if self.name == "multilabel-exact" else right.double().mean(2)
        return each.sum(1).double().unsqueeze(0)


class _ByFunction:
    """A function of the mean outputs ``[N, ...]`` and the labels."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.function, self.name = function, getattr(function, "__name__", type(function).__name__)

    def check(self, labels: Tensor, outputs: Tensor) -> Tensor:
        if labels.shape[:1] != outputs.shape[:1]:
            bad_value("loader", labels, f"labels of each of the {len(outputs)} samples")
        return labels

    def count(self, sums: Tensor, labels: Tensor, steps: Tensor) -> Tensor:
        means = sums / steps.to(sums).reshape(-1, *[1] * (sums.ndim - 1))
        return torch.stack([self._right(outputs, labels) for outputs in means]).unsqueeze(0)

    def _right(self, outputs: Tensor, labels: Tensor) -> Tensor:
        right: Any = self.function(outputs, labels)
        want = f"a function that returns a number in [0, 1] for each of {len(labels)} samples"
        if not isinstance(right, Tensor) or right.shape != labels.shape[:1]:
            bad_value("metric", f"{self.name}(outputs, labels) = {right!r}", want)
        if not bool(((right >= 0) & (right <= 1)).all()):  # nor NaN
            bad_value("metric", f"{self.name}(outputs, labels) = {right!r}", want)
        return right.double().sum()
