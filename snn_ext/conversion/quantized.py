"""A quantised activation for training nets that convert without loss."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, fx, nn

from .._errors import bad_value, check_bool, check_choice, check_count, check_real

__all__ = ["QuantizedReLU", "Rounding", "quantized_relu"]

Rounding = Literal["floor", "round", "ceil"]
START = {"floor": 0.0, "round": 0.5, "ceil": 1.0}
"""Potential before the first step, in units of the threshold, with which a neuron rounds in the same way."""


class QuantizedReLU(nn.Module):
    r"""ReLU, clipped and quantised to ``levels`` steps, as a soft-reset neuron computes it in ``levels`` time steps.

    .. math:: y = \frac{\theta}{L} \operatorname{clip}(R(x L / \theta), 0, L)

    with :math:`R` the floor, rounding half up, or the ceiling. Under constant current and T = L steps a neuron that
    starts at 0, theta / 2 or theta (and for the ceiling fires above its threshold, not at it) has the rate
    :math:`y / \theta`, to the last bit on exact arithmetic. :func:`snn_ext.convert` turns it into that neuron.

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
        self.rounding = check_choice("rounding", rounding, tuple(START))
        value = torch.tensor([float(threshold)])
        if check_bool("trainable", trainable):
            self.threshold = nn.Parameter(value)
        else:
            self.register_buffer("threshold", value)
        self._initial = float(threshold)

    def reset_parameters(self) -> None:
        """Set the threshold to its initial value, after ``to_empty``."""
        with torch.no_grad():
            self.threshold.fill_(self._initial)

    def forward(self, x: Tensor) -> Tensor:
        return quantized_relu(x, self.threshold, self.levels, self.rounding)

    def extra_repr(self) -> str:
        return f"levels={self.levels}, threshold={float(self.threshold.detach()):.4g}, rounding={self.rounding!r}"


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
