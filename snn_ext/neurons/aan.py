"""The artificial adaptive neuron (AAN): the activation of nets that are to run on adaptive spiking neurons."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn

from .._errors import check_bool, check_choice, check_count
from ..functional import asn_ceiling, asn_spike_height
from ..functional.asn import check_constant
from ..ops import asn_transfer

__all__ = ["AAN", "BNAAN"]

torch.fx.wrap("asn_transfer")  # a net with AANs can be traced symbolically


class AAN(nn.Module):
    r"""The transfer function f(S) of adaptive spiking neurons as an activation, to be used instead of ``nn.ReLU``.

    .. math::
        f(S) = \max\left(0,\ \frac{h}{e^{u(S)} - 1} - c_0 + \frac h2\right) \text{ for } S > 0, \text{ else } 0

    as in :func:`snn_ext.functional.asn_transfer`: f(0) = 0, f(1) = 1, about 4.3 for large S. Its backward pass is the
    exact derivative. One fused operator; the input alone is kept for the backward pass.

    Parameters
    ----------
    inplace : bool
        Accepted because builders of nets pass it to ``nn.ReLU``; without effect, as the gradient needs the input.
    m_f : float
        Adaptation of the neuron's threshold a spike, > 0.
    theta_0 : float, optional
        Threshold at rest, > 0 and < 2; ``m_f`` by default.
    tau_gamma, tau_eta, tau_beta : float
        Time constants in ms; see :func:`snn_ext.functional.adaptive_spiking`.
    dt : float
        Time step of the later simulation in ms; it limits the activation that one spike a step can carry.

    Warns
    -----
    UserWarning
        Once, if an activation exceeds what a spike at every step can carry, :func:`snn_ext.functional.asn_ceiling`.
        With the default constants f stays below it.

    Notes
    -----
    Source: Zambrano et al. 2017, equation 11.

    Examples
    --------
    >>> import torch
    >>> AAN()(torch.tensor([-1.0, 0.0, 1.0]))
    tensor([0.0000, 0.0000, 1.0000])
    """

    def __init__(
        self,
        inplace: bool = False,
        *,
        m_f: float = 0.1,
        theta_0: float | None = None,
        tau_gamma: float = 15.0,
        tau_eta: float = 50.0,
        tau_beta: float = 50.0,
        dt: float = 1.0,
    ) -> None:
        super().__init__()
        self.inplace = check_bool("inplace", inplace)
        self.m_f = check_constant("m_f", m_f)
        self.theta_0 = self.m_f if theta_0 is None else check_constant("theta_0", theta_0)
        self.tau_gamma, self.tau_eta = check_constant("tau_gamma", tau_gamma), check_constant("tau_eta", tau_eta)
        self.tau_beta, self.dt = check_constant("tau_beta", tau_beta), check_constant("dt", dt)
        self.h: float = asn_spike_height(*self._constants(), **self._times())
        self.ceiling: float = asn_ceiling(*self._constants(), **self._times(), dt=self.dt)
        infinite = torch.tensor(math.inf, dtype=torch.float64, device="cpu")  # the default one may be "meta"
        saturation = asn_transfer(infinite, *self._constants(), **self._times())
        self._watched = saturation.item() > self.ceiling

    def forward(self, s: Tensor) -> Tensor:
        """Return f(S) in the shape and dtype of ``s``."""
        f = asn_transfer(s, *self._constants(), **self._times())
        if self._watched and isinstance(f, Tensor) and not torch.compiler.is_compiling():
            self._warn_above_ceiling(f)
        return f

    def _constants(self) -> tuple[float, float]:
        return self.m_f, self.theta_0

    def _times(self) -> dict[str, Any]:
        return {"tau_gamma": self.tau_gamma, "tau_eta": self.tau_eta, "tau_beta": self.tau_beta}

    def _warn_above_ceiling(self, f: Tensor) -> None:
        if f.numel() == 0 or f.is_meta or torch._C._are_functorch_transforms_active():
            return
        peak = float(f.detach().amax())
        if peak > self.ceiling:
            self._watched = False  # once is enough
            warnings.warn(
                f"s: got an activation of {peak:.3g}, want at most {self.ceiling:.3g}: one spike every {self.dt:g} ms, "
                f"of an adaptive neuron with m_f = {self.m_f:g}, cannot carry more; take a larger m_f or a smaller dt",
                stacklevel=3,
            )

    def extra_repr(self) -> str:
        theta_0 = "" if self.theta_0 == self.m_f else f", theta_0={self.theta_0:g}"
        return f"m_f={self.m_f:g}{theta_0}, dt={self.dt:g}"


class BNAAN(nn.Sequential):
    """BN-AAN: batch norm and an AAN on the raw input, the first layer of every net; its spikes encode the pixels.

    Parameters
    ----------
    num_features : int
        Number of input channels C.
    dims : {0, 1, 2, 3}
        Number of dimensions behind the channels: 0 for features ``[N, C]``, 2 for images ``[N, C, H, W]``.
    **constants
        Of :class:`AAN`.

    Notes
    -----
    Source: Zambrano et al. 2017, the description of the networks.

    Examples
    --------
    >>> import torch
    >>> BNAAN(3)(torch.rand(4, 3, 8, 8)).shape
    torch.Size([4, 3, 8, 8])
    """

    def __init__(self, num_features: int, *, dims: int = 2, **constants: Any) -> None:
        check_count("num_features", num_features)
        check_choice("dims", dims, (0, 1, 2, 3))
        norm = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dims]
        super().__init__(norm(num_features), AAN(**constants))
