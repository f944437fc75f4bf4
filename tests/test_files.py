"""Files are written whole or not at all, by any number of writers, and are read only if not a bit has changed."""

from __future__ import annotations

import hashlib
import json
import os
import random
import resource
import signal
import stat
import threading
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from snn_ext import _files
from snn_ext._files import (
    DamagedFileError,
    building,
    load_arrays,
    load_tensors,
    read_json,
    replacing,
    save_tensors,
    sweep,
    write_json,
)

JSON = {"name": "käse", "accuracy": 0.30000000000000004, "layers": [1, -0.0, None, True, 1e-300], "deep": {"a": "b"}}
TENSORS = {"model": {"a": torch.arange(60.0), "b": torch.arange(7)}, "settings": {"lr": 0.1}, "epochs": 3}


def write_tensors(path: Path) -> None:
    save_tensors(TENSORS, path)


def write_arrays(path: Path) -> None:
    with replacing(path) as temporary:
        np.savez(temporary, features=np.arange(120, dtype=np.float32).reshape(4, 30), words=np.array(["yes", "no"]))


def write_packed(path: Path) -> None:
    with replacing(path) as temporary:
        np.savez_compressed(temporary, features=np.arange(120, dtype=np.float32).reshape(4, 30))


FORMATS: dict[str, tuple[Callable[[Path], None], Callable[[Path], Any]]] = {
    "tensors.pt": (write_tensors, load_tensors),
    "stored.npz": (write_arrays, lambda path: load_arrays(path, "arrays")),
    "packed.npz": (write_packed, lambda path: load_arrays(path, "arrays")),
    "values.json": (lambda path: write_json(path, JSON), lambda path: read_json(path, "values")),
}


def damaged(content: bytes, tries: int) -> Iterator[bytes]:
    """Yield a content with one bit flipped, cut off, or of another kind."""
    draw, size = random.Random(0), len(content)
    places = [draw.randrange(8 * size) for _ in range(tries)]
    places += [8 * size - 1 - place for place in range(0, 1600, 3) if place < 8 * size]  # the directory of a zip file
    for place in places:
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << place % 8
        yield bytes(flipped)
    for length in (0, 1, 4, size // 2, size - 1, *(draw.randrange(size) for _ in range(tries // 5))):
        yield content[:length]
    yield from (b"hello" * 50, b"PK\x03\x04" + bytes(100), b"PK\x05\x06" + bytes(18), b"[]", b"{}", b"\xff", b"null")
    yield content + b"more"
    yield content[: len(content) // 2] + content[len(content) // 2 + 1 :]


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return bool(a.dtype == b.dtype and np.array_equal(a, b))
    return bool(repr(a) == repr(b))  # -0.0 is another value than 0


@pytest.mark.parametrize("name", FORMATS)
def test_damage_is_one_error_that_names_the_file_and_never_another_content(tmp_path: Path, name: str) -> None:
    path, (write, load) = tmp_path / name, FORMATS[name]
    write(path)
    good, refused = load(path), 0
    for content in damaged(path.read_bytes(), 150):
        path.write_bytes(content)
        try:
            assert same(load(path), good)  # the bit has no meaning, such as the time of a member
        except DamagedFileError as error:
            assert str(error).startswith(f"{path}: damaged or not ") and "; re" in str(error)
            refused += 1
    assert refused > 100


@pytest.mark.parametrize("name", FORMATS)
def test_folder_pipe_and_nothing_in_the_place_of_a_file_are_named(tmp_path: Path, name: str) -> None:
    load = FORMATS[name][1]
    with pytest.raises(FileNotFoundError, match="nothing"):
        load(tmp_path / "nothing")
    with pytest.raises((DamagedFileError, IsADirectoryError), match=tmp_path.name):
        load(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DamagedFileError, match="pipe: is no file"):  # and is not waited for
        load(tmp_path / "pipe")


def test_sizes_that_a_file_only_claims_are_not_believed(tmp_path: Path) -> None:
    """A header of 10^15 numbers, a member of zeros that unpacks to a thousand times its share, pickles."""
    huge = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000000,), }"
    header = b"\x93NUMPY\x01\x00" + (len(huge) + 1).to_bytes(2, "little") + huge + b"\n"
    with zipfile.ZipFile(tmp_path / "huge.npz", "w") as archive:
        archive.writestr("a.npy", header)
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", bytes(10**7))
    np.savez(tmp_path / "pickled.npz", a=np.array([{}], dtype=object))
    for name in ("huge.npz", "pickled.npz"):
        with pytest.raises(DamagedFileError, match=name):
            load_arrays(tmp_path / name, "arrays")
    with pytest.raises(DamagedFileError, match=r"bomb\.pt"):
        load_tensors(tmp_path / "bomb.pt")


def test_code_in_a_checkpoint_does_not_run_and_is_not_recommended(tmp_path: Path) -> None:
    torch.save({"model": Hostile(tmp_path / "ran")}, tmp_path / "x.pt")
    with pytest.raises(DamagedFileError, match="damaged or not a checkpoint") as raised:
        load_tensors(tmp_path / "x.pt")
    assert not (tmp_path / "ran").exists() and "weights_only" not in str(raised.value)


class Hostile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_old_format_of_torch_is_believed_only_by_the_hash_in_its_name(tmp_path: Path) -> None:
    torch.save(TENSORS, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(DamagedFileError, match="holds no checksums; write it again"):
        load_tensors(tmp_path / "old.pth")
    content = (tmp_path / "old.pth").read_bytes()
    path = tmp_path / f"net-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    path.write_bytes(content)
    assert same(load_tensors(path), TENSORS)
    path.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
    with pytest.raises(DamagedFileError, match="holds no checksums"):
        load_tensors(path)


def forked(work: Callable[[], None]) -> int:
    """Run a function in a process of its own, and return the id of that; its status is 0 if the function returns."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return pid


# -- writing -----------------------------------------------------------------------------------------------------------


def test_two_writers_at_once_have_files_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    with replacing(path) as one, replacing(path) as two:
        one.write_bytes(b"1" * 100)
        two.write_bytes(b"2" * 50)
        assert one != two and one.stat().st_size == 100
    assert path.read_bytes() == b"1" * 100  # the last to end


def test_many_threads_and_processes_leave_one_whole_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "x.json"

    def work(name: int, errors: list[str]) -> None:
        for i in range(20):
            try:
                write_json(path, {"who": name, "i": i, "fill": "x" * 5000})
                read_json(path, "values")
            except Exception as error:
                errors.append(repr(error))

    def threads() -> None:
        errors: list[str] = []
        running = [threading.Thread(target=work, args=(name, errors)) for name in range(4)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
        assert not errors

    children = [forked(threads) for _ in range(2)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    assert read_json(tmp_path / "x.json", "values")["i"] == 19
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_temporary_is_not_written_through_a_planted_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / f".snn_ext-{'0' * 16}.txt").symlink_to(victim)
    monkeypatch.setattr(_files.secrets, "token_hex", lambda size: "0" * 16)  # a name that was foretold after all
    with pytest.raises(FileExistsError), replacing(tmp_path / "x.txt") as temporary:
        temporary.write_text("new")
    monkeypatch.undo()
    with replacing(tmp_path / "x.txt") as temporary:
        temporary.write_text("new")
    with pytest.raises(OSError, match="another process has replaced"), replacing(tmp_path / "x.txt") as temporary:
        temporary.unlink()
        temporary.symlink_to(victim)
    assert victim.read_text() == "precious" and (tmp_path / "x.txt").read_text() == "new"


def test_mode_of_the_old_file_is_kept_and_a_new_one_has_that_of_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        with replacing(tmp_path / "new") as temporary:
            temporary.write_text("x")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640
    for mode in (0o600, 0o444, 0o664):
        (tmp_path / "new").chmod(mode)
        with replacing(tmp_path / "new") as temporary:
            assert not temporary.stat().st_mode & 0o077 & ~mode  # nobody reads meanwhile who may not later
            temporary.write_text(f"{mode}")
        assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == mode and (tmp_path / "new").read_text() == f"{mode}"


def test_link_of_the_user_stays_and_its_target_is_written(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    link, target = tmp_path / "link", tmp_path / "elsewhere" / "target"
    link.symlink_to(target)
    for text in ("not there yet", "there"):
        with replacing(link) as temporary:
            temporary.write_text(text)
        assert link.is_symlink() and target.read_text() == text and not target.is_symlink()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a link away")
def test_link_of_somebody_else_in_a_folder_for_all_is_refused(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "x").symlink_to(tmp_path / "victim")
    os.chown(tmp_path / "x", os.geteuid() + 1, -1, follow_symlinks=False)
    with replacing(tmp_path / "x") as temporary:  # in a folder of ones own, as it was put there
        temporary.write_text("precious")
    tmp_path.chmod(0o1777)
    with pytest.raises(PermissionError, match="link of another user"), replacing(tmp_path / "x"):
        pytest.fail("was begun")
    assert (tmp_path / "victim").read_text() == "precious"


@contextmanager
def full_disk(size: int = 20_000) -> Iterator[None]:
    """Let no file of this process grow beyond a size: the system fails then as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("size", [1, 100, 4_000, 20_000])  # torch fails in different ways
def test_full_disk_leaves_the_old_content_and_names_the_file(tmp_path: Path, size: int) -> None:
    writers: dict[str, Callable[[Path], None]] = {
        "a.pt": lambda path: save_tensors({"a": torch.randn(100_000)}, path),
        "a.json": lambda path: write_json(path, {"a": "x" * 100_000}),
    }
    for name, write in writers.items():
        path = tmp_path / name
        path.write_bytes(b"old")
        with full_disk(size), pytest.raises(OSError, match=name):
            write(path)
        assert path.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "a.pt"]


def test_what_can_not_be_written_is_named_before_anything_is(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "folder", tmp_path / "file" / "x", tmp_path / ("n" * 300)):
        with pytest.raises(OSError, match=path.name[:100]), replacing(path):
            pytest.fail("was begun")
    longest = tmp_path / ("n" * 251 + ".txt")  # there is room for the name, but for nothing beside it
    with replacing(longest) as temporary:
        temporary.write_text("x")
    assert longest.read_text() == "x" and (tmp_path / "file").read_text() == "x"


# -- what killed processes leave ---------------------------------------------------------------------------------------


def half_a_file(folder: Path) -> Any:
    return replacing(folder / "x.pt")


def half_a_folder(folder: Path) -> Any:
    return building(folder / "x")


@pytest.mark.parametrize("making", [half_a_file, half_a_folder])
def test_leftovers_of_a_killed_process_are_swept_and_those_of_a_living_one_are_not(
    tmp_path: Path, making: Callable[[Path], Any]
) -> None:
    ready, tell = os.pipe()

    def child() -> None:
        with making(tmp_path) as temporary:
            (temporary / "a" if temporary.is_dir() else temporary).write_text("half")
            os.write(tell, b"half")
            signal.pause()

    pid = forked(child)
    try:
        assert os.read(ready, 4) == b"half"
        write_json(tmp_path / "y.json", {})
        assert len(list(tmp_path.glob(".snn_ext-*"))) == 1  # it lives
    finally:
        os.kill(pid, signal.SIGKILL)
        assert os.waitpid(pid, 0)[1] == signal.SIGKILL
        os.close(ready), os.close(tell)
    assert len(list(tmp_path.glob(".snn_ext-*"))) == 1
    write_json(tmp_path / "y.json", {})
    assert [path.name for path in tmp_path.iterdir()] == ["y.json"]


def test_only_files_of_that_name_are_swept_and_links_are_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = [".snn_ext-notes", ".snn_ext-0123", ".tmux.conf"]
    for name in kept:
        (tmp_path / name).write_text("precious")
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "file").write_text("precious")
    (tmp_path / f".snn_ext-{'a' * 16}").symlink_to(tmp_path / "target")
    left, young = tmp_path / f".snn_ext-{'b' * 16}.pt", tmp_path / f".snn_ext-{'c' * 16}"
    left.write_text("half"), young.mkdir()
    monkeypatch.setattr(_files, "lock", lambda descriptor, wait=True: None)  # a system without locks goes by the age
    os.utime(left, (0, 0))
    sweep(tmp_path)
    assert not left.exists() and young.exists()
    monkeypatch.undo()
    sweep(tmp_path)
    assert not young.exists() and (tmp_path / "target" / "file").read_text() == "precious"
    assert all((tmp_path / name).read_text() == "precious" for name in kept)


def test_a_file_where_a_folder_is_to_be_is_named_and_no_temporary_name_is_told(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("in the way")
    with pytest.raises(NotADirectoryError, match="x'$") as caught, building(tmp_path / "x"):
        pass
    assert ".snn_ext" not in str(caught.value) and [path.name for path in tmp_path.iterdir()] == ["x"]


def test_folder_is_there_whole_or_not_at_all_and_the_first_one_stays(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), building(tmp_path / "x") as half:
        (half / "a").write_text("half")
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
    with building(tmp_path / "x") as second:
        (second / "a").write_text("second")
        with building(tmp_path / "x") as first:
            (first / "a").write_text("first")
    assert (tmp_path / "x" / "a").read_text() == "first" and [path.name for path in tmp_path.iterdir()] == ["x"]


def test_writers_sweep_each_other_s_folder_without_losing_anything(tmp_path: Path) -> None:
    stop, lost = threading.Event(), []

    def sweeping() -> None:
        while not stop.is_set():
            sweep(tmp_path)

    sweeper = threading.Thread(target=sweeping)
    sweeper.start()
    try:
        for i in range(150):
            with replacing(tmp_path / "x") as temporary:
                temporary.write_text(f"{i}")
            if (tmp_path / "x").read_text() != f"{i}":
                lost.append(i)
            with building(tmp_path / f"folder-{i % 2}"):
                pass
    finally:
        stop.set()
        sweeper.join()
    assert not lost


def test_json_stays_readable_by_others(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", JSON)
    content = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))
    assert len(content.pop("sha256")) == 64 and content == JSON == read_json(tmp_path / "x.json", "values")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_json(tmp_path / "x.json", {"nan": float("nan")})
        assert read_json(tmp_path / "x.json", "values")["nan"] != 0
