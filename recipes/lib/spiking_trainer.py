"""Training of a net whose activations are spiking neurons, from scratch or from a trained ReLU net."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, Literal

from torch import Tensor, nn

from snn_ext.evaluation import measure_activity

from ..models.classifier import Classifier
from .checkpoints import A_CHECKPOINT, REMEDY, load_checkpoint, load_weights
from .cli import Argument, Count
from .files import intact
from .neurons import NeuronOptions, make_spiking
from .trainer import Trainer
from .training import accuracy

__all__ = ["SpikingOptions", "SpikingTrainer", "run"]

NEUTRAL = {"amp": False, "clip_grad_norm": None, "detach_reset": False, "grad_scale": "none", "label_smoothing": 0.0,
           "log_every": 0}  # fmt: skip
"""Options that snnTorch's trainers do not have, and their value there."""


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
    calibration_images: Annotated[Count, "samples for the thresholds, with --from"] = 1000

    def __post_init__(self) -> None:
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


class SpikingTrainer(Trainer):
    """Gives the net of :meth:`build_net` its neurons, and measures it at the end."""

    neurons: list[nn.Module]
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
        self.neurons = [] if args.neuron == "relu" else make_spiking(net, args, calibration)
        return net

    def analog_net(self, options: Any, classes: int) -> tuple[Classifier, list[Tensor] | None]:
        """Build the ReLU net; with ``--from`` it is the trained one, and samples come along to calibrate thresholds.

        A run that goes on from its checkpoint needs neither.
        """
        net = self.build_net(options, classes)
        if options.start is None or self.checkpoint is not None:
            return net, None
        checkpoint = load_checkpoint("--from", options.start)
        for name, want in {"neuron": "relu", **{name: getattr(options, name) for name in self.same_net}}.items():
            if (there := checkpoint["settings"].get(name)) != want:
                raise ValueError(f"--from: got {options.start} with {name}={there!r}, want {want!r}")
        with intact(options.start, A_CHECKPOINT.format("such a net"), REMEDY):
            load_weights(net, checkpoint["model"])
        batches = zip(self.calibration_loader, range(-(-options.calibration_images // 100)), strict=False)
        return net.to(self.device), [samples for (samples, _), _ in batches]

    def defaults(self, args: Any) -> dict[str, Any]:
        return vars(type(args)(out=args.out, preset=args.preset, host=args.host))

    def threshold_modules(self) -> list[nn.Module]:
        return self.neurons

    def measure(self, args: Any) -> dict[str, Any]:
        """Accuracy, activity and SQNR of the last epoch's net, over the whole test set.

        ``theta`` is equation 20 of Castagnetti et al. 2023: the share of neurons and steps with a spike, of each layer,
        then the mean over the layers; ``spikes_per_neuron`` is pooled over all neurons of the net. The SQNR is ``None``
        of a layer without any error (a neuron at an identity shortcut may repeat its spikes) or without any signal.
        """
        if not self.neurons:
            return {"accuracy": accuracy(self.model, self.measured_loader()), "time_steps": args.time_steps}
        measured = measure_activity(self.model, self.measured_loader(), limit=2_000)
        activity = [layer.spikes_per_neuron / args.time_steps for layer in measured.layers]
        return {
            "accuracy": measured.accuracy,
            "time_steps": args.time_steps,
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
