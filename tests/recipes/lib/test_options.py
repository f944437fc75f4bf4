"""Every option of every command has a range; what is out of it, or not there, is refused by its name."""

from __future__ import annotations

import argparse
import ast
import importlib
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

for needed in ("spikingjelly", "snntorch", "torchvision", "soundfile", "sklearn"):
    pytest.importorskip(needed, exc_type=ImportError)

from recipes.lib import ranges  # noqa: E402
from recipes.lib.cli import defaults  # noqa: E402
from recipes.lib.files import data_folder  # noqa: E402
from recipes.lib.options import device  # noqa: E402
from recipes.lib.ranges import Different, Increasing, Number, integer, new_file, new_folder, number  # noqa: E402

ROOT = Path(ranges.__file__).parents[2]


class Parser(BaseException):
    """Carries the parser out of the ``main`` that has made it."""


def commands() -> list[str]:
    """Return the modules that are run by ``python -m``."""
    found = []
    for path in sorted([*(ROOT / "recipes").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]):
        if 'if __name__ == "__main__":' in path.read_text("utf-8"):
            found.append(".".join(path.relative_to(ROOT).with_suffix("").parts))
    return found


@pytest.fixture(scope="module")
def parsers() -> dict[str, argparse.ArgumentParser]:
    """Make the parsers of all commands by their own ``main``, which goes no further."""

    def stop(parser: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        raise Parser(parser)

    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        patch.setattr(argparse.ArgumentParser, "parse_known_args", stop)
        for name in commands():
            with pytest.raises(Parser) as carried:
                importlib.import_module(name).main([])
            found[name] = carried.value.args[0]
    return found


def actions(parsers: dict[str, argparse.ArgumentParser]) -> Iterator[tuple[str, argparse.Action]]:
    for name, parser in parsers.items():
        for action in parser._actions:
            if action.nargs != 0:
                yield f"{name} {'/'.join(action.option_strings)}", action


def out_of(kind: Number) -> list[str]:
    """Return texts that are just out of a range, and what is no number of any range."""
    texts = ["nan", "inf", "-inf", "1e999", "many", ""]
    for end, is_open, outward in ((kind.low, kind.low_open, -1), (kind.high, kind.high_open, 1)):
        if math.isfinite(end):
            beyond = end + outward if kind.kind is int else math.nextafter(end, outward * math.inf)
            texts.append(repr(end if is_open else beyond))
    return texts + ["1.5"] * (kind.kind is int)


def test_all_commands_are_found(parsers: dict[str, argparse.ArgumentParser]) -> None:
    assert len(parsers) >= 20 and {"recipes.listen", "recipes.makers.fashion_mnist", "benchmarks.speed.gpu"} < {
        *parsers
    }
    assert sum(1 for _ in actions(parsers)) > 150


def test_no_option_takes_numbers_without_a_range(parsers: dict[str, argparse.ArgumentParser]) -> None:
    for name, action in actions(parsers):
        bare = action.type in (int, float) and not action.choices
        several = isinstance(action.default, list | tuple) and action.default or [action.default]
        untyped = action.type is None and any(type(value) in (int, float) for value in several)
        assert not (bare or untyped), f"{name}: want a type of recipes.lib.ranges, with a range"


def test_number_out_of_its_range_is_refused_by_the_name_of_the_option(
    parsers: dict[str, argparse.ArgumentParser], capsys: pytest.CaptureFixture[str]
) -> None:
    refused = 0
    for name, parser in parsers.items():
        for action in parser._actions:
            if not isinstance(action.type, Number):
                continue
            for text in out_of(action.type):
                with pytest.raises(SystemExit) as end:
                    parser.parse_args([f"{action.option_strings[0]}={text}"])
                wanted = f"argument {'/'.join(action.option_strings)}: got {text}, want {action.type.want}"
                assert end.value.code == 2 and wanted in capsys.readouterr().err, f"{name} {wanted}"
                refused += 1
    assert refused > 700


def test_every_option_has_a_text(parsers: dict[str, argparse.ArgumentParser]) -> None:
    for name, parser in parsers.items():
        for action in parser._actions if name.startswith("recipes.") else ():
            text = (action.help or "").split("(default")[0].strip()
            assert text and "default: None" not in action.help, f"{name}: {action.dest} has no help"


def test_folders_and_files_to_write_are_checked_before_any_work(parsers: dict[str, argparse.ArgumentParser]) -> None:
    for name, action in actions(parsers):
        if {"--out", "--markdown", "--target"} & {*action.option_strings}:
            assert action.type in (new_folder, new_file), f"{name}: want new_folder or new_file of recipes.lib.ranges"


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (integer(), ["1", "2147483647"], ["0", "2147483648", "1.0", "nan", "9" * 5000]),
        (integer(0, 3), ["0", "3"], ["-1", "4"]),
        (number(0.0, below=1.0), ["0", "0.999"], ["1", "-1e-9", "nan"]),
        (number(above=0.0, high=1.0), ["1", "1e-9"], ["0", "1.0000001", "inf"]),
        (number(), ["-1e300", "0"], ["nan", "inf", "-inf"]),
        (ranges.SEED, ["0", str(2**32 - 1)], ["-1", str(2**32)]),
    ],
)
def test_ends_of_a_range_belong_to_it_or_do_not(kind: Number, good: list[str], bad: list[str]) -> None:
    assert [kind(text) for text in good] == [float(text) for text in good]
    for text in bad:
        with pytest.raises(argparse.ArgumentTypeError, match=f"got {text}, want an? "):
            kind(text)


@pytest.mark.parametrize("name", ["bogus", "meta", "cuda:99", "xpu", "vulkan", "", "cuda:-1", "mps"])
def test_device_that_is_not_there_is_refused(name: str) -> None:
    if name == "xpu" and torch.xpu.is_available():
        pytest.skip("there is one")
    with pytest.raises(argparse.ArgumentTypeError, match="got .*, want cpu or another device that torch finds here"):
        device(name)
    assert device("cpu") == "cpu"


def test_values_that_have_to_differ_or_increase(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=ranges.SEED, nargs="+", action=Different)
    parser.add_argument("--milestones", type=integer(), nargs="*", action=Increasing)
    args = parser.parse_args(["--seeds", "3", "1", "--milestones", "2", "9"])
    assert (args.seeds, args.milestones) == ([3, 1], [2, 9])
    for arguments, message in (
        (["--seeds", "0", "1", "0"], "argument --seeds: got 0 1 0, want different ones"),
        (["--milestones", "3", "3"], "argument --milestones: got 3 3, want increasing ones"),
    ):
        with pytest.raises(SystemExit):
            parser.parse_args(arguments)
        assert message in capsys.readouterr().err


def test_path_that_cannot_be_made_is_told_with_the_reason_and_nothing_is_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for kind in (new_folder, new_file):
        assert kind(str(tmp_path / "a" / "b")) == tmp_path / "a" / "b"
        for bad, reason in (
            (tmp_path / "file" / "x", "is a file|Not a directory"),
            (tmp_path / ("n" * 300), "File name too long"),
            (tmp_path / "link", "links to nothing"),
            ("a\0b", "null byte"),
        ):
            with pytest.raises(argparse.ArgumentTypeError, match=f"got .*, want a .*: .*({reason})"):
                kind(str(bad))
    with pytest.raises(argparse.ArgumentTypeError, match="want a folder: .* is a file"):
        new_folder(str(tmp_path / "file"))
    with pytest.raises(argparse.ArgumentTypeError, match="want a file: it is a folder"):
        new_file(str(tmp_path))
    with pytest.raises(argparse.ArgumentTypeError, match="want a file that exists"):
        ranges.old_file(str(tmp_path / ("n" * 300)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]


def test_folder_without_permission_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(argparse.ArgumentTypeError, match=f"can be made: {tmp_path} is not writable"):
        new_folder(str(tmp_path / "x"))


def test_trained_net_is_loaded_where_nothing_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    from recipes.train_images import Options

    assert defaults(Options)["width"] == 1.0


def test_missing_home_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SNN_EXT_DATA", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    with pytest.raises(ValueError, match="SNN_EXT_DATA: got none, and there is no home folder"):
        data_folder()
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert data_folder() == Path("/cache/snn_ext")
    monkeypatch.setenv("SNN_EXT_DATA", "/data")
    assert data_folder() == Path("/data")


def test_every_text_file_has_its_encoding() -> None:
    """The encoding of the system is another one on every machine."""
    without = []
    packages = ("recipes", "snn_ext", "benchmarks")
    for path in sorted(file for package in packages for file in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            texts = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
            given = any(k.arg == "encoding" for k in node.keywords) or "utf-8" in texts
            binary = any("b" in text for text in texts[-1:])
            opener = any(k.arg == "opener" for k in node.keywords)  # with a mode that is handed on
            plain_open = isinstance(node.func, ast.Name) and name == "open" and not binary and not opener
            if (name in ("read_text", "write_text") or plain_open) and not given:
                without.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not without, "want encoding='utf-8'"
