"""Quantised activations: train a net with them, and spiking neurons are its exact twin."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, fx, nn

from .._errors import bad_value, check_bool, check_choice, check_count, check_real
from ..functional import best_points, best_threshold
from .arguments import as_points
from .base import non_increasing, positive

__all__ = [
    "NonUniformQuantizedReLU", "QuantizedActivation", "QuantizedReLU", "Rounding", "nonuniform_quantized_relu",
    "quantized_relu",
]  # fmt: skip

Rounding = Literal["floor", "round", "ceil"]
_START = {"floor": 0.0, "round": 0.5, "ceil": 1.0}
_NARROWEST = 0.25


class QuantizedActivation(nn.Module):
    """Base of the quantised activations: what the neuron that stands for one takes over."""

    levels: int
    v_init: float = 0.0
    """Potential before the first step, in units of the threshold, with which the neuron rounds in the same way."""
    fire_at_threshold: bool = True
    """Tie rule of the neuron."""

    def clip_level(self) -> Tensor:
        """Return the largest value, ``[1]``: the threshold of the neuron, or its first point."""
        raise NotImplementedError

    def fit(self, inputs: Tensor, time_steps: int) -> None:
        """Quantise recorded inputs with the best SQNR; ``time_steps`` are the levels.

        Parameters
        ----------
        inputs : Tensor
            Recorded inputs of the layer, any shape; at least one is positive.
        time_steps : int
            T of the neuron that will stand for the activation: as many as there are levels.

        Examples
        --------
        >>> layer = QuantizedReLU(4)
        >>> layer.fit(torch.linspace(0, 1, 100), time_steps=4)
        >>> round(layer.threshold.item(), 1)
        0.9
        """
        if time_steps != self.levels:
            bad_value("time_steps", time_steps, f"{self.levels}, the number of levels")
        self._fit(inputs)

    def _fit(self, inputs: Tensor) -> None:
        raise NotImplementedError

    def _raw_threshold(self) -> Tensor:
        """Return the threshold or the points, as they are stored."""
        raise NotImplementedError

    def _hold(self, name: str, value: Tensor, trainable: bool) -> None:
        self._initial = value.tolist()
        value = value.to(torch.get_default_device())
        if check_bool("trainable", trainable):
            self.register_parameter(name, nn.Parameter(value))
        else:
            self.register_buffer(name, value)

    def reset_parameters(self) -> None:
        """Restore the threshold or the points that the activation was made with, after ``to_empty``."""
        own = self._raw_threshold()
        own.data.copy_(torch.tensor(self._initial, device=own.device))


class QuantizedReLU(QuantizedActivation):
    r"""ReLU, clipped and quantised to ``levels`` steps, as a soft-reset neuron computes it in ``levels`` time steps.

    .. math:: y = \frac{\theta}{L} \operatorname{clip}(R(x L / \theta), 0, L)

    with :math:`R` the floor, rounding half up, or the ceiling. Under constant current and T = L steps a neuron that
    starts at 0, theta / 2 or theta (and for the ceiling fires above its threshold, not at it) has the rate
    :math:`y / \theta`, to the last bit on exact arithmetic. :func:`snn_ext.convert` and
    :func:`snn_ext.replace_neurons` turn it into that neuron.

    Forward as above; backward, the gradient of the rounding passes straight through, inside the clip of the *input*:

    .. math::
        \frac{\partial y}{\partial x} = 1, \quad \frac{\partial y}{\partial\theta} = \frac{y - x}{\theta}
        \quad\text{for } 0 < x < \theta; \qquad 0, 1 \text{ for } x \ge \theta; \qquad 0, 0 \text{ for } x \le 0

    so a single level trains too. Forward mode and ``torch.func`` have the same gradients.

    Parameters
    ----------
    levels : int
        L.
    threshold : float
        Initial clip level; the trainable parameter ``threshold`` of shape ``[1]``.
    rounding : {"floor", "round", "ceil"}
        R.
    trainable : bool
        Make the threshold a parameter; a buffer otherwise.

    Notes
    -----
    Rounding half up minimises the squared error of a rate: see Hwang et al. 2021 on a pre-charge of one half.
    The gradients are those of Esser et al. 2020, *Learned step size quantization*, for the clip level, not the step.

    Examples
    --------
    >>> import torch
    >>> QuantizedReLU(4, 1.0)(torch.tensor([-1.0, 0.125, 0.5, 2.0])).tolist()
    [0.0, 0.25, 0.5, 1.0]
    """

    threshold: Tensor

    def __init__(
        self, levels: int, threshold: float = 1.0, rounding: Rounding = "round", *, trainable: bool = True
    ) -> None:
        super().__init__()
        if check_real("threshold", threshold, "a finite number > 0") <= 0:
            bad_value("threshold", threshold, "a finite number > 0")
        self.levels = check_count("levels", levels)
        self.rounding = check_choice("rounding", rounding, tuple(_START))
        self._hold("threshold", torch.tensor([float(threshold)], device="cpu"), trainable)

    @property
    def v_init(self) -> float:  # type: ignore[override]
        """Initial potential of the neuron that rounds in the same way, in units of its threshold."""
        return _START[self.rounding]

    @property
    def fire_at_threshold(self) -> bool:  # type: ignore[override]
        """True unless the ceiling is taken."""
        return self.rounding != "ceil"

    def clip_level(self) -> Tensor:
        return self.threshold

    def _raw_threshold(self) -> Tensor:
        return self.threshold

    def _fit(self, inputs: Tensor) -> None:
        self.threshold.data.fill_(best_threshold(inputs, self.levels, v_init=self.v_init))

    def forward(self, x: Tensor) -> Tensor:
        return quantized_relu(x, self.threshold, self.levels, self.rounding)

    def extra_repr(self) -> str:
        return f"levels={self.levels}, threshold={float(self.threshold.detach()):.4g}, rounding={self.rounding!r}"


class NonUniformQuantizedReLU(QuantizedActivation):
    r"""ReLU, quantised at T trainable points, as ATIF-nu computes it in T time steps.

    .. math:: y = \frac{p_1}{T} \, \#\{k : x \ge p_k\}

    with the points ``p`` positive, and non-increasing by a running maximum from the tail, as those of
    :class:`snn_ext.spikingjelly.ATIFnuNode`. The levels are uniform, the edges are not. :func:`snn_ext.convert` and
    :func:`snn_ext.replace_neurons` turn it into that neuron.

    Forward as above; backward, the count n is the line through its edges: from :math:`T - k` at the point below,
    :math:`p_{k+1}`, to :math:`T - k + 1` at :math:`p_k`, with 0 as the point below the last one:

    .. math::
        \frac{\partial n}{\partial x} = \frac{1}{w}, \quad
        \frac{\partial n}{\partial p_k} = -\frac{x - p_{k+1}}{w^2}, \quad
        \frac{\partial n}{\partial p_{k+1}} = -\frac{p_k - x}{w^2}, \quad
        w = p_k - p_{k+1} \quad\text{for } p_{k+1} \le x < p_k

    and 0 for :math:`x \le 0` and :math:`x \ge p_1`. The factor :math:`p_1 / T` has its own gradient. For uniform points
    these are the gradients of :class:`QuantizedReLU` with ``rounding="floor"``. Points that come closer than a quarter
    of :math:`p_1 / T` count as that far apart in w, so that slopes end at 4.

    Parameters
    ----------
    levels : int
        T.
    threshold : float or Tensor
        The clip level p_1 of a uniform start, or all T points, non-increasing; afterwards the trainable parameter
        ``p`` of shape ``[T]``. Keep it out of weight decay.
    trainable : bool
        Make the points a parameter; a buffer otherwise.

    Notes
    -----
    The staircase is that of Castagnetti et al. 2023, equation 18.

    Examples
    --------
    >>> import torch
    >>> layer = NonUniformQuantizedReLU(4, torch.tensor([1.0, 0.5, 0.25, 0.125]))
    >>> layer(torch.tensor([-1.0, 0.125, 0.3, 0.5, 2.0])).tolist()
    [0.0, 0.25, 0.5, 0.75, 1.0]
    """

    p: Tensor

    def __init__(self, levels: int, threshold: float | Tensor = 1.0, *, trainable: bool = True) -> None:
        super().__init__()
        self.levels = check_count("levels", levels)
        self._hold("p", as_points("threshold", threshold, self.levels), trainable)

    def quantization_points(self) -> Tensor:
        """Return ``p`` as it is used: positive and non-increasing."""
        return non_increasing(positive(self.p))

    def clip_level(self) -> Tensor:
        return self.quantization_points()[:1]

    def _raw_threshold(self) -> Tensor:
        return self.p

    def _fit(self, inputs: Tensor) -> None:
        self.p.data.copy_(best_points(inputs, self.levels))

    def forward(self, x: Tensor) -> Tensor:
        return nonuniform_quantized_relu(x, self.p)

    def extra_repr(self) -> str:
        return f"levels={self.levels}, p={[round(point, 4) for point in self.quantization_points().tolist()]}"


@fx.wrap
def quantized_relu(x: Tensor, threshold: Tensor, levels: int, rounding: Rounding) -> Tensor:
    """Clip and quantise: the equation of :class:`QuantizedReLU`, whose threshold gets a gradient too.

    Examples
    --------
    >>> import torch
    >>> quantized_relu(torch.tensor([0.3, 0.5]), torch.tensor([1.0]), 2, "floor")
    tensor([0.0000, 0.5000])
    """
    level = (x * levels / threshold).detach()
    rounded = {"floor": torch.floor, "round": lambda v: torch.floor(v + 0.5), "ceil": torch.ceil}[rounding](level)
    clipped = torch.where(x < threshold, torch.where(x <= 0.0, 0.0, x), threshold)
    relative = clipped / threshold
    straight = threshold * (relative - relative.detach())  # an exact zero that carries the gradient
    return rounded.clamp(0.0, float(levels)) * (threshold / levels) + straight


@fx.wrap
def nonuniform_quantized_relu(x: Tensor, p: Tensor) -> Tensor:
    """Clip and quantise at points: the equation of :class:`NonUniformQuantizedReLU`, whose points get gradients too.

    Examples
    --------
    >>> import torch
    >>> nonuniform_quantized_relu(torch.tensor([0.3, 0.7, 1.0]), torch.tensor([1.0, 0.6]))
    tensor([0.0000, 0.5000, 1.0000])
    """
    points, levels = non_increasing(positive(p)), len(p)
    edges = torch.cat((points.new_zeros(1), points.flip(0)))  # of count n is edges[n]
    count = (x.detach().unsqueeze(-1) >= points.detach()).sum(-1)
    outside = (x <= 0.0) | (count == levels)
    segment = count.clamp(max=levels - 1).flatten()
    below, above = (edges.index_select(0, segment + side).reshape(x.shape) for side in (0, 1))
    width = torch.maximum(above - below, _NARROWEST / levels * points[:1].detach())
    within = (torch.where(outside, below, x) - below) / width
    straight = within - within.detach()  # an exact zero that carries the gradient
    return (count + straight) * (points[:1] / levels)
