"""Cost of a clip in operations and energy, and the confusion matrix of the words."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from spikingjelly.activation_based import functional
from torch import Tensor, nn

from snn_ext import ConstantInputNet, evaluate
from snn_ext.evaluation import ENERGY_45NM, Evaluation

from ..models.keyword_nets import RecurrentLIF

__all__ = ["clip_cost", "confusion", "evaluation_cost"]

Batches = Iterable[tuple[Tensor, Tensor]]


def clip_cost(net: nn.Module, loader: Batches, time_steps: int) -> dict[str, float]:
    """Return multiply-accumulates, spikes, synaptic operations and energy of one clip, means over the clips.

    A spiking net pays its analog input once and every spike at each synapse that it meets; an analog net pays its
    multiply-accumulates. The energy is in nanojoule, by ``ENERGY_45NM``.
    """
    if isinstance(net, RecurrentLIF):
        return _recurrent_cost(net, loader)
    if net.time_steps is None:
        macs = _analog_macs(net, loader)
        return {"macs": macs, "energy_nj": ENERGY_45NM.analog(macs) / 1e3}
    spiking = ConstantInputNet(net.body, time_steps, stem=net.stem)
    return evaluation_cost(evaluate(spiking, loader, time_steps, progress=False))


def evaluation_cost(evaluation: Evaluation) -> dict[str, float]:
    """Return what :func:`clip_cost` returns, of an evaluation at its last step."""
    neurons = sum(layer.neurons for layer in evaluation.layers if layer.kind == "neuron")
    return {
        "macs": evaluation.input_macs, "spikes": float(evaluation.spikes[-1]),
        "spikes_per_neuron": float(evaluation.spikes[-1]) / neurons, "synops": float(evaluation.synops[-1]),
        "energy_nj": float(evaluation.energy()[-1]) / 1e3,
    }  # fmt: skip


@torch.no_grad()
def confusion(net: nn.Module, loader: Batches) -> Tensor:
    """Return how often each word (row) was taken for each (column), ``[words, words]``."""
    net.eval()
    counts: Tensor | None = None
    for features, labels in loader:
        scores = net(features)
        functional.reset_net(net)
        if scores.isnan().any():
            raise FloatingPointError("scores: got NaN, want numbers: the net is damaged")
        if counts is None:
            counts = torch.zeros(scores.shape[1], scores.shape[1], dtype=torch.int64)
        counts.index_put_((labels.cpu(), scores.argmax(1).cpu()), torch.ones((), dtype=torch.int64), accumulate=True)
    if counts is None:
        raise ValueError("loader: got no batch, want at least one")
    return counts


def _analog_macs(net: nn.Module, loader: Batches) -> int:
    """Count the multiply-accumulates of one clip by the shapes of the layers."""
    total = 0

    def count(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        total += output[0].numel() * module.weight[0].numel()

    hooks = [m.register_forward_hook(count) for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    try:
        net.eval()(next(iter(loader))[0])
    finally:
        for hook in hooks:
            hook.remove()
    return total


@torch.no_grad()
def _recurrent_cost(net: RecurrentLIF, loader: Batches) -> dict[str, float]:
    """A spike of the recurrent layer meets its own layer and the read-out; each frame is paid once."""
    net.eval()
    spikes = clips = frames = 0
    for features, _ in loader:
        spikes += int(net.spikes(features).sum())
        functional.reset_net(net)
        clips, frames = clips + len(features), features.shape[2]
    neurons = net.recurrent.in_features
    synops = spikes / clips * (neurons + net.readout.out_features)
    macs = frames * net.input.weight.numel()
    return {
        "macs": macs, "spikes": spikes / clips, "spikes_per_neuron": spikes / clips / neurons, "synops": synops,
        "energy_nj": ENERGY_45NM.spiking(synops, macs) / 1e3,
    }  # fmt: skip
