"""Compile once a machine: a cache folder for what compilers make, and shared libraries from C sources."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

from ..._files import scratch, user_cache

__all__ = ["BuildError", "cache_folder", "load_library", "load_or_make"]

# The flags keep IEEE arithmetic as it is written: no contraction into FMA, and nothing of -ffast-math.
_FLAGS = ("-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden")
_LIBRARY = ("-shared", "-fPIC", "-x", "c")
# Tried in this order: a compiler may know neither the machine's own name nor OpenMP.
_OPTIONAL_FLAGS = (("-march=native", "-fopenmp"), ("-march=native",), ("-fopenmp",), ())
_PATIENCE = 120  # seconds for a compiler
_DIGEST_BYTES = hashlib.sha256().digest_size


class BuildError(RuntimeError):
    """The reason why there is no library, in one line."""


def load_library(sources: dict[str, str]) -> ctypes.CDLL:
    """Load the shared library made from C sources; compile it if the cache has none.

    Any number of processes may do so at the same time: each compiles in a folder of its own, and a finished library
    appears in the cache in one step. One that is damaged is made anew. A cache that cannot be written, or that others
    may write, is not used: a ``RuntimeWarning`` says so, and the library is compiled in a private folder.

    Parameters
    ----------
    sources : dict of str to str
        Text by file name; the first is compiled, the others may be included by it.

    Raises
    ------
    BuildError
        If there is no compiler or it fails, with its first line.

    Examples
    --------
    >>> answer = '__attribute__((visibility("default"))) int answer(void) { return 42; }'
    >>> load_library({"answer.c": answer}).answer()
    42
    """
    try:
        compiler = find_compiler()
        cached = cache_folder() / f"{Path(next(iter(sources))).stem}-{_key(sources, compiler)}.so"
        if _content(cached) is not None:
            try:
                return ctypes.CDLL(str(cached))
            except OSError:
                pass  # whole, but for another system: a shared home folder
        folder = _usable_folder(cached.parent)
        if folder is not None:
            try:
                return _build(sources, compiler, cached, folder)
            except (OSError, BuildError):
                pass  # the disk may be full there, or a quota used up
        return _build(sources, compiler, cached, None)
    except BuildError:
        raise
    except (OSError, ValueError, RuntimeError, subprocess.SubprocessError) as error:  # of a broken environment
        raise BuildError(f"the compiler or the cache cannot be used: {error}") from error


def _build(sources: dict[str, str], compiler: list[str], cached: Path, folder: Path | None) -> ctypes.CDLL:
    """Compile in a folder, or in the system's for temporary files; keep the result if it is the cache's."""
    with scratch(folder or Path(tempfile.gettempdir())) as build:
        library = _compile(sources, compiler, build)
        if folder is not None:
            library = _publish(library, cached)
        try:
            return ctypes.CDLL(str(library))  # what is mapped stays usable when the file is gone
        except OSError as error:
            raise BuildError(f"the compiled library does not load: {error}") from error


def load_or_make(name: str, make: Callable[[], bytes]) -> bytes:
    """Return the content of a file in the cache; make it if there is none, or a damaged one.

    It is as safe as :func:`load_library` between processes and users, and does without the cache as that does.

    Examples
    --------
    >>> load_or_make("answer", lambda: b"42")
    b'42'
    """
    cached = cache_folder() / name
    content = _content(cached)
    if content is not None:
        return content
    content = make()
    folder = _usable_folder(cached.parent)
    if folder is not None:
        with scratch(folder or Path(tempfile.gettempdir())) as build:
            made = build / name
            made.write_bytes(content)
            _publish(made, cached)
    return content


def cache_folder() -> Path:
    """Return where libraries are kept: ``SNN_EXT_CACHE``, or ``snn_ext`` in the user's cache folder.

    Examples
    --------
    >>> cache_folder().is_absolute()
    True
    """
    chosen = os.environ.get("SNN_EXT_CACHE")
    if chosen:
        return Path(chosen).expanduser().absolute()
    return user_cache()


def find_compiler() -> list[str]:
    """Return the command of the C compiler: ``CC``, or the first of cc, gcc and clang that is installed."""
    chosen = os.environ.get("CC", "").strip()
    for command in [shlex.split(chosen)] if chosen else [["cc"], ["gcc"], ["clang"]]:
        if shutil.which(command[0]):
            return command
    raise BuildError(f"no C compiler: looked for {chosen or 'cc, gcc, clang'}")


def _key(sources: dict[str, str], compiler: list[str]) -> str:
    """Hash of everything that the library depends on."""
    version = _run([*compiler, "--version"]).stdout
    parts = [*sources, *sources.values(), *compiler, version, *_FLAGS, *_LIBRARY, repr(_OPTIONAL_FLAGS)]
    return hashlib.sha256("\0".join([*parts, _processor()]).encode()).hexdigest()[:16]


def _run(command: list[str], folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the compiler; it writes in the encoding of its own locale, which need not be that of Python."""
    return subprocess.run(
        command, cwd=folder, capture_output=True, encoding="utf-8", errors="replace", timeout=_PATIENCE, check=False
    )


def _processor() -> str:
    """Tell apart machines between which -march=native differs."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            first = file.read().split("\n\n")[0].splitlines()
        features = [line for line in first if line.split(":")[0].strip() in ("model name", "flags", "Features")]
    except OSError:
        features = [platform.processor()]
    return "\n".join([platform.system(), platform.machine(), *features])


def _compile(sources: dict[str, str], compiler: list[str], folder: Path) -> Path:
    for name, text in sources.items():
        (folder / name).write_text(text, encoding="utf-8")
    library, errors = folder / "library.so", []
    for optional in _OPTIONAL_FLAGS:
        command = [*compiler, *_FLAGS, *optional, *_LIBRARY, next(iter(sources)), "-o", library.name]
        try:
            done = _run(command, folder)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise BuildError(f"{shlex.join(compiler)} did not run: {error}") from error
        if done.returncode == 0 and library.exists():
            return library
        lines = (done.stderr or done.stdout).splitlines()
        errors.append(next((line for line in lines if "error" in line), lines[0] if lines else "no message"))
    # With the fewest flags it is the source, or the compiler itself, that is to blame.
    raise BuildError(f"{shlex.join(compiler)} failed: {errors[-1].strip()}")


# -- the folder --------------------------------------------------------------------------------------------------------


def _usable_folder(folder: Path) -> Path | None:
    """Return the folder of the cache, made if there is none; None, with a warning, if it cannot be used."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        reason = why_not_trusted(folder)
        if reason is None:
            with tempfile.TemporaryFile(dir=folder):
                return folder
    except OSError:
        reason = "it cannot be written"
    warnings.warn(
        f"snn_ext: the cache folder {folder} is not used, so that every process compiles again: {reason}; "
        "SNN_EXT_CACHE names another",
        RuntimeWarning,
        stacklevel=4,
    )
    return None


def why_not_trusted(place: Path) -> str | None:
    """Return why what is in a folder, or a file, may come from somebody else; None if it cannot.

    As ssh looks at keys: the file, its folder and all folders above them, also where links lead to, have to belong to
    this user or to root, and nobody else may write them. Above the folder one that is sticky will do, such as ``/tmp``.

    Examples
    --------
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Path(folder).chmod(0o777)
    ...     why_not_trusted(Path(folder)) == f"others may write {folder} (chmod go-w)"
    True
    """
    if not hasattr(os, "geteuid"):
        return None
    own = place if place.is_dir() else place.parent
    for path in dict.fromkeys((place, *place.parents, place.resolve(), *place.resolve().parents)):
        status = path.lstat()
        if status.st_uid not in (0, os.geteuid()):
            return f"{path} belongs to another user"
        if stat.S_ISLNK(status.st_mode):
            continue  # whoever may write its folder decides where it leads
        sticky = status.st_mode & stat.S_ISVTX and path not in (own, own.resolve())
        shared = stat.S_IWOTH if _is_private(status.st_gid) else stat.S_IWOTH | stat.S_IWGRP
        if status.st_mode & shared and not sticky:
            return f"others may write {path} (chmod go-w)"
    return None


def _is_private(group: int) -> bool:
    """Return True if a group is the one that many systems make for each user alone, with a umask of 002."""
    try:
        import grp
        import pwd

        user, found = pwd.getpwuid(os.geteuid()), grp.getgrgid(group)
    except (ImportError, KeyError):
        return False
    return user.pw_gid == group and user.pw_name == found.gr_name and set(found.gr_mem) <= {user.pw_name}


def _publish(library: Path, cached: Path) -> Path:
    """Append the digest of the content, which shows damage, and rename the file into place."""
    content = library.read_bytes()
    library.write_bytes(content + hashlib.sha256(content).digest())
    library.chmod(0o700)  # whatever the umask is
    try:
        os.replace(library, cached)
    except OSError:
        return library
    return cached


def _content(cached: Path) -> bytes | None:
    """Return what is in a file of the cache; None if there is none, or it is damaged or may be somebody else's."""
    try:
        if why_not_trusted(cached) is not None or not stat.S_ISREG(cached.lstat().st_mode):
            return None
        content = cached.read_bytes()
    except OSError:
        return None
    content, digest = content[:-_DIGEST_BYTES], content[-_DIGEST_BYTES:]
    return content if hashlib.sha256(content).digest() == digest else None
