from __future__ import annotations

import torch

from snn_ext.ops.layout import as_step_of, dense, flat, in_order_of, is_one


def test_the_order_is_that_of_memory() -> None:
    x_seq = torch.rand(4, 2, 3, 5).permute(0, 3, 1, 2)
    assert dense(x_seq) is x_seq
    assert flat(x_seq, 4, 30).data_ptr() == x_seq.data_ptr()
    assert torch.equal(flat(x_seq, 4, 30)[1], x_seq[1].permute(1, 2, 0).flatten())
    other = x_seq.contiguous()
    assert torch.equal(flat(in_order_of(x_seq, other), 4, 30), flat(x_seq, 4, 30))
    assert torch.equal(flat(as_step_of(x_seq, other[2]), 30), flat(x_seq, 4, 30)[2])
    assert in_order_of(x_seq, x_seq) is x_seq


def test_dimensions_of_one_element_need_no_stride() -> None:
    x_seq = torch.rand(1, 5, 3, 4).as_strided((1, 3, 4, 1), (7, 4, 1, 9))
    assert dense(x_seq) is x_seq
    other = torch.rand(1, 3, 4, 1)
    assert in_order_of(x_seq, other) is other


def test_gaps_and_overlaps_are_copied() -> None:
    for x_seq in (torch.rand(4, 6)[:, :5], torch.rand(6, 4).t(), torch.rand(1, 5).expand(4, 5), torch.rand(8, 3)[::2]):
        assert dense(x_seq) is not x_seq
        assert torch.equal(dense(x_seq), x_seq)


def test_only_an_expanded_element_is_one() -> None:
    x_seq = torch.rand(4, 2, 3)
    assert is_one(torch.tensor(0.5).expand(2, 3)) and is_one(torch.rand(1, 1))
    assert not is_one(torch.rand(3).expand(2, 3))
    assert as_step_of(x_seq, torch.rand(3).expand(2, 3)).is_contiguous()
