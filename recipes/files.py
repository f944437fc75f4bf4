"""Where data are kept; and writing files so that an interrupted run leaves the old one or none, never half of one."""

import os
from pathlib import Path

from snn_ext._files import replacing

__all__ = ["data_folder", "replacing"]


def data_folder() -> Path:
    """Return the folder data are looked for in and downloaded to: ``SNN_EXT_DATA``, or one in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("SNN_EXT_DATA") or cache / "snn_ext")
