"""Writing files so that an interrupted run leaves the old file or none, never half of one."""

from snn_ext._files import replacing

__all__ = ["replacing"]
