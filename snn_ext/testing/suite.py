"""The base of the checks: a neuron, how its host runs, resets and detaches it, and the register of the checks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..hosts import Host

__all__ = [
    "CHECKS",
    "Check",
    "Factory",
    "SnnTorchSuite",
    "SpikingJellySuite",
    "Suite",
    "assert_equal",
    "check",
    "grid_input",
    "spikes_of",
]

Factory = Callable[[], nn.Module]
Check = Callable[["Suite"], None]

CHECKS: dict[Host, dict[str, Check]] = {"spikingjelly": {}, "snntorch": {}}
"""The checks of each host by name."""


def check(host: Literal["both"] | Host) -> Callable[[Check], Check]:
    """Register a function of a suite as a check for one host or for both, under the name of the function."""

    def register(function: Check) -> Check:
        for each in CHECKS if host == "both" else (host,):
            CHECKS[each][function.__name__] = function
        return function

    return register


def grid_input(time_steps: int, shape: tuple[int, ...], seed: int = 0, step: float = 1 / 16) -> Tensor:
    """Return input on a grid around 0.3, where charges meet thresholds exactly: random data hides wrong ties.

    Examples
    --------
    >>> grid_input(4, (2, 3)).shape
    torch.Size([4, 2, 3])
    """
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-10, 21, (time_steps, *shape), generator=generator) * step


@dataclass
class Suite:
    factory: Factory
    time_steps: int
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        self.parameters = self.factory().state_dict()

    def new(self, **settings: Any) -> Any:
        """Return a fresh neuron with the suite's parameters."""
        neuron = self.factory()
        neuron.load_state_dict(self.parameters)
        for name, value in settings.items():
            setattr(neuron, name, value)
        return neuron

    def inputs(self) -> list[Tensor]:
        generator = torch.Generator().manual_seed(1)
        random = torch.randn((self.time_steps, *self.shape), generator=generator) * 0.6 + 0.3
        return [random, grid_input(self.time_steps, self.shape)]

    def has_modes(self, *modes: str) -> bool:
        raise NotImplementedError

    def has_explicit_mem(self) -> bool:
        """Return True if ``mem`` may be passed along; a neuron with more state has ``explicit_mem = False``."""
        return bool(getattr(self.factory(), "explicit_mem", True))

    def sequence(self, neuron: Any, x_seq: Tensor) -> Tensor:
        """Run multi-step where the neuron has it, else step by step."""
        if self.has_modes("m"):
            neuron.step_mode = "m"
            return spikes_of(neuron(x_seq))
        return self.steps(neuron, x_seq)

    def steps(self, neuron: Any, x_seq: Tensor) -> Tensor:
        if self.has_modes("m"):
            neuron.step_mode = "s"
        return torch.stack([spikes_of(neuron(x)) for x in x_seq])

    def state(self, neuron: Any) -> list[Any]:
        raise NotImplementedError

    def reset(self, neuron: Any) -> None:
        raise NotImplementedError

    def detach(self, neuron: Any) -> None:
        raise NotImplementedError


class SpikingJellySuite(Suite):
    def has_modes(self, *modes: str) -> bool:
        supported = self.factory().supported_step_mode()  # type: ignore[operator]
        return all(mode in supported for mode in modes)

    def state(self, neuron: Any) -> list[Any]:
        return list(neuron._memories.values())

    def reset(self, neuron: Any) -> None:
        from spikingjelly.activation_based import functional

        functional.reset_net(neuron)

    def detach(self, neuron: Any) -> None:
        from spikingjelly.activation_based import functional

        functional.detach_net(neuron)


class SnnTorchSuite(Suite):
    def __post_init__(self) -> None:
        super().__post_init__()
        self._modes = ("s", "m") if hasattr(self.factory(), "step_mode") else ("s",)

    def has_modes(self, *modes: str) -> bool:
        return all(mode in self._modes for mode in modes)

    def state(self, neuron: Any) -> list[Any]:
        return [neuron.mem]

    def reset(self, neuron: Any) -> None:
        from snntorch import utils

        utils.reset(nn.Sequential(neuron))

    def detach(self, neuron: Any) -> None:
        type(neuron).detach_hidden()


def spikes_of(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def assert_equal(what: str, got: Any, want: Any) -> None:
    if isinstance(want, list | tuple):
        assert len(got) == len(want), f"{what}: {len(got)} of them, want {len(want)}"
        for i, (a, b) in enumerate(zip(got, want, strict=True)):
            assert_equal(f"{what} {i}", a, b)
    elif isinstance(want, Tensor):
        assert isinstance(got, Tensor) and got.shape == want.shape, f"{what}: got {got}, want shape {list(want.shape)}"
        assert got.dtype == want.dtype, f"{what}: got {got.dtype}, want {want.dtype}"
        wrong = int((got != want).sum())
        assert torch.equal(got, want), f"{what}: {wrong} of {want.numel()} values differ"
    else:
        assert got == want, f"{what}: got {got}, want {want}"
