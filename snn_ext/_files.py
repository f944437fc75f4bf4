"""Writing files whole or not at all, and reading them only if they are undamaged.

All loading goes through this module. Members of zip files (checkpoints, arrays) have checksums, which torch never
compares and NumPy not always; JSON files get a digest. A file that is damaged, or of another kind, raises one error
that names the file and the remedy.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "DamagedFileError", "building", "has_hash_in_name", "intact", "load_arrays", "load_tensors", "lock", "named",
    "read_json", "replacing", "save_tensors", "scratch", "sealed", "sweep", "unsealed", "user_cache", "write_json",
]  # fmt: skip

TEMPORARY = re.compile(r"\.snn_ext-[0-9a-f]{16}(\..*)?")
"""Names of unfinished files; one that no process holds is left over from a killed process."""
ABANDONED = 86_400.0
"""Age in seconds after which an unfinished file counts as abandoned, on systems without locks."""
DIGEST = "sha256"
"""Key of the digest in a JSON file."""
DEFLATED = 1032
"""Largest compression ratio of deflate; a member that claims a larger one is damaged."""
END = b"PK\x05\x06" + bytes(18)
A_FOLDER = 0x10
OLD_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."


class DamagedFileError(ValueError):
    """A file is damaged, or is of another kind than it is read as."""


def user_cache() -> Path:
    """Return the folder of this package among the user's caches, where the system wants them; it may not be there.

    Raises
    ------
    RuntimeError
        If there is no home folder.
    """
    from platformdirs import user_cache_path  # knows Linux, macOS and Windows

    path = user_cache_path("snn_ext", appauthor=False)
    if path.parts[:1] == ("~",):  # of older versions; newer ones raise
        raise RuntimeError("there is no home folder")
    return path.absolute()


# -- writing -----------------------------------------------------------------------------------------------------------


@contextmanager
def replacing(path: Path, suffix: str = "") -> Iterator[Path]:
    """Yield a temporary path in the same folder, and move it to ``path`` when the block ends well.

    It has the suffix of ``path``, or ``suffix`` where that has none.

    The temporary file is new, under a name that nobody can foretell, and locked while it is written, so that any number
    of threads, processes and containers can write beside each other. The mode of an old file is kept; a link goes on to
    point to the file. What killed processes have left in the folder is taken away.
    """
    target = _target(Path(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    sweep(target.parent)
    mode = _mode(target)
    temporary, descriptor = _create(target.parent, target.suffix[-16:] or suffix)
    try:
        with named(path):
            if mode is not None:
                _change_mode(temporary, descriptor, mode | 0o600)
            yield temporary
            if mode is not None:
                _change_mode(temporary, descriptor, mode)
            os.fsync(descriptor)
            if not _is(descriptor, temporary):
                raise OSError(errno.EBUSY, "another process has replaced the temporary file of", str(path))
        if os.name == "nt":  # which moves no open file
            os.close(descriptor)
            descriptor = -1
        _move(temporary, target)
    finally:
        if descriptor >= 0:
            os.close(descriptor)
        temporary.unlink(missing_ok=True)


@contextmanager
def building(folder: Path) -> Iterator[Path]:
    """Yield a new folder beside ``folder``, and rename it to ``folder`` when the block ends well.

    If another process has made ``folder`` meanwhile, that one stays.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with scratch(folder.parent, mode=0o777) as temporary:
        with named(folder):
            yield temporary
        try:
            _move(temporary, folder)
        except OSError:
            if not folder.is_dir():
                raise


@contextmanager
def scratch(parent: Path, mode: int = 0o700) -> Iterator[Path]:
    """Yield a new folder, by default for this user alone, and remove it; those of killed processes are swept first."""
    sweep(parent)
    folder, descriptor = _create(parent, directory=True, mode=mode)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def sweep(folder: Path) -> None:
    """Remove unfinished files and folders that killed processes have left in a folder."""
    found: list[os.DirEntry[str]] = []
    with suppress(OSError), os.scandir(folder) as entries:
        found = [entry for entry in entries if TEMPORARY.fullmatch(entry.name)]
    for entry in found:
        with suppress(OSError):
            directory = entry.is_dir(follow_symlinks=False)
            if not directory and not entry.is_file(follow_symlinks=False):
                continue
            how = os.O_RDONLY if directory else os.O_RDWR  # some systems lock a file only if it may be written
            descriptor = os.open(entry.path, how | getattr(os, "O_NOFOLLOW", 0))
            try:
                free = lock(descriptor, wait=False)
                if free is None:
                    free = time.time() - os.fstat(descriptor).st_mtime > ABANDONED
                if free and _is(descriptor, Path(entry.path)):
                    shutil.rmtree(entry.path, ignore_errors=True) if directory else os.unlink(entry.path)
            finally:
                os.close(descriptor)


def lock(descriptor: int, wait: bool = True) -> bool | None:
    """Lock an open file against all who ask for a lock, until it is closed or the process ends.

    Returns
    -------
    bool or None
        False if somebody else holds it, ``None`` if the system cannot lock it.
    """
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except (ImportError, OSError):  # Windows; some network file systems
        return None
    return True


def _create(folder: Path, suffix: str = "", directory: bool = False, mode: int = 0o777) -> tuple[Path, int]:
    """Make a new file or folder under a random name, and lock it."""
    while True:
        path = folder / f".snn_ext-{secrets.token_hex(8)}{suffix}"
        if directory:
            path.mkdir(mode)
        new = os.O_RDONLY if directory else os.O_RDWR | os.O_CREAT | os.O_EXCL
        try:
            descriptor = os.open(path, new | getattr(os, "O_NOFOLLOW", 0), 0o666)  # the umask is taken off
        except FileNotFoundError:
            if not directory:
                raise
            continue  # swept before it could be locked
        lock(descriptor)
        if _is(descriptor, path):
            return path, descriptor
        os.close(descriptor)


def _target(path: Path) -> Path:
    """Resolve links; refuse a link of another user in a folder that everybody may write to, as the kernel does."""
    if path.is_symlink() and hasattr(os, "geteuid"):
        owner, parent = path.lstat().st_uid, path.parent.stat()
        if parent.st_mode & stat.S_IWOTH and owner not in (os.geteuid(), parent.st_uid):
            reason = "is a link of another user, in a folder that every user may write to"
            raise PermissionError(errno.EACCES, reason, str(path))
    return Path(os.path.realpath(path))


def _mode(path: Path) -> int | None:
    """Return the mode of a file, ``None`` if there is no file."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(mode):
        raise OSError(errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL, "is no file", str(path))
    return stat.S_IMODE(mode) & 0o777


def _change_mode(path: Path, descriptor: int, mode: int) -> None:
    os.chmod(descriptor if os.chmod in os.supports_fd else path, mode)


def _is(descriptor: int, path: Path) -> bool:
    """Return True if a path still leads to the open file."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def _move(temporary: Path, target: Path) -> None:
    """Rename a file or folder; an error names the target alone, for the user has never seen the other name."""
    try:
        os.replace(temporary, target)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(target)) from error


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Add the name of the file to a system error without one, such as that of a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


# -- reading -----------------------------------------------------------------------------------------------------------


@contextmanager
def intact(path: Path | str, kind: str, remedy: str = "remove it to start afresh") -> Iterator[None]:
    """Turn any error in a block that reads a file into one that names the file and the remedy.

    Parameters
    ----------
    path : Path or str
        The file.
    kind : str
        Kind of file that is expected, with its article.
    remedy : str
        Advice to the user.

    Raises
    ------
    DamagedFileError
        For any other exception; system errors, such as that of a full disk, pass unchanged.
    """
    try:
        yield
    except DamagedFileError:
        raise
    except Exception as error:  # damage has no end of forms: MemoryError, RecursionError, SyntaxError ...
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # EINVAL: a place before the file
            raise
        raise DamagedFileError(f"{path}: damaged or not {kind}; {remedy}") from error


@contextmanager
def _opened(path: Path | str, kind: str, remedy: str) -> Iterator[IO[bytes]]:
    with open(path, "rb", opener=_open_without_waiting) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise DamagedFileError(f"{path}: is no file, want {kind}")
        with intact(path, kind, remedy):
            yield file


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # a pipe would wait for somebody who writes


def load_tensors(
    path: Path | str, kind: str = "a checkpoint", remedy: str = "restore a copy of it, or remove it"
) -> Any:
    """Load a file of :func:`torch.save` to the CPU, tensors and plain values only, if not a bit has changed.

    Raises
    ------
    DamagedFileError
        If the file is damaged, is of another kind, or has torch's format before 1.6, which holds no checksums (unless
        its name ends in its hash, as the names of published weights do).
    """
    with _opened(path, kind, remedy) as file:
        if file.read(len(OLD_TORCH)) != OLD_TORCH:
            _check_zip(file, (zipfile.ZIP_STORED,))
        elif not has_hash_in_name(Path(path), file):
            raise DamagedFileError(
                f"{path}: in torch's format before 1.6, which holds no checksums; write it again with torch.save, or "
                "restore the name it was published under, which ends in its hash"
            )
        file.seek(0)
        return torch.load(file, map_location="cpu", weights_only=True)


def save_tensors(content: Any, path: Path) -> None:
    """Write a checkpoint, whole or not at all."""
    with replacing(path, ".pt") as temporary:  # torch takes no path that begins with its only point
        try:
            torch.save(content, temporary)
        except RuntimeError as error:
            if not any(writer in str(error) for writer in ("inline_container", "iostream")):
                raise
            raise OSError(errno.EIO, "cannot be written whole (is the disk full?)", str(path)) from error


def load_arrays(path: Path | str, kind: str, remedy: str = "remove it to start afresh") -> dict[str, np.ndarray]:
    """Load a file of :func:`numpy.savez` or ``savez_compressed``, no pickles, if not a bit has changed."""
    import numpy as np

    with _opened(path, kind, remedy) as file:
        _check_zip(file, (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
        file.seek(0)
        with np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)


def has_hash_in_name(path: Path, file: IO[bytes]) -> bool:
    """Return True if a file name ends in the first digits of the file's hash, as in ``resnet18-f37072fd.pth``."""
    named = re.search(r"-([0-9a-f]{8,})\.\w+$", path.name)
    file.seek(0)
    return named is not None and hashlib.sha256(file.read()).hexdigest().startswith(named[1])


def _check_zip(file: IO[bytes], methods: tuple[int, ...]) -> None:
    """Raise if a member of a zip file does not match its checksum, or claims more than the file can hold."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - len(END)))
    end = file.read()  # without a comment; it says how many members there are, or 65535 for more
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        count = int.from_bytes(end[10:12], "little")
        if not end.startswith(END[:4]) or count not in (len(members), 0xFFFF):
            raise zipfile.BadZipFile("members are missing, or bytes behind the end")
        if not members or len({member.filename for member in members}) < len(members):
            raise zipfile.BadZipFile("no members, or two of one name")
        if sum(member.compress_size for member in members) > size:
            raise zipfile.BadZipFile("members larger than the file")
        for member in members:
            if member.is_dir() or member.external_attr & A_FOLDER:
                raise zipfile.BadZipFile(f"{member.filename} as a folder, which torch takes for zeros")
            stored = member.compress_type == zipfile.ZIP_STORED
            most = member.compress_size * (1 if stored else DEFLATED)
            if member.compress_type not in methods or member.file_size > most or (stored and member.file_size < most):
                raise zipfile.BadZipFile(f"a size or a method of {member.filename} that cannot be")
        if (bad := archive.testzip()) is not None:
            raise zipfile.BadZipFile(f"another checksum of {bad}")


# -- JSON --------------------------------------------------------------------------------------------------------------


def sealed(content: dict[str, Any]) -> dict[str, Any]:
    """Return a dictionary of JSON values with its digest added, so that a changed digit is noticed."""
    return {**content, DIGEST: _digest(json.loads(json.dumps(content)))}


def unsealed(content: Any) -> dict[str, Any]:
    """Return a sealed dictionary without its digest; raise ``ValueError`` if the digest is missing or wrong."""
    if not isinstance(content, dict) or content.pop(DIGEST, None) != _digest(content):
        raise ValueError(f"no {DIGEST}, or one of other content")
    return content


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a sealed dictionary, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(sealed(content), indent=1) + "\n", encoding="utf-8")


def read_json(path: Path, kind: str, remedy: str = "remove it to start afresh") -> dict[str, Any]:
    """Read a file of :func:`write_json`, if nothing in it has changed."""
    with _opened(path, kind, remedy) as file:
        return unsealed(json.loads(file.read().decode()))


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
