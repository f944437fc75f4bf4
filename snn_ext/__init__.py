"""Trainable-threshold and pre-charged spiking neurons for SpikingJelly and snnTorch.

Importing this package loads nothing else: its parts are imported when they are first used. They need torch alone;
``snn_ext.spikingjelly`` and ``snn_ext.snntorch`` need their host.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import (  # noqa: F401
        conversion,
        deployment,
        evaluation,
        functional,
        neurons,
        ops,
        plots,
        simulation,
        snntorch,
        spikingjelly,
        testing,
    )
    from .acceleration import Accelerated, accelerate
    from .calibration import calibrate, record_inputs
    from .conversion.convert import convert
    from .deployment.nir import from_nir, to_nir
    from .deployment.onnx import export_onnx
    from .deployment.program import export_program
    from .evaluation.evaluate import evaluate
    from .fusion import FusedNorms, fuse_norms
    from .memory_report import Memory, memory
    from .neurons.aan import AAN, BNAAN
    from .neurons.precision import set_precision
    from .neurons.quantized import NonUniformQuantizedReLU, QuantizedReLU
    from .norms import RecomputedNorms, recompute_norms
    from .packing import PackedSpikes, pack_spikes
    from .registration import register, unregister
    from .replacement import replace_neurons
    from .saving import load, save
    from .simulation.one_step import one_step
    from .training import ConstantInputNet, parameter_groups, step_loss, train_epoch

__version__ = "0.1.0"
__all__ = [
    "AAN", "BNAAN", "Accelerated", "ConstantInputNet", "FusedNorms", "Memory", "NonUniformQuantizedReLU",
    "PackedSpikes", "QuantizedReLU", "RecomputedNorms", "__version__", "accelerate", "calibrate", "convert", "evaluate",
    "export_onnx", "export_program", "from_nir", "fuse_norms", "load", "memory", "one_step", "pack_spikes",
    "parameter_groups", "recompute_norms", "record_inputs", "register", "replace_neurons", "save", "set_precision",
    "step_loss", "to_nir", "train_epoch", "unregister",
]  # fmt: skip

_MODULE_OF = {
    "AAN": "neurons.aan", "Accelerated": "acceleration", "BNAAN": "neurons.aan", "ConstantInputNet": "training",
    "Memory": "memory_report", "NonUniformQuantizedReLU": "neurons.quantized", "PackedSpikes": "packing",
    "QuantizedReLU": "neurons.quantized", "RecomputedNorms": "norms", "accelerate": "acceleration",
    "calibrate": "calibration", "convert": "conversion", "evaluate": "evaluation", "export_onnx": "deployment",
    "export_program": "deployment", "from_nir": "deployment",
    "FusedNorms": "fusion", "fuse_norms": "fusion", "load": "saving", "memory": "memory_report",
    "one_step": "simulation.one_step", "pack_spikes": "packing", "parameter_groups": "training",
    "recompute_norms": "norms", "record_inputs": "calibration", "register": "registration",
    "replace_neurons": "replacement", "save": "saving", "set_precision": "neurons.precision",
    "step_loss": "training", "to_nir": "deployment", "train_epoch": "training", "unregister": "registration",
}  # fmt: skip
_MODULES = (
    "conversion", "deployment", "evaluation", "functional", "neurons", "ops", "plots", "simulation", "snntorch",
    "spikingjelly", "testing",
)  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
    if name in _MODULES:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
