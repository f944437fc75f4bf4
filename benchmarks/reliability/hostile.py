"""Files made to harm: code in pickles, archives that leave their folder, bombs, numbers that are none."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .damage import judge, loaded, pristine
from .forking import shared
from .formats import FORMATS
from .outcomes import Outcome, Try

__all__ = ["hostile"]

Attack = Callable[[Path, Path], None]
"""Puts something into the place of a file, given a path outside of the folder that must stay as it is."""


class _Touch:
    """A pickle that writes a file when it is loaded."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (f"open({str(self.victim)!r}, 'w').write('executed')",)


def hostile(tries: int, seed: int, jobs: int, only: list[str] | None = None) -> list[Try]:
    """Load each hostile file once, whatever the number of tries: nothing is random here."""
    del tries, seed
    formats = {name: kind for name, kind in FORMATS.items() if not only or name in only}
    attacks = [(name, attack) for name in formats for attack in _attacks(Path(FORMATS[name].file).name)]
    with pristine(formats, jobs) as (folders, want):

        def attempt(item: tuple[str, tuple[str, Attack]]) -> Try:
            name, (title, attack) = item
            with tempfile.TemporaryDirectory(prefix="hostile-") as place:
                outside, folder = Path(place) / "outside", Path(place) / "here"
                outside.mkdir()
                (outside / "precious").write_text("as it was", encoding="utf-8")
                shutil.copytree(folders / name, folder)
                attack(folder / formats[name].file, outside / "precious")
                ended = loaded(formats[name], folder)
                # a JSON without checksum may say what it likes, if it is in the right form
                found = judge(name, title, ended, replace(formats[name], checked=False), want[name].value)
                harmed = {path.name: _text(path) for path in outside.iterdir()} != {"precious": "as it was"}
                escaped = {path.name for path in Path(place).iterdir()} != {"outside", "here"}
            if harmed or escaped:
                outcome: Outcome = "lost"
                return replace(found, outcome=outcome, told="something was executed, or written outside of the folder")
            return found

        return shared(attacks, attempt, jobs, "hostile files")


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else "no file"


def _attacks(file: str) -> Iterator[tuple[str, Attack]]:
    """Return what can be put into the place of a file of that name."""
    yield "empty", lambda path, _: path.write_bytes(b"") and None
    yield "a folder", _folder
    yield "random bytes", lambda path, _: path.write_bytes(np.random.default_rng(0).bytes(5000)) and None
    if file.endswith(".pt"):
        yield "a pickle that runs code, as a torch file", lambda path, victim: torch.save(_Touch(victim), path)
        yield (
            "a pickle that runs code, as it is",
            lambda path, victim: path.write_bytes(pickle.dumps(_Touch(victim))) and None,
        )
        yield "a pickle that runs code in the settings", _settings_that_run
        yield "a tensor of 64 GiB in a kilobyte", _bomb_of_torch
        yield "a tensor alone", lambda path, _: torch.save(torch.zeros(3), path)
        yield "numbers that are none", _nan_weights
    if file.endswith(".npz"):
        yield "an array of objects that run code", _objects
        yield "an array of 64 GiB in a kilobyte", _bomb_of_numpy
    if file.endswith((".json", ".jsonl")):
        yield "nested 100,000 times", lambda path, _: path.write_text("[" * 100_000, encoding="utf-8") and None
        yield "NaN for every number", _json_nan
        yield (
            "a number of 10,000 digits",
            lambda path, _: path.write_text('{"settings": ' + "9" * 10_000 + "}", encoding="utf-8") and None,
        )
        for content in ("null", "[]", "{}", '"text"', '{"settings": null}'):
            yield f"{content}", lambda path, _, content=content: path.write_text(content, encoding="utf-8") and None
    if file.endswith(".gz"):
        for title, member in _members().items():
            yield f"a member that is {title}", lambda path, victim, member=member: _tar(path, victim, member)
    if file.endswith(".zip"):
        yield "a recording of 8 GiB in some kilobytes", _bomb_of_zip
        yield "names that leave the folder", _zip_with_dots
    if file.endswith(".wav"):
        yield (
            "a header that declares 4 GiB",
            lambda path, _: _patch(path, {4: b"\xff\xff\xff\xff", 40: b"\xff\xff\xff\xff"}),
        )
        yield "65,535 channels", lambda path, _: _patch(path, {22: b"\xff\xff"})
        yield "0 Hz", lambda path, _: _patch(path, {24: bytes(4)})
    if file.endswith(".flac"):
        yield "a header that declares 2^36 samples", _patch_flac


def _folder(path: Path, victim: Path) -> None:
    path.unlink()
    path.mkdir()


def _settings_that_run(path: Path, victim: Path) -> None:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # of another layout
        content = {}
    torch.save({**content, "settings": {"a": _Touch(victim)}}, path)


def _bomb_of_torch(path: Path, victim: Path) -> None:
    torch.save({"settings": {}, "model": {"weight": torch.zeros(1).expand(1 << 34)}}, path)


def _nan_weights(path: Path, victim: Path) -> None:
    def spoiled(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return torch.full_like(value, torch.nan) if value.is_floating_point() else value
        return {key: spoiled(item) for key, item in value.items()} if isinstance(value, dict) else value

    torch.save(spoiled(torch.load(path, map_location="cpu", weights_only=True)), path)


def _objects(path: Path, victim: Path) -> None:
    array = np.empty(1, object)
    array[0] = _Touch(victim)
    np.savez(path, features=array, classes=array)


def _bomb_of_numpy(path: Path, victim: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (1 << 34,)})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("features.npy", header.getvalue() + bytes(1 << 20))


def _json_nan(path: Path, victim: Path) -> None:
    def spoiled(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: spoiled(item) for key, item in value.items()}
        if isinstance(value, list):
            return [spoiled(item) for item in value]
        return float("nan") if isinstance(value, float) else value

    lines = [json.dumps(spoiled(json.loads(line))) for line in _documents(path)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _documents(path: Path) -> list[str]:
    return (
        path.read_text(encoding="utf-8").splitlines() if path.suffix == ".jsonl" else [path.read_text(encoding="utf-8")]
    )


def _members() -> dict[str, Callable[[Path], list[tarfile.TarInfo]]]:
    """Return members of a tar archive, given a path outside."""

    def one(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", mode: int = 0o644) -> tarfile.TarInfo:
        info = tarfile.TarInfo(name)
        info.type, info.linkname, info.mode = kind, link, mode
        return info

    return {
        "above the folder": lambda victim: [one("../../outside/precious")],
        "at an absolute path": lambda victim: [one(str(victim))],
        "behind a link to outside": lambda victim: [
            one("way", tarfile.SYMTYPE, str(victim.parent)), one("way/precious"),
        ],
        "behind a chain of links": lambda victim: [
            one("a", tarfile.SYMTYPE, "."), one("a/b", tarfile.SYMTYPE, "../../outside"), one("a/b/precious"),
        ],
        "a hard link to outside": lambda victim: [one("copy", tarfile.LNKTYPE, str(victim)), one("copy")],
        "a device": lambda victim: [one("device", tarfile.CHRTYPE)],
        "a pipe": lambda victim: [one("pipe", tarfile.FIFOTYPE)],
    }  # fmt: skip


def _tar(path: Path, victim: Path, members: Callable[[Path], list[tarfile.TarInfo]]) -> None:
    import hashlib

    with tarfile.open(path, "w:gz") as archive:
        for info in members(victim):
            info.size = 8 if info.isreg() else 0
            archive.addfile(info, io.BytesIO(b"hostile!"))
    path.with_name("sha256").write_text(
        hashlib.sha256(path.read_bytes()).hexdigest(), encoding="utf-8"
    )  # unpacking is what is attacked


def _bomb_of_zip(path: Path, victim: Path) -> None:
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("0_ann_0.wav", "w", force_zip64=True) as file,
    ):
        for _ in range(8 << 4):
            file.write(bytes(64 << 20))


def _zip_with_dots(path: Path, victim: Path) -> None:
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("../outside/precious", "hostile")


def _patch(path: Path, bytes_at: dict[int, bytes]) -> None:
    content = bytearray(path.read_bytes())
    for place, new in bytes_at.items():
        content[place : place + len(new)] = new
    path.write_bytes(content)


def _patch_flac(path: Path, victim: Path) -> None:
    first = path.read_bytes()[21]
    _patch(path, {21: bytes([first & 0xF0 | 0x0F, 255, 255, 255, 255])})
