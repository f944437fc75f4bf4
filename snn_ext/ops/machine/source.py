"""The C and CUDA sources of an operator, with the header that its declaration stands for.

``declaration.h`` holds the constants that Python and the sources share, and the arguments of the functions: a struct
for C, which ctypes fills, and a list of parameters for CUDA.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import resources
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...functional.surrogates import SURROGATES
from ..layout import is_one
from ..sequence import SEGMENT, SequenceOp

__all__ = [
    "DTYPES",
    "Argument",
    "address",
    "addresses",
    "arguments",
    "c_declaration",
    "cuda_declaration",
    "gradient_addresses",
    "operator_constants",
    "sources",
    "struct",
]

DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
"""Input dtypes that the sources know, in the order of the ids in C."""


class Argument(NamedTuple):
    """An argument of a compiled function: its name and C type, with ``io_t`` for an element of the input's dtype."""

    name: str
    type: str


_CTYPES: dict[str, Any] = {"index_t": ctypes.c_int64, "int": ctypes.c_int, "float": ctypes.c_float}


def arguments(op: SequenceOp, backward: bool) -> list[Argument]:
    """Return the arguments of an operator's forward or backward function, as its declaration says.

    For every input its address and, where one element may stand for all, the stride from one to the next, 0 or 1; of
    what may differ between steps or neurons the stride is that of steps, and ``each`` that of neurons. Then what is
    filled, the sizes and the settings.
    """
    const = "const " if backward else ""
    found = [Argument(name, type) for array in op.inputs for name, type in _array(array.name, array.kind, "const ")]
    if not backward:
        found += [Argument(array.name, f"{_element(array.kind)} *") for array in op.outputs]
    found.append(Argument("checkpoints", f"{const}float *"))
    if backward:
        found += [Argument(f"grad_{array.name}", f"const {_element(array.kind)} *") for array in op.outputs]
        for array in op.differentiable:
            stride = array.kind in ("state", "step")
            found += [Argument(f"grad_{name}", type) for name, type in _array(array.name, array.kind, "", stride)]
    found += [Argument("T", "index_t"), Argument("N", "index_t")]
    if op.has_channels:
        found += [Argument("channels", "index_t"), Argument("channel_stride", "index_t")]
    return found + [Argument(s.name, "float" if s.type is float else "int") for s in op.settings]


def _array(name: str, kind: str, const: str, strided: bool | None = None) -> list[tuple[str, str]]:
    each = [(f"{name}_each", "index_t")] if strided is None and kind == "per step" else []
    if strided is None:
        strided = kind in _STRIDES
    return [(name, f"{const}{_element(kind)} *"), *([(f"{name}_stride", "index_t")] if strided else []), *each]


def _element(kind: str) -> str:
    return "io_t" if kind == "sequence" else "float"


def addresses(op: SequenceOp, inputs: Any) -> list[int]:
    """Return the values of the arguments that stand for the inputs, as :func:`arguments` lists them."""
    values = []
    for array, value in zip(op.inputs, inputs, strict=True):  # the hot path of small calls
        values.append(0 if value is None else value.data_ptr())
        stride = _STRIDES.get(array[1])
        if stride is not None:
            values.append(stride(value))
        if array[1] == "per step":
            values.append(value.dim() > 1)
    return values


_STRIDES: dict[str, Callable[[Tensor], bool]] = {
    "state": lambda value: not is_one(value),
    "step": lambda value: value is not None and not is_one(value),
    "per step": lambda value: value.shape[0] > 1,
    "table": lambda value: value.dim() > 1,
}
"""The stride from one element to the next, by the kind of an array; the kinds that are missing have none."""


def gradient_addresses(op: SequenceOp, gradients: Any) -> list[int]:
    """Return the same for the gradients; the stride of one that is a sum over neurons is 0."""
    values = []
    for array, value in zip(op.differentiable, gradients, strict=False):
        values.append(address(value))
        if array.kind in ("state", "step"):
            values.append(value is not None and value.dim() > 0)
    return values


def address(tensor: Tensor | None) -> int:
    """Return where the elements of a tensor are; 0, which C sees as NULL, for no tensor."""
    return 0 if tensor is None else tensor.data_ptr()


def struct(fields: Iterable[Argument]) -> type[ctypes.Structure]:
    """Return the ctypes structure of a C function's arguments.

    Examples
    --------
    >>> point = struct([Argument("x", "float"), Argument("y", "float")])(1.0, 2.0)
    >>> point.y
    2.0
    """
    members = [(name, ctypes.c_void_p if "*" in type else _CTYPES[type]) for name, type in fields]
    return type("Arguments", (ctypes.Structure,), {"_fields_": members})


def c_declaration(functions: Mapping[str, Sequence[Argument]], constants: str = "") -> str:
    """Return ``declaration.h`` for C: constants, and a struct ``NAME_arguments`` for every function.

    Examples
    --------
    >>> print(c_declaration({"add": [Argument("x", "const io_t *")]}).splitlines()[-1])
    typedef struct { const void *x; } add_arguments;
    """
    lines = ["#include <stdint.h>", "typedef int64_t index_t;", _constants(), constants]
    for name, fields in functions.items():
        members = " ".join(f"{_spaced(type)}{field};" for field, type in fields)
        lines.append(f"typedef struct {{ {members} }} {name}_arguments;".replace("io_t", "void"))
    return "\n".join(filter(None, lines)) + "\n"


def cuda_declaration(op: SequenceOp) -> str:
    """Return ``declaration.h`` for CUDA: constants, and the parameters of both kernels.

    Settings that are no numbers are macros there, and a kernel gets numbers as double.
    """
    lines = ["typedef long long index_t;", _constants(), operator_constants(op)]
    for backward, name in enumerate(("FORWARD_PARAMETERS", "BACKWARD_PARAMETERS")):
        fields = [f"{_in_cuda(type)}{field}" for field, type in arguments(op, bool(backward)) if type != "int"]
        lines.append(f"#define {name} {', '.join(fields)}, double *workspace")
    return "\n".join(filter(None, lines)) + "\n"


def _in_cuda(type: str) -> str:
    return "double " if type == "float" else _spaced(type.replace("*", "*__restrict__ "))


def _spaced(type: str) -> str:
    return type if type.endswith(("*", " ")) else f"{type} "


def _constants() -> str:
    """Constants that all sources share."""
    curves = {re.sub("(?<=[a-z])(?=[A-Z])", "_", curve.__name__): curve.id for curve in SURROGATES}
    dtypes = {str(dtype).removeprefix("torch."): code for dtype, code in DTYPES.items()}
    return _defined({"SEGMENT": SEGMENT, **dtypes, **curves})


def operator_constants(op: SequenceOp) -> str:
    """Constants of an operator: the number of its states, and the names that its settings may have."""
    names = {f"{s.name}_{value}": k for s in op.settings for k, value in enumerate(s.values)}
    return _defined({**({"STATES": len(op.states)} if op.states else {}), **names})


def _defined(values: dict[str, int]) -> str:
    return "\n".join(f"#define {name.upper()} {value}" for name, value in values.items())


def sources(package: str, name: str, declaration: str) -> dict[str, str]:
    """Return a source of an operator's folder and all that it includes, by file name, itself first.

    A header is looked for in that folder, then in this one; ``declaration.h`` is the text that is given.
    """
    found: dict[str, str] = {}

    def read(name: str) -> None:
        folders = (resources.files(package), resources.files(__package__))
        path = next((folder / name for folder in folders if (folder / name).is_file()), None)
        found[name] = declaration if path is None else path.read_text(encoding="utf-8")
        for included in re.findall(r'#include "([\w.]+)"', found[name]):
            if included not in found:
                read(included)

    read(name)
    return found
