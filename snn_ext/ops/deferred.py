"""The output of a norm that is not computed until somebody reads it: ``integrate_and_fire`` takes its parts instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from ..functional.integrate_and_fire import Norm

__all__ = ["Deferred", "parts_of"]


class Deferred(Tensor):
    """A tensor without memory, of a shape and dtype that can be looked at.

    Whatever else is asked of it, by an operation, a hook or a print, is asked of its value, which is computed then. So
    nobody can see anything but the norm's output, and nothing depends on who reads it.

    Attributes
    ----------
    parts : (Tensor, Norm)
        The norm's input, and its centres, gains and shifts.
    takers : int
        Number of calls of the operator that have taken the parts.
    readers : list of str
        Names of the operations that have read the value.
    """

    parts: tuple[Tensor, Norm]
    takers: int
    readers: list[str]
    _compute: Callable[[], Tensor]
    _value: Tensor | None
    _with_gradients: bool

    @staticmethod
    def __new__(cls, x_seq: Tensor, norm: Norm, compute: Callable[[], Tensor]) -> Deferred:
        """Return the output of a norm on ``[T, N, C, ...]``; ``compute`` returns its value."""
        self: Deferred = Tensor._make_wrapper_subclass(
            cls, x_seq.shape, strides=x_seq.stride(), dtype=x_seq.dtype, device=x_seq.device
        )
        self.parts, self.takers, self.readers = (x_seq, norm), 0, []
        self._compute, self._value, self._with_gradients = compute, None, torch.is_grad_enabled()
        return self

    def value(self) -> Tensor:
        """Return what the norm gives, in the graph of the call of the norm."""
        if self._value is None:
            with torch.set_grad_enabled(self._with_gradients):
                self._value = self._compute()
        return self._value

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _LOOKS:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))

        def read(tensor: Deferred) -> Tensor:
            tensor.readers.append(getattr(func, "__name__", str(func)))
            return tensor.value()

        return func(*tree_map_only(Deferred, read, args), **tree_map_only(Deferred, read, kwargs or {}))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch gives the base a function in its place
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return func(
            *tree_map_only(Deferred, Deferred.value, args), **tree_map_only(Deferred, Deferred.value, kwargs or {})
        )


_LOOKS: set[Any] = {
    *(getattr(Tensor, name).__get__ for name in ("shape", "dtype", "device", "ndim", "layout", "is_cuda", "is_cpu")),
    *(Tensor.size, Tensor.dim, Tensor.stride, Tensor.numel, Tensor.nelement, Tensor.element_size, Tensor.__len__),
    *(Tensor.is_floating_point, Tensor.is_complex),
}
"""Questions that need no value."""


def parts_of(x_seq: Tensor, norm: Norm | None) -> tuple[Tensor, Norm | None]:
    """Return a norm's input and coefficients for its output that is not computed; anything else as it is."""
    if type(x_seq) is not Deferred:
        return x_seq, norm
    x_seq.takers += 1
    return x_seq.parts
