"""A small case that compiled code has to get right before it is used."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..sequence import SEGMENT, SequenceImplementation, SequenceOp

__all__ = ["Agreement", "undisturbed"]

CPU = torch.device("cpu")


def undisturbed(test: Callable[[], bool]) -> bool:
    """Run a test in a new thread, where none of the caller's modes is on.

    Autocast, ``inference_mode``, a default device, the transforms of ``torch.func``, fake tensors and counters of
    operations all belong to a thread. The default dtype does not: a test names the dtype of everything it makes.

    Examples
    --------
    >>> with torch.device("meta"):
    ...     undisturbed(lambda: torch.ones(1).is_meta)
    False
    """
    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(test).result()


@dataclass(frozen=True)
class Agreement:
    """Compares an implementation with the one in torch on one case, forward and backward; True if they agree.

    ``case`` makes the inputs (sequence in the dtype that it is given, all else in float32) and the settings from a
    grid ``[T, N]`` of 0, 1, 2 ... on the CPU. Gradients come in for all outputs, and all that there are go out.
    """

    op: SequenceOp
    reference: SequenceImplementation
    case: Callable[[Tensor, torch.dtype], tuple[Any, Any]]

    def __call__(
        self,
        implementation: SequenceImplementation,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        time_steps: int = SEGMENT + 3,  # odd, for operators that flatten time: vectors of every width, and of one
    ) -> bool:
        """Return whether an implementation on a device agrees with torch on the CPU."""
        found, found_gradients = self._results(implementation, device, dtype, time_steps)
        want, want_gradients = self._results(self.reference, CPU, dtype, time_steps)
        same = torch.equal if self.op.exact else _close
        return all(map(same, found, want)) and all(map(_close, found_gradients, want_gradients))

    def _results(
        self, implementation: SequenceImplementation, device: torch.device, dtype: torch.dtype, time_steps: int
    ) -> tuple[list[Tensor], list[Tensor]]:
        op, size = self.op, 40 if time_steps <= SEGMENT else 37  # a multiple of every vector, and a prime
        # On the CPU: a user may have set another default device.
        grid = torch.arange(time_steps * size, dtype=torch.float32, device=CPU).reshape(time_steps, size)
        inputs, settings = self.case(grid, dtype)
        inputs = op.Inputs(*(None if array is None else array.to(device) for array in inputs))
        outputs, checkpoints = op.room(inputs, settings, True)
        kept = checkpoints if len(checkpoints) else None
        implementation.forward(inputs, settings, kept, op.Outputs(*outputs))
        gradients = op.room_for_gradients(inputs, (array is not None for array in inputs))
        incoming = grid.mul(0.3).remainder(1.0).to(device, dtype)
        there = [gradient if gradient.numel() else None for gradient in gradients]
        implementation.backward(
            inputs,
            settings,
            kept,
            op.Outputs(incoming, *outputs[1:]),
            op.Inputs(*there, *[None] * (len(inputs) - len(there))),
        )
        return [t.cpu() for t in (*outputs, checkpoints)], [t.cpu() for t in gradients]


def _close(found: Tensor, want: Tensor) -> bool:
    rough = 1e-4 if want.dtype == torch.float32 else 1e-2
    return torch.allclose(found, want, rtol=rough, atol=rough / 10)
