"""Right decisions by class, sign, label or function; labels and loaders that do not fit are refused in words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("spikingjelly")

from snn_ext import evaluate  # noqa: E402
from snn_ext.evaluation import measure_activity  # noqa: E402
from snn_ext.spikingjelly import PCMPIFNode  # noqa: E402
from tests.evaluation.nets import T, batches, plain_loop, small_net  # noqa: E402


def net_of(outputs: int) -> nn.Sequential:
    torch.manual_seed(outputs)
    return nn.Sequential(nn.Linear(4, 8), PCMPIFNode(0.5), nn.Linear(8, outputs))


def cumulated(net: nn.Module, x: Tensor) -> Tensor:
    """Return the mean output of steps 1..t, ``[T, N, K]``."""
    return plain_loop(net, x).cumsum(0) / torch.arange(1, T + 1)[:, None, None]


@pytest.mark.parametrize("shape", [(16,), (16, 1)])
@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_one_logit_decides_by_its_sign_at_every_step(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    net, x = net_of(1), torch.randn(16, 4)
    labels = (torch.rand(shape) > 0.5).to(dtype)
    found = evaluate(net, [(x, labels)], T, metric="sign", delay=(0, 3), progress=False)
    right = (cumulated(net, x)[..., 0] > 0) == labels.reshape(16).bool()
    assert found.accuracy.tolist() == right.double().mean(1).tolist() and found.metric == "sign"
    late = plain_loop(net, x)[3:].cumsum(0)[..., 0] > 0
    assert found.accuracy_at(3)[3:].tolist() == (late == labels.reshape(16).bool()).double().mean(1).tolist()
    analog = net[2](net[0](x).relu() / 0.5)[:, 0] > 0
    assert found.analog_accuracy == float((analog == labels.reshape(16).bool()).double().mean())


def test_a_logit_is_never_right_because_every_label_is_0() -> None:
    net = net_of(1)
    nn.init.constant_(net[2].bias, 50.0)  # says 1 of everything
    x, zeros = torch.rand(8, 4), torch.zeros(8).long()
    assert evaluate(net, [(x, zeros)], T, metric="sign", progress=False).accuracy[-1] == 0
    with pytest.raises(ValueError, match="metric: got \"'class' for one output .*, want 'sign' for one logit"):
        evaluate(net, [(x, zeros)], T, progress=False)
    analog = nn.Sequential(net[0], nn.ReLU(), net[2])
    with pytest.raises(ValueError, match="want 'sign' for one logit"):
        measure_activity(analog, [(x, zeros)])
    assert measure_activity(analog, [(x, zeros)], metric="sign").accuracy == 0
    assert evaluate(net, [x], T, progress=False).correct is None  # without labels no metric is asked


def test_several_labels_are_right_one_by_one_or_all_of_them() -> None:
    net, x = net_of(3), torch.randn(32, 4)
    labels = torch.rand(32, 3) > 0.5
    right = (cumulated(net, x) > 0) == labels
    for name, want in (("multilabel", right.double().mean(2)), ("multilabel-exact", right.all(2).double())):
        found = evaluate(net, [(x[:20], labels[:20]), (x[20:], labels[20:].float())], T, metric=name, progress=False)
        torch.testing.assert_close(found.accuracy, want.mean(1))


def test_a_function_decides_by_the_mean_outputs_in_their_own_shape(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), PCMPIFNode(0.5), nn.Conv2d(4, 2, 1))
    x, labels = torch.rand(6, 1, 5, 5), torch.randint(2, (6, 5, 5))

    def pixels(outputs: Tensor, labels: Tensor) -> Tensor:
        return (outputs.argmax(1) == labels).double().mean((1, 2))

    found = evaluate(net, [(x, labels)], T, metric=pixels, chunk=5, progress=False)
    mean = plain_loop(net, x).cumsum(0) / torch.arange(1, T + 1).reshape(-1, 1, 1, 1, 1)
    assert found.accuracy.tolist() == pytest.approx([float(pixels(y, labels).mean()) for y in mean])
    assert found.metric == "pixels" and 0 < found.analog_accuracy < 1
    assert type(found).from_json(found.to_json()).metric == "pixels"
    found.to_csv(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("metric", "outputs", "labels", "message"),
    [
        ("class", 3, torch.zeros(8, 3).long(), "metric: got .*labels .*, want 'multilabel' or 'multilabel-exact'"),
        ("class", 3, torch.zeros(8, 2).long(), "loader: got .*, want one integer label for each of the outputs"),
        ("sign", 3, torch.zeros(8).long(), "metric: got .*'sign' for outputs .*, want 'class', or 'multilabel'"),
        ("sign", 1, torch.full((8,), 2), r"loader: got 'labels \[2\]', want labels 0 and 1"),
        ("sign", 1, torch.full((8,), torch.nan), "want labels 0 and 1"),
        ("sign", 1, torch.zeros(7), r"loader: got .*\[7\], want a label 0 or 1 for each of the outputs \[8, 1\]"),
        ("multilabel", 3, torch.zeros(8).long(), "want a label 0 or 1 for each of the outputs"),
        (lambda y, labels: labels, 3, torch.zeros(7), "loader: got .*, want labels of each of the 8 samples"),
        (lambda y, labels: 0.5, 3, torch.zeros(8), "metric: got '<lambda>.* = 0.5', want a function that returns"),
        (lambda y, labels: labels - 1, 3, torch.zeros(8), r"want a function that returns a number in \[0, 1\]"),
        ("top1", 3, torch.zeros(8), "metric: got 'top1', want one of 'class', 'sign'"),
        (1, 3, torch.zeros(8), "metric: got 1 of type int, want one of"),
    ],
)
def test_metrics_and_labels_that_do_not_fit_are_named(metric: Any, outputs: int, labels: Tensor, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        evaluate(net_of(outputs), [(torch.rand(8, 4), labels)], T, metric=metric, progress=False)


def test_spikes_have_no_sign_and_other_metrics_no_ranks() -> None:
    spiking = nn.Sequential(nn.Linear(4, 1), PCMPIFNode())
    with pytest.raises(ValueError, match="metric: got 'sign', want a function .*: the output of the net is spikes"):
        evaluate(spiking, [(torch.rand(8, 4), torch.zeros(8))], T, metric="sign", progress=False)
    count: Callable[[Tensor, Tensor], Tensor] = lambda y, labels: (y[:, 0] > 0.5) == labels.bool()  # noqa: E731
    assert evaluate(spiking, [(torch.rand(8, 4), torch.zeros(8))], T, metric=count, progress=False).accuracy[-1] <= 1
    with pytest.raises(ValueError, match=r"top: got \(1, 5\), want \(1,\): metric='sign' ranks no classes"):
        evaluate(net_of(1), [(torch.rand(8, 4), torch.zeros(8))], T, metric="sign", top=(1, 5), progress=False)


def test_another_metric_does_not_continue_an_evaluation(tmp_path: Path) -> None:
    class Interrupted(list):  # type: ignore[type-arg]
        def __iter__(self) -> Any:
            yield next(super().__iter__())
            raise KeyboardInterrupt

    data = [(torch.rand(8, 4), torch.zeros(8, 3)) for _ in range(2)]
    with pytest.raises(KeyboardInterrupt):
        evaluate(net_of(3), Interrupted(data), T, metric="multilabel", resume=tmp_path / "a", progress=False)
    with pytest.raises(ValueError, match="with metric='multilabel', want the one that was interrupted"):
        evaluate(net_of(3), data, T, metric="multilabel-exact", resume=tmp_path / "a", progress=False)
    whole = evaluate(net_of(3), data, T, metric="multilabel", progress=False)
    continued = evaluate(net_of(3), data, T, metric="multilabel", resume=tmp_path / "a", progress=False)
    assert continued.to_json() == whole.to_json()


def test_a_data_set_is_refused_with_the_loader_to_take() -> None:
    x, labels = batches((6,))[0]
    dataset = torch.utils.data.TensorDataset(x, labels)
    for given in (dataset, torch.utils.data.Subset(dataset, [0, 1])):
        with pytest.raises(TypeError, match="loader: got .*, want batches of it: torch.utils.data.DataLoader"):
            evaluate(small_net(), given, T, progress=False)
    loader = torch.utils.data.DataLoader(dataset, batch_size=4)
    want = evaluate(small_net(), [(x, labels)], T, progress=False)
    assert evaluate(small_net(), loader, T, progress=False).accuracy.tolist() == want.accuracy.tolist()


@pytest.mark.parametrize("shape", [(8, 8), (3, 2, 8, 8), (2, 4, 1, 8, 8)])
def test_inputs_that_the_net_does_not_take_are_named_with_the_reason(shape: tuple[int, ...]) -> None:
    net = small_net().train()
    with pytest.raises(ValueError, match=r"loader: got .*, want inputs .* that the net takes, or frames='TN' .*\("):
        evaluate(net, [torch.rand(shape)], T, progress=False)
    assert all(module.training for module in net.modules()) and net[1].v == 0.0
