"""Reset, detach and backpropagation through time for whole nets."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import snntorch as snn
import torch
from snntorch import functional as SF
from torch import Tensor, nn

from .._errors import bad_type, bad_value, check_bool, check_count
from .host import HostNeuron
from .sequence import check_steps, whole_sequence

__all__ = ["bptt", "detach", "reset"]


def reset(net: nn.Module) -> None:
    """Reset every neuron of a net, at any depth, ours and the host's; nothing outside the net.

    ``snntorch.utils.reset`` sees neurons at the top level only, and then resets every net of the process.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from snn_ext.snntorch import ATIFu
    >>> net = nn.Sequential(nn.Sequential(ATIFu(init_hidden=True)))
    >>> first = net(torch.full((1,), 0.75)); reset(net); torch.equal(net(torch.full((1,), 0.75)), first)
    True
    """
    for neuron in _neurons(net):
        for name in ("reset_mem", "init_leaky", "init_synaptic", "init_alpha", "init_lapicque"):
            if hasattr(neuron, name):
                getattr(neuron, name)()
                break
    for module in net.modules():  # a converted net may hold stateful modules of the other host's kind: poolings
        if hasattr(module, "_memories"):
            module.reset()  # type: ignore[operator]


def detach(net: nn.Module) -> None:
    """Cut the state of every neuron of a net off the graph, at any depth, ours and the host's.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from snn_ext.snntorch import ATIFu
    >>> net = nn.Sequential(ATIFu(init_hidden=True, output=True))
    >>> _ = net(torch.ones(1, requires_grad=True)); detach(net); net[0].mem.requires_grad
    False
    """
    for neuron in _neurons(net):
        if isinstance(neuron, HostNeuron):
            neuron.detach_mem()
        else:
            for name, buffer in neuron._buffers.items():
                if buffer is not None and buffer.requires_grad:
                    neuron._buffers[name] = buffer.detach()


def bptt(
    net: nn.Module,
    dataloader: Iterable[tuple[Tensor, Tensor]],
    optimizer: torch.optim.Optimizer,
    criterion: Callable[[Tensor, Tensor], Tensor],
    num_steps: int | bool = False,
    time_var: bool = True,
    time_first: bool = True,
    regularization: Callable[[Tensor], Tensor] | bool = False,
    device: str | torch.device = "cpu",
) -> Tensor:
    """Train one epoch by backpropagation through time over whole sequences, as ``snntorch.backprop.BPTT`` step by step.

    The net is called once for a batch: time is flattened into the batch, ``[T * N, ...]``, for everything but the
    neurons, which see ``[T, N, ...]``. Spikes and loss equal those of the host's trainer, which calls the net T times,
    with batch norm in eval mode or frozen; in training mode batch norm sees all steps of a batch at once here.

    Parameters
    ----------
    net : nn.Module
        Returns ``(spk, mem)``: its last neuron has ``output=True``. All its neurons have ``init_hidden=True``. Those of
        this package, and ``snn.Leaky`` after :func:`snn_ext.accelerate`, run by the fused operator; others of the host
        run step by step. It takes the input of one step, as for the host's trainer.
    dataloader : iterable
        Yields ``(data, targets)``.
    optimizer : torch.optim.Optimizer
        Steps once a batch.
    criterion : callable
        ``criterion(spk_seq, targets)``, or on ``mem_seq`` for the membrane losses of ``snntorch.functional``; it gets
        ``[T, N, K]``.
    num_steps : int
        Number of steps, with ``time_var=False``.
    time_var : bool
        True for data that vary over time, ``[T, N, ...]``, or ``[N, T, ...]`` with ``time_first=False``; False for
        ``[N, ...]``, which is presented at every step.
    time_first : bool
        Position of the time axis in data that vary.
    regularization : callable, optional
        Added to the loss: ``regularization(spk_seq)``.
    device : str or torch.device
        Net and data are moved there.

    Returns
    -------
    Tensor
        Mean loss over the batches, 0-dim, detached.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong, before the first step of the optimizer.

    Examples
    --------
    >>> import torch
    >>> from snntorch import functional as SF
    >>> from torch import nn
    >>> from snn_ext.snntorch import ATIFu
    >>> net = nn.Sequential(nn.Linear(4, 3), ATIFu(init_hidden=True, output=True))
    >>> data = [(torch.rand(5, 4), torch.randint(3, (5,)))]
    >>> loss = bptt(net, data, torch.optim.SGD(net.parameters(), 0.1), SF.ce_count_loss(), num_steps=8, time_var=False)
    >>> bool(loss > 0)
    True
    """
    check_steps(net)
    for name, flag in (("time_var", time_var), ("time_first", time_first)):
        check_bool(name, flag)
    if time_var and num_steps:
        bad_value("num_steps", num_steps, "False with time_var=True: the data say how many steps there are")
    if not time_var and not time_first:
        bad_value("time_first", time_first, "True with time_var=False: the data have no time")
    if not time_var:
        check_count("num_steps", False if num_steps is False else num_steps)
    if not callable(criterion):
        bad_type("criterion", criterion, "a callable of (spikes [T, N, K], targets)")
    on_membrane = isinstance(criterion, SF.mse_membrane_loss | SF.ce_max_membrane_loss)
    for name in ("zero_grad", "step"):
        if not callable(getattr(optimizer, name, None)):
            bad_type("optimizer", optimizer, "a torch.optim.Optimizer")
    net.to(device)
    losses = []
    for data, targets in dataloader:
        data, targets = data.to(device), targets.to(device)
        if time_var and not time_first:
            data = data.transpose(0, 1)
        net.train()
        reset(net)
        spk, mem = _spikes_and_mem(net, data, None if time_var else int(num_steps))
        loss = criterion(mem if on_membrane else spk, targets)
        if regularization:
            loss = loss + regularization(spk)  # type: ignore[operator]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    if not losses:
        bad_value("dataloader", "no batch", "at least one")
    detach(net)
    return torch.stack(losses).mean()


def _spikes_and_mem(net: nn.Module, data: Tensor, num_steps: int | None) -> tuple[Tensor, Tensor]:
    out = whole_sequence(net, data, num_steps)
    if not (isinstance(out, tuple) and len(out) == 2):
        reset(net)
        bad_type("net", out, "a net that returns (spk, mem): give its last neuron output=True")
    return out


def _neurons(net: nn.Module) -> list[nn.Module]:
    if not isinstance(net, nn.Module):
        bad_type("net", net, "an nn.Module")
    return [m for m in net.modules() if isinstance(m, snn.SpikingNeuron)]
