"""Training nets of spiking neurons: parameter groups, the loss of a sequence, an epoch, a net of constant input."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ._errors import bad_type, bad_value, check_bool, check_count, check_real
from .hosts import host_of, reset_neurons
from .neurons import ThresholdNeuron
from .neurons.quantized import QuantizedActivation

__all__ = ["ConstantInputNet", "parameter_groups", "step_loss", "train_epoch"]


def parameter_groups(
    net: nn.Module, lr: float, threshold_lr: float | None = None, weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    """Return optimizer groups in which the parameters of neurons and quantised activations have no weight decay.

    Weight decay would pull thresholds towards zero. Neurons are found at any depth, those of the hosts included; of the
    latter only their own parameters count, not the weights of recurrent layers inside them.

    Parameters
    ----------
    net : nn.Module
        Any net; without parameters in neurons, there is one group.
    lr, threshold_lr : float
        Learning rates of the weights and of the neurons' parameters; the same by default.
    weight_decay : float
        Of the weights alone.

    Returns
    -------
    list of dict
        The group of the weights, and behind it the group of the neurons' parameters, if there are any.

    Examples
    --------
    >>> from snn_ext.spikingjelly import ATIFuNode
    >>> net = nn.Sequential(nn.Linear(8, 8), ATIFuNode(), nn.Linear(8, 2))
    >>> weights, thresholds = parameter_groups(net, lr=1e-2, threshold_lr=1e-3, weight_decay=5e-4)
    >>> [len(group["params"]) for group in (weights, thresholds)]
    [4, 1]
    >>> optimizer = torch.optim.SGD([weights, thresholds])
    """
    if not isinstance(net, nn.Module):
        bad_type("net", net, "an nn.Module")
    threshold_lr = lr if threshold_lr is None else threshold_lr
    for name, value in (("lr", lr), ("threshold_lr", threshold_lr), ("weight_decay", weight_decay)):
        check_real(name, value, "a finite number >= 0", 0.0)
    of_neurons = {  # as an ordered set: a neuron that stands in two places counts once
        parameter: None
        for module in net.modules()
        if host_of(module) is not None or isinstance(module, QuantizedActivation)
        for parameter in module.parameters(recurse=isinstance(module, ThresholdNeuron))
    }
    weights = [parameter for parameter in net.parameters() if parameter not in of_neurons]
    groups: list[dict[str, Any]] = [{"params": weights, "lr": lr, "weight_decay": weight_decay}]
    if of_neurons:
        groups.append({"params": list(of_neurons), "lr": threshold_lr, "weight_decay": 0.0})
    return groups


def step_loss(
    outputs: Tensor,
    labels: Tensor,
    teacher: Tensor | None = None,
    *,
    every_step: bool = False,
    distillation: float = 0.5,
    temperature: float = 1.0,
) -> Tensor:
    r"""Return the loss of a classifier that answers at every step.

    .. math::
        \mathcal L = (1 - a)\, H(y, \sigma(o)) + a\, \tau^2\, \mathrm{KL}(\sigma(z / \tau) \,\|\, \sigma(o / \tau))

    with the cross entropy H, the softmax :math:`\sigma`, and the output o, which is the mean over the steps; with
    ``every_step`` it is the output of each, and the loss the mean over them. Without a teacher, a = 0.

    Parameters
    ----------
    outputs : Tensor
        ``[T, N, classes]``.
    labels : Tensor
        y, ``[N]``, or ``[N, classes]`` as probabilities.
    teacher : Tensor, optional
        z, the logits of another net for the same samples, ``[N, classes]``.
    every_step : bool
        Let each step answer for itself, instead of all together.
    distillation : float
        a, in [0, 1]: the weight of the teacher.
    temperature : float
        :math:`\tau`, > 0.

    Notes
    -----
    Loss at every step: Deng et al. 2022, *Temporal efficient training*, without its regularisation. Distillation:
    Hinton et al. 2015.

    Examples
    --------
    >>> outputs = torch.tensor([[[4.0, 0.0]], [[-2.0, 0.0]]])          # right at the first step, wrong at the second
    >>> [round(step_loss(outputs, torch.tensor([0]), every_step=each).item(), 2) for each in (False, True)]
    [0.31, 1.07]
    """
    if not isinstance(outputs, Tensor) or outputs.ndim != 3 or not outputs.is_floating_point():
        bad_value("outputs", outputs, "floating [T, N, classes]")
    numbers = isinstance(labels, Tensor) and labels.shape == outputs.shape[1:2] and not labels.is_floating_point()
    if not numbers and (not isinstance(labels, Tensor) or labels.shape != outputs.shape[1:]):
        bad_value("labels", labels, f"class numbers [{outputs.shape[1]}], or probabilities {list(outputs.shape[1:])}")
    if teacher is not None and (not isinstance(teacher, Tensor) or teacher.shape != outputs.shape[1:]):
        bad_value("teacher", teacher, f"logits of the shape of one step, {list(outputs.shape[1:])}")
    share = check_real("distillation", distillation, "a number in [0, 1]", 0.0, 1.0)
    if check_real("temperature", temperature, "a finite number > 0") <= 0:
        bad_value("temperature", temperature, "a finite number > 0")
    answers = outputs if check_bool("every_step", every_step) else outputs.mean(0, keepdim=True)
    loss = torch.stack([F.cross_entropy(answer, labels) for answer in answers]).mean()
    if teacher is None:
        return loss
    wanted, found = ((logits / temperature).log_softmax(-1) for logits in (teacher, answers))
    distance = (wanted.exp() * (wanted - found)).sum(-1).mean()
    return (1.0 - share) * loss + share * temperature**2 * distance


def train_epoch(
    net: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    optimizer: torch.optim.Optimizer,
    time_steps: int | None = None,
    *,
    every_step: bool = False,
    teacher: nn.Module | None = None,
    distillation: float = 0.5,
    temperature: float = 1.0,
    on_step: Callable[[float], object] | None = None,
) -> float:
    """Train a classifier for one pass over some batches, spiking or analog, in either host; return the mean loss.

    A spiking net gets each input for T steps, reset before and behind, and its loss is :func:`step_loss`. Train a
    quantised net, swap its activations by :func:`snn_ext.replace_neurons`, and fine-tune the spiking net with the same
    function.

    Parameters
    ----------
    net : nn.Module
        ``[N, ...]`` to ``[N, classes]`` at each step, in snnTorch with ``init_hidden=True``; or a
        :class:`ConstantInputNet`, which has its number of steps.
    batches : iterable
        Inputs and labels, such as a ``DataLoader`` yields, on the device of the net.
    optimizer : Optimizer
        Of the parameters of the net; see :func:`parameter_groups`.
    time_steps : int, optional
        T; ``None`` for an analog net or a :class:`ConstantInputNet`.
    every_step, distillation, temperature
        As in :func:`step_loss`.
    teacher : nn.Module, optional
        An analog net, whose logits are to be learned too; it runs in eval mode.
    on_step : callable, optional
        Called with the loss after every step of the optimizer, as for a schedule of learning rates.

    Examples
    --------
    >>> from snn_ext import QuantizedReLU, replace_neurons
    >>> from snn_ext.spikingjelly import ATIFuNode
    >>> net = nn.Sequential(nn.Linear(4, 8), QuantizedReLU(4), nn.Linear(8, 2))
    >>> batches = [(torch.rand(16, 4), torch.randint(2, (16,)))]
    >>> optimizer = torch.optim.SGD(parameter_groups(net, lr=0.1))
    >>> analog_loss = train_epoch(net, batches, optimizer)
    >>> replace_neurons(net, lambda old: ATIFuNode())
    1
    >>> optimizer = torch.optim.SGD(parameter_groups(net, lr=0.01))
    >>> spiking_loss = train_epoch(net, batches, optimizer, time_steps=4, every_step=True)
    """
    if not isinstance(net, nn.Module):
        bad_type("net", net, "an nn.Module")
    if teacher is not None and not isinstance(teacher, nn.Module):
        bad_type("teacher", teacher, "an nn.Module")
    if not hasattr(optimizer, "zero_grad"):
        bad_type("optimizer", optimizer, "a torch.optim.Optimizer")
    if isinstance(net, ConstantInputNet) and time_steps is not None:
        bad_value("time_steps", time_steps, "None for a ConstantInputNet, which has its own number of steps")
    stepped = net if isinstance(net, ConstantInputNet) else ConstantInputNet(net, time_steps)
    total = steps = 0.0
    net.train()
    try:
        for batch in batches:
            if not isinstance(batch, tuple | list) or len(batch) != 2:
                bad_type("batches", batch, "pairs (inputs, labels)")
            x, labels = batch
            reset_neurons(net)
            logits = None if teacher is None else _logits(teacher, x)
            loss = step_loss(
                stepped.outputs(x), labels, logits,
                every_step=every_step, distillation=distillation, temperature=temperature,
            )  # fmt: skip
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            value = loss.item()
            total, steps = total + value, steps + 1
            if on_step is not None:
                on_step(value)
    finally:
        reset_neurons(net)
    if not steps:
        bad_value("batches", "no batch", "at least one")
    return total / steps


@torch.no_grad()
def _logits(teacher: nn.Module, x: Tensor) -> Tensor:
    modes = {module: module.training for module in teacher.modules()}
    teacher.eval()
    try:
        logits: Tensor = teacher(x)
        return logits
    finally:
        for module, training in modes.items():
            module.training = training


class ConstantInputNet(nn.Module):
    """A spiking net that gets one constant input for T steps, and returns the mean of its outputs: direct coding.

    From outside it looks like the analog net, ``[N, ...]`` to ``[N, classes]``, and with ``time_steps=None`` it is that
    net. The stem, usually the first convolution, does not see time: it runs once, and its result is the current into
    the body at every step. A body in step mode "m" gets the whole sequence ``[T, N, ...]`` at once, any other one is
    called T times. The neurons are not reset: do it before each call, as for any other net of the host.
    :func:`snn_ext.evaluate` takes the trained net as it is.

    Parameters
    ----------
    body : nn.Module
        Begins with the first neurons. Any layers of either host; in snnTorch with ``init_hidden=True``.
    time_steps : int, optional
        T; an attribute that may be set later.
    stem : nn.Module, optional
        Layers without state, of plain PyTorch: SpikingJelly's ``set_step_mode`` does not touch these.

    Examples
    --------
    An analog net, calibrated, then spiking:

    >>> from spikingjelly.activation_based import functional
    >>> from snn_ext import calibrate
    >>> from snn_ext.spikingjelly import ATIFuNode
    >>> net = ConstantInputNet(nn.Sequential(nn.ReLU(), nn.Linear(6, 2)), stem=nn.Linear(4, 6))
    >>> x = torch.rand(5, 4)
    >>> _ = calibrate(net, [x], lambda relu: ATIFuNode(scale_output=True), time_steps=4)
    >>> functional.set_step_mode(net, "m")
    >>> net.time_steps = 4
    >>> net(x).shape
    torch.Size([5, 2])
    """

    def __init__(self, body: nn.Module, time_steps: int | None = None, *, stem: nn.Module | None = None) -> None:
        super().__init__()
        for name, module in (("body", body), ("stem", stem)):
            if not isinstance(module, nn.Module) and (name, module) != ("stem", None):
                bad_type(name, module, "an nn.Module")
        if time_steps is not None:
            check_count("time_steps", time_steps)
        self.stem = nn.Identity() if stem is None else stem
        self.body, self.time_steps = body, time_steps

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean output over the steps, ``[N, ...]``."""
        if self.time_steps is None:
            return self.body(self.stem(x))
        return self.outputs(x).mean(0)

    def outputs(self, x: Tensor) -> Tensor:
        """Return the output of every step, ``[T, N, ...]``; of the analog net as that of one step."""
        current = self.stem(x)
        if self.time_steps is None:
            return self.body(current).unsqueeze(0)
        if any(getattr(module, "step_mode", "s") == "m" for module in self.body.modules()):
            return self.body(current.expand(self.time_steps, *current.shape))
        return torch.stack([self.body(current) for _ in range(self.time_steps)])

    def one_step(self) -> nn.Module:
        """Return the net of a single step, of the same layers: the form in which a simulation runs it."""
        return nn.Sequential(OrderedDict(stem=self.stem, body=self.body))

    def extra_repr(self) -> str:
        return f"time_steps={self.time_steps}"
