"""Downloads from a server on this machine that breaks off, knows no ranges, or serves something else."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import io
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from recipes.data import download as module
from recipes.data.download import download, unpack
from recipes.lib.files import lock

CONTENT = np.random.default_rng(0).integers(0, 256, 3 * 2**20, dtype=np.uint8).tobytes()
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.BaseHTTPRequestHandler):
    ranges, gives, status, success, served = True, len(CONTENT), 200, 200, []  # type: ignore[var-annotated]

    def do_GET(self) -> None:
        start = int(self.headers.get("Range", "bytes=0-")[6:-1]) if self.ranges else 0
        Server.served.append(start)
        if self.status != 200 or start >= len(CONTENT):
            self.send_error(self.status if self.status != 200 else 416)
            return
        self.send_response(206 if start else self.success)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        self.wfile.write(CONTENT[start : start + self.gives])

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name, value in (("ranges", True), ("gives", len(CONTENT)), ("status", 200), ("served", [])):
        monkeypatch.setattr(Server, name, value)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/archive"
        server.shutdown()
        thread.join()


def test_file_is_downloaded_once(url: str, tmp_path: Path) -> None:
    target = tmp_path / "folder" / "file"
    for _ in range(2):
        assert download(url, target, SHA256).read_bytes() == CONTENT
    assert Server.served == [0] and [path.name for path in target.parent.iterdir()] == ["file"]


@pytest.mark.parametrize("part", [b"", CONTENT[:1_000_000], CONTENT])
def test_download_goes_on_behind_what_is_there(url: str, tmp_path: Path, part: bytes) -> None:
    (tmp_path / "file.part").write_bytes(part)
    assert download(url, tmp_path / "file", SHA256).read_bytes() == CONTENT
    assert Server.served == [len(part)]


def test_connection_that_breaks_off_is_taken_up_again(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Server, "gives", 1_000_000)
    assert download(url, tmp_path / "file", SHA256).read_bytes() == CONTENT
    assert Server.served == [0, 1_000_000, 2_000_000, 3_000_000]


def test_server_without_ranges_starts_again_from_nothing(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Server, "ranges", False)
    (tmp_path / "file.part").write_bytes(b"something else")
    assert download(url, tmp_path / "file", SHA256).read_bytes() == CONTENT


def test_answer_that_is_called_partial_and_is_not_replaces_what_is_there(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Server, "ranges", False)
    monkeypatch.setattr(Server, "success", 206)
    (tmp_path / "file.part").write_bytes(CONTENT[:1_000])
    assert download(url, tmp_path / "file", SHA256).read_bytes() == CONTENT


def test_connection_that_brings_nothing_is_given_up_and_what_has_come_is_kept(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Server, "gives", 0)
    (tmp_path / "file.part").write_bytes(CONTENT[:500])
    with pytest.raises(OSError, match=r"the 500 bytes that have come are kept in .*file\.part"):
        download(url, tmp_path / "file", SHA256)
    assert len(Server.served) == module.ATTEMPTS
    monkeypatch.setattr(Server, "gives", len(CONTENT))
    assert download(url, tmp_path / "file", SHA256).read_bytes() == CONTENT


def test_other_content_is_thrown_away(url: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"got sha256 {SHA256}, want 00"):
        download(url, tmp_path / "file", "00")
    assert not list(tmp_path.iterdir())


def test_refusal_of_the_server_is_told(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Server, "status", 404)
    with pytest.raises(OSError, match="the server answers 404"):
        download(url, tmp_path / "file", SHA256)
    assert Server.served == [0]


def archive(path: Path, names: tuple[str, ...]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = len(CONTENT) // 8
            tar.addfile(member, io.BytesIO(CONTENT))
    return path


def test_archive_is_unpacked_whole_or_not_at_all(tmp_path: Path) -> None:
    good = archive(tmp_path / "good.tar.gz", ("./yes/a.wav", "./no/b.wav"))
    unpack(good, tmp_path / "good")
    assert (tmp_path / "good" / "yes" / "a.wav").stat().st_size == len(CONTENT) // 8
    (tmp_path / "half.tar.gz").write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    outside = archive(tmp_path / "outside.tar.gz", ("yes/a.wav", "../outside.wav"))
    for broken in (tmp_path / "half.tar.gz", outside):
        with pytest.raises(ValueError, match=f"{broken.name}: damaged or not an archive of files and folders alone"):
            unpack(broken, tmp_path / "bad")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["good", "good.tar.gz", "half.tar.gz", "outside.tar.gz"]


@pytest.mark.parametrize("kind", ["absolute", "link", "hard link", "device", "pipe", "bomb", "claim"])
def test_hostile_archive_is_refused_and_writes_nothing(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HARMLESS", 1 << 20)
    (tmp_path / "victim").write_text("precious")
    member, content = tarfile.TarInfo("a"), b""
    if kind == "absolute":
        member.name = str(tmp_path / "victim")
    elif kind in ("link", "hard link"):
        member.type = tarfile.SYMTYPE if kind == "link" else tarfile.LNKTYPE
        member.linkname = "../victim"
    elif kind in ("device", "pipe"):
        member.type = tarfile.CHRTYPE if kind == "device" else tarfile.FIFOTYPE
    else:
        content = bytes(3_000_000)
    member.size = len(content)
    path = tmp_path / "x.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        tar.addfile(member, io.BytesIO(content))
    if kind == "claim":  # of a size that the file does not have
        member.size, content = 10**12, member.tobuf()
        path.write_bytes(gzip.compress(content))
    with pytest.raises(ValueError, match="x.tar.gz: damaged or not an archive"):
        unpack(path, tmp_path / "folder")
    assert sorted(at.name for at in tmp_path.iterdir()) == ["victim", "x.tar.gz"]
    assert (tmp_path / "victim").read_text() == "precious"


def test_archive_that_is_there_is_checked_and_kept(url: str, tmp_path: Path) -> None:
    for content in (CONTENT[:-1], b"something else"):
        (tmp_path / "file").write_bytes(content)
        with pytest.raises(ValueError, match="file: damaged or not that of http.*; remove it to have it downloaded"):
            download(url, tmp_path / "file", SHA256)
        assert (tmp_path / "file").read_bytes() == content and not Server.served


def test_two_downloads_of_one_file_do_not_mix(url: str, tmp_path: Path) -> None:
    with (tmp_path / "file.part").open("wb") as other:
        assert lock(other.fileno())
        with pytest.raises(OSError, match="file.part: another run is downloading it"):
            download(url, tmp_path / "file", SHA256)
    assert download(url, tmp_path / "file", SHA256).read_bytes() == CONTENT


def test_download_is_not_written_through_a_planted_link(url: str, tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "file.part").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match=r"file\.part"):
        download(url, tmp_path / "file", SHA256)
    assert (tmp_path / "victim").read_text() == "precious"


def test_two_runs_that_unpack_one_archive_are_both_right(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.tar", ("a", "b"))
    threads = [threading.Thread(target=unpack, args=(path, tmp_path / "x")) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(at.name for at in (tmp_path / "x").iterdir()) == ["a", "b"]
    assert sorted(at.name for at in tmp_path.iterdir()) == ["x", "x.tar"]
