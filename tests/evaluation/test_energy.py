"""Models of energy."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("spikingjelly")

from snn_ext.evaluation import EnergyModel  # noqa: E402


@pytest.mark.parametrize("cost", [-1.0, torch.nan, torch.inf])
def test_a_cost_that_is_none_is_named(cost: float) -> None:
    with pytest.raises(ValueError, match="accumulate: got .*want an energy in picojoule"):
        EnergyModel("mine", cost, 1.0)
