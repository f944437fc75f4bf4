from __future__ import annotations

import torch

from snn_ext.ops.layout import dense, flat_like, flat_or_one, flat_seq, flat_step


def test_flat_order_is_that_of_memory() -> None:
    x_seq = torch.rand(4, 2, 3, 5).permute(0, 3, 1, 2)
    assert dense(x_seq) is x_seq
    assert flat_seq(x_seq).data_ptr() == x_seq.data_ptr()
    assert torch.equal(flat_seq(x_seq)[1], x_seq[1].permute(1, 2, 0).flatten())
    copy = x_seq.contiguous()
    assert torch.equal(flat_like(copy, x_seq), flat_seq(x_seq))
    assert torch.equal(flat_step(copy[2], x_seq), flat_seq(x_seq)[2])


def test_one_step_needs_no_stride() -> None:
    x_seq = torch.rand(2, 3, 4)[:, 0][None].transpose(1, 2).contiguous()[:1]
    assert dense(x_seq) is x_seq
    assert dense(torch.rand(3, 4)[:, ::2]).is_contiguous()


def test_gaps_and_overlaps_are_copied() -> None:
    for x_seq in (torch.rand(4, 6)[:, :5], torch.rand(6, 4).t(), torch.rand(1, 5).expand(4, 5), torch.rand(8, 3)[::2]):
        assert dense(x_seq) is not x_seq
        assert torch.equal(dense(x_seq), x_seq)


def test_only_an_expanded_element_is_one() -> None:
    x_seq = torch.rand(4, 2, 3)
    assert flat_or_one(torch.tensor(0.5).expand(2, 3), x_seq).shape == (1,)
    assert flat_or_one(torch.rand(3).expand(2, 3), x_seq).shape == (6,)
    assert flat_step(torch.tensor(0.5).expand(2, 3), x_seq).shape == (6,)
