"""Nets that the conversion tests share, and the plain loop that everything is held against."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from spikingjelly.activation_based import functional
from torch import Tensor, nn

Make = Callable[[], nn.Module]


class Block(nn.Module):
    """A basic block; with ``shared`` one ReLU is called twice, as in torchvision."""

    def __init__(self, inputs: int, outputs: int, stride: int, relu: Make, shared: bool = True) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(inputs, outputs, 3, stride, 1), nn.BatchNorm2d(outputs)
        self.conv2, self.norm2 = nn.Conv2d(outputs, outputs, 3, 1, 1), nn.BatchNorm2d(outputs)
        self.relu = relu()
        self.relu2 = self.relu if shared else relu()
        shortcut = [nn.Conv2d(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)]
        self.shortcut = nn.Sequential(*shortcut) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))
        h += self.shortcut(x)
        return self.relu2(h)


class ResNet(nn.Module):
    def __init__(self, relu: Make = nn.ReLU) -> None:
        super().__init__()
        self.stem, self.relu, self.pool = nn.Conv2d(2, 6, 3, padding=1), relu(), nn.MaxPool2d(2)
        self.blocks = nn.Sequential(Block(6, 6, 1, relu), Block(6, 8, 2, relu), Block(8, 8, 1, relu))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        size = x.size(0)
        x = self.blocks(self.pool(self.relu(self.stem(x))))
        return self.head(x.mean([2, 3]).view(size, -1))


def vgg(relu: Make = nn.ReLU, pool: Make = lambda: nn.AvgPool2d(2)) -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), relu(), nn.Dropout(0.5)),
        *(nn.Conv2d(6, 8, 3, padding=1), relu(), pool()),
        *(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), relu(), pool()),
        *(nn.Flatten(), nn.Linear(32, 12), nn.BatchNorm1d(12), relu(), nn.Linear(12, 5)),
    )


def images(samples: int = 8, size: int = 8) -> Tensor:
    """Inputs on a 1/16 grid."""
    return torch.randint(0, 17, (samples, 2, size, size)) / 16


def trained(net: nn.Module) -> nn.Module:
    """Give batch norm running statistics and affine parameters as training does, and put the net in eval mode."""
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 2.0)
            nn.init.uniform_(module.bias, -0.2, 0.3)
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.3, 2.0)
    return net.eval()


def dyadic(net: nn.Module, bits: int = 5, gain: float = 4.0) -> nn.Module:
    """Make all arithmetic exact: weights and biases on a grid, batch norm that does nothing."""
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eps = 1e-30  # nothing beside a variance; torch 2.11 takes no 0
            elif isinstance(module, nn.Conv2d | nn.Linear):
                for parameter in module.parameters():
                    parameter.copy_((gain * parameter * 2**bits).round() / 2**bits)
    return net.eval()


def loop(net: nn.Module, x: Tensor, time_steps: int) -> Tensor:
    """Run a net step by step, the host's own way: ``[T, N, ...]``."""
    functional.reset_net(net)
    with torch.no_grad():
        steps = torch.stack([net(x) for _ in range(time_steps)])
    functional.reset_net(net)
    return steps


def spikes_of(net: nn.Module, x: Tensor, time_steps: int) -> dict[str, Tensor]:
    """Return the trains of all neurons by name, from the plain loop."""
    found: dict[str, list[Tensor]] = {}
    hooks = [
        module.register_forward_hook(lambda m, i, o, name=name: found.setdefault(name, []).append(o))
        for name, module in _stateful(net)
    ]
    loop(net, x, time_steps)
    for hook in hooks:
        hook.remove()
    return {name: torch.stack(steps) for name, steps in found.items()}


def _stateful(net: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in net.named_modules():
        if getattr(module, "_memories", None):
            yield name, module
