"""Where data are kept; and writing files so that an interrupted run leaves the old one or none, never half of one."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from snn_ext._files import replacing

__all__ = ["data_folder", "replacing", "write_arrays"]


def data_folder() -> Path:
    """Return the folder data are looked for in and downloaded to: ``SNN_EXT_DATA``, or one in the user's cache."""
    if data := os.environ.get("SNN_EXT_DATA"):
        return Path(data)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "snn_ext"
    except RuntimeError:  # no HOME, and no such user
        raise ValueError("SNN_EXT_DATA: got none, and there is no home folder, want a folder for data") from None


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write a compressed ``.npz`` whose bytes depend on the arrays alone."""
    with (
        replacing(path) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive,
    ):
        for name, array in arrays.items():
            # np.savez would write the present time and the platform into the file.
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type, entry.create_system = zipfile.ZIP_DEFLATED, 3
            with archive.open(entry, "w") as stream:
                np.lib.format.write_array(stream, array, allow_pickle=False)
