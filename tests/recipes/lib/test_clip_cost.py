"""Cost of a clip, and confusion matrix."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("spikingjelly")

from recipes.lib.clip_cost import clip_cost, confusion  # noqa: E402
from recipes.models.keyword_nets import RecurrentLIF  # noqa: E402


def test_recurrent_layer_pays_every_spike_at_both_layers_behind_it() -> None:
    torch.manual_seed(0)
    net = RecurrentLIF(classes=3, coefficients=4, neurons=5, time_steps=7)
    net.input.weight.data *= 4
    features = torch.randn(2, 1, 6, 4)
    cost = clip_cost(net, [(features[:1], torch.zeros(1)), (features[1:], torch.zeros(1))], 7)
    current, spikes, v = net.input(features[:, 0]), torch.zeros(2, 5), torch.zeros(2, 5)
    total = 0.0
    for t in range(7):  # the definition: soft reset, decay of v by 1/tau, input not decayed
        v = v * 0.9 + current[:, t * 6 // 7] + spikes @ net.recurrent.weight.T
        spikes = (v >= 1).float()
        v = v - spikes
        total += float(spikes.sum())
    assert total > 0 and cost["spikes"] == total / 2 and cost["synops"] == total / 2 * (5 + 3)
    assert cost["macs"] == 6 * 4 * 5


def test_confusion_counts_rows_as_said_and_columns_as_heard() -> None:
    scores = torch.tensor([[9.0, 0, 0], [0, 0, 9], [0, 9, 0]])
    counts = confusion(torch.nn.Identity(), [(scores, torch.tensor([0, 1, 1]))])
    assert counts.tolist() == [[1, 0, 0], [0, 1, 1], [0, 0, 0]]
