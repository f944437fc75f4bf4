"""All that stands against the conversion of a net, in one error, and what would have to be trained instead."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from .graph_tools import Operation, Refusal, kind_of, name_of

__all__ = ["Obstacles", "instead_of"]


class Obstacles:
    """Collects refusals, so that one error lists them all.

    Examples
    --------
    >>> from snn_ext.conversion.graph_tools import refuse
    >>> obstacles = Obstacles()
    >>> for kind in ("GELU", "GELU", "LayerNorm"):
    ...     with obstacles.noted():
    ...         refuse(kind, "a ReLU")
    >>> obstacles.raise_all()
    Traceback (most recent call last):
    ValueError: ann: got a net with 2 obstacles, which cannot be converted:
    - GELU, 2 times: want a ReLU
    - LayerNorm: want a ReLU
    """

    def __init__(self) -> None:
        self._found: list[Refusal] = []

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Note a refusal and go on."""
        try:
            yield
        except Refusal as refusal:
            self._found.append(refusal)

    def raise_all(self) -> None:
        """Raise one ``ValueError`` for all that was noted; equal obstacles are one line with a count."""
        if len(self._found) == 1:
            raise self._found[0]
        alike: dict[tuple[str, str], list[tuple[str, str]]] = {}
        for refusal in self._found:
            name = str(refusal.node.target) if refusal.node is not None and refusal.node.op == "call_module" else ""
            kind = refusal.got.replace(f" {name}", "", 1) if name else refusal.got
            alike.setdefault((kind, refusal.want), []).append((name, refusal.place))
        if alike:
            count = f"{len(alike)} obstacle{'s' * (len(alike) > 1)}"
            lines = (_line(kind, want, places) for (kind, want), places in alike.items())
            raise ValueError("\n- ".join([f"ann: got a net with {count}, which cannot be converted:", *lines]))


def _line(kind: str, want: str, places: list[tuple[str, str]]) -> str:
    first = "; ".join(filter(None, places[0]))
    times = f", {len(places)} times" if len(places) > 1 else ""
    where = "first: " * (len(places) > 1) + first
    return f"{kind}{times}{first and f' ({where})'}: want {want}"


# -- what would have to be trained -------------------------------------------------------------------------------------


def instead_of(operation: Operation) -> str:
    """Return what a net would have to contain in place of an operation that does not convert."""
    module, node = operation.module, operation.node
    name = (name_of(node) if module is None else kind_of(module)).lower().rstrip("_")
    if any(word in name for word in _PROBABILITIES) and any(user.op == "output" for user in node.users):
        return "the net without it: convert what gives the logits, and apply it to the mean of the output"
    if isinstance(module, nn.RNNBase | nn.RNNCellBase):
        return "a feed-forward net, as convolutions over time, trained for the task"
    found = next((want for words, want in _INSTEAD if any(word in name for word in words)), None)
    if found is not None:
        return found
    home = getattr(node.target, "__module__", "torch").partition(".")[0]
    if module is None and home not in ("torch", "_operator", "builtins"):
        return "its operations in the forward pass itself: torch.fx.wrap hides them"
    return _ACTIVATION if module is not None else _KNOWN


_PROBABILITIES = ("softmax", "sigmoid")
_ACTIVATION = "a ReLU, ReLU6, clamp or QuantizedReLU in its place, and the net trained with it"
_KNOWN = "ReLU, ReLU6, clamp, average or maximum pooling, addition, concatenation, flattening or dropout"
_INSTEAD: tuple[tuple[tuple[str, ...], str], ...] = (
    (("attention", "transformer", "softmax", "matmul", "bmm", "einsum"), (
        "convolutions or linear layers in place of attention, which multiplies activations, and the net trained so"
    )),
    (("norm",), "a batch norm, which is an affine function after training, and the net trained with it"),
    (("floor", "ceil", "round", "trunc"), "a QuantizedReLU in place of the activation, and the net trained with it"),
    (("elu", "silu", "swish", "mish", "gelu", "tanh", "sigmoid", "softplus", "softsign"), _ACTIVATION),
)  # fmt: skip
"""Parts of the names of modules, functions and methods, and what to train in place of them."""
