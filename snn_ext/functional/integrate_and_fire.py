"""The one dynamics of ATIF-u, ATIF-nu, PCMP IF and leaky neurons: integrate, fire at a threshold, subtract it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from .._errors import bad_type, bad_value, check_bool, check_choice, describe
from .surrogates import Sigmoid, Surrogate, as_surrogate, spike

__all__ = ["integrate_and_fire", "multiply_add", "state_dtype"]

Reset = Literal["subtract", "zero", "none", "delayed"]
Charge = Literal["add", "tau", "tau_input", "rate", "rate_input", "beta"]
Norm = tuple[Tensor, Tensor, Tensor]


def integrate_and_fire(
    x_seq: Tensor,
    v: Tensor | float,
    thresholds: Tensor,
    *,
    surrogate: Surrogate | Callable[[Tensor], Tensor] = Sigmoid(4.0),
    detach_reset: bool = False,
    reset: Reset = "subtract",
    fire_at_threshold: bool = True,
    scale: Tensor | float | None = None,
    decay: Tensor | float | None = None,
    charge: Charge = "add",
    norm: Norm | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Integrate and fire over a sequence, with a threshold for each step or neuron and any initial potential.

    .. math::
        h_t &= v_{t-1} + x_t \\
        s_t &= 1[h_t \ge \theta_t] \\
        v_t &= h_t - \theta_t s_t \quad\text{("subtract")},\qquad (1 - s_t)\, h_t \quad\text{("zero")},
               \qquad h_t \quad\text{("none")}

    With a ``decay`` :math:`d` the first line is that of a leaky neuron, in the operations and the order of its host, so
    that every rounding is the host's on the CPU:

    ============== ============================================ ======================================================
    ``charge``     :math:`h_t`                                  neuron
    ============== ============================================ ======================================================
    "tau"          :math:`v_{t-1} - v_{t-1} / d + x_t`          ``LIFNode(tau=d, decay_input=False)``
    "tau_input"    :math:`v_{t-1} + (x_t - v_{t-1}) / d`        ``LIFNode(tau=d)``
    "rate"         :math:`v_{t-1} - v_{t-1} d + x_t`            ``ParametricLIFNode(decay_input=False)``, d = sigmoid(w)
    "rate_input"   :math:`v_{t-1} + (x_t - v_{t-1})\, d`        ``ParametricLIFNode``, d = sigmoid(w)
    "beta"         :math:`d\, v_{t-1} + x_t`                    ``snn.Leaky(beta=d)``
    ============== ============================================ ======================================================

    ``snn.Leaky`` subtracts one step later than SpikingJelly, and after the decay. That is ``reset="delayed"``, with the
    potential before its own reset (the host's ``mem``) as state:
    :math:`h_t = d\, v_{t-1} + x_t - \theta_t 1[v_{t-1} \ge \theta_t]` and :math:`v_t = h_t`.

    With a ``norm`` of centres :math:`m`, gains :math:`a` and shifts :math:`b`, one of each a channel, the input is
    first :math:`(x_t - m)\, a + b`, computed as a batch norm of torch does on a CPU: :math:`o = b - m a` and
    :math:`x_t a + o`, each in one rounding (:func:`multiply_add`). The centres are constants; from them the sums of the
    gradient of the gains are taken, :math:`\sum g\, (x - m)`, so that these do not cancel.

    The backward pass replaces the derivative of the step by the surrogate's, at :math:`h_t - \theta_t`. With
    :math:`c` the gradient that arrives from the future (at first that of the returned potential), for the
    "subtract" reset:
    :math:`g_u = (g_{s_t} - \theta_t c)\,\sigma'(h_t - \theta_t)` (the second term only without ``detach_reset``),
    :math:`g_{x_t} = g_u + c`, :math:`g_{\theta_t} = \sum (-g_u - s_t c)`, then :math:`c \leftarrow g_{x_t}`.

    This is the definition that every faster execution has to match bit for bit in spikes and potential. It can be
    differentiated in forward mode, more than once (as far as the surrogate's derivative can), and by ``torch.func``.

    Parameters
    ----------
    x_seq : Tensor
        Input current, ``[T, N, ...]``, any floating dtype, T >= 1.
    v : Tensor or float
        Potential before the first step, in absolute units; broadcastable to ``[N, ...]``.
    thresholds : Tensor
        ``[1]`` for one threshold, ``[T]`` for one per step. With as many dimensions as ``x_seq``, ``[1, ...]``: the
        same at all steps, broadcastable to ``[1, N, ...]``; ``[1, 1, C, 1, 1]`` is one per channel. The number of
        dimensions alone tells steps and neurons apart.
    surrogate : Surrogate or callable
        Gradient of the spike; the surrogate objects of SpikingJelly and snnTorch are recognised.
    detach_reset : bool
        Let no gradient through the spike in the reset.
    reset : {"subtract", "zero", "none", "delayed"}
        What a spike does to the potential. "delayed" is for ``charge="beta"`` and ``detach_reset=True``.
    fire_at_threshold : bool
        ``True`` fires at ``h >= threshold`` (SpikingJelly), ``False`` at ``h > threshold`` (snnTorch).
    scale : Tensor or float, optional
        Value of a spike in the output, one element; 1 by default.
    decay : Tensor or float, optional
        Constant of the leak, broadcastable to ``[N, ...]``; what it means is said by ``charge``. No leak by default.
    charge : {"add", "tau", "tau_input", "rate", "rate_input", "beta"}
        How the input charges the potential; anything but "add" needs a ``decay``.
    norm : (Tensor, Tensor, Tensor), optional
        Centres (constants), gains and shifts ``[C]`` of the channels, dim 1 of a step. No norm by default.

    Returns
    -------
    spike_seq : Tensor
        ``[T, N, ...]`` in the dtype of ``x_seq``, values 0 and 1 (0 and ``scale``).
    v : Tensor
        Potential after the last step, ``[N, ...]``; float64 for float64 input, float32 for any narrower one.

    Notes
    -----
    NaN never fires and stays NaN; ``+inf`` fires at every step; ``-inf`` never fires again.
    Source: Castagnetti et al. 2023, equations 2-5 and 9-12; Hwang et al. 2021, equation 2.

    Examples
    --------
    >>> import torch
    >>> x_seq = torch.full((4, 1), 0.5)
    >>> spike_seq, v = integrate_and_fire(x_seq, 0.0, torch.tensor([1.0]))
    >>> spike_seq.flatten(), v
    (tensor([0., 1., 0., 1.]), tensor([0.]))
    >>> integrate_and_fire(x_seq, 0.5, torch.tensor([1.0]))[0].flatten()      # pre-charged: one step earlier
    tensor([1., 0., 1., 0.])
    """
    surrogate = as_surrogate(surrogate)
    check_integrate_and_fire_arguments(
        x_seq, v, thresholds, detach_reset, reset, fire_at_threshold, scale, decay, charge, norm
    )
    dtype = state_dtype(x_seq.dtype)
    v = as_step(v, x_seq, dtype)
    constant = None if decay is None else as_step(decay, x_seq, dtype)
    inputs = x_seq.to(dtype) if norm is None else _normalised(x_seq.to(dtype), *(part.to(dtype) for part in norm))
    spikes = []
    for x, threshold in zip(inputs, _of_steps(thresholds.to(dtype), x_seq), strict=True):
        h = charged(v, x, constant, charge)
        if reset == "delayed":
            h = h - spike(v.detach(), threshold.detach(), surrogate, fire_at_threshold) * threshold
        s = spike(h, threshold, surrogate, fire_at_threshold)
        v = _reset(h, s.detach() if detach_reset else s, threshold, reset)
        spikes.append(s)
    spike_seq = torch.stack(spikes)
    if scale is not None:
        spike_seq = spike_seq * torch.as_tensor(scale, dtype=dtype, device=x_seq.device).reshape(())
    return spike_seq.to(x_seq.dtype), v


def multiply_add(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Return ``a * b + c`` of float32 in one rounding, as FMA does; of float64 in two.

    The product of two float32 is exact in float64. The sum is rounded there to the odd neighbour where it is not exact,
    so that the rounding to float32 sees on which side of a tie it is.

    Examples
    --------
    >>> import torch
    >>> a = torch.tensor([1 + 2**-12])
    >>> multiply_add(a, a, -a * a).item() == 2**-24
    True
    """
    if a.dtype == torch.float64:
        return a * b + c
    product, c = a.double() * b.double(), c.double()
    total = product + c
    with torch.no_grad():
        of_c = total - product
        error = (product - (total - of_c)) + (c - of_c)
        is_even = total.detach().view(torch.int64) & 1 == 0
        towards = torch.nextafter(total, error.sign() * torch.inf)
        step = torch.where((error != 0) & is_even & total.isfinite(), towards - total, 0.0)
    return (total + step).float()


def _normalised(x: Tensor, center: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
    center = center.detach()
    offset = multiply_add(-center, gain, shift)
    shape = -1, *[1] * (x.ndim - 3)
    return multiply_add(x, gain.view(shape), offset.view(shape))


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of the membrane potential for an input dtype: float64 for float64, else float32.

    A 16-bit potential would change up to a fifth of the spike trains; 16-bit input with a float32 potential none.

    Examples
    --------
    >>> import torch
    >>> state_dtype(torch.bfloat16)
    torch.float32
    """
    return torch.float64 if dtype == torch.float64 else torch.float32


def check_integrate_and_fire_arguments(
    x_seq: Tensor,
    v: Tensor | float,
    thresholds: Tensor,
    detach_reset: bool,
    reset: str,
    fire_at_threshold: bool,
    scale: Tensor | float | None,
    decay: Tensor | float | None,
    charge: str,
    norm: Norm | None = None,
) -> None:
    """Raise for the first argument of :func:`integrate_and_fire` that cannot be used."""
    check_sequence("x_seq", x_seq)
    check_step("v", v, "x_seq", x_seq)
    if not isinstance(thresholds, Tensor) or not thresholds.is_floating_point():
        bad_type("thresholds", thresholds, "a floating tensor of shape [1], [T] or [1, N, ...]")
    if thresholds.ndim == 1 or x_seq.ndim == 1:
        # Not `in`: of dynamic shapes torch 2.11 compiles it wrongly.
        fits = thresholds.ndim == 1 and (thresholds.shape[0] == 1 or thresholds.shape[0] == x_seq.shape[0])
    else:
        fits = thresholds.ndim == x_seq.ndim and broadcasts(thresholds.shape, torch.Size((1, *x_seq.shape[1:])))
    if not fits:
        of_neurons = (
            f", or one that broadcasts to [1, {', '.join(map(str, x_seq.shape[1:]))}]" if x_seq.ndim > 1 else ""
        )
        bad_value("thresholds", thresholds, f"shape [1] or [T] = [{x_seq.shape[0]}]{of_neurons}")
    check_bool("detach_reset", detach_reset)
    check_choice("reset", reset, get_args(Reset))
    check_bool("fire_at_threshold", fire_at_threshold)
    if isinstance(scale, Tensor):
        if scale.numel() != 1:
            bad_value("scale", scale, "one element")
    elif scale is not None and (isinstance(scale, bool) or not isinstance(scale, int | float)):
        bad_type("scale", scale, "None, a number or a tensor of one element")
    check_choice("charge", charge, get_args(Charge))
    if (decay is None) != (charge == "add"):
        bad_value("decay", decay, f"{'None' if charge == 'add' else 'a number or a tensor'} with charge={charge!r}")
    if decay is not None:
        check_step("decay", decay, "x_seq", x_seq)
    if reset == "delayed" and (charge != "beta" or not detach_reset):
        bad_value("reset", reset, "charge='beta' and detach_reset=True with it, as in snn.Leaky")
    for name, part in zip(("centres", "gains", "shifts"), _parts_of(norm, x_seq), strict=False):
        if not isinstance(part, Tensor) or not part.is_floating_point():
            bad_type(f"{name} of norm", part, "a floating tensor")
        if part.shape != x_seq.shape[2:3]:
            bad_value(f"{name} of norm", part, f"one for each channel of x_seq, {list(x_seq.shape[2:3])}")
        check_device(f"{name} of norm", part, "x_seq", x_seq)
    for name, other in (("v", v), ("thresholds", thresholds), ("scale", scale), ("decay", decay)):
        check_device(name, other, "x_seq", x_seq)


def _parts_of(norm: Any, x_seq: Tensor) -> Any:
    if norm is None:
        return ()
    if not isinstance(norm, tuple) or len(norm) != 3:
        bad_type("norm", norm, "None or (centres, gains, shifts)")
    if x_seq.ndim < 3:
        bad_value("x_seq", x_seq, "[T, N, C, ...] with a norm of channels")
    return norm


def check_sequence(name: str, x_seq: Tensor) -> None:
    """Raise unless ``x_seq`` is a floating tensor ``[T, N, ...]``."""
    if not isinstance(x_seq, Tensor):
        bad_type(name, x_seq, "a tensor [T, N, ...]")
    if not x_seq.is_floating_point():
        bad_type(name, x_seq, "a floating dtype")
    if x_seq.ndim < 1 or x_seq.shape[0] < 1:
        bad_value(name, x_seq, "[T, N, ...] with at least one time step")


def check_step(name: str, value: Tensor | float, of: str, x_seq: Tensor) -> None:
    """Raise unless ``value`` is a number or a floating tensor that broadcasts to one step of ``x_seq``."""
    if isinstance(value, Tensor):
        if not value.is_floating_point():
            bad_type(name, value, "a floating dtype")
        if not broadcasts(value.shape, x_seq.shape[1:]):
            bad_value(name, value, f"a shape that broadcasts to one step of {of}, {list(x_seq.shape[1:])}")
    elif isinstance(value, bool) or not isinstance(value, int | float):
        bad_type(name, value, "a tensor or a number")


def check_device(name: str, value: object, of: str, x_seq: Tensor) -> None:
    """Raise if ``value`` is a tensor on another device than ``x_seq``."""
    if isinstance(value, Tensor) and value.device != x_seq.device:
        raise ValueError(f"{name}: got {describe(value)} on {value.device}, want the device of {of}, {x_seq.device}")


def broadcasts(shape: torch.Size, target: torch.Size) -> bool:
    """Return True if a tensor of ``shape`` can be expanded to ``target``."""
    if len(shape) > len(target):
        return False
    return all(a in (1, b) for a, b in zip(reversed(shape), reversed(target), strict=False))


def as_step(v: Tensor | float, x_seq: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a number or tensor expanded to one step of a sequence."""
    if not isinstance(v, Tensor):
        v = torch.full((), v, dtype=dtype, device=x_seq.device)
    return v.to(dtype).expand(x_seq.shape[1:])


def _of_steps(thresholds: Tensor, x_seq: Tensor) -> Tensor:
    return thresholds.expand(len(x_seq), *(x_seq.shape[1:] if thresholds.ndim > 1 else ()))


def charged(v: Tensor, x: Tensor, decay: Tensor | float | None, charge: str) -> Tensor:
    """Return the potential ``v`` charged by the input of a step, in the operations of ``charge``."""
    if decay is None:
        return v + x
    match charge:
        case "tau":
            return v - v / decay + x
        case "tau_input":
            return v + (x - v) / decay
        case "rate":
            return v - v * decay + x
        case "rate_input":
            return v + (x - v) * decay
        case _:
            return decay * v + x


def _reset(h: Tensor, s: Tensor, threshold: Tensor, reset: str) -> Tensor:
    if reset in ("none", "delayed"):
        return h
    if reset == "zero":
        return (_ResetToZero if torch.compiler.is_compiling() else _DualResetToZero).apply(h, s)
    return h - s * threshold


class _ResetToZero(torch.autograd.Function):
    """``(1 - s) h``, but exactly 0 where it fired, also for an infinite ``h``."""

    generate_vmap_rule = True

    @staticmethod
    def forward(h: Tensor, s: Tensor) -> Tensor:
        return h.masked_fill(s != 0, 0.0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        h, s = ctx.saved_tensors
        return grad * (1.0 - s), -grad * h


class _DualResetToZero(_ResetToZero):
    """With forward-mode derivatives, which torch.compile does not take."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        _ResetToZero.setup_context(ctx, inputs, output)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def jvp(ctx: Any, h: Tensor | None, s: Tensor | None) -> Tensor:
        at, fired = ctx.saved_tensors
        kept = torch.zeros_like(at) if h is None else h * (1.0 - fired)
        return kept if s is None else kept - at * s
