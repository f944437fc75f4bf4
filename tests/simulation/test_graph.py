"""A net is traced as it is called: with its input alone, in evaluation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("spikingjelly")

from snn_ext import convert, evaluate  # noqa: E402
from snn_ext.spikingjelly import PCMPIFNode  # noqa: E402

T = 5


def data() -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(1)
    return [(torch.rand(n, 6), torch.randint(3, (n,))) for n in (7, 4)]


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.node, self.head = nn.Linear(6, 8), PCMPIFNode(), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.node(self.fc(x)))


class Noisy(Plain):
    def forward(self, x: Tensor, noise: Tensor | None = None) -> Any:
        return super().forward(x if noise is None else x * 2 + noise)


class Masked(Plain):
    def forward(self, x: Tensor, *others: Tensor, mask: Tensor | None = None, **options: bool) -> Any:
        if mask is not None or others or options.get("doubled"):
            x = x * 2
        return super().forward(x)


class Labelled(Plain):
    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        y = super().forward(x)
        return y if labels is None else (y, labels)


class Several(Plain):
    def forward(self, x: Tensor, time_steps: int = T) -> Any:
        return sum(super(Several, self).forward(x) for _ in range(time_steps)) / time_steps


class Unset(Plain):
    def forward(self, x: Tensor | None = None) -> Any:  # type: ignore[override]
        return super().forward(x)  # type: ignore[arg-type]


class Packed(Plain):
    def forward(self, *inputs: Tensor, **options: Any) -> Any:
        (x,) = inputs
        return super().forward(x)


class Wrapped(Plain):
    @torch.no_grad()
    def forward(self, *inputs: Tensor) -> Any:
        return super().forward(*inputs)


class Modal(Plain):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x * 2 if self.training else x)


@pytest.mark.parametrize("kind", [Noisy, Masked, Labelled, Several, Unset, Packed, Wrapped, Modal])
def test_arguments_behind_the_input_take_their_defaults(kind: type[Plain]) -> None:
    net = kind().train()
    found = evaluate(net, data(), None if kind is Several else T, progress=False)
    assert found.to_json() == evaluate(Plain(), data(), T, progress=False).to_json() and net.training


class Two(Plain):
    def forward(self, x: Tensor, shift: Tensor) -> Any:  # type: ignore[override]
        return super().forward(x + shift)


def test_several_inputs_are_named() -> None:
    with pytest.raises(ValueError, match="snn: got 'a forward pass of several inputs, x, shift', want one input"):
        evaluate(Two(), data(), T, progress=False)


class Named(Plain):
    def forward(self, x: Any) -> Any:
        return super().forward(x.image)


class Second(Plain):
    def forward(self, *inputs: Tensor) -> Any:
        return super().forward(inputs[1])


@pytest.mark.parametrize(("kind", "message"), [(Named, "loader: .* that the net takes"), (Second, "snn: got Second")])
def test_a_net_that_takes_another_input_than_a_tensor_is_named(kind: type[Plain], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(kind(), data(), T, progress=False)


def test_a_conversion_keeps_an_input_that_has_a_default() -> None:
    class Analog(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(6, 3)

        def forward(self, x: Tensor | None = None, scale: float = 2.0) -> Tensor:
            return self.fc(x).relu() * scale

    net = Analog().eval()
    (x, _), _ = data()
    found = evaluate(convert(net, x, method="data-norm"), [x], 256, ann=net, progress=False)
    assert float(found.mse.flatten()[-1]) < 1e-3
