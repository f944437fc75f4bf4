"""Decisions, errors and correlations, summed up in chunks."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("spikingjelly")

from snn_ext.evaluation.decisions import rank_of_label  # noqa: E402
from snn_ext.evaluation.metrics import LayerSums, ReadoutSums  # noqa: E402
from tests.evaluation.nets import T  # noqa: E402


def test_of_equal_scores_the_first_class_decides() -> None:
    scores = torch.tensor([[0.0, 0.0, 0.0], [1.0, 2.0, 2.0]])
    for label in range(3):
        rank = rank_of_label(scores, torch.full((2,), label))
        assert (rank == 0).tolist() == (scores.argmax(1) == label).tolist()


def test_readout_does_not_depend_on_the_size_of_the_chunks() -> None:
    output, target, labels = torch.randn(T, 4, 3), torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    sums = []
    for chunks in ((T,), (1,) * T, (5, 7), (4, 1, 7)):
        readout = ReadoutSums(T, (0, 4, 5), (1,))
        readout.begin(target, labels)
        for part in output.split(chunks):
            readout.add(part)
        sums.append(readout)
    for other in sums[1:]:
        assert torch.equal(sums[0].correct, other.correct)
        torch.testing.assert_close(sums[0].squared_error, other.squared_error, rtol=1e-12, atol=0.0)


def test_what_is_no_number_is_never_a_right_decision() -> None:
    nan, inf = torch.nan, torch.inf
    scores = torch.tensor([[nan, nan, nan], [nan, 1.0, 0.0], [0.0, 1.0, nan], [inf, 0.0, 0.0], [0.0, inf, 1.0],
                           [-inf, -inf, -inf], [-inf, 0.0, -inf], [1.0, 1.0, 0.0]])  # fmt: skip
    for label, right in enumerate([[7], [6], []]):
        rank = rank_of_label(scores, torch.full((len(scores),), label))
        assert (rank == 0).nonzero().flatten().tolist() == right
    assert bool((rank_of_label(scores[:1], torch.tensor([0])) == 3).all())  # nor is it among the best few


def test_correlation_of_what_does_not_vary_is_no_number() -> None:
    """0.1 and 0.3 have sums whose difference is a rounding, of any sign."""
    for value in (0.1, 0.3, 1 / 3):
        sums = LayerSums(1, (1,))
        for n in (7, 1000, 13):
            sums.begin(1.0, torch.full((n, 3), value))
            sums.add((torch.rand(1, n, 3) > 0.5).float())
            sums.end()
        assert sums.correlation().isnan().all(), value
    sums = LayerSums(1, (1,))
    spikes = (torch.rand(1, 50, 3) > 0.5).float()
    sums.begin(1.0, spikes[0])
    sums.add(spikes)
    assert 1 - 1e-9 <= float(sums.correlation()) <= 1
