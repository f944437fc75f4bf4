"""Size of a sound file by its header: libsndfile reads a truncated file without an error."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator

__all__ = ["check_whole", "mpeg_samples"]

LARGEST = 0x7FFF0000
"""From here on a 32-bit size is none: sox and arecord write about 2 GiB, others 2^32 - 1, into a pipe."""


def check_whole(content: bytes) -> None:
    """Raise ``ValueError`` if a sound file is shorter than its header says, or ends before its last page.

    Sizes that a program could not know when it wrote the header into a pipe are none. IRCAM, PAF and PVF have no size.
    """
    if not content:
        raise ValueError("empty: 0 bytes")
    for magic, size_of in SIZES.items():
        if re.match(magic, content, re.DOTALL):
            try:
                size = size_of(content)
            except (struct.error, IndexError, ValueError) as error:  # the header itself is cut off
                raise ValueError(f"truncated: {len(content):,} bytes end within the header") from error
            if size is not None and size > len(content):
                raise ValueError(f"truncated: {len(content):,} of {size:,} bytes")
            return


def _number(code: str, content: bytes, place: int) -> int:
    return struct.unpack_from(code, content, place)[0]


def _known(size: int, wide: bool = False) -> bool:
    return 0 < size < (1 << 62 if wide else LARGEST)


def _chunks(content: bytes, place: int, code: str, pad: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield name, place of the content, and size of each chunk ``name[4] size``."""
    while place + 4 + struct.calcsize(code) <= len(content):
        name, size = content[place : place + 4], _number(code, content, place + 4)
        place += 4 + struct.calcsize(code)
        yield name, place, size
        place += max(0, size) + (size % 2 if pad else 0)


def _riff(content: bytes) -> int | None:
    """WAV, AIFF, 8SVX: the size of the whole, and of the samples; the pad byte at the end may be missing."""
    order = "<I" if content.startswith(b"RIFF") else ">I"
    whole = _number(order, content, 4)
    sizes = [8 + whole] if _known(whole) and 8 + whole > len(content) + 1 else []
    for name, place, size in _chunks(content, 12, order, pad=1):
        if name in (b"data", b"SSND", b"BODY") and _known(size):
            sizes.append(place + size)
    return max(sizes, default=None)


def _rf64(content: bytes) -> int | None:
    size = _number("<Q", content, 20) if content[12:16] == b"ds64" else 0
    return size + 8 if _known(size, wide=True) else None


def _w64(content: bytes) -> int | None:
    size = _number("<Q", content, 16)
    return size if _known(size, wide=True) else None


def _au(content: bytes) -> int | None:
    order = ">I" if content.startswith(b".snd") else "<I"
    size = _number(order, content, 8)
    return _number(order, content, 4) + size if _known(size) else None


def _caf(content: bytes) -> int | None:
    for name, place, size in _chunks(content, 8, ">q", pad=0):
        if name == b"data":
            return place + size if _known(size, wide=True) else None
    return None


def _nist(content: bytes) -> int | None:
    header = content[: int(content[8:16])].decode("latin-1")
    found = [
        re.search(rf"^{name} -\w+ (\d+)", header, re.M) for name in ("sample_count", "channel_count", "sample_n_bytes")
    ]
    if None in found or "shorten" in header:
        return None
    count, channels, width = (int(match[1]) for match in found if match)
    return int(content[8:16]) + count * channels * width


def _voc(content: bytes) -> int | None:
    place = _number("<H", content, 20)
    while place < len(content) and content[place] != 0:  # a block of type 0 is the end
        place += 4 + int.from_bytes(content[place + 1 : place + 4], "little")
    return place


def _avr(content: bytes) -> int | None:
    channels, width = 1 + (_number(">h", content, 12) != 0), _number(">h", content, 14) // 8
    return 128 + channels * width * _number(">I", content, 26)


def _mpc2k(content: bytes) -> int | None:
    return 42 + 2 * (content[21] + 1) * _number("<I", content, 30)


def _wve(content: bytes) -> int | None:
    return 32 + _number(">I", content, 18)


def _mat5(content: bytes) -> int | None:
    order, place = "<I" if content[126:128] == b"IM" else ">I", 128
    while place < len(content):
        place += 8 + _number(order, content, place + 4)
    return place - 8  # libsndfile counts so many too many


def _ogg(content: bytes) -> int | None:
    """Go from page to page; the last one has the flag of the end."""
    place, last = 0, False
    while content[place : place + 4] == b"OggS":
        segments = content[place + 26]
        last = bool(content[place + 5] & 4)
        if len(content) < place + 27 + segments:
            raise ValueError("page")
        place += 27 + segments + sum(content[place + 27 : place + 27 + segments])
    return place if last else max(place, len(content)) + 1


_MPEG_1 = {
    3: (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    2: (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    1: (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
}
_MPEG_2 = {
    3: (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    2: (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_MPEG_2[1] = _MPEG_2[2]
"""Bit rates in kbit/s by layer, which is counted down: 3 is layer I."""


def _mpeg(content: bytes) -> int | None:
    """Go from frame to frame; a Xing header knows the size of all."""
    place = _after_tags(content)
    xing = re.search(rb"(?:Xing|Info)(....)", content[place : place + 60], re.DOTALL)
    if xing and (flags := _number(">I", xing[1], 0)) & 2:
        return place + _number(">I", content, place + xing.end() + 4 * (flags & 1))
    return place + sum(size for size, _ in _mpeg_frames(content, place))


def mpeg_samples(content: bytes) -> int:
    """Return how many samples a channel has in the frames of an MP3 file, for libsndfile may only guess it."""
    return sum(samples for _, samples in _mpeg_frames(content, _after_tags(content)))


def _after_tags(content: bytes) -> int:
    place = 0
    while content[place : place + 3] == b"ID3":
        place += 10 + sum((content[place + 9 - i] & 127) << 7 * i for i in range(4))
    return place


def _mpeg_frames(content: bytes, place: int) -> Iterator[tuple[int, int]]:
    while (frame := _mpeg_frame(content, place)) is not None:
        yield frame
        place += frame[0]


def _mpeg_frame(content: bytes, place: int) -> tuple[int, int] | None:
    """Return size and samples of the frame that begins there; ``None`` if none does, or its size is free."""
    head = content[place : place + 4]
    if len(head) < 4 or head[0] != 255 or head[1] & 0xE0 != 0xE0:
        return None
    version, layer, rate, frequency = head[1] >> 3 & 3, head[1] >> 1 & 3, head[2] >> 4, head[2] >> 2 & 3
    if version == 1 or layer == 0 or rate in (0, 15) or frequency == 3:
        return None
    bits = 1000 * (_MPEG_1 if version == 3 else _MPEG_2)[layer][rate - 1]
    hertz = (44_100, 48_000, 32_000)[frequency] // {3: 1, 2: 2, 0: 4}[version]
    padding = head[2] >> 1 & 1
    if layer == 3:
        return 4 * (12 * bits // hertz + padding), 384
    samples = 576 if layer == 1 and version != 3 else 1152
    return samples // 8 * bits // hertz + padding, samples


SIZES: dict[bytes, Callable[[bytes], int | None]] = {
    rb"RIFF|RIFX|FORM": _riff, rb"RF64|BW64": _rf64, rb"riff\x2e\x91\xcf\x11": _w64, rb"\.snd|dns\.": _au,
    rb"caff": _caf, rb"NIST_1A\n": _nist, rb"Creative Voice File\x1a": _voc, rb"2BIT": _avr, rb"\x01\x04": _mpc2k,
    rb"ALawSoundFile\*\*": _wve, rb".{126}(?:IM|MI)": _mat5, rb"OggS": _ogg, rb"ID3|\xff[\xe0-\xff]": _mpeg,
}  # fmt: skip
"""From the beginning of a file to the function that returns the size it has to have; ``None`` for any."""
