"""Inputs that hide nothing: shapes, layouts and values at which code breaks."""

from __future__ import annotations

import math
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
SHAPES = ((), (0,), (1,), (3,), (2, 3), (0, 4), (3, 0, 2), (1, 1, 1, 1), (2, 3, 2, 5), (3, 2, 4), (1, 4099), (257, 17))
TIME_STEPS = (1, 2, 3, 4, 5, 8, 15, 16, 17, 33)
KINDS = ("random", "grid", "ulp", "exotic")
LAYOUTS = ("contiguous", "permuted", "channels_last", "strided", "offset", "expanded in time", "expanded in batch")
RESETS = ("subtract", "zero", "none")

seeds = st.integers(0, 2**31 - 1)
moderate_thresholds = st.sampled_from((1.0, 0.5, 0.75, 0.3, 2.0, 1.1, 0.1))
thresholds_of_any_size = moderate_thresholds | st.sampled_from((1e-6, 1e-30, 2.0**-130, 1e30, 3e38, 1.0 + 2**-23))


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def values(shape: tuple[int, ...], kind: str, unit: float, seed: int, dtype: torch.dtype) -> Tensor:
    """Return values around ``unit``: at random, on a grid of 1/16, at it and its neighbours, or with infinities."""
    generator = torch.Generator().manual_seed(seed)
    wide = state_dtype(dtype)
    if kind == "random":
        return (unit * (torch.randn(shape, generator=generator, dtype=torch.float64) * 0.6 + 0.3)).to(dtype)
    if kind == "grid":
        return (unit * torch.randint(-10, 25, shape, generator=generator).double() / 16).to(dtype)
    centre = torch.tensor(unit, dtype=wide)
    up, down = (torch.nextafter(centre, torch.tensor(end, dtype=wide)) for end in (math.inf, -math.inf))
    choices = [centre, up, down, -up, centre / 2, up - centre, torch.zeros_like(centre)]
    if kind == "exotic":
        numbers = (math.nan, math.inf, -math.inf, 3e38, -3e38, 2.0**-149, 65504.0)
        choices += [torch.tensor(number, dtype=wide) for number in numbers]
    return torch.stack(choices)[torch.randint(len(choices), shape, generator=generator)].to(dtype)


def laid_out(x: Tensor, layout: str, seed: int) -> Tensor:
    """Return the values in another layout of memory; an expanded tensor repeats the first of them."""
    if layout == "expanded in time":
        return x[:1].expand_as(x)
    if layout == "expanded in batch" and x.ndim > 1 and x.shape[1] > 0:
        return x[:, :1].expand_as(x)
    if layout == "strided":
        room = x.new_full([2 * n + 1 for n in x.shape], math.nan)
        return room[tuple(slice(1, None, 2) for _ in x.shape)].copy_(x)
    if layout == "offset":
        return x.new_full((x.numel() + 3,), math.nan)[3:].view(x.shape).copy_(x)
    order = list(range(x.ndim))
    if layout == "channels_last" and x.ndim > 3:
        order = [0, 1, *order[3:], 2]
    if layout == "permuted":
        order = torch.randperm(x.ndim, generator=torch.Generator().manual_seed(seed)).tolist()
    inverse = [order.index(d) for d in range(x.ndim)]
    return x.new_empty([x.shape[d] for d in order]).permute(inverse).copy_(x)


@st.composite
def sequences(
    draw: Any, unit: float, dtypes: tuple[torch.dtype, ...] = DTYPES, kinds: tuple[str, ...] = KINDS, steps: Any = None
) -> Tensor:
    """Draw an input ``[T, N, ...]``."""
    shape = (draw(st.sampled_from(TIME_STEPS) if steps is None else steps), *draw(st.sampled_from(SHAPES)))
    kind, dtype, seed = draw(st.sampled_from(kinds)), draw(st.sampled_from(dtypes)), draw(seeds)
    return laid_out(values(shape, kind, unit, seed, dtype), draw(st.sampled_from(LAYOUTS)), seed)


@st.composite
def for_a_step(draw: Any, x_seq: Tensor, unit: float, kinds: tuple[str, ...] = KINDS) -> Any:
    """Draw a number, or a tensor that broadcasts to one step of ``x_seq``, in the dtype of the state."""
    shape, wide = x_seq.shape[1:], state_dtype(x_seq.dtype)
    if draw(st.booleans()):
        return draw(st.sampled_from((0.0, 0.5, 0.25, 1.0, -0.5))) * unit
    kept = [draw(st.booleans()) for _ in shape]
    smaller = tuple(n if keep else 1 for n, keep in zip(shape, kept, strict=True))
    return values(smaller, draw(st.sampled_from(kinds)), unit, draw(seeds), wide)


@st.composite
def threshold_tensors(draw: Any, unit: float, time_steps: int, dtype: torch.dtype) -> Tensor:
    """Draw one threshold, or one for each step, near ``unit``."""
    count = draw(st.sampled_from((1, time_steps)))
    factors = draw(
        st.lists(st.sampled_from((1.0, 0.75, 1.25, 0.5, 1 + 2**-23, 1 - 2**-24)), min_size=count, max_size=count)
    )
    return torch.tensor([unit * factor for factor in factors], dtype=dtype)


def pieces(time_steps: int) -> Any:
    """Draw how a sequence is cut into chunks of time."""
    return st.lists(st.integers(1, max(1, time_steps - 1)), max_size=4).map(
        lambda cuts: sorted({*cuts, time_steps} - {0})
    )


def cut(x_seq: Tensor, ends: list[int]) -> list[Tensor]:
    """Cut a sequence at the given steps."""
    ends = [end for end in ends if end <= len(x_seq)]
    return [x_seq[start:end] for start, end in zip([0, *ends], ends, strict=False)]
