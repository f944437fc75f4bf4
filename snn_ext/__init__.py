"""Trainable-threshold and pre-charged spiking neurons for SpikingJelly and snnTorch.

Importing this package needs torch alone; ``snn_ext.spikingjelly`` and ``snn_ext.snntorch`` import their host.
"""

from .activation import AAN, BNAAN
from .recording import record_inputs
from .registration import register, unregister
from .replacement import replace_neurons

__version__ = "0.1.0"
__all__ = ["AAN", "BNAAN", "__version__", "record_inputs", "register", "replace_neurons", "unregister"]
