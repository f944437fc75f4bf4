r"""Surrogate gradients: the derivative that stands in for that of the Heaviside step.

A surrogate is ``(id, alpha, gain)``: which curve, how steep, and a factor in front. The seven curves are those of
SpikingJelly, with its formulas; snnTorch's are the same curves under other names. Every derivative is written so
that it stays finite for any finite or infinite argument (snnTorch's own sigmoid gives NaN below ``-88 / slope``).

======================  =====================================================  ===========================
class (id)              derivative at ``u = h - threshold``                    snnTorch's name
======================  =====================================================  ===========================
Sigmoid (0)             ``alpha s (1 - s)``, ``s = 1 / (1 + exp(-alpha u))``   ``sigmoid(slope=alpha)``
ATan (1)                ``alpha / 2 / (1 + (pi alpha u / 2)^2)``               ``atan(alpha)``
PiecewiseQuadratic (2)  ``max(0, alpha - alpha^2 |u|)``
PiecewiseExp (3)        ``alpha / 2 exp(-alpha |u|)``
SoftSign (4)            ``alpha / 2 / (1 + alpha |u|)^2``                      ``fast_sigmoid(slope=alpha)``
                                                                               with gain ``2 / alpha``
SuperSpike (5)          ``alpha / (1 + |u|)^2``
Erf (6)                 ``alpha / sqrt(pi) exp(-(alpha u)^2)``
======================  =====================================================  ===========================
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from .._errors import bad_type, bad_value, check_real

__all__ = [
    "ATan",
    "Erf",
    "PiecewiseExp",
    "PiecewiseQuadratic",
    "Sigmoid",
    "SoftSign",
    "SuperSpike",
    "Surrogate",
    "as_surrogate",
    "spike",
]


@dataclass(frozen=True)
class Surrogate:
    """A spike function with a surrogate gradient: Heaviside forward, ``gain * derivative(alpha, u)`` backward.

    Instances are immutable, hashable, comparable and picklable. Calling one fires at ``u >= 0``, so it can also
    serve as ``surrogate_function`` of a SpikingJelly neuron or as ``spike_grad`` of an snnTorch neuron.

    Parameters
    ----------
    alpha : float
        Steepness, > 0.
    gain : float
        Factor in front of the derivative, > 0.

    Examples
    --------
    >>> import torch
    >>> u = torch.tensor([-0.5, 0.0, 0.5], requires_grad=True)
    >>> Sigmoid(4.0)(u)
    tensor([0., 1., 1.], grad_fn=<_DualSpikeBackward>)
    >>> Sigmoid(4.0).derivative(torch.tensor(0.0))
    tensor(1.)
    """

    alpha: float
    gain: float = 1.0
    id: ClassVar[int] = -1

    def __post_init__(self) -> None:
        if type(self) is Surrogate:
            bad_type("surrogate", self, "one of its subclasses, such as Sigmoid(4.0)")
        for name in ("alpha", "gain"):
            number = check_real(name, getattr(self, name), "a finite number > 0")
            if number <= 0:
                bad_value(name, number, "a finite number > 0")
            object.__setattr__(self, name, number)

    def derivative(self, u: Tensor) -> Tensor:
        """Return the derivative at ``u``, in the dtype of ``u``."""
        curve = self._curve(u)
        return curve if self.gain == 1.0 else self.gain * curve

    def __call__(self, u: Tensor) -> Tensor:
        """Return ``1[u >= 0]`` in the dtype of ``u``, with this surrogate's gradient."""
        return spike(u, u.new_zeros(()), self)

    def _curve(self, u: Tensor) -> Tensor:
        raise NotImplementedError


class Sigmoid(Surrogate):
    """``alpha s (1 - s)`` with ``s`` the logistic function of ``alpha u``."""

    id = 0

    def _curve(self, u: Tensor) -> Tensor:
        # In terms of exp(-|alpha u|), which never overflows.
        e = torch.exp(-(self.alpha * u).abs())
        return self.alpha * e / (1.0 + e).square()


class ATan(Surrogate):
    """``alpha / 2 / (1 + (pi alpha u / 2)^2)``."""

    id = 1

    def _curve(self, u: Tensor) -> Tensor:
        return self.alpha / 2 / (1.0 + (math.pi / 2 * self.alpha * u).square())


class PiecewiseQuadratic(Surrogate):
    """``max(0, alpha - alpha^2 |u|)``: a triangle of base ``2 / alpha``."""

    id = 2

    def _curve(self, u: Tensor) -> Tensor:
        return (self.alpha - self.alpha**2 * u.abs()).clamp_min(0.0)


class PiecewiseExp(Surrogate):
    """``alpha / 2 exp(-alpha |u|)``."""

    id = 3

    def _curve(self, u: Tensor) -> Tensor:
        return self.alpha / 2 * torch.exp(-self.alpha * u.abs())


class SoftSign(Surrogate):
    """``alpha / 2 / (1 + alpha |u|)^2``."""

    id = 4

    def _curve(self, u: Tensor) -> Tensor:
        return self.alpha / 2 / (1.0 + self.alpha * u.abs()).square()


class SuperSpike(Surrogate):
    """``alpha / (1 + |u|)^2``."""

    id = 5

    def _curve(self, u: Tensor) -> Tensor:
        return self.alpha / (1.0 + u.abs()).square()


class Erf(Surrogate):
    """``alpha / sqrt(pi) exp(-(alpha u)^2)``."""

    id = 6

    def _curve(self, u: Tensor) -> Tensor:
        return self.alpha / math.sqrt(math.pi) * torch.exp(-(self.alpha * u).square())


SURROGATES: tuple[type[Surrogate], ...] = (
    *(Sigmoid, ATan, PiecewiseQuadratic, PiecewiseExp, SoftSign, SuperSpike, Erf),
)
"""All curves, in the order of their ids."""

_BY_NAME = {cls.__name__: cls for cls in SURROGATES}


def spike(
    h: Tensor, threshold: Tensor, surrogate: Surrogate | Callable[[Tensor], Tensor], fire_at_threshold: bool = True
) -> Tensor:
    """Fire where the potential reaches the threshold: ``1[h >= threshold]``, with a surrogate gradient.

    Parameters
    ----------
    h : Tensor
        Charged membrane potential, any shape and floating dtype.
    threshold : Tensor
        Broadcastable to ``h``, in its dtype.
    surrogate : Surrogate or callable
        A callable gives its gradient only; whether a neuron fires is always decided by the comparison.
    fire_at_threshold : bool
        ``True`` fires at ``h >= threshold`` (SpikingJelly), ``False`` at ``h > threshold`` (snnTorch).

    Returns
    -------
    Tensor
        Zeros and ones in the shape and dtype of ``h``. NaN does not fire.

    Examples
    --------
    >>> import torch
    >>> spike(torch.tensor([0.5, 1.0, 2.0]), torch.tensor(1.0), Sigmoid(4.0), fire_at_threshold=False)
    tensor([0., 0., 1.])
    """
    if isinstance(surrogate, Surrogate):
        function = _Spike if torch.compiler.is_compiling() else _DualSpike
        return function.apply(h, threshold, surrogate, fire_at_threshold)
    fired = (h >= threshold if fire_at_threshold else h > threshold).to(h.dtype)
    gradient_of = _GradientOf if torch.compiler.is_compiling() else _DualGradientOf
    return gradient_of.apply(fired, surrogate(h - threshold).to(h.dtype))


class _Spike(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(h: Tensor, threshold: Tensor, surrogate: Surrogate, fire_at_threshold: bool) -> Tensor:
        return (h >= threshold if fire_at_threshold else h > threshold).to(h.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        h, threshold, ctx.surrogate, _ = inputs
        ctx.save_for_backward(h, threshold)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        h, threshold = ctx.saved_tensors
        grad_u = grad * ctx.surrogate.derivative(h - threshold)
        grad_threshold = -grad_u.sum_to_size(threshold.shape) if ctx.needs_input_grad[1] else None
        return grad_u, grad_threshold, None, None


class _DualSpike(_Spike):
    """With forward-mode derivatives, which torch.compile does not take."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _Spike.setup_context(ctx, inputs, output)
        ctx.save_for_forward(*inputs[:2])

    @staticmethod
    def jvp(ctx: Any, h: Tensor | None, threshold: Tensor | None, *_: None) -> Tensor:
        at, reached = ctx.saved_tensors
        tangent = h if threshold is None else -threshold if h is None else h - threshold
        return ctx.surrogate.derivative(at - reached) * tangent


class _GradientOf(torch.autograd.Function):
    """The first argument, with the gradient of the second, whose values may be anything, NaN included."""

    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, estimate: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        return None, grad


class _DualGradientOf(_GradientOf):
    @staticmethod
    def jvp(ctx: Any, value: Tensor | None, estimate: Tensor | None) -> Tensor | None:
        return estimate


def as_surrogate(function: Any) -> Surrogate | Callable[[Tensor], Tensor]:
    """Recognise a surrogate: ours, SpikingJelly's modules, snnTorch's functions; return any other callable as it is.

    ``None`` means ``Sigmoid(4.0)``, SpikingJelly's default.

    Parameters
    ----------
    function : object
        ``Surrogate``, ``spikingjelly.activation_based.surrogate.*``, ``snntorch.surrogate.*()`` or any callable of
        ``h - threshold`` whose gradient is wanted.

    Returns
    -------
    Surrogate or callable

    Raises
    ------
    TypeError
        If it cannot be called.
    ValueError
        If a SpikingJelly surrogate has ``spiking=False``: its output is not a spike.

    Examples
    --------
    >>> as_surrogate(None)
    Sigmoid(alpha=4.0, gain=1.0)
    """
    if function is None:
        return Sigmoid(4.0)
    if isinstance(function, Surrogate):
        return function
    if not callable(function):
        bad_type("surrogate", function, "a Surrogate, a surrogate object of SpikingJelly or snnTorch, or a callable")
    if isinstance(function, type) or (
        getattr(function, "__module__", None) == "snntorch.surrogate" and "<locals>" not in function.__qualname__
    ):
        bad_type("surrogate", function, "a surrogate object: call the class or factory first, as in sigmoid(slope=25)")
    if getattr(function, "spiking", True) is False:
        bad_value("surrogate", function, "a surrogate with spiking=True; with False its output is not a spike")
    return _from_spikingjelly(function) or _from_snntorch(function) or function


def _from_spikingjelly(function: Any) -> Surrogate | None:
    kind = type(function)
    if kind.__module__ != "spikingjelly.activation_based.surrogate" or kind.__name__ not in _BY_NAME:
        return None
    alpha = function.alpha
    return _BY_NAME[kind.__name__](float(alpha)) if isinstance(alpha, int | float) else None


def _from_snntorch(function: Any) -> Surrogate | None:
    # snnTorch returns closures: the factory's name is in the qualified name, its argument in a cell.
    if getattr(function, "__module__", None) != "snntorch.surrogate" or getattr(function, "__closure__", None) is None:
        return None
    factory = function.__qualname__.split(".")[0]
    cells = dict(zip(function.__code__.co_freevars, (c.cell_contents for c in function.__closure__), strict=True))
    if factory == "sigmoid":
        return Sigmoid(float(cells["slope"]))
    if factory == "atan":
        return ATan(float(cells["alpha"]))
    if factory == "fast_sigmoid":
        slope = float(cells["slope"])
        return SoftSign(slope, gain=2.0 / slope)
    return None
