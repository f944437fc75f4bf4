"""Trainable-threshold and pre-charged spiking neurons for SpikingJelly and snnTorch.

Importing this package needs torch alone; ``snn_ext.spikingjelly`` and ``snn_ext.snntorch`` import their host.
"""

from .evaluation import evaluate
from .recording import record_inputs
from .registration import register, unregister
from .replacement import replace_neurons

__version__ = "0.1.0"
__all__ = ["__version__", "evaluate", "record_inputs", "register", "replace_neurons", "unregister"]
