"""Batch norm whose statistics are those of the whole batch, also where several processes share it."""

from __future__ import annotations

import torch
import torch.distributed as dist
from spikingjelly.activation_based import layer
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

__all__ = ["GlobalBatchNorm2d", "GlobalBatchNormSequence2d"]


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """``nn.BatchNorm2d``; in training under DDP its mean and variance are taken over all processes.

    It is ``nn.BatchNorm2d`` to the last bit in a single process and in eval mode. ``nn.SyncBatchNorm`` does the same
    sums on CUDA only, and on ``[T, N, C, H, W]`` it would take the batch for the channels.

    Notes
    -----
    Every process has to bring the same number of samples.
    """

    def forward(self, x: Tensor) -> Tensor:
        processes = dist.get_world_size() if dist.is_initialized() else 1
        if not self.training or processes == 1:
            return super().forward(x)
        dtype, x = x.dtype, x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        count = processes * x.numel() // x.shape[1]
        mean = all_reduce(x.sum((0, 2, 3))) / count
        centred = x - mean[:, None, None]
        var = all_reduce(centred.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
            self.running_var.lerp_((var * count / (count - 1)).to(self.running_var), self.momentum)
        y = centred * torch.rsqrt(var + self.eps)[:, None, None]
        return (y * self.weight[:, None, None] + self.bias[:, None, None]).to(dtype)


class GlobalBatchNormSequence2d(layer.BatchNorm2d, GlobalBatchNorm2d):
    """The same with SpikingJelly's step mode: it flattens ``[T, N, ...]`` and calls the class above."""
