"""Interrupted evaluations continue exactly, and never with another net, setting or data."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("spikingjelly")

from snn_ext import evaluate  # noqa: E402
from snn_ext.spikingjelly import ATIFuNode  # noqa: E402
from tests.evaluation.nets import T, batches, small_net  # noqa: E402


class Interrupted(list):  # type: ignore[type-arg]
    """Batches of which the third never comes."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for index, batch in enumerate(super().__iter__()):
            if index == 2:
                raise KeyboardInterrupt
            yield batch


def test_interrupted_evaluation_continues_and_gives_the_same_figures(tmp_path: Path) -> None:
    data, file = batches((4, 4, 4, 2)), tmp_path / "state.pt"
    options = {"delay": (0, 2), "correlation_steps": (4,), "progress": False}
    whole = evaluate(small_net(), data, T, **options)
    with pytest.raises(KeyboardInterrupt):
        evaluate(small_net(), Interrupted(data), T, resume=file, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]
    with pytest.raises(ValueError, match="with another net, want the one that was interrupted"):
        evaluate(small_net(precharge=0.5), data, T, resume=file, **options)
    with pytest.raises(ValueError, match="with time_steps=12, want the one.*remove the file"):
        evaluate(small_net(), data, T + 1, resume=file, **options)
    with pytest.raises(ValueError, match="of other data: its 2 batches are not the first 2"):
        evaluate(small_net(), data[::-1], T, resume=file, **options)
    seen: list[int] = []
    net = small_net()
    net[0].register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    continued = evaluate(net, data, T, resume=file, **options)
    assert continued.to_json() == whole.to_json() and not file.exists()
    assert seen[-1] == 2 and seen.count(4) <= 3  # the third batch and the last


def test_evaluation_that_was_interrupted_after_its_last_batch_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, file = batches(), tmp_path / "state.pt"
    whole = evaluate(small_net(), data, T, correlation_steps=(4,), progress=False)

    def interrupt(self: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("snn_ext.evaluation.resume.ResumeFile.remove", interrupt)
        with pytest.raises(KeyboardInterrupt):
            evaluate(small_net(), data, T, correlation_steps=(4,), resume=file, progress=False)
    found = evaluate(small_net(), data, T, correlation_steps=(4,), resume=file, progress=False)
    assert found.to_json() == whole.to_json()


def stopped_after(done: int, data: list[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    yield from data[:done]
    raise KeyboardInterrupt


def relabelled(data: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    return [(x, (y + 1) % 5) for x, y in data]


OTHER_DATA = {
    "none": lambda data: [],
    "fewer": lambda data: data[:2],
    "others": lambda data: [(1 - x, y) for x, y in data],
    "other labels": relabelled,
    "no labels": lambda data: [x for x, _ in data],
    "another order": lambda data: data[::-1],
    "another order of samples": lambda data: [(x.flip(0), y.flip(0)) for x, y in data],
    "other batches": lambda data: [(x[i : i + 2], y[i : i + 2]) for x, y in data for i in (0, 2)],
    "doubles": lambda data: [(x.double(), y) for x, y in data],
    "labels of another dtype": lambda data: [(x, y.int()) for x, y in data],
    "other shape": lambda data: [(x.reshape(-1, 1, 4, 16), y) for x, y in data],
}


@pytest.mark.parametrize("kind", OTHER_DATA)
def test_an_interrupted_evaluation_never_goes_on_with_other_data(tmp_path: Path, kind: str) -> None:
    data, file = batches((4, 4, 4, 4)), tmp_path / "state.pt"
    with pytest.raises(KeyboardInterrupt):
        evaluate(small_net(), stopped_after(3, data), T, resume=file, progress=False)
    kept = file.read_bytes()
    with pytest.raises(ValueError, match="of other data.*remove the file|with and without labels"):
        evaluate(small_net(), OTHER_DATA[kind](data), T, resume=file, progress=False)
    assert file.read_bytes() == kept
    whole = evaluate(small_net(), data, T, progress=False)
    assert evaluate(small_net(), iter(data), T, resume=file, progress=False).to_json() == whole.to_json()


class Scaled(nn.Module):
    """A net with a setting that is no parameter, and code of its own."""

    def __init__(self, scale: float = 2.0, function: object = None) -> None:
        super().__init__()
        self.layer, self.scale, self.function = nn.Linear(64, 5), scale, function or _same

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.function(self.layer(x.flatten(1)))


class Negated(Scaled):
    def forward(self, x: Tensor) -> Tensor:
        return -self.scale * self.function(self.layer(x.flatten(1)))


def _same(x: Tensor) -> Tensor:
    return x


def _squared(x: Tensor) -> Tensor:
    return x * x


def changed(name: str) -> tuple[nn.Module, nn.Module, dict[str, object]]:
    """Return nets and settings of an evaluation that differs from "nothing" in one thing."""
    net = small_net()
    torch.manual_seed(5)
    ann: nn.Module = Negated() if name == "code" else Scaled(3.0 if name == "scale" else 2.0)
    torch.manual_seed(5)
    ann.layer.reset_parameters()
    if name == "function":
        ann.function = _squared
    if name == "ann_weight":
        ann.layer.weight.data[0, 0] += 1
    if name == "weight":
        net[0].weight.data[0, 0, 0, 0] += 0.5
    if name == "precharge":
        net[1].v_init = torch.tensor([0.75])
    if name == "tie":
        net[1].fire_at_threshold = False
    if name == "start":
        net[1].set_reset_value("v", 0.25)
    if name == "stride":
        net[2].ceil_mode = True
    if name == "kind":
        net[1] = ATIFuNode(0.5, v_init=0.25)
    options: dict[str, object] = {"delay": 1} if name == "delay" else {"top": (2,)} if name == "top" else {}
    return net, ann, options


@pytest.mark.parametrize(
    "name",
    "code scale function ann_weight weight precharge tie start stride kind delay top".split(),
)
def test_an_interrupted_evaluation_never_goes_on_with_another_net_or_setting(tmp_path: Path, name: str) -> None:
    data, file = batches((4, 4)), tmp_path / "state.pt"
    net, ann, options = changed("nothing")
    evaluate(net, data, 3, progress=False)  # a net that has run is the same net
    with pytest.raises(KeyboardInterrupt):
        evaluate(net, stopped_after(1, data), T, ann=ann, resume=file, progress=False, **options)
    other, other_ann, other_options = changed(name)
    with pytest.raises(ValueError, match="state of an evaluation with .*remove the file to begin anew"):
        evaluate(other, data, T, ann=other_ann, resume=file, progress=False, **other_options)
    with pytest.raises(ValueError, match="with another ann"):
        evaluate(net, data, T, resume=file, progress=False)
    net, ann, options = changed("nothing")
    evaluate(net, data, T, ann=ann, resume=file, progress=False, **options)
    assert not file.exists()


def test_state_that_is_damaged_or_of_something_else_is_refused_by_name(tmp_path: Path) -> None:
    data, file, draw = batches((4, 4, 4, 2)), tmp_path / "state.pt", random.Random(0)
    options = {"correlation_steps": (4,), "progress": False}
    whole = evaluate(small_net(), data, T, **options).to_json()
    with pytest.raises(KeyboardInterrupt):
        evaluate(small_net(), Interrupted(data), T, resume=file, **options)
    content = file.read_bytes()
    state = torch.load(file, weights_only=True)
    others: list[Any] = [b"", b"hello" * 99, content[:2000], {}, [], {"settings": {}, "run": {}}]
    others += [small_net().state_dict()]
    others += [{**state, "run": {**state["run"], **part}} for part in ({"layers": {}}, {"readout": {"samples": 8}})]
    sums = state["run"]["readout"]
    others += [{**state, "run": {**state["run"], "readout": {**sums, "correct": sums["correct"][..., 1:]}}}]
    for _ in range(25):
        flipped = bytearray(content)
        flipped[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        others.append(bytes(flipped))
    refused = 0
    for other in others:
        file.write_bytes(other) if isinstance(other, bytes) else torch.save(other, file)
        before = file.read_bytes()
        try:
            assert evaluate(small_net(), data, T, resume=file, **options).to_json() == whole
        except ValueError as error:
            assert f"{file}: damaged or not a state of snn_ext.evaluate; remove it to start afresh" == str(error)
            assert file.read_bytes() == before
            refused += 1
    assert refused > 20


def test_the_file_needs_no_suffix(tmp_path: Path) -> None:
    """torch takes no path that begins with its only point, as that of a temporary file without a suffix."""
    data, file = batches((4, 4, 4, 2)), tmp_path / "state"
    whole = evaluate(small_net(), data, T, progress=False)
    with pytest.raises(KeyboardInterrupt):
        evaluate(small_net(), Interrupted(data), T, resume=file, progress=False)
    assert file.exists()
    assert evaluate(small_net(), data, T, resume=file, progress=False).to_json() == whole.to_json()
