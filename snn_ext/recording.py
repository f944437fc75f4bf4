"""Recording what arrives at the neurons of a net: the data from which thresholds are calibrated."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ._errors import bad_type, bad_value, check_count
from .replacement import is_neuron, reset_neurons

__all__ = ["record_inputs"]


def record_inputs(
    net: nn.Module,
    batches: Iterable[Any],
    *,
    modules: Callable[[nn.Module], bool] = is_neuron,
    limit: int = 100_000,
) -> dict[nn.Module, Tensor]:
    """Run a net over some batches and keep a sample of the inputs of each of its neurons.

    The net runs in eval mode and without gradient, reset before every batch and at the end; the training flag of every
    module is restored. Use it before :func:`snn_ext.replace_neurons`, with
    :func:`snn_ext.functional.best_threshold`. The keys are modules: to copy a net with its records, copy both at once,
    ``copy.deepcopy((net, records))``.

    Parameters
    ----------
    net : nn.Module
        Any net; its neurons, ``nn.ReLU`` included, are found at any depth.
    batches : iterable
        Inputs, or tuples that begin with the input, such as a ``DataLoader`` yields.
    modules : callable
        Which modules to record; every neuron by default.
    limit : int
        Number of values kept for a module and batch, evenly spaced over the flattened input.

    Returns
    -------
    dict of nn.Module to Tensor
        One flat float32 tensor on the CPU for each recorded module, in the order of ``net.modules()``.

    Raises
    ------
    ValueError
        If the net has no such module, or one of them never ran, or what reaches one is not finite.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from snn_ext import record_inputs
    >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    >>> record_inputs(net, [torch.rand(2, 4)])[net[1]].shape
    torch.Size([6])
    """
    if not isinstance(net, nn.Module):
        bad_type("net", net, "an nn.Module")
    check_count("limit", limit)
    found = [m for m in net.modules() if modules(m)]
    if not found:
        bad_value("net", type(net).__name__, "a net with at least one module to record (nn.ReLU or a spiking neuron)")
    records: dict[nn.Module, list[Tensor]] = {m: [] for m in found}

    def keep(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        x = (*inputs, *named.values())[0].detach().flatten()
        stride = max(1, -(-x.numel() // limit))
        # A copy: an in-place ReLU is about to write to the input, and a view would keep all of it in memory.
        records[module].append(x[::stride].to("cpu", torch.float32, copy=True))

    modes = {m: m.training for m in net.modules()}
    hooks: list[Any] = []
    try:
        hooks += (m.register_forward_pre_hook(keep, with_kwargs=True) for m in found)
        net.eval()
        with torch.no_grad():
            for batch in batches:
                reset_neurons(net)
                net(batch[0] if isinstance(batch, tuple | list) else batch)
    finally:
        for hook in hooks:
            hook.remove()
        for m, training in modes.items():
            m.training = training
        reset_neurons(net)
    silent = [name for name, m in net.named_modules() if m in records and not records[m]]
    if silent:
        bad_value("batches", f"nothing that reaches {', '.join(silent)}", "at least one batch that runs the whole net")
    joined = {m: torch.cat(parts) for m, parts in records.items()}
    for name, m in net.named_modules():
        if m in joined and not bool(joined[m].isfinite().all()):
            bad_value("batches", f"NaN or infinite values that reach {name}", "finite numbers")
    return joined
