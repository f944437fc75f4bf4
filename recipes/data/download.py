"""Large files from the network: with progress, resumed where they broke off, and checked."""

from __future__ import annotations

import hashlib
import http.client
import os
import tarfile
import urllib.error
import urllib.request
from pathlib import Path, PurePosixPath
from typing import IO

from tqdm import tqdm

from ..lib.files import DamagedFileError, building, intact, lock, named

__all__ = ["download", "unpack"]

TIMEOUT = 30.0  # seconds without a byte
PIECE = 1 << 20  # bytes
ATTEMPTS = 3  # in a row that bring nothing
LARGEST = 100  # times the size of an archive: what it may unpack to; sound shrinks to half or a third
HARMLESS = 1 << 28  # bytes that any archive may unpack to


def download(url: str, target: Path, sha256: str) -> Path:
    """Download a file, if it is not there.

    What has come so far is kept in ``TARGET.part``, and the next call goes on behind it where the server can.

    Parameters
    ----------
    url : str
        Where it is.
    target : Path
        Where it goes, whole and checked or not at all.
    sha256 : str
        Its checksum.

    Raises
    ------
    OSError
        If the network fails.
    ValueError
        If the checksum is another one: what has come is thrown away, what was there before stays.
    """
    if target.is_file():
        if _sha256(target) != sha256:
            raise DamagedFileError(f"{target}: damaged or not that of {url}; remove it to have it downloaded again")
        return target
    part = target.with_name(target.name + ".part")
    part.parent.mkdir(parents=True, exist_ok=True)
    with _open(part, "ab") as held:
        free = lock(held.fileno(), wait=False)
        if free is False:
            raise OSError(f"{part}: another run is downloading it, try again when it is there")
        if free is None:
            held.close()  # some systems move no open file
        try:
            return target if target.is_file() else _download(url, part, target, sha256)  # another may have been faster
        finally:
            if _size(part) == 0:
                part.unlink(missing_ok=True)


def _download(url: str, part: Path, target: Path, sha256: str) -> Path:
    failures = 0
    while True:
        before = _size(part)
        try:
            if _fetch(url, part):
                break
            error: Exception = OSError("the connection was closed")
        except urllib.error.HTTPError as refused:
            raise OSError(f"{url}: the server answers {refused.code} {refused.reason}") from refused
        except (OSError, http.client.HTTPException) as broken:
            error = broken
        failures = 0 if _size(part) > before else failures + 1
        if failures == ATTEMPTS:
            raise OSError(
                f"{url}: {error}; the {_size(part):,} bytes that have come are kept in {part}, the next call goes on"
            ) from error
    digest = _sha256(part)
    if digest != sha256:
        part.unlink()
        raise ValueError(f"{url}: got sha256 {digest}, want {sha256}; the download was thrown away")
    os.replace(part, target)
    return target


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a tar archive of files and folders into a new folder, which is there whole or not at all.

    Raises
    ------
    ValueError
        If it is damaged, would write outside of the folder, holds links or devices, or unpacks to more than
        ``LARGEST`` times its size and ``HARMLESS`` bytes.
    """
    safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # since Python 3.11.4
    left = max(HARMLESS, LARGEST * archive.stat().st_size)
    with (
        building(folder) as partial,
        intact(archive, "an archive of files and folders alone", "remove it to have it downloaded again"),
        tarfile.open(archive) as tar,
        tqdm(tar, archive.name, unit=" files", disable=None) as members,
    ):
        for member in members:
            place = PurePosixPath(member.name)
            if not (member.isreg() or member.isdir()) or place.is_absolute() or ".." in place.parts:
                raise ValueError(f"{member.name} is no file in the archive's own folder")
            left -= member.size + tarfile.BLOCKSIZE
            if left < 0:
                raise ValueError(f"{member.name} makes more of it than can be")
            tar.extract(member, partial, **safely)


def _fetch(url: str, part: Path) -> bool:
    """Append to a part what is missing; returns whether it is whole now."""
    have = _size(part)
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as refused:
        if refused.code == 416 and have:  # nothing is missing, or the part is of another file: the checksum will tell
            return True
        raise
    with response:
        resumed = response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        have = have if resumed else 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length is not None else None
        with (
            _open(part, "ab" if resumed else "wb") as file,
            tqdm(desc=part.stem, total=total, initial=have, unit="B", unit_scale=True, disable=None) as bar,
        ):
            while piece := response.read(PIECE):
                with named(part):
                    file.write(piece)
                bar.update(len(piece))
        return total is None or _size(part) >= total


def _open(part: Path, mode: str) -> IO[bytes]:
    """Open a file to write to, but not through a link that somebody has put there."""
    return open(part, mode, opener=lambda path, flags: os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
