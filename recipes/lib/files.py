"""Folders of data, reading and writing of files, and hashes of their content."""

from __future__ import annotations

import hashlib
import os
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from snn_ext._files import (
    DamagedFileError,
    building,
    has_hash_in_name,
    intact,
    load_arrays,
    load_tensors,
    lock,
    named,
    read_json,
    replacing,
    save_tensors,
    user_cache,
    write_json,
)  # fmt: skip

__all__ = [
    "DamagedFileError", "building", "data_folder", "feature_cache", "fingerprint", "has_hash_in_name", "intact",
    "load_arrays", "load_tensors", "lock", "named", "read_json", "replacing", "save_figure", "save_tensors",
    "save_text", "write_arrays", "write_json",
]  # fmt: skip


def data_folder() -> Path:
    """Return the folder data are looked for in and downloaded to: ``SNN_EXT_DATA``, or one in the user's cache."""
    if data := os.environ.get("SNN_EXT_DATA"):
        return Path(data)
    try:
        return user_cache()
    except RuntimeError:  # no HOME, and no such user
        raise ValueError("SNN_EXT_DATA: got none, and there is no home folder, want a folder for data") from None


def feature_cache() -> Path | None:
    """Return the folder that features are kept in; ``None`` and a warning where there is no place for one."""
    try:
        return data_folder() / "features"
    except ValueError as error:
        warnings.warn(f"{error}; features are not kept", stacklevel=2)
        return None


def fingerprint(*values: Any) -> str:
    """Return a digest of tensors by their bytes, and of anything else by its repr; what is kept is known by it."""
    digest = hashlib.sha256()
    for value in values:
        if isinstance(value, Tensor):
            digest.update(f"{value.dtype}{[*value.shape]}".encode())
            plain = value.detach().cpu().clone(memory_format=torch.contiguous_format)  # whatever the strides
            digest.update(plain.flatten().view(torch.uint8).numpy().tobytes())
        else:
            digest.update(repr(value).encode())
    return digest.hexdigest()


def save_text(text: str, path: Path) -> None:
    """Write a text to a file in UTF-8, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure of matplotlib to a file, whole or not at all."""
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150)


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
