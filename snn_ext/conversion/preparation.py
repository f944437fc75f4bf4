"""The net as people hand it over: unwrapped, copied, in evaluation mode, its weights parameters of full precision."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from .._errors import bad_value
from ..hosts import unwrapped
from ..norms import keep_outputs
from ..simulation.layers import rule_of
from .graph_tools import assign, kind_of, refuse
from .obstacles import Obstacles

__all__ = ["TOLERANCE", "check_values", "plain_copy", "relative_error"]

TOLERANCE = 1e-3
"""Largest :func:`relative_error` of a copy that computes what the net does."""

_HALF = (torch.float16, torch.bfloat16)


def relative_error(output: Tensor, wanted: Tensor) -> float:
    """Return the largest difference in units of the largest wanted value, whatever the scale of the output is.

    Examples
    --------
    >>> relative_error(torch.tensor([1e-6, 2e-6]), torch.tensor([1e-6, 1e-6]))
    1.0
    """
    error, size = float((output - wanted).abs().max()), float(wanted.abs().max())
    return error / size if error and size else error


def check_values(ann: nn.Module) -> None:
    """Raise if a net has shapes only, or not even these."""
    if any(nn.parameter.is_lazy(t) for t in (*ann.parameters(), *ann.buffers())):
        bad_value("ann", "lazy layers without a shape", "a net that ran once, and was trained")
    if any(t.is_meta for t in (*ann.parameters(), *ann.buffers())):
        bad_value("ann", "parameters on the meta device", "values, on a CPU or a GPU")


def plain_copy(ann: nn.Module, x: Tensor, obstacles: Obstacles) -> tuple[nn.Module, list[str]]:
    """Copy a net to the device of some samples, and return it with notes for the report.

    ``nn.DataParallel`` and ``torch.compile`` are unwrapped, weights that a parametrisation, a norm or a pruning
    computes become parameters, and 16-bit weights float32.

    Raises
    ------
    ValueError
        If the net is scripted, or has weights of float32 and of float64.
    """
    ann = unwrapped(ann)
    for name, module in ann.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            refuse(f"a scripted module {name}".rstrip(), "the nn.Module that was scripted, which can be traced")
    # A computed weight is no leaf of autograd, and torch copies leaves only.
    computed = (v for module in ann.modules() for v in vars(module).values() if isinstance(v, Tensor))
    copied = copy.deepcopy(ann, {id(value): value.detach().clone() for value in computed}).eval()
    for name, module in list(copied.named_modules()):
        if unwrapped(module) is not module:
            assign(copied, name, unwrapped(module))
    keep_outputs(copied.modules())
    for name, module in copied.named_modules():
        _own_weights(module)
        if module._forward_hooks or module._forward_pre_hooks:
            with obstacles.noted():
                refuse(f"{kind_of(module)} {name}".rstrip() + " with a forward hook", "it without: handle.remove()")
    return _full_precision(copied, x)


def _own_weights(module: nn.Module) -> None:
    """Turn the weights that are computed before each call into parameters."""
    if parametrize.is_parametrized(module):
        # Not by remove_parametrizations: a copy shares its class with the original, and would spoil that too.
        names = list(module.parametrizations)  # type: ignore[arg-type]
        values = {name: getattr(module, name) for name in names}
        module.__class__ = type(module).__bases__[0]
        del module.parametrizations
        _own(module, values)
    for key, hook in list(module._forward_pre_hooks.items()):
        name: Any = getattr(hook, "_tensor_name", getattr(hook, "name", None))  # of a pruning; of a norm
        if type(hook).__module__.startswith("torch.nn.utils.") and isinstance(name, str):
            hook(module, ())
            del module._forward_pre_hooks[key]
            _own(module, {name: vars(module).pop(name)})


def _own(module: nn.Module, values: dict[str, Tensor]) -> None:
    for name, value in values.items():
        module.register_parameter(name, nn.Parameter(value.detach().clone()))


def _full_precision(ann: nn.Module, x: Tensor) -> tuple[nn.Module, list[str]]:
    """Return a net of one dtype, float32 for 16 bits: folding would round such weights far more than the net does."""
    layers = [module for module in ann.modules() if rule_of(module).weighted or isinstance(module, _BatchNorm)]
    found = {t.dtype for layer in layers for t in (*layer.parameters(), *layer.buffers()) if t.is_floating_point()}
    half, notes = sorted(str(dtype) for dtype in found.intersection(_HALF)), list[str]()
    found = {torch.float32 if dtype in _HALF else dtype for dtype in found}
    if len(found) > 1:
        bad_value("ann", f"weights of {' and '.join(sorted(map(str, found)))}", "one dtype: convert ann.float()")
    if found and x.dtype not in found:
        bad_value("calibration", x, f"inputs of {found.pop()}, as the weights of ann")
    if half:
        notes = [f"weights of {' and '.join(half)}, converted in float32"]
        warnings.warn(f"ann: {notes[0]}", stacklevel=2)
        ann = ann.float()
    return ann.to(x.device), notes
