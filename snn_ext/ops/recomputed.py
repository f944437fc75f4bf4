"""Inputs of operators that are computed again in the backward pass, from tensors that are kept for another reason."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.weak import WeakTensorKeyDictionary

from .layout import savable

__all__ = ["Recipe", "keep", "kept", "recipe_of", "record", "repeated"]

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


def keep(ctx: Any, x_seq: Tensor, *others: Tensor | None) -> None:
    """Keep tensors for a backward pass, but of the first what its recipe needs, if it has one."""
    tensors, recipe, ctx.recompute = (x_seq, *others), recipe_of(x_seq), None
    if recipe is not None:
        recipe.note_use()
        tensors = (*others, *recipe.tensors)
        ctx.recompute = partial(_recomputed, recipe.compute, x_seq.shape, x_seq.stride(), x_seq.storage_offset())
    ctx.given = [tensor is not None for tensor in tensors]
    ctx.others = len(others)
    ctx.save_for_backward(*(savable(tensor) for tensor in tensors if tensor is not None))


def kept(ctx: Any) -> list[Any]:
    """Return the tensors of :func:`keep`."""
    saved = iter(ctx.saved_tensors)
    tensors = [next(saved) if given else None for given in ctx.given]
    if ctx.recompute is None:
        return tensors
    return [ctx.recompute(tensors[ctx.others :]), *tensors[: ctx.others]]


def _recomputed(
    compute: Callable[..., Tensor], shape: Any, stride: Any, offset: Any, tensors: list[Tensor | None]
) -> Tensor:
    with torch.no_grad():
        return compute(*tensors).as_strided(shape, stride, offset)


def repeated(
    run: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], x_seq: Tensor, v: Tensor, *parameters: Tensor
) -> tuple[Tensor, Tensor]:
    """Return ``run(x_seq, v)``, of which the backward pass keeps the arguments alone and runs it again.

    Parameters
    ----------
    run : callable
        Returns two tensors, the same each time.
    x_seq, v : Tensor
        Arguments.
    parameters : Tensor
        What ``run`` reads besides, with gradients.

    Examples
    --------
    >>> x = torch.ones(2, requires_grad=True)
    >>> y, _ = repeated(lambda x, v: (x * v, v + 1), x, torch.tensor([2.0, 3.0]))
    >>> torch.autograd.grad(y.sum(), x)
    (tensor([2., 3.]),)
    """
    found: tuple[Tensor, Tensor] = _Repeated.apply(run, x_seq, v, *parameters)
    return found


class _Repeated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, run: Any, x_seq: Tensor, v: Tensor, *parameters: Tensor) -> Any:
        kind = x_seq.device.type
        ctx.autocast = partial(
            torch.autocast, kind, torch.get_autocast_dtype(kind), enabled=torch.is_autocast_enabled(kind)
        )
        ctx.run = run
        ctx.set_materialize_grads(False)
        keep(ctx, x_seq, v, *parameters)
        return run(x_seq, v)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *incoming: Tensor | None) -> Any:
        x_seq, v, *parameters = kept(ctx)
        needed = ctx.needs_input_grad[1:]
        with torch.enable_grad(), ctx.autocast():
            arguments = [t.detach().requires_grad_(need) for t, need in zip((x_seq, v), needed, strict=False)]
            outputs = ctx.run(*arguments)
        pairs = [(y, g) for y, g in zip(outputs, incoming, strict=True) if g is not None and y.requires_grad]
        wanted = [t for t, need in zip((*arguments, *parameters), needed, strict=True) if need]
        ys, gradients = ([pair[k] for pair in pairs] for k in (0, 1))
        found = iter(torch.autograd.grad(ys, wanted, gradients, allow_unused=True) if pairs else ())
        return None, *(next(found, None) if need else None for need in needed)
