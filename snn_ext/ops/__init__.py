"""The operators of :mod:`snn_ext.functional` with the same signatures, by the fastest implementation that can run.

Which one runs, and why another can not, can always be asked: :func:`implementation`. Nothing switches silently.
"""

from .selection import Implementation, implementation, use_implementation
from .soft_reset import soft_reset_if

__all__ = ["Implementation", "implementation", "soft_reset_if", "use_implementation"]
