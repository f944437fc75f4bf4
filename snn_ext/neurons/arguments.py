"""Checks of the arguments that the constructors of the integrate-and-fire neurons have in both hosts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .._errors import bad_value, check_bool, check_choice, check_count, check_real
from ..functional import uniform_points
from .base import MIN_THRESHOLD, as_threshold, known

__all__ = ["as_points", "as_time_steps", "as_v_init", "check_options", "check_recursion"]


def as_points(name: str, value: Any, T: int) -> Tensor:
    """Return quantisation points as a ``[T]`` float32 tensor, from all or from the clip level of uniform ones."""
    if isinstance(value, list | tuple) and len(value) > 1:
        value = torch.tensor(value, dtype=torch.float32, device="cpu")
    if not isinstance(value, Tensor) or value.numel() == 1:
        with torch.device("cpu"):  # whatever the default: start values are kept
            return uniform_points(as_threshold(name, value), T)
    points = value.detach().float().clone()
    if points.shape != (T,):
        bad_value(name, value, f"one element, or the quantisation points [T] = [{T}]")
    known(name, points)
    if not points.isfinite().all() or points[-1] < MIN_THRESHOLD or (points.diff() > 0).any():
        bad_value(name, points.tolist(), f"finite non-increasing quantisation points >= {MIN_THRESHOLD}")
    return points


def as_v_init(name: str, value: Any, low: float = -torch.inf, high: float = torch.inf) -> Tensor:
    """Return an initial potential in units of the threshold as a ``[1]`` or ``[C]`` float32 tensor."""
    want = "a finite number, or a vector with one per channel" + (
        f", in [{low:g}, {high:g}]" if high < torch.inf else ""
    )
    if not isinstance(value, Tensor):
        return torch.tensor([check_real(name, value, want, low, high)], dtype=torch.float32, device="cpu")
    if not value.is_floating_point() or value.ndim > 1 or value.numel() < 1:
        bad_value(name, value, want)
    known(name, value)
    if not value.isfinite().all() or value.min() < low or value.max() > high:
        bad_value(name, value.tolist(), want)
    return value.detach().float().clone().reshape(-1)


def check_options(v_init: Any, scale_output: Any, fire_at_threshold: Any, grad_scale: Any) -> Tensor:
    """Check the options common to the three neurons in both hosts; return the initial potential as a tensor."""
    check_bool("scale_output", scale_output)
    check_bool("fire_at_threshold", fire_at_threshold)
    _check_grad_scale(grad_scale)
    if isinstance(v_init, nn.Parameter) and v_init.ndim != 1:
        bad_value("v_init", v_init, "a parameter of shape [1] or [C]: other shapes cannot be sharded")
    return as_v_init("v_init", v_init)


def check_recursion(recursion: Any) -> None:
    """Check the name of the recursion from points to thresholds."""
    check_choice("recursion", recursion, ("min", "paper", "cumulative"))


def as_time_steps(T: Any, levels: Any, points: Any) -> int:
    """Return the number of steps of an ATIF-nu from ``T``, ``levels`` or the points.

    ``levels`` is another name of ``T``, for builders of nets that have an argument ``T`` themselves.
    """
    if T is not None and levels is not None and T != levels:
        bad_value("levels", levels, f"T={T}, or only one of the two: they are the same")
    if T is None and levels is None:
        if isinstance(points, list | tuple | Tensor) and len(torch.as_tensor(points).reshape(-1)) > 1:
            return len(points)
        raise TypeError("T: got None, want the number of steps; levels=... is the same, where a builder takes T itself")
    return check_count("T", T) if T is not None else check_count("levels", levels)


def _check_grad_scale(value: Any) -> None:
    want = "None, 'lsq' or a number > 0"
    if value is None or value == "lsq":
        return
    if isinstance(value, str) or check_real("grad_scale", value, want) <= 0:
        bad_value("grad_scale", value, want)
