"""Training of the same nets by snnTorch.

Data, schedule, checkpoints, log and ``--resume`` are those of the other trainer; an epoch is one call of
``snn_ext.snntorch.bptt``, or, with ``--trainer host``, of ``snntorch.backprop.BPTT``, which calls the net T times for
each batch. At the start the spikes of both hosts are compared: with the same weights and in eval mode they are equal to
the last bit.

In training the two hosts differ in two ways: snnTorch lets no gradient through the spike in the reset (compare with
``--detach-reset`` there), and batch norm sees the stem T times, or with BPTT each step by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from snntorch import backprop
from snntorch import functional as SF
from spikingjelly.activation_based import functional
from torch import Tensor, nn

from snn_ext.functional import Sigmoid
from snn_ext.snntorch import PCMPIF, ATIFu, bptt, reset

from ..models.classifier import Classifier
from .neurons import NeuronOptions, make_spiking, replace_activations, table_neuron
from .spiking_trainer import SpikingTrainer

__all__ = ["TRAINERS", "SnnTorchNet", "SnnTorchTrainer", "assert_same_spikes", "snntorch_neuron"]

TRAINERS = {"snn_ext": bptt, "host": backprop.BPTT}


def snntorch_neuron(options: NeuronOptions) -> nn.Module:
    """Make one neuron for snnTorch with SpikingJelly's tie rule."""
    common: dict[str, Any] = {
        "spike_grad": Sigmoid(options.alpha), "init_hidden": True, "fire_at_threshold": True,
        "scale_output": options.output == "scaled" and options.neuron != "if",
    }  # fmt: skip
    if options.neuron == "if":
        return PCMPIF(options.v_threshold, precharge=0.0, **common)
    return table_neuron("snntorch", options, **common)


class SnnTorchNet(nn.Module):
    """A classifier as snnTorch's trainers want it: its last module is a neuron that returns ``(spk, mem)``.

    That neuron never resets, so its ``mem`` after T steps is the sum of the logits. In training the net takes one step
    at a time, in eval mode it runs all T at once and returns the mean of the logits.

    Parameters
    ----------
    classifier : Classifier
        With neurons of snnTorch.
    time_steps : int
        T in eval mode.
    """

    def __init__(self, classifier: Classifier, time_steps: int) -> None:
        super().__init__()
        self.classifier, self.time_steps = classifier, time_steps
        # At the top level also for the sake of snntorch.utils.reset, which looks nowhere else.
        self.readout = ATIFu(learn_threshold=False, reset_mechanism="none", init_hidden=True, output=True)
        self.train()

    def train(self, mode: bool = True) -> SnnTorchNet:
        super().train(mode)
        _set_steps(self.classifier, None if mode else self.time_steps)
        return self

    def forward(self, images: Tensor) -> Any:
        logits = self.classifier(images)
        return self.readout(logits) if self.training else logits


class MeanLogitCrossEntropy(SF.ce_max_membrane_loss):
    """Cross entropy of the mean of the logits over time; both trainers pass ``mem`` to a loss of this family."""

    def _compute_loss(self, mem: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(mem[-1] / len(mem), targets)


class SnnTorchTrainer(SpikingTrainer):
    """A mix-in: another trainer, with snnTorch's neurons and training loop."""

    def load_model(self, args: Any, num_classes: int) -> nn.Module:
        if self.processes > 1:
            raise ValueError(f"torchrun: got {self.processes} processes, want one: snnTorch's trainer knows no others")
        net, calibration = self.analog_net(args, num_classes)
        self.neurons = replace_activations(net, snntorch_neuron, args, calibration)
        self.twin = self.analog_net(args, num_classes)[0]
        self.twin_neurons = make_spiking(self.twin, args)
        self.to_twin(net)
        images, _ = next(iter(self.calibration_loader))
        assert_same_spikes(net.to(self.device), self.twin.to(self.device), images[:16], args.time_steps)
        return SnnTorchNet(net, args.time_steps)

    def to_twin(self, net: Classifier) -> None:
        """Copy a net of snnTorch into that of SpikingJelly."""
        state = {name.replace(".threshold", ".v_threshold"): value for name, value in net.state_dict().items()}
        ours = self.twin.state_dict()
        self.twin.load_state_dict({name: state[name] for name in ours})

    def train_one_epoch(  # noqa: D102
        self, model, criterion, optimizer, data_loader, device, epoch, args, model_ema=None, scaler=None
    ):  # fmt: skip
        loss = TRAINERS[args.trainer](
            model, _Watched(data_loader, self.bar), optimizer, MeanLogitCrossEntropy(), num_steps=args.time_steps,
            time_var=False, device=device,
        )  # fmt: skip
        return float(loss.detach()), None, None  # these trainers report the loss alone

    def reset(self, model: nn.Module) -> None:
        reset(model)

    def measure(self, args: Any) -> dict[str, Any]:
        """Measure the twin in SpikingJelly, which has the same weights and so the same spikes."""
        self.to_twin(self.model.classifier)
        self.model, self.neurons = self.twin, self.twin_neurons
        return super().measure(args)


class _Watched:
    """A loader that moves the progress bar."""

    def __init__(self, loader: Any, bar: Any) -> None:
        self.loader, self.bar = loader, bar

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in self.loader:
            yield batch
            self.bar.update()


@torch.no_grad()
def assert_same_spikes(net: Classifier, twin: Classifier, images: Tensor, time_steps: int) -> int:
    """Compare all spikes of a net of snnTorch with those of its twin of SpikingJelly, step by step and all at once.

    Parameters
    ----------
    net, twin : Classifier
        With the same weights; both are left in training mode.
    images : Tensor
        ``[N, C, H, W]``.
    time_steps : int
        T.

    Returns
    -------
    int
        Number of spikes compared.

    Raises
    ------
    AssertionError
        Naming the layer, if any spike differs.
    """
    spikes = 0
    for steps in (None, time_steps):
        records = []
        for each, restart in ((net, reset), (twin, functional.reset_net)):
            each.eval()
            _set_steps(each, steps)
            restart(each)
            with _outputs(each) as outputs:
                for _ in range(time_steps if steps is None else 1):
                    each(images)
            restart(each)
            each.train()
            records.append(outputs)
        ours, theirs = records
        if not ours or ours.keys() != theirs.keys():  # raised, as python -O takes assert statements away
            raise AssertionError(f"neurons of snnTorch {[*ours]}, of SpikingJelly {[*theirs]}, want the same")
        for name in ours:
            for a, b in zip(ours[name], theirs[name], strict=True):
                if not torch.equal(a, b):
                    differ = int((a != b).sum())
                    raise AssertionError(f"{name}: snnTorch and SpikingJelly differ in {differ} spikes")
                spikes += int(a.count_nonzero())
    return spikes


@contextmanager
def _outputs(net: nn.Module) -> Iterator[dict[str, list[Tensor]]]:
    """Record what the neurons of a net emit, by the name of their place."""
    outputs: dict[str, list[Tensor]] = {}
    neurons = {name: m for name, m in net.named_modules() if hasattr(m, "step_mode") and hasattr(m, "detach_reset")}
    neurons |= {name: m for name, m in net.named_modules() if hasattr(m, "init_hidden")}
    hooks = [
        m.register_forward_hook(lambda _, __, spikes, name=name: outputs.setdefault(name, []).append(spikes))
        for name, m in neurons.items()
    ]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


def _set_steps(net: Classifier, time_steps: int | None) -> None:
    """Let layers and neurons take one step (``None``) or a sequence; of either host, as both call it step_mode."""
    net.time_steps = time_steps
    for module in net.modules():
        if hasattr(module, "step_mode"):
            module.step_mode = "s" if time_steps is None else "m"
