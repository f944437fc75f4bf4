"""Trainable-threshold and pre-charged spiking neurons for SpikingJelly and snnTorch.

Importing this package needs torch alone; ``snn_ext.spikingjelly`` and ``snn_ext.snntorch`` import their host.
"""

from typing import TYPE_CHECKING, Any

from .activation import AAN, BNAAN
from .recording import record_inputs
from .registration import register, unregister
from .replacement import replace_neurons

__version__ = "0.1.0"
__all__ = [
    "AAN", "BNAAN", "__version__", "convert", "evaluate", "record_inputs", "register", "replace_neurons", "unregister",
]  # fmt: skip

if TYPE_CHECKING:
    from .conversion.convert import convert
    from .evaluation.evaluate import evaluate


def __getattr__(name: str) -> Any:
    """Import what is large, or needs a host, when it is first asked for."""
    if name == "convert":
        from .conversion import convert

        return convert
    if name == "evaluate":
        from .evaluation.evaluate import evaluate

        return evaluate
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
