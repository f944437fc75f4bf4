"""``value_codes``: a tensor of few distinct values as codes of 1, 2 or 4 bits and a table; spikes are such tensors.

Not a torch operator: :func:`encode` and :func:`decode` are for what is kept, and see neither gradients nor modes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..layout import in_memory_order
from ..machine.cpu import Library, threads_for
from ..machine.source import Argument
from ..machine.torch_parts import AlwaysRuns
from ..registry import register, select

__all__ = ["WIDTHS", "Codes", "CpuImplementation", "TorchImplementation", "decode", "encode"]

WIDTHS = (1, 2, 4)
"""Bits that a code may have."""

_LIMIT = 1 << WIDTHS[-1]
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # to compare elements by their bits
_SAMPLES = 512
_ARGUMENTS = {
    "sample": "const void *x, void *table, index_t N, int width, int limit",
    "encode": "const void *x, void *table, uint8_t *codes, index_t N, int width, int bits, int count, int threads",
    "decode": "const uint8_t *codes, const void *table, void *x, index_t N, int width, int bits, int threads",
}


@dataclass(frozen=True)
class Codes:
    """A tensor's elements in the order of memory: each is a place in a table.

    Attributes
    ----------
    codes : Tensor
        ``uint8``, ``[ceil(elements * bits / 8)]``. The elements that share a byte are ``len(codes)`` places apart.
    table : Tensor
        ``[16]``, in the tensor's dtype; places that no code names hold 0.
    bits : int
        Width of a code.
    elements : int
        Number of elements.
    """

    codes: Tensor
    table: Tensor
    bits: int
    elements: int


def encode(tensor: Tensor) -> Codes | None:
    """Return a tensor as codes, exactly; ``None`` if it has more than 16 values, gaps in memory, or no elements.

    Values differ if their bits do, so that -0.0 and NaN come back as they were.

    Parameters
    ----------
    tensor : Tensor
        Any shape, any dtype of 1 to 8 bytes; dense in memory in any order, as ``channels_last``.

    Returns
    -------
    Codes or None
        1 bit an element for 2 values, 2 bits for 4, 4 bits for 16.

    Examples
    --------
    >>> found = encode(torch.tensor([0.0, 0.5, 0.5, 0.0, 0.5, 0.0, 0.0, 0.0]))
    >>> found.bits, found.codes.numel(), decode(found)
    (1, 1, tensor([0.0000, 0.5000, 0.5000, 0.0000, 0.5000, 0.0000, 0.0000, 0.0000]))
    >>> encode(torch.rand(100)) is None
    True
    """
    flat = in_memory_order(tensor.detach())
    if flat is None or not flat.numel() or flat.element_size() not in _INTEGERS:
        return None
    implementation = select("value_codes", flat.device, flat.dtype)
    found = implementation.encode(flat.view(_INTEGERS[flat.element_size()]))
    if found is None:
        return None
    codes, table, bits = found
    return Codes(codes, table.view(flat.dtype), bits, flat.numel())


def decode(found: Codes) -> Tensor:
    """Return the elements of :func:`encode`, ``[elements]``."""
    flat = torch.empty(found.elements, dtype=found.table.dtype, device=found.codes.device)
    integers = _INTEGERS[flat.element_size()]
    implementation = select("value_codes", flat.device, flat.dtype)
    implementation.decode(found.codes, found.table.view(integers), found.bits, flat.view(integers))
    return flat


class CpuImplementation(Library):
    """``cpu.c``, for elements of 1, 2, 4 and 8 bytes."""

    def __init__(self, changed: dict[str, str] | None = None) -> None:
        functions = {name: _arguments(text) for name, text in _ARGUMENTS.items()}
        super().__init__("value_codes", __name__, functions, changed=changed)

    def why_not(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """Return why it cannot run, in one line, or None; the dtype does not matter, as bits are compared."""
        return super().why_not(device, torch.float32)

    def encode(self, flat: Tensor) -> tuple[Tensor, Tensor, int] | None:
        """Return codes, table and bits of integers ``[N]``; None for more than 16 values."""
        assert self._calls is not None
        table, width = flat.new_zeros(_LIMIT), flat.element_size()
        count = self._calls["sample"](flat.data_ptr(), table.data_ptr(), len(flat), width, _LIMIT)
        for bits in WIDTHS if count else ():
            if count > 1 << bits:
                continue
            codes = torch.empty(_bytes(len(flat), bits), dtype=torch.uint8, device=flat.device)
            pointers = (t.data_ptr() for t in (flat, table, codes))
            if self._calls["encode"](*pointers, len(flat), width, bits, count, threads_for(flat)):
                return codes, table, bits
        return None

    def decode(self, codes: Tensor, table: Tensor, bits: int, flat: Tensor) -> None:
        """Fill ``flat``."""
        assert self._calls is not None
        pointers = (t.data_ptr() for t in (codes, table, flat))
        self._calls["decode"](*pointers, len(flat), flat.element_size(), bits, threads_for(flat))

    def _agrees_with_torch(self, calls: dict[str, Any]) -> bool:
        trial, reference = CpuImplementation(), TorchImplementation()
        trial._calls = calls
        places = torch.arange(3001, dtype=torch.int64, device="cpu")
        for integers in _INTEGERS.values():
            for values, bits in ((1, 1), (2, 2), (3, 2), (4, 4), (13, 4), (16, None), (17, None)):
                flat = places.mul(7919).remainder(1009).remainder(values).mul(7).to(integers)
                flat[1] = 127  # one more, which the sample misses
                found = trial.encode(flat)
                if (None if found is None else found[2]) != bits:
                    return False
                if found is None:
                    continue
                for decode_with in (trial.decode, reference.decode):
                    again = torch.empty_like(flat)
                    decode_with(*found, again)
                    if not torch.equal(again, flat):
                        return False
        return True


class TorchImplementation(AlwaysRuns):
    """The same codes by tensor operations, on any device. It waits for the device to learn what the values are."""

    def encode(self, flat: Tensor) -> tuple[Tensor, Tensor, int] | None:
        """Return codes, table and bits of integers ``[N]``; None for more than 16 values."""
        table = flat[:: max(len(flat) // _SAMPLES, 1)].unique()
        while len(table) <= _LIMIT:
            places = torch.full_like(flat, 255, dtype=torch.uint8)
            for place, value in enumerate(table):
                places.masked_fill_(flat == value, place)
            unknown = places == 255
            if not unknown.any():
                bits = next(bits for bits in WIDTHS if len(table) <= 1 << bits)
                return _packed(places, bits), torch.nn.functional.pad(table, (0, _LIMIT - len(table))), bits
            table = torch.cat([table, flat[unknown][:_SAMPLES].unique()])
        return None

    def decode(self, codes: Tensor, table: Tensor, bits: int, flat: Tensor) -> None:
        """Fill ``flat``."""
        for k, plane in enumerate(flat.split(len(codes))):
            places = codes[: len(plane)] >> k * bits & (1 << bits) - 1
            if bits == 1:
                torch.where(places.bool(), table[1], table[0], out=plane)
            else:
                torch.index_select(table, 0, places.int(), out=plane)


def _packed(places: Tensor, bits: int) -> Tensor:
    first, *rest = places.split(_bytes(len(places), bits))
    codes = first.clone()
    for k, plane in enumerate(rest, 1):
        codes[: len(plane)] |= plane << k * bits
    return codes


def _bytes(elements: int, bits: int) -> int:
    return -(-elements * bits // 8)


def _arguments(text: str) -> list[Argument]:
    """Return the arguments of a C function from their declarations."""
    fields = (field.rpartition("*" if "*" in field else " ") for field in text.split(", "))
    return [Argument(name, f"{kind}{mark}".strip()) for kind, mark, name in fields]


register("value_codes", CpuImplementation())
register("value_codes", TorchImplementation())
