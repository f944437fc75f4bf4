"""Inputs of operators that are computed again in the backward pass, from tensors that are kept for another reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = ["Recipe", "recipe_of", "record"]

_RECIPES = WeakTensorKeyDictionary()  # no attributes of tensors: these would be pickled with them


class Recipe:
    """How to compute a tensor again, bit by bit: a function of tensors that are kept.

    It is void once the tensor or one of the others has been changed in place.
    """

    def __init__(
        self,
        made: Tensor,
        tensors: tuple[Tensor | None, ...],
        compute: Callable[..., Tensor],
        note_use: Callable[[], None],
    ) -> None:
        self.tensors, self.compute, self.note_use = tensors, compute, note_use
        self._versions = self._current(made)

    def holds(self, made: Tensor) -> bool:
        """Return True while nothing has been changed; views have the version of what they are views of."""
        return self._versions == self._current(made)

    def _current(self, made: Tensor) -> list[int]:
        return [tensor._version for tensor in (made, *self.tensors) if tensor is not None]


def record(made: Tensor, *recipe: Any) -> None:
    """Leave a recipe with a tensor; it lives as long as the tensor. ``made`` fills its memory from the start."""
    _RECIPES[made] = Recipe(made, *recipe)


def recipe_of(x_seq: Tensor) -> Recipe | None:
    """Return the recipe of a tensor, or of the one that it is a view of, if it holds still.

    Examples
    --------
    >>> x = torch.arange(3.0)
    >>> y = x.exp()
    >>> record(y, (x,), torch.exp, lambda: None)
    >>> recipe_of(y.view(1, 3)) is not None, recipe_of(y.add_(1)) is None
    (True, True)
    """
    if type(x_seq) is not Tensor or torch.compiler.is_compiling():
        return None
    found = (_RECIPES.get(tensor) for tensor in (x_seq, x_seq._base) if tensor is not None)
    return next((recipe for recipe in found if recipe is not None and recipe.holds(x_seq)), None)
