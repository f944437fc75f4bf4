"""A tensor that autograd keeps, as it is, as codes, or as the way to compute it again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .ops.value_codes import Codes, decode

__all__ = ["Again", "Kept", "whole"]


@dataclass(slots=True)
class Kept:
    """Stand-in for a tensor: itself, its codes, or what other hooks made of these; or how to compute it again.

    Attributes
    ----------
    content : object
        Tensor, codes, what other hooks made of either, or :class:`Again`.
    unpack : callable or None
        Of other hooks.
    version : int or None
        Of a tensor that is kept itself.
    coded : tuple or None
        Table, bits and elements of codes.
    base : Tensor or None
        Added to what the codes stand for.
    """

    content: Any
    unpack: Callable[[Any], Tensor] | None
    version: int | None
    coded: tuple[Tensor, int, int] | None = None
    shape: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    base: Tensor | None = None

    @torch.compiler.disable
    def restore(self) -> Tensor:
        """Return the tensor."""
        if isinstance(self.content, Again):
            return self.content.restore().as_strided(self.shape, self.stride)
        content: Tensor = self.content if self.unpack is None else self.unpack(self.content)
        if self.coded is None:
            if self.version is not None and content._version != self.version:  # torch does not look behind hooks
                raise RuntimeError(
                    "one of the variables needed for gradient computation has been modified by an inplace operation: "
                    f"got version {content._version} of a {content.dtype} tensor of shape {list(content.shape)}, want "
                    f"version {self.version}"
                )
            return content
        values = decode(Codes(content, *self.coded)).as_strided(self.shape, self.stride)
        return values if self.base is None else values.add_(self.base)

    def claim(self) -> None:
        """Announce that one more will ask for it."""
        if isinstance(self.content, Again):
            self.content.claim()

    @property
    def is_at_hand(self) -> bool:
        """True if nothing has to be computed again for it."""
        return not isinstance(self.content, Again) or self.content.is_at_hand


def whole(tensor: Tensor | None) -> Kept | None:
    """Return what is kept of a tensor that has to be the same when it is asked for."""
    return None if tensor is None else Kept(tensor, None, tensor._version)


class Again:
    """A tensor that is computed again when it is first asked for, and kept until all have asked who will.

    Parameters
    ----------
    compute : callable
        Function of the tensors that ``parts`` stand for.
    parts : Kept or Again or None
        What is kept for another reason, or takes little.
    """

    def __init__(self, compute: Callable[..., Tensor], *parts: Kept | Again | None) -> None:
        self._compute, self._parts = compute, parts
        self._value: Tensor | None = None
        self._claims = self._open = 0

    def claim(self) -> None:
        """Announce that one more will ask for it."""
        self._claims += 1
        for part in self._parts if self._claims == 1 else ():
            if part is not None:
                part.claim()

    def restore(self) -> Tensor:
        """Return the tensor."""
        value = self._value
        if value is None:
            parts = [None if part is None else part.restore() for part in self._parts]
            device = next(part for part in parts if part is not None).device.type
            with torch.no_grad(), torch.autocast(device, enabled=False):
                value = self._value = self._compute(*parts)
            self._open = self._claims
        self._open -= 1
        if self._open <= 0:
            self._value = None
        return value

    def hold(self, value: Tensor) -> None:
        """Hand out a value that is still there, until :meth:`let_go`."""
        self._value, self._open = value, 1 << 62

    def let_go(self) -> None:
        """Forget the value."""
        self._value = None

    @property
    def is_at_hand(self) -> bool:
        """True if nothing has to be computed again for it."""
        return self._value is not None
