"""Building and caching of the native library, by processes that race and in folders that are in the way."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from snn_ext._files import scratch
from snn_ext.ops.machine import build
from snn_ext.ops.machine.build import BuildError, cache_folder, load_library, load_or_make

pytestmark = pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="no C compiler")

ANSWER = {"answer.c": '#include "n.h"\n__attribute__((visibility("default"))) int answer(void) { return N; }\n'}


def sources(number: int) -> dict[str, str]:
    return {**ANSWER, "n.h": f"#define N {number}\n"}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SNN_EXT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def no_compiling(*arguments: object) -> None:
    raise AssertionError("compiled again")


def test_what_is_cached_is_not_compiled_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_library(sources(41)).answer() == 41
    assert [path.suffix for path in cache.iterdir()] == [".so"]
    monkeypatch.setattr(build, "_compile", no_compiling)
    assert load_library(sources(41)).answer() == 41
    with pytest.raises(AssertionError, match="compiled again"):
        load_library(sources(42))


def test_flags_and_processor_are_part_of_the_key(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_library(sources(1))
    monkeypatch.setattr(build, "_processor", lambda: "another")
    load_library(sources(1))
    monkeypatch.setattr(build, "_FLAGS", ("-O1", *build._FLAGS[1:]))
    load_library(sources(1))
    assert len(list(cache.iterdir())) == 3


@pytest.mark.parametrize("damage", ["half", "empty", "flipped", "text"])
def test_a_damaged_library_is_made_anew(cache: Path, damage: str) -> None:
    load_library(sources(7))
    (library,) = cache.iterdir()
    content = bytearray(library.read_bytes())
    content[len(content) // 3] ^= 255
    damaged = {"half": content[: len(content) // 2], "empty": b"", "flipped": content, "text": b"no library"}[damage]
    library.unlink()  # this process has it mapped
    library.write_bytes(damaged)
    assert load_library(sources(7)).answer() == 7
    assert build._content(library) is not None


def test_processes_that_build_at_once(cache: Path) -> None:
    code = f"from snn_ext.ops.machine.build import load_library; print(load_library({sources(13)!r}).answer())"
    environment = {**os.environ, "PYTHONPATH": str(Path(build.__file__).parents[3])}
    running = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    assert [process.communicate()[0].strip() for process in running] == ["13"] * 3
    assert [path.suffix for path in cache.iterdir()] == [".so"]


def test_a_cache_that_can_not_be_made_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("SNN_EXT_CACHE", str(tmp_path / "file" / "cache"))
    assert load_library(sources(3)).answer() == 3


# -- what others may have put there ------------------------------------------------------------------------------------

posix = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no POSIX users")
STRANGER = 54321


def plant(cache: Path, answer: int) -> Path:
    """Put another library, whole, where that of ``sources(1)`` is looked for."""
    library, evil = cache / f"answer-{build._key(sources(1), build.find_compiler())}.so", cache.parent / "evil"
    cache.mkdir(mode=0o700)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SNN_EXT_CACHE", str(evil))
        load_library(sources(answer))
    (other,) = evil.glob("*.so")
    shutil.copyfile(other, library)
    library.chmod(0o700)
    return library


@posix
def test_a_library_of_one_s_own_is_believed(cache: Path) -> None:
    plant(cache, 666)
    assert load_library(sources(1)).answer() == 666, "the other tests show nothing"


@posix
@pytest.mark.parametrize("mode", [0o777, 0o707, 0o1777])
def test_a_folder_that_others_may_write_is_not_used(cache: Path, mode: int) -> None:
    library = plant(cache, 666)
    for folder in (cache, cache.parent) if mode != 0o1777 else (cache,):
        folder.chmod(mode)
        with pytest.warns(RuntimeWarning, match=f"not used.* others may write {folder} .*SNN_EXT_CACHE"):
            assert load_library(sources(1)).answer() == 1
        folder.chmod(0o700)
    assert list(cache.iterdir()) == [library]


@posix
def test_a_sticky_folder_above_will_do(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.parent.chmod(0o1777)
    load_library(sources(1))
    monkeypatch.setattr(build, "_compile", no_compiling)
    assert load_library(sources(1)).answer() == 1


@posix
def test_a_file_that_others_may_write_is_made_anew(cache: Path) -> None:
    library = plant(cache, 666)
    library.chmod(0o707)
    assert load_library(sources(1)).answer() == 1
    assert stat.S_IMODE(library.stat().st_mode) == 0o700


@posix
@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() != 0, reason="only root may give files away")
@pytest.mark.parametrize("what", ["file", "folder", "above"])
def test_what_belongs_to_another_is_not_used(cache: Path, what: str) -> None:
    library = plant(cache, 666)
    os.chown({"file": library, "folder": cache, "above": cache.parent}[what], STRANGER, STRANGER)
    if what == "file":
        assert load_library(sources(1)).answer() == 1
        assert library.stat().st_uid == 0
        return
    with pytest.warns(RuntimeWarning, match="belongs to another user"):
        assert load_library(sources(1)).answer() == 1
    assert list(cache.iterdir()) == [library]


@posix
def test_a_planted_link_is_replaced_and_not_followed(cache: Path, tmp_path: Path) -> None:
    library = plant(cache, 666)
    target = tmp_path / "target"
    library.rename(target)
    before = target.read_bytes()
    library.symlink_to(target)
    assert load_library(sources(1)).answer() == 1
    assert target.read_bytes() == before and not library.is_symlink()


@posix
def test_a_link_to_a_folder_of_others_is_not_followed(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    cache.symlink_to(tmp_path / "open")
    (tmp_path / "open").chmod(0o777)
    with pytest.warns(RuntimeWarning, match="others may write"):
        assert load_library(sources(1)).answer() == 1
    assert not list((tmp_path / "open").iterdir())


@posix
def test_a_group_of_several_may_not_write(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = plant(cache, 666)
    library.chmod(0o770)
    monkeypatch.setattr(build, "_is_private", lambda group: True)
    assert load_library(sources(1)).answer() == 666
    library.chmod(0o770)
    monkeypatch.setattr(build, "_is_private", lambda group: False)
    assert build._content(library) is None


def test_machine_code_that_others_may_write_is_made_anew(cache: Path) -> None:
    assert load_or_make("code", lambda: b"one") == b"one"
    assert load_or_make("code", lambda: b"two") == b"one"
    (cache / "code").chmod(0o707)
    assert load_or_make("code", lambda: b"two") == b"two"


def test_folders_of_killed_builds_are_swept_and_those_of_running_ones_not(cache: Path, tmp_path: Path) -> None:
    load_library(sources(1))
    killed, link = (cache / f".snn_ext-{digit * 16}" for digit in "ab")
    for folder in (killed, tmp_path / "kept"):
        folder.mkdir()
        (folder / "n.h").write_text("")
    link.symlink_to(tmp_path / "kept")
    with scratch(cache) as running:
        (running / "n.h").write_text("")
        load_library(sources(2))
        assert not killed.exists() and (running / "n.h").exists() and (tmp_path / "kept" / "n.h").exists()
    assert not running.exists()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_cache_is_done_without(cache: Path) -> None:
    cache.mkdir(mode=0o500)
    assert load_library(sources(4)).answer() == 4
    assert not list(cache.iterdir())


def test_a_cache_that_fails_to_write_is_done_without(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(*arguments: object, **settings: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(build.tempfile, "TemporaryFile", read_only)
    assert load_library(sources(5)).answer() == 5
    monkeypatch.undo()
    monkeypatch.setenv("SNN_EXT_CACHE", str(cache))
    monkeypatch.setattr(build.os, "replace", read_only)
    assert load_library(sources(6)).answer() == 6


def test_no_compiler_and_failing_compilers(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BuildError, match=r"failed: .*error"):
        load_library({"broken.c": "int answer(void) { return }"})
    monkeypatch.setenv("CC", "/no/such/compiler -x")
    with pytest.raises(BuildError, match="no C compiler: looked for /no/such/compiler -x"):
        load_library(sources(8))
    monkeypatch.setenv("CC", "false")
    with pytest.raises(BuildError, match="false failed: no message"):
        load_library(sources(8))


def test_error_is_that_of_the_call_with_the_fewest_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "cc"
    compiler.write_text(
        '#!/bin/sh\necho "error: -march $(echo $* | grep -c march) -fopenmp $(echo $* | grep -c openmp)"\nexit 1'
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    with pytest.raises(BuildError, match="error: -march 0 -fopenmp 0"):
        load_library(sources(8))


def test_a_compiler_without_openmp_or_native_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "plain-cc"
    refuse = 'case "$*" in *-fopenmp*|*-march*) echo "error: unknown flag" >&2; exit 1;; esac'
    compiler.write_text(f'#!/bin/sh\n{refuse}\nexec cc "$@"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    assert load_library(sources(9)).answer() == 9


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("SNN_EXT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "snn_ext"


@pytest.mark.parametrize("compiler", [" ", "gcc -DX='", "gcc -quotes 'open"])
def test_a_meaningless_compiler_is_a_reason_and_no_crash(compiler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", compiler)
    if compiler == " ":  # as good as none
        assert load_library(sources(5)).answer() == 5
        return
    with pytest.raises(BuildError):
        load_library(sources(5))


def test_a_compiler_that_is_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cc").write_text("no shebang")
    (tmp_path / "cc").chmod(0o755)
    monkeypatch.setenv("CC", str(tmp_path / "cc"))
    with pytest.raises(BuildError):
        load_library(sources(5))


def test_a_compiler_that_speaks_another_encoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "cc"
    compiler.write_bytes("#!/bin/sh\necho 'error: für die Datei' >&2\nexit 1\n".encode("latin-1"))
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    with pytest.raises(BuildError, match="failed: error: f.r die Datei"):
        load_library(sources(1))


def test_a_compiler_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cc").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "cc").chmod(0o755)
    monkeypatch.setenv("CC", str(tmp_path / "cc"))
    monkeypatch.setattr(build, "_PATIENCE", 0.2)
    with pytest.raises(BuildError, match="timed out"):
        load_library(sources(5))


def test_a_cache_without_room_is_done_without(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish = build._publish

    def full(library: Path, cached: Path) -> Path:
        if cached.parent in library.parents:
            raise OSError(28, "No space left on device")
        return publish(library, cached)

    monkeypatch.setattr(build, "_publish", full)
    assert load_library(sources(6)).answer() == 6
    assert not list(cache.iterdir())


def test_a_cache_folder_of_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SNN_EXT_CACHE", "~nosuchuser/x")
    with pytest.raises(BuildError, match="home directory"):
        load_library(sources(6))
