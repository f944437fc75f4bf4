"""What a forward pass asks of sizes is answered while it is traced; what depends on the batch or on values is not."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

pytest.importorskip("spikingjelly")

from spikingjelly.activation_based import functional  # noqa: E402

from snn_ext import evaluate, load, save  # noqa: E402
from snn_ext.conversion import optimize_precharge  # noqa: E402
from snn_ext.conversion.canonicalize import canonicalize  # noqa: E402
from snn_ext.conversion.convert import convert  # noqa: E402
from snn_ext.simulation import Simulation  # noqa: E402


class Net(nn.Module):
    """A convolution, a function, and a linear layer on its ReLU."""

    def __init__(self, function: Callable[[Tensor], Tensor], size: int) -> None:
        super().__init__()
        self.conv, self.function, self.head = nn.Conv2d(2, 4, 3, padding=1), function, nn.Linear(size, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.function(self.conv(x)).relu().flatten(1))


def checked(x: Tensor) -> Tensor:
    if x.dim() != 4 or len(x.shape) != 4:
        raise ValueError(f"got {x.dim()} dimensions")
    assert x.shape[2] == x.shape[3], "square"
    torch._assert(x.shape[1] > 1, "channels")
    return x


def unpacked(x: Tensor) -> Tensor:
    batch, *rest = x.shape
    return x.reshape(*x.shape[:2], -1).reshape(batch, *rest)


def padded_as_tensorflow(x: Tensor) -> Tensor:
    more = [max((math.ceil(size / 2) - 1) * 2 + 3 - size, 0) for size in x.shape[-2:]]
    if any(m > 0 for m in more):
        x = F.pad(x, [more[1] // 2, more[1] - more[1] // 2, more[0] // 2, more[0] - more[0] // 2])
    return F.avg_pool2d(x, 3, 2)


def skipped(x: Tensor) -> Tensor:
    y = F.avg_pool2d(x, 2)
    if y.shape != x.shape:
        y = F.interpolate(y, size=x.shape[2:])
    return x + y


def summed(x: Tensor) -> Tensor:
    total = x[:, :, 0]
    for k in range(1, x.size(2)):
        total = total + x[:, :, k]
    return total


def flat_features(x: Tensor) -> Tensor:
    features = 1
    for size in x.size()[1:]:
        features *= size
    return x.view(-1, features)


CONVERTED: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "asserts": (checked, 196),
    "a starred shape": (unpacked, 196),
    "padding by size": (padded_as_tensorflow, 64),
    "an odd size": (lambda x: F.avg_pool2d(F.pad(x, (0, 1, 0, 1)) if x.shape[-1] % 2 else x, 2), 64),
    "equal shapes": (skipped, 196),
    "a loop over positions": (summed, 28),
    "features counted": (flat_features, 196),
    "numpy": (lambda x: x.reshape(-1, int(np.prod(x.shape[1:]))), 196),
    "math.prod": (lambda x: x.view(x.size(0), math.prod(x.shape[1:])), 196),
    "numel": (lambda x: x.view(x.size(0), x.numel() // x.size(0)), 196),
    "len": (lambda x: x.view(len(x), -1), 196),
    "channels in a list": (lambda x: torch.cat([x[:, k : k + 1] for k in range(len(x[0]))], 1), 196),
    "unbind": (lambda x: torch.stack([c * 0.5 for c in x.unbind(1)], 1), 196),
    "unbind of the last": (lambda x: torch.stack(list(torch.unbind(x, -1)), dim=-1), 196),
    "tensor_split": (lambda x: sum(torch.tensor_split(x, 2, dim=1)), 98),  # type: ignore[arg-type,return-value]
}


@pytest.mark.parametrize("name", CONVERTED)
def test_questions_about_sizes_are_answered(name: str) -> None:
    torch.manual_seed(0)
    function, size = CONVERTED[name]
    net, x = Net(function, size), torch.rand(5, 2, 7, 7)
    graph = canonicalize(net, x).graph
    for batch in (x[:1], x):  # no size of a batch is kept
        torch.testing.assert_close(graph(batch), net(batch), rtol=1e-4, atol=1e-5)
    assert "len" not in globals()


REFUSED: dict[str, Callable[[Tensor], Tensor]] = {
    "a branch that depends on the values of a tensor": lambda x: x if x.sum() > 0 else -x,
    "a branch that depends on the size of the batch": lambda x: x if x.shape[0] > 1 else 2 * x,
    "a loop that depends on the size of the batch": lambda x: torch.stack([sample.flatten() for sample in x]),
    "a number that depends on the size of the batch": lambda x: sum((x for _ in range(x.size(0))), x),
}


@pytest.mark.parametrize("message", REFUSED)
def test_questions_that_have_no_one_answer_are_refused(message: str) -> None:
    with pytest.raises(ValueError, match=f"ann: got Net, which cannot be traced \\({message}; test_tracing.py, line"):
        canonicalize(Net(REFUSED[message], 196), torch.rand(5, 2, 7, 7))


def test_a_branch_on_a_parameter_takes_its_value() -> None:
    class Gained(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain, self.layer, self.head = nn.Parameter(torch.tensor(2.0)), nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.layer(x)
            return self.head(torch.relu(self.gain * x if self.gain > 1 else x))

    net, x = Gained(), torch.rand(3, 4)
    torch.testing.assert_close(canonicalize(net, x).graph(x), net(x))


def test_a_net_for_one_batch_size_is_told_which_operation_fails() -> None:
    net, x = Net(lambda x: x.view(1, 196), 196), torch.rand(1, 2, 7, 7)
    with pytest.raises(ValueError, match="got view, which fails for 2 samples .*, want a net for any batch size"):
        canonicalize(net, x)


@torch.fx.wrap
def hidden(x: Tensor, sizes: list[int]) -> Tensor:
    """Keep its operations from a trace, and change its list."""
    sizes[0] += 1
    return x * x


def test_a_function_that_is_kept_whole_is_named() -> None:
    with pytest.raises(ValueError, match="the call of hidden .*want its operations in the forward pass itself"):
        canonicalize(Net(lambda x: hidden(x, [0]), 196), torch.rand(2, 2, 7, 7))


def test_precharge_is_found_for_the_output_that_was_converted() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head, self.aux = nn.Linear(4, 8), nn.Linear(8, 2), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            x = self.layer(x).relu()
            return {"out": self.head(x), "aux": self.aux(x)}

    net, x = Two(), torch.rand(16, 4)
    snn = convert(net, x, method="data-norm", output="out")
    assert len(optimize_precharge(snn, net, x, time_steps=8, output="out")) == 1
    with pytest.raises(ValueError, match="output='out'"):
        optimize_precharge(snn, net, x, time_steps=8)


class Upsampled(nn.Module):
    """A segmentation net: its output has the size of its input, by a size that it asks for or by a factor."""

    def __init__(self, by_size: bool) -> None:
        super().__init__()
        self.by_size, self.down, self.head = by_size, nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(self.down(x).relu())
        return F.interpolate(y, size=x.shape[-2:]) if self.by_size else F.interpolate(y, scale_factor=2)


@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_a_size_that_is_asked_for_binds_the_net_to_it_and_a_factor_does_not(step_mode: str, tmp_path: Path) -> None:
    x, larger = torch.rand(2, 2, 8, 8), torch.rand(2, 2, 16, 16)
    sized, free = (convert(Upsampled(by_size), x, method="data-norm") for by_size in (True, False))
    save(sized, tmp_path / "net.pt")
    for net in (sized, load(tmp_path / "net.pt"), copy.deepcopy(sized), sized.to_snntorch()):
        with pytest.raises(ValueError, match=r"x: got inputs \[2, 16, 16\], want \[2, 8, 8\] as in the calibration"):
            evaluate(net, [larger], 4)
    assert next(iter(Simulation(free).run(larger, 1))).shape[2:] == (3, 16, 16)
    for net, right in ((sized, False), (free, True)):
        net.step_mode = step_mode
        inputs = larger if step_mode == "s" else larger.expand(3, *larger.shape)
        if right:
            assert net(inputs).shape[-2:] == (16, 16)
        else:
            with pytest.raises(ValueError, match="as in the calibration"):
                net(inputs)
        functional.reset_net(net)
        assert net(inputs[..., :8, :8]).shape[-2:] == (8, 8)


READ: dict[str, Callable[[Tensor], Tensor]] = {
    "item in a branch": lambda x: x / 255 if x.max().item() > 1 else x,
    "item in arithmetic": lambda x: x / x.max().item(),
    "tolist": lambda x: x - x.flatten().tolist()[0],
    "any": lambda x: x / 2 if torch.any(x > 1).item() else x,
}


@pytest.mark.parametrize("name", READ)
def test_numbers_that_are_read_from_values_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="(depends on|reads) the values of a tensor"):
        canonicalize(Net(READ[name], 196), torch.rand(5, 2, 7, 7))


BATCHES: dict[str, Callable[[Tensor], Tensor]] = {
    "one less": lambda x: x if x.shape[0] - 1 else 2 * x,
    "a quotient": lambda x: x * (x.shape[0] // 4 + 1),
}


@pytest.mark.parametrize("samples", [1, 3, 6])
@pytest.mark.parametrize("name", BATCHES)
def test_arithmetic_with_the_size_of_the_batch_is_refused(name: str, samples: int) -> None:
    with pytest.raises(ValueError, match="(size of the batch|batch size|depends on a size)"):
        canonicalize(Net(BATCHES[name], 196), torch.rand(samples, 2, 7, 7))


def padded_to_a_multiple(x: Tensor) -> Tensor:
    more = -x.shape[-1] % 16
    return F.pad(x, (0, more, 0, more)) if more else x


def same(x: Tensor) -> Tensor:
    height, width = x.size()[-2:]
    more = [max((math.ceil(size / 2) - 1) * 2 + 3 - size, 0) for size in (width, height)]
    return F.avg_pool2d(F.pad(x, [more[0] // 2, more[0] - more[0] // 2, more[1] // 2, more[1] - more[1] // 2]), 3, 2)


SIZED: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "padded to a multiple": (padded_to_a_multiple, 20),
    "as tensorflow pads": (same, 15),
    "small ones enlarged": (lambda x: F.interpolate(x, scale_factor=2) if x.shape[-1] < 16 else x, 8),
    "large ones reduced": (lambda x: F.avg_pool2d(x, 2) if x.shape[-1] > 40 else x, 48),
}


class Global(nn.Module):
    """A net for images of any size, behind a function."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function, self.conv, self.head = function, nn.Conv2d(2, 4, 3, padding=1), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(self.function(x)).relu().mean((2, 3)))


@pytest.mark.parametrize("name", SIZED)
def test_a_branch_on_the_size_of_images_binds_the_net_to_one_size(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    function, other = SIZED[name]
    snn = convert(Global(function), torch.rand(2, 2, 16, 16), method="data-norm")
    with pytest.raises(ValueError, match="as in the calibration"):
        snn(torch.rand(2, 2, other, other))
    free = convert(Global(lambda x: x), torch.rand(2, 2, 16, 16), method="data-norm")
    assert free(torch.rand(2, 2, other, other)).shape == (2, 3)
    assert "Traceback" not in capfd.readouterr().err


class Named(NamedTuple):
    """Two outputs."""

    a: Tensor
    b: Tensor


@pytest.mark.parametrize("output", [1, -1, "b"])
def test_an_output_of_a_named_tuple_has_a_name_and_a_place(output: Any) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Named:
            x = self.layer(x).relu()
            return Named(x, self.head(x))

    net, x = Two(), torch.rand(5, 4)
    torch.testing.assert_close(canonicalize(net, x, output=output).output, net(x).b)


def test_an_input_with_a_default_is_the_input() -> None:
    class Optional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
            if x is None:
                raise ValueError("You have to specify x")
            return self.head(self.layer(x).relu())

    net, x = Optional(), torch.rand(5, 4)
    torch.testing.assert_close(canonicalize(net, x).output, net(x))


def test_nets_are_traced_in_threads_that_count_samples() -> None:
    net, x = Net(lambda x: x.view(len(x), -1), 196), torch.rand(2, 2, 7, 7)
    with ThreadPoolExecutor(4) as pool:
        assert len(list(pool.map(lambda _: canonicalize(net, x), range(24)))) == 24
    assert "len" not in globals()


NUMBERS: dict[str, Callable[[Tensor], Tensor]] = {
    "numpy of a list": lambda x: x.reshape(-1, int(np.prod(list(x.shape[1:])))),
    "numpy's number": lambda x: x.view(-1, np.prod(x.size()[1:])),
    "int of a float": lambda x: x[..., : int(x.shape[-1] * 1.0)],
    "round": lambda x: x[..., : round(x.shape[-1] / 1)],
    "data": lambda x: x.view(x.data.size(0), -1),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_from_sizes_are_numbers(name: str) -> None:
    net, x = Net(NUMBERS[name], 196), torch.rand(3, 2, 7, 7)
    torch.testing.assert_close(canonicalize(net, x).output, net(x), rtol=1e-4, atol=1e-5)


def test_a_constant_that_is_expanded_to_the_batch_is_named() -> None:
    class Coordinates(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rows, self.conv = nn.Parameter(torch.linspace(-1, 1, 7).view(1, 1, 7, 1)), nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(torch.cat([x, self.rows.expand(x.shape[0], 1, 7, 7)], 1)).relu().mean((2, 3))

    with pytest.raises(ValueError, match="expand of a constant to the size of the batch"):
        canonicalize(Coordinates(), torch.rand(3, 2, 7, 7))


def test_other_obstacles_of_a_trace_are_not_called_branches() -> None:
    with pytest.raises(
        ValueError, match="not installed as a submodule.*want a forward pass that torch.fx can trace: layers"
    ):
        canonicalize(Net(lambda x: nn.BatchNorm2d(4).eval()(x), 196), torch.rand(2, 2, 7, 7))


def test_lazy_layers_that_never_ran_are_named() -> None:
    with pytest.raises(ValueError, match="ann: got 'lazy layers without a shape', want a net that ran once"):
        convert(nn.Sequential(nn.LazyLinear(3), nn.ReLU(), nn.LazyLinear(2)), torch.rand(2, 4))
