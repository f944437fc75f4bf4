"""Analytic distributions as samples without noise."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["SIGMA", "input_samples"]

SIGMA = 0.1
"""Root mean square of every sample."""


def input_samples(size: int = 20_001) -> dict[str, Tensor]:
    """Return the positive halves of the analytic distributions as evenly spaced quantiles, in order, of one RMS.

    The mean over such a sample is the expectation to within a few 1e-4 dB; there is no noise in it.
    """
    share = (torch.arange(size, dtype=torch.float64) + 0.5) / size
    samples = {
        "Gaussian": torch.special.ndtri(0.5 + share / 2),
        "Laplace": -torch.log1p(-share) / math.sqrt(2),
        "uniform": share * math.sqrt(3),
    }
    return {name: (SIGMA * sample).float() for name, sample in samples.items()}
