"""Trainable-threshold and pre-charged spiking neurons for SpikingJelly and snnTorch.

Importing this package needs torch alone. Its parts are imported when they are first used; ``snn_ext.spikingjelly`` and
``snn_ext.snntorch`` need their host.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .calibration import calibrate, record_inputs
from .neurons.aan import AAN, BNAAN
from .neurons.precision import set_precision
from .registration import register, unregister
from .replacement import replace_neurons
from .training import ConstantInputNet, parameter_groups

if TYPE_CHECKING:
    from . import conversion, evaluation, functional, neurons, ops, simulation, snntorch, spikingjelly, testing  # noqa: F401
    from .conversion.convert import convert
    from .evaluation.evaluate import evaluate
    from .saving import load, save

__version__ = "0.1.0"
__all__ = [
    "AAN", "BNAAN", "ConstantInputNet", "__version__", "calibrate", "convert", "evaluate", "load",
    "parameter_groups", "record_inputs", "register", "replace_neurons", "save", "set_precision", "unregister",
]  # fmt: skip

_FUNCTIONS = {
    "convert": "conversion",
    "evaluate": "evaluation",
    "load": "saving",
    "save": "saving",
}  # large, or in need of a host: imported when used
_MODULES = (
    "conversion", "evaluation", "functional", "neurons", "ops", "simulation", "snntorch", "spikingjelly", "testing"
)  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _FUNCTIONS:
        return getattr(import_module(f".{_FUNCTIONS[name]}", __name__), name)
    if name in _MODULES:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
