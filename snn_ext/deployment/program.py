"""``export_program``: a net as a program of ``torch.export``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from .._errors import first_line
from .function import SequenceFunction, StepFunction, function_of

__all__ = ["export_program"]


def export_program(
    net: nn.Module, x: Tensor, *, time_steps: int | None = None, streaming: bool = False, mean: bool = False
) -> ExportedProgram:
    """Return a net as a program without a state inside: with the loop over its steps, or of one step.

    Every call of a program with the loop starts afresh. The number of samples may change from call to call, the number
    of steps may not.

    Parameters
    ----------
    net : nn.Module
        A converted net, or a net of layers and neurons of either host whose forward pass is that of one step, or of a
        sequence in SpikingJelly's step mode "m". It stays as it is, in whatever mode and state.
    x : Tensor
        An example of the input: a sequence ``[T, N, ...]``, or with ``time_steps`` or ``streaming`` one step,
        ``[N, ...]``.
    time_steps : int, optional
        T: the program takes one input and shows it at every step, as a converted net expects it.
    streaming : bool
        Return the program of one step, ``y, states = program(x, reset, states)``, with the states of all layers as a
        dictionary. With ``reset=torch.tensor(True)`` a sequence starts, and the states that are given do not count.
    mean : bool
        Return the mean of the output over the steps, ``[N, ...]``, instead of the output of each, ``[T, N, ...]``.

    Returns
    -------
    torch.export.ExportedProgram
        It calls the fused operators of this package: import it before the program is loaded in another process.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong or a layer cannot be exported; the error names it.

    Examples
    --------
    >>> import snn_ext
    >>> from snn_ext.spikingjelly import ATIFuNode
    >>> net = nn.Sequential(nn.Linear(4, 3), ATIFuNode(0.5))
    >>> program = snn_ext.export_program(net, torch.rand(2, 4), time_steps=8)
    >>> program.module()(torch.rand(5, 4)).shape
    torch.Size([8, 5, 3])
    """
    function = function_of(net, x, time_steps, streaming, mean)
    return traced(function, function.samples, example_of(function, x))


def example_of(function: SequenceFunction | StepFunction, x: Tensor) -> tuple[Any, ...]:
    """Return arguments of a function of two samples or more: of one, torch would take the number as fixed."""
    x = x.detach()
    x = torch.cat([x, x], function.samples) if x.shape[function.samples] == 1 else x
    if not isinstance(function, StepFunction):
        return (x,)
    with torch.no_grad():
        return x, torch.tensor(True), function.initial_states(x)


@torch.no_grad()
def traced(function: nn.Module, samples: int, arguments: tuple[Any, ...]) -> ExportedProgram:
    """Return the program of a function for any number of samples, which is that dimension of the input.

    ``ValueError`` with torch's reason if there is no such program.
    """
    batch = Dim.DYNAMIC
    x, *more = arguments
    shapes: list[Any] = [{samples: batch}]
    if more:
        shapes += [{}, {name: {0: batch} if state.ndim else {} for name, state in more[1].items()}]
    try:
        return torch.export.export(function, arguments, dynamic_shapes=tuple(shapes), strict=False)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of many kinds, for anything that a forward pass may do
        raise ValueError(
            f"net: got {first_line(error)}, want a net that torch.export can trace for any number of samples"
        ) from error
