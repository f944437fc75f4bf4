"""Hashes of nets and of data, by which an interrupted evaluation and its continuation are compared."""

from __future__ import annotations

import hashlib
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from ..hosts import host_of

__all__ = ["DataFingerprint", "fingerprint", "hash_of"]

# Attributes that are no settings: children and tensors are hashed separately; hooks, states and modes belong to a run.
_OWN = {*vars(nn.Module()), "_memories", "_step_mode", "step_mode", "v_seq", "_left", "_warned_of_floor"}
_STATES = {"reset", "_own_mem", "_mem_seq", "_mem_version", "_state"}  # of neurons of snnTorch


def fingerprint(net: nn.Module | None) -> str:
    """Return a hash of all that a net computes with: structure, settings, parameters, buffers and code.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    >>> before = fingerprint(net)
    >>> with torch.no_grad():
    ...     _ = net[0].weight.add_(1.0)
    >>> fingerprint(net) == before
    False
    """
    digest = hashlib.sha256()
    for name, module in [] if net is None else net.named_modules(remove_duplicate=False):
        kind, text = type(module), getattr(module, "code", None)  # each fx graph has its own class
        what = text if isinstance(text, str) else (kind.__module__, kind.__qualname__, kind.forward)
        states = _STATES | module._non_persistent_buffers_set if host_of(module) == "snntorch" else set[str]()
        buffers = [pair for pair in module.named_buffers(recurse=False) if pair[0] not in states]
        tensors = [*module.named_parameters(recurse=False), *buffers]
        kept = ((key, value) for key, value in vars(module).items() if key not in _OWN | states)
        settings = sorted((key, value) for key, value in kept if _is_data(value))
        _update(digest, (name, what, tensors, settings))
    return digest.hexdigest()


def hash_of(value: Any) -> str:
    """Return a hash of a value: of the code of a function, of anything else what it says of itself."""
    digest = hashlib.sha256()
    _update(digest, value)
    return digest.hexdigest()


class DataFingerprint:
    """A hash of batches, one after the other: the content, shape and dtype of all their tensors."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def add(self, *parts: Tensor | None) -> str:
        """Add a batch, and return the hash of all batches so far."""
        _update(self._digest, parts)
        return self._digest.hexdigest()


def _is_data(value: Any) -> bool:
    """Return True for a value whose content can be hashed, and is not empty: a cache, filled or not, is no setting."""
    if isinstance(value, tuple | list | dict):
        return len(value) > 0 and all(map(_is_data, value.values() if isinstance(value, dict) else value))
    return value is None or isinstance(
        value, bool | int | float | complex | str | bytes | Tensor | FunctionType | torch.dtype | torch.device
    )


def _update(digest: Any, value: Any) -> None:
    """Add a value with its kind and length, so that no two values give the same bytes."""
    if isinstance(value, FunctionType):
        defaults = value.__defaults__ if _is_data(value.__defaults__) else ()
        value = value.__module__, value.__qualname__, value.__code__, defaults
    if isinstance(value, CodeType):
        value = value.co_code, value.co_names, value.co_consts  # and no line numbers
    if isinstance(value, frozenset):
        value = sorted(map(repr, value))
    if isinstance(value, tuple | list | dict):
        parts = list(value.items()) if isinstance(value, dict) else value
        digest.update(f"{len(parts)} parts\n".encode())
        for part in parts:
            _update(digest, part)
    elif isinstance(value, Tensor):
        digest.update(f"{value.dtype} {list(value.shape)}\n".encode())
        # contiguous() may leave the strides of a dimension of size 1 such that a view of bytes is refused
        plain = value.detach().cpu().resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)
        digest.update(plain.flatten().view(torch.uint8).numpy().tobytes())
    else:
        text = repr(value)
        digest.update(f"{type(value).__name__} {len(text)}\n{text}\n".encode())
