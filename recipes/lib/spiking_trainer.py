"""Training of a net whose activations are spiking neurons, from scratch or from a trained ReLU net."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from snn_ext import step_loss
from snn_ext.evaluation import measure_activity

from ..models.classifier import Classifier
from .checkpoints import A_CHECKPOINT, REMEDY, load_checkpoint, load_weights
from .cli import Argument, Count, Fraction, Positive
from .files import intact
from .neurons import OURS, NeuronOptions, make_spiking
from .trainer import Trainer
from .training import accuracy

__all__ = ["SpikingOptions", "SpikingTrainer", "run"]

NEUTRAL = {"amp": False, "clip_grad_norm": None, "detach_reset": False, "grad_scale": "none", "label_smoothing": 0.0,
           "log_every": 0}  # fmt: skip
"""Options that snnTorch's trainers do not have, and their value there."""
FITTED = ", ".join(OURS)


@dataclass(kw_only=True)
class SpikingOptions(NeuronOptions):
    """Host and start."""

    host: Annotated[Literal["spikingjelly", "snntorch"], "whose neurons and training loop"] = "spikingjelly"
    trainer: Annotated[
        Literal["snn_ext", "host"], "of --host snntorch: snn_ext.snntorch.bptt or snntorch.backprop.BPTT"
    ] = "snn_ext"
    start: Annotated[
        Path | None, Argument("--from", metavar="CHECKPOINT"), "start from this trained ReLU net"
    ] = None  # fmt: skip
    swap: Annotated[
        Literal["calibrated", "inputs"] | None,
        "with --from, neurons fit the current that arrives in the spiking net, or the inputs of the ReLUs "
        "(default: calibrated; with --v-init: inputs)",
    ] = None  # fmt: skip
    calibration_images: Annotated[Count, "samples for that"] = 1000
    keep_norms: Annotated[bool, "batch norms keep the statistics that a calibrated swap is for"] = True
    distillation: Annotated[
        Fraction | None, "share of the loss in which the ReLU net of --from teaches (default: 0.5)"
    ] = None  # fmt: skip
    temperature: Annotated[Positive, "of its answers"] = 2.0

    def __post_init__(self) -> None:
        fitted = self.start is not None and self.neuron not in ("relu", "if")
        if self.swap is None and fitted:
            self.swap = "calibrated" if self.v_init is None else "inputs"
        elif self.swap is not None and not fitted:
            raise ValueError(f"--swap: got {self.swap}, want it with --from and a neuron that is fitted: {FITTED}")
        elif self.swap == "calibrated" and self.v_init is not None:
            raise ValueError(f"--v-init: got {self.v_init} with --swap calibrated, which finds it, want --swap inputs")
        if self.distillation is None:
            self.distillation = 0.5 if self._has_teacher else 0.0
        elif self.distillation and not self._has_teacher:
            raise ValueError(f"--distillation: got {self.distillation}, want --from, a spiking neuron and SpikingJelly")
        if self.host == "snntorch":
            for name, neutral in NEUTRAL.items():
                value = getattr(self, name)
                if value is not None and value != neutral:
                    option = f"--{name.replace('_', '-')}"
                    raise ValueError(f"{option}: got {value}, want {neutral}: snnTorch's trainers do not have it")
                setattr(self, name, neutral)
            if self.neuron == "relu":
                raise ValueError("--neuron: got relu, want a spiking neuron")
        elif self.trainer != "snn_ext":
            raise ValueError(f"--trainer: got {self.trainer} with --host spikingjelly, want --host snntorch")
        if self.start is not None and not self.resume and not self.start.is_file():
            raise ValueError(f"--from: got {self.start}, want a checkpoint that exists")
        super().__post_init__()

    @property
    def _has_teacher(self) -> bool:
        return self.start is not None and self.neuron != "relu" and self.host == "spikingjelly"


class SpikingTrainer(Trainer):
    """Gives the net of :meth:`build_net` its neurons, and measures it at the end."""

    neurons: list[nn.Module]
    teacher: nn.Module | None = None
    swapped: dict[str, Any] | None = None
    """Of a net that starts from a trained one: what is measured of it before the first step of training."""
    same_net: tuple[str, ...] = ()
    """Settings that the net of ``--from`` must share."""

    def build_net(self, options: Any, classes: int) -> Classifier:
        """Build the analog net that the options describe. To be overridden."""
        raise NotImplementedError

    def measured_loader(self) -> Iterable[tuple[Tensor, Tensor]]:
        """Return batches of the whole test set, for the first process alone. To be overridden."""
        raise NotImplementedError

    def load_model(self, args: Any, num_classes: int) -> nn.Module:
        net, calibration = self.analog_net(args, num_classes)
        if args.distillation and (self.checkpoint is None or self.checkpoint["epochs"] < args.epochs):
            self.teacher = self.trained_net(args, num_classes).to(self.device).eval()
        self.neurons = [] if args.neuron == "relu" else make_spiking(net, args, calibration)
        if calibration is not None and self.neurons and self.rank == 0:
            self.swapped = self.activity(net, args.time_steps)
        elif self.checkpoint is not None:
            self.swapped = self.checkpoint.get("swapped")
        return net

    def analog_net(self, options: Any, classes: int) -> tuple[Classifier, list[Tensor] | None]:
        """Build the ReLU net; with ``--from`` it is the trained one, and samples come along to calibrate thresholds.

        A run that goes on from its checkpoint needs neither.
        """
        if options.start is None or self.checkpoint is not None:
            return self.build_net(options, classes), None
        batches = zip(self.calibration_loader, range(-(-options.calibration_images // 100)), strict=False)
        return self.trained_net(options, classes).to(self.device), [samples for (samples, _), _ in batches]

    def trained_net(self, options: Any, classes: int) -> Classifier:
        """Build the ReLU net of ``--from``."""
        net, checkpoint = self.build_net(options, classes), load_checkpoint("--from", options.start)
        settings = self.defaults(options) | checkpoint["settings"]
        for name, want in {"neuron": "relu", **{name: getattr(options, name) for name in self.same_net}}.items():
            if (there := settings.get(name)) != want:
                raise ValueError(f"--from: got {options.start} with {name}={there!r}, want {want!r}")
        with intact(options.start, A_CHECKPOINT.format("such a net"), REMEDY):
            load_weights(net, checkpoint["model"])
        return net

    def train_mode(self, model: nn.Module, args: Any) -> None:
        """Keep the statistics of batch norms, if so wanted, where weights and biases were calibrated for them."""
        model.train()
        if args.swap == "calibrated" and args.keep_norms:
            for module in model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()

    def loss(self, args: Any, criterion: nn.Module, output: Tensor, samples: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of a batch: that of the labels, and of the teacher's answers."""
        loss: Tensor = criterion(output, targets)
        if self.teacher is None:
            return loss
        with torch.no_grad():
            answers = self.teacher(samples)
        taught = step_loss(output[None], targets, answers, distillation=1.0, temperature=args.temperature)
        return (1.0 - args.distillation) * loss + args.distillation * taught

    def defaults(self, args: Any) -> dict[str, Any]:
        return vars(type(args)(out=args.out, preset=args.preset, host=args.host))

    def threshold_modules(self) -> list[nn.Module]:
        return self.neurons

    def about(self) -> dict[str, Any]:
        return {} if self.swapped is None else {"swapped": self.swapped}

    def measure(self, args: Any) -> dict[str, Any]:
        """Accuracy, activity and SQNR of the last epoch's net, over the whole test set, and of the net before."""
        if not self.neurons:
            return {"accuracy": accuracy(self.model, self.measured_loader()), "time_steps": args.time_steps}
        return self.activity(self.model, args.time_steps) | SpikingTrainer.about(self)

    def activity(self, net: nn.Module, time_steps: int) -> dict[str, Any]:
        """Return accuracy, activity and SQNR of a spiking net, over the whole test set.

        ``theta`` is equation 20 of Castagnetti et al. 2023: the share of neurons and steps with a spike, of each layer,
        then the mean over the layers; ``spikes_per_neuron`` is pooled over all neurons of the net. The SQNR is ``None``
        of a layer without any error (a neuron at an identity shortcut may repeat its spikes) or without any signal.
        """
        measured = measure_activity(net, self.measured_loader(), limit=2_000)
        activity = [layer.spikes_per_neuron / time_steps for layer in measured.layers]
        return {
            "accuracy": measured.accuracy,
            "time_steps": time_steps,
            "theta": sum(activity) / len(activity),
            "spikes_per_neuron": measured.spikes_per_neuron,
            "layers": [
                {"neurons": m.neurons, "theta": theta, "sqnr_db": m.sqnr_db if isfinite(m.sqnr_db) else None}
                for m, theta in zip(measured.layers, activity, strict=True)
            ],
        }


def run(trainer: SpikingTrainer, options: Any) -> dict[str, Any]:
    """Train, and print and return the result."""
    result = trainer.main(options)
    if trainer.rank == 0:
        spikes = f", {result['spikes_per_neuron']:.3f} spikes per neuron" if "spikes_per_neuron" in result else ""
        print(f"{options.out}: {100 * result['accuracy']:.2f} %{spikes}; {result['data']}")
    return result
