"""Statistics of a batch against torch's own norm, to the last bit, and the gradient through them against autograd."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from snn_ext.ops import implementation, use_implementation
from snn_ext.ops.norm_statistics import CpuImplementation, add_norm_gradient, batch_statistics

RUNNING = [n for n in ("cpu", "torch") if n not in implementation("norm_statistics", "cpu").unavailable]
SHAPES = ((1, 2, 3), (2, 3, 7, 1), (4, 5, 3, 17), (2, 2, 40, 9, 11), (3, 1, 1, 4000), (2, 3, 5, 2, 3, 4))


def data(shape: tuple[int, ...], last: bool = False, mean: float = 5.0) -> Tensor:
    torch.manual_seed(sum(shape))
    x = torch.randn(shape) * torch.rand(shape[2], *[1] * (len(shape) - 3)) + mean
    return x.transpose(2, -1).contiguous().transpose(2, -1) if last else x


@pytest.fixture(params=RUNNING)
def running(request: pytest.FixtureRequest):
    with use_implementation(request.param):
        yield request.param


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("mean", [0.0, 5.0, 1e4])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_statistics_have_the_bits_of_torch(running: str, shape: tuple[int, ...], mean: float, last: bool) -> None:
    x = data(shape, last, mean)
    found = batch_statistics(x)
    want = torch.batch_norm_update_stats(x.flatten(0, 1), None, None, 0.0)
    for a, b in zip(found, want, strict=True):
        assert (a != b).double().mean() < 0.02, f"{running}: {a}, {b}"
    oracle = x.double().transpose(0, 2).flatten(1)
    assert torch.allclose(found[0].double(), oracle.mean(1), rtol=2e-7, atol=1e-7)
    if mean < 10:  # of the variance beside a large mean torch's norm has few digits
        assert torch.allclose(found[1].double(), oracle.var(1, correction=0), rtol=1e-6)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_gradient_is_added_in_any_layout(running: str, shape: tuple[int, ...], last: bool) -> None:
    x, (mean, slope, offset) = data(shape, last), torch.randn(3, shape[2])
    grad = torch.randn_like(x)
    of_channels = [t.double().view(-1, *[1] * (len(shape) - 3)) for t in (mean, slope, offset)]
    want = grad.double() + (x.double() - of_channels[0]) * of_channels[1] + of_channels[2]
    other = grad.clone(memory_format=torch.contiguous_format)
    add_norm_gradient(grad, x, mean, slope, offset)
    add_norm_gradient(other, x, mean, slope, offset)  # of another layout than x
    for found in (grad, other):
        torch.testing.assert_close(found.double(), want, rtol=1e-5, atol=1e-5)


BUGS = {
    "channels without their place": ("b / stride % channels, left", "b % channels, left"),
    "a block begins with a whole channel": ("left = stride - b % stride", "left = stride"),
    "channels end with the first sample": ("c = c + 1 < channels ? c + 1 : 0", "c = c + 1 < channels ? c + 1 : c"),
    "channels last begin with the first": ("run = channels - c; i < m", "run = channels; i < m"),
    "not centred": ("(x[i] - own_mean)", "x[i]"),
    "tail missing": ("for (; i < m; i++) {", "for (; 0;) {"),
    "first sample alone": ("squares += sum_of(x + n * step", "squares += sum_of(x"),
}


@pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="no C compiler")
@pytest.mark.parametrize("bug", [None, *BUGS])
def test_bugs_planted_in_the_source_are_caught(
    bug: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SNN_EXT_CACHE", str(tmp_path))
    monkeypatch.setattr(CpuImplementation, "_agrees_with_torch", lambda *arguments: True)
    changed, old, new = CpuImplementation().sources(), *BUGS.get(bug, ("", ""))
    assert any(old in text for text in changed.values())
    found = CpuImplementation()
    found._changed = {name: text.replace(old, new) if bug else text for name, text in changed.items()}
    assert found.why_not(torch.device("cpu"), torch.float32) is None
    right = True
    for shape in ((2, 3, 7, 33), (2, 3, 40, 9, 111)):
        for last in (False, True):
            x, of_channels = data(shape, last), torch.randn(3, shape[2])
            grad = torch.zeros_like(x)
            found.add(grad, x, *of_channels)
            mean, slope, offset = (t.view(-1, *[1] * (len(shape) - 3)) for t in of_channels)
            right &= torch.allclose(grad, (x - mean) * slope + offset, atol=1e-5)
        x = data(shape)
        want = torch.batch_norm_update_stats(x.flatten(0, 1), None, None, 0.0)
        right &= all(map(torch.allclose, found.collect(x), want))
    assert right == (bug is None)
