"""Spikes kept for the backward pass as bits: :func:`pack_spikes`."""

from __future__ import annotations

import copy
import dataclasses
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.parameter import is_lazy

from ._errors import bad_type, bad_value
from ._kept import Again, Kept
from ._repeats import found_again, origin
from .hosts import host_of
from .ops.layout import in_memory_order
from .ops.value_codes import Codes, encode

__all__ = ["Bytes", "PackedSpikes", "Pass", "is_packed", "pack_spikes", "reads_back_for_free", "set_repeats"]

_LEAST = 4096  # bytes of a tensor that is worth a call


def pack_spikes(net: nn.Module) -> PackedSpikes:
    """Keep what has few distinct values, as spikes have, for the backward pass in 1, 2 or 4 bits, in place.

    A layer behind a neuron keeps its input, 32 bits for a spike. In every call of the net with gradients each tensor
    that autograd saves is looked at. One of at most 16 values is kept as codes and a table of these values, and
    restored when the backward pass asks for it: 0/1 spikes, whatever their height, take 1 bit; counts up to 3 and
    two signs 2; masks of dropout 1. Nothing is guessed: values are compared bit by bit, and a tensor of more values
    stays whole. So gradients are the same to the last bit. The training loop stays as it is.

    Two more: places of maxima of poolings take 2 or 4 bits, counted from the first place of their window, and 16-bit
    copies of weights, which autocast makes, are made again from the weights.

    Parameters
    ----------
    net : nn.Module
        What the training loop calls, of either host; calls of its parts alone are not packed.

    Returns
    -------
    PackedSpikes
        What was packed in the last call, what was left and why, and ``undo()``. A net that is packed already, as the
        copy of one is, stays so.

    Raises
    ------
    TypeError
        If ``net`` is no module, or a scripted one, whose calls Python does not see.
    ValueError
        If ``net`` is a single neuron.

    Notes
    -----
    Only the class of the net changes, to a subclass of its own with the same name. Copies and pickles are packed too.
    It works under autocast, checkpointing, ``torch.compile``, DDP and other hooks on saved tensors, which get the
    codes instead. Under ``torch.func`` and while a CUDA graph is captured everything stays whole. Weights must not be
    changed between the forward and the backward pass, as without autocast; that raises.

    Examples
    --------
    >>> from spikingjelly.activation_based import functional, layer
    >>> from snn_ext.spikingjelly import ATIFuNode
    >>> net = nn.Sequential(layer.Linear(8, 4096), ATIFuNode(), layer.Linear(4096, 10))
    >>> functional.set_step_mode(net, "m")
    >>> done = pack_spikes(net)
    >>> loss = net(torch.rand(4, 2, 8)).sum()
    >>> done.packed
    {'1 bit': Bytes(tensors=1, before=131072, after=4160)}
    >>> loss.backward()
    >>> done.undo()
    """
    if not isinstance(net, nn.Module):
        bad_type("net", net, "an nn.Module")
    if isinstance(net, torch.jit.ScriptModule):
        bad_type("net", type(net).__name__, "the nn.Module that was scripted")
    if host_of(net) is not None:
        bad_value("net", type(net).__name__, "a net: it is layers behind a neuron that keep its spikes")
    if not isinstance(net, _Packs):
        _set_class(net, _packing(type(net)))
    return PackedSpikes(net)


@dataclass(frozen=True)
class Bytes:
    """Tensors that are kept for the backward pass, each memory counted once."""

    tensors: int = 0
    before: int = 0
    after: int = 0

    def __add__(self, other: Bytes) -> Bytes:
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return Bytes(*(a + b for a, b in pairs))


@dataclass(frozen=True)
class PackedSpikes:
    """Result of :func:`pack_spikes` on a net."""

    net: nn.Module

    @property
    def packed(self) -> dict[str, Bytes]:
        """``"1 bit"``, ``"2 bits"``, ``"4 bits"``, ``"computed again"`` to the tensors packed so in the last call."""
        return dict(sorted((kind, found) for kind, found in self._last.items() if found.before != found.after))

    @property
    def left(self) -> dict[str, Bytes]:
        """The reason to the tensors that stayed whole for it in the last call."""
        return {kind: found for kind, found in self._last.items() if found.before == found.after}

    @property
    def _last(self) -> dict[str, Bytes]:
        kind: Any = type(self.net)
        if not issubclass(kind, _Packs):
            bad_value("net", f"{kind.__name__} that is packed no more", "one between pack_spikes(net) and undo()")
        return kind.last_call

    def undo(self) -> None:
        """Give the net its own class back; what is kept of earlier calls can still be restored."""
        _ = self._last
        _set_class(self.net, _unpacked(type(self.net)))

    def __str__(self) -> str:
        total = sum(self._last.values(), Bytes())
        if not total.tensors:
            return "nothing kept yet: call the net with gradients"
        lines = [f"kept in the last call: {_mega(total.before)}, packed {_mega(total.after)}"]
        lines += [
            f"  {kind}: {found.tensors} tensors, {_mega(found.before)} -> {_mega(found.after)}"
            for kind, found in self.packed.items()
        ]
        return "\n".join(lines + [f"  {why}: {f.tensors} tensors, {_mega(f.before)}" for why, f in self.left.items()])


def _mega(count: int) -> str:
    return f"{count / 1e6:.1f} MB"


# -- the net's class -------------------------------------------------------------------------------------------------


class _Packs:
    """Base of the classes of packed nets; each net has a class of its own."""

    last_call: ClassVar[dict[str, Bytes]] = {}
    repeats: ClassVar[bool] = False  # convolutions

    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_exporting():
            return super().__call__(*args, **kwargs)  # type: ignore[misc]
        return self._call_packed(*args, **kwargs)

    @torch.compiler.disable(recursive=False, reason="hooks go around what is compiled: pack_spikes(torch.compile(net))")
    def _call_packed(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(self, _Packs):  # undone, but something compiled holds this method
            return type(self).__call__(self, *args, **kwargs)
        with _entered(self):
            return super().__call__(*args, **kwargs)  # type: ignore[misc]

    def __deepcopy__(self: Any, memo: dict[int, Any]) -> Any:
        with _as_it_was(self):
            found = copy.deepcopy(self, memo)
        return _packed(type(self).repeats, found)

    def __reduce_ex__(self: Any, protocol: Any) -> Any:
        with _as_it_was(self):
            make, arguments, *rest = self.__reduce_ex__(protocol)
        return _made, (type(self).repeats, make, *arguments), *rest


def _packing(kind: type, repeats: bool = False) -> type:
    names = {name: getattr(kind, name) for name in ("__module__", "__qualname__", "__doc__")} | {"repeats": repeats}
    if issubclass(kind, fx.GraphModule):
        names["recompile"] = _recompile
    return type(kind.__name__, (_Packs, kind), names)


def _recompile(net: Any) -> Any:
    with _as_it_was(net):  # it writes into the class
        return net.recompile()


def _unpacked(kind: type) -> type:
    return kind.__bases__[1]


def _made(repeats: bool, make: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a function makes, packed; classes have their own ways to be copied and pickled."""
    return _packed(repeats, make(*arguments))


def _packed(repeats: bool, net: Any) -> Any:
    _set_class(net, _packing(type(net), repeats))
    return net


@contextmanager
def _as_it_was(net: nn.Module) -> Iterator[None]:
    packs = type(net)
    _set_class(net, _unpacked(packs))
    try:
        yield
    finally:
        _set_class(net, packs)


def _set_class(net: nn.Module, kind: type) -> None:
    object.__setattr__(net, "__class__", kind)  # a compiled module hands over what is set to the one inside


@torch.compiler.disable
def _entered(net: Any) -> AbstractContextManager[Any]:
    """Return what packs in its block, if anything is saved there that nobody packs yet."""
    if not torch.is_grad_enabled() or torch._C._autograd._saved_tensors_hooks_get_disabled_error_message() is not None:
        return nullcontext()  # nothing is saved, or torch.func allows no hooks
    around = torch._C._autograd._top_saved_tensors_default_hooks(False)
    if around is not None and isinstance(getattr(around[0], "__self__", None), Pass):
        return nullcontext()
    return Pass(net, around)


def set_repeats(net: nn.Module, repeats: bool) -> PackedSpikes | None:
    """Let a net compute the outputs of its convolutions again, packed; return how it was packed, if it was not."""
    done = pack_spikes(net) if repeats and not is_packed(net) else None
    if is_packed(net):
        kind: Any = type(net)
        kind.repeats = repeats
    return done


def is_packed(net: nn.Module) -> bool:
    """Return True between :func:`pack_spikes` and ``undo()``."""
    return issubclass(type(net), _Packs)  # a compiled module gives the class of the one inside


def reads_back_for_free() -> bool:
    """Return True if autograd hands out what it saves here without work or side effects: no hooks but ours are set."""
    around = torch._C._autograd._top_saved_tensors_default_hooks(False)
    if around is None:
        return True
    entered = getattr(around[0], "__self__", None)
    return isinstance(entered, Pass) and entered._around is None


# -- one call --------------------------------------------------------------------------------------------------------


class Pass(saved_tensors_hooks):
    """Hooks on the tensors that one call of a net saves; ``around`` are the hooks outside, which get what is kept."""

    def __init__(self, net: nn.Module, around: Any = None) -> None:
        super().__init__(self.pack, Kept.restore)
        self._net, self._around = net, around
        own = (t for t in (*net.parameters(), *net.buffers()) if not is_lazy(t))
        self._own = {StorageWeakRef(t.untyped_storage()) for t in own}
        self._seen: dict[Any, _Found] = {}  # by memory: what several layers keep is packed once
        self._made: dict[tuple[Any, int], Kept] = {}  # by the node that made it
        self._held: deque[Again] = deque()
        self.kept: dict[str, Bytes] = {}

    @torch.compiler.disable
    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self._seen.clear()
        self._made.clear()
        self._let_go(0)
        self._around = None  # it may hold what a checkpoint keeps, and a method of this object holds it
        if isinstance(self._net, _Packs):
            type(self._net).last_call = self.kept

    @torch.compiler.disable
    def pack(self, tensor: Tensor) -> Kept:
        """Return what is kept of a tensor."""
        found = self._found(tensor)
        kept = self._kept(tensor, found)
        if isinstance(found, Again):
            found.claim()
        if self._around is None and tensor.grad_fn is not None:
            self._made[origin(tensor)] = kept
        return kept

    def _kept(self, tensor: Tensor, found: _Found) -> Kept:
        layout = tensor.shape, tensor.stride()
        if isinstance(found, Again):
            return Kept(found, None, None, None, *layout)
        content, unpack = tensor if found is None else found.codes.codes, None
        if self._around is not None:
            content, unpack = self._around[0](content), self._around[1]
        if found is None:
            return Kept(content, unpack, tensor._version if unpack is None else None, None, *layout)
        codes = found.codes
        return Kept(content, unpack, None, (codes.table, codes.bits, codes.elements), *layout, found.base)

    def note(self, tensor: Tensor, kind: str, after: int) -> None:
        """Count a tensor whose memory was not kept before in this call."""
        before = tensor.numel() * tensor.element_size()
        self.kept[kind] = self.kept.get(kind, Bytes()) + Bytes(1, before, after)

    def _found(self, tensor: Tensor) -> _Found:
        if not _is_plain(tensor):
            return None
        storage = StorageWeakRef(tensor.untyped_storage())  # an address alone may be that of memory freed in between
        if storage in self._own:
            return None
        is_dense = in_memory_order(tensor) is not None  # then its shape and order do not matter for its codes
        key = (storage, tensor.storage_offset(), tensor.numel(), is_dense, tensor.dtype, tensor._version)
        if key in self._seen:
            return self._seen[key]
        found = self._seen[key] = self._shorter(tensor) if _may_be_packed(tensor) else None
        before = tensor.numel() * tensor.element_size()
        if found is None:
            self.note(tensor, _why_not(tensor), before)
        elif isinstance(found, Again):
            self.note(tensor, "computed again", 0)
            if found.is_at_hand:
                self._held.append(found)
                self._let_go(2)
        else:
            self.note(tensor, f"{found.codes.bits} bit{'s' * (found.codes.bits > 1)}", found.nbytes)
        return found

    def _shorter(self, tensor: Tensor) -> _Found:
        repeats = is_packed(self._net) and vars(type(self._net))["repeats"]
        again = found_again(tensor, self._made, repeats) if self._around is None else None
        return _coded(tensor) if again is None else again

    def _let_go(self, count: int) -> None:
        while len(self._held) > count:
            self._held.popleft().let_go()


class _Coded(NamedTuple):
    """Codes, and what is added to what they stand for."""

    codes: Codes
    base: Tensor | None = None

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in (self.codes.codes, self.codes.table, self.base) if t is not None)


_Found = _Coded | Again | None


def _coded(tensor: Tensor) -> _Coded | None:
    codes = encode(tensor)
    if codes is None and tensor.dtype is torch.int64 and tensor.ndim > 2:
        # Places of maxima: those of one window differ by few values, the same for all samples and channels.
        base = tensor.amin(tuple(range(min(tensor.ndim - 2, 2))), keepdim=True)
        codes = encode(tensor - base)
        return None if codes is None else _Coded(codes, base)
    return None if codes is None else _Coded(codes)


def _is_plain(tensor: Tensor) -> bool:
    """Return True if the values of a tensor are what its memory holds."""
    special = tensor.is_meta or tensor.is_quantized or tensor.is_nested or tensor.is_conj() or tensor.is_neg()
    return type(tensor) is Tensor and tensor.layout is torch.strided and not special


def _may_be_packed(tensor: Tensor) -> bool:
    return tensor.numel() * tensor.element_size() >= _LEAST and not _is_captured(tensor)


def _is_captured(tensor: Tensor) -> bool:
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


def _why_not(tensor: Tensor) -> str:
    if tensor.numel() * tensor.element_size() < _LEAST:
        return f"less than {_LEAST} bytes"
    if _is_captured(tensor):
        return "a CUDA graph is captured, which cannot wait for what the values are"
    return "gaps in memory" if in_memory_order(tensor) is None else "more than 16 values"
