"""Find words in a recording or in what a microphone hears.

``python -m recipes.listen speech.wav``, ``python -m recipes.listen --microphone``, or raw 16-bit samples at 16 kHz from
a pipe: ``arecord -t raw -f S16_LE -r 16000 | python -m recipes.listen -``. One line for each word: when, which, how
sure. ``--checkpoint`` takes a net of ``recipes.spot_keywords``; the net that comes along knows synthetic speech alone.
"""

from __future__ import annotations

import queue
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from .data.audio import read_samples
from .data.speech_commands import SAMPLE_RATE
from .lib.cli import Argument, Count, OldFile
from .lib.command import command, run_main
from .lib.listener import HOP, SMOOTHING, THRESHOLD, Detection, Listener
from .lib.ranges import number
from .lib.spotter import CHECKPOINT, load_spotter


@dataclass(kw_only=True)
class Options:
    """Sound and decision."""

    recordings: Annotated[
        list[str], Argument("recordings", nargs="*"), "sound files, or - for raw 16-bit samples at 16 kHz"
    ] = field(default_factory=list)
    microphone: Annotated[bool, "listen until interrupted; needs sounddevice"] = False
    checkpoint: Annotated[OldFile, "of recipes.spot_keywords"] = CHECKPOINT
    threshold: Annotated[float, number(above=0.0, high=1.0), "least mean posterior of a word"] = THRESHOLD
    smoothing: Annotated[Count, "windows in that mean, ten in a second"] = SMOOTHING

    def __post_init__(self) -> None:
        if bool(self.recordings) == self.microphone:
            got = "both" if self.microphone else "none"
            raise ValueError(f"recordings: got {got}, want sound files, - or --microphone")


@command
def main(options: Options) -> list[dict[str, Any]]:
    """Listen to each recording, or to the microphone, and return the words."""
    spotter, found = load_spotter(options.checkpoint), []
    for name in options.recordings or ["microphone"]:
        listener = Listener(spotter, options.threshold, options.smoothing)
        pieces = microphone() if options.microphone else raw_samples() if name == "-" else recording(Path(name))
        print(name)
        words, spent = listen(listener, pieces, endless=options.microphone)
        best = listener.decision.best
        if not words and best is not None:
            print(
                f"no word reached --threshold {options.threshold:g}; the best candidate is {best.word} at "
                f"{best.time:.2f} s with {best.confidence:.2f}"
            )
        print(f"{listener.seconds:.1f} s of sound{speed(listener.seconds, spent)}")
        found.append({"recording": name, "seconds": listener.seconds, "words": words, "best": best})
    return found


def listen(listener: Listener, pieces: Iterable[Tensor], endless: bool = False) -> tuple[list[Detection], float]:
    """Print a line for each word in the pieces of a stream; return the words, and the seconds that the work took.

    After Ctrl-C the words so far are printed. It is the usual end of an endless stream, and an interruption of others.
    """
    found, spent, interruption = [], 0.0, None
    try:
        for piece in pieces:
            began = time.perf_counter()
            words = listener.push(piece)
            spent += time.perf_counter() - began
            _print(words)
            found += words
    except KeyboardInterrupt as error:
        interruption = error
        print()
    last = listener.finish()
    _print(last)
    if interruption is not None and not endless:
        raise interruption
    return found + last, spent


def speed(heard: float, spent: float) -> str:
    """Return in words how fast so many seconds of sound were heard.

    Examples
    --------
    >>> speed(30.0, 2.0), speed(1.0, 4.0), speed(0.0, 0.0)
    (', 15 times faster than real time', ', 4 times slower than real time', '')
    """
    if not (heard and spent):
        return ""
    ratio, word = (heard / spent, "faster") if heard >= spent else (spent / heard, "slower")
    return f", {ratio:.2g} times {word} than real time" if ratio < 10 else f", {ratio:.0f} times {word} than real time"


def _print(words: Iterable[Detection]) -> None:
    for word in words:
        print(f"{word.time:9.2f} s  {word.word:<10} {word.confidence:.2f}", flush=True)


def recording(path: Path) -> Iterator[Tensor]:
    """Yield a sound file of any kind as int16 samples at 16 kHz, a second at a time."""
    if not path.is_file():
        raise FileNotFoundError(f"recordings: got {path}, want a file that exists")
    try:
        samples, repairs = read_samples(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"recordings: got {path}: {error}") from error
    if repairs:
        print(f"{path}: {', '.join(repairs)}", file=sys.stderr)
    yield from torch.from_numpy(samples).split(SAMPLE_RATE)  # so that words are told as they are found


def raw_samples(stream: Any = None) -> Iterator[Tensor]:
    """Yield the bytes of a binary stream (by default the standard input) as int16 samples at 16 kHz."""
    if stream is None and sys.stdin is None:
        raise ValueError("recordings: got -, and the standard input is closed, want raw samples in a pipe")
    stream = sys.stdin.buffer if stream is None else stream
    rest = b""
    while piece := stream.read1(2 * HOP):
        piece = rest + piece
        whole = len(piece) // 2 * 2
        rest = piece[whole:]
        if whole:
            yield torch.frombuffer(bytearray(piece[:whole]), dtype=torch.int16)


def microphone() -> Iterator[Tensor]:
    """Yield the default input of the sound card as int16 samples at 16 kHz; needs sounddevice."""
    try:
        import sounddevice
    except (ImportError, OSError) as error:  # OSError: it is there, and PortAudio is not
        raise ValueError(
            f"--microphone: got no sounddevice ({error}), want 'pip install sounddevice', or raw samples in a pipe: "
            "arecord -t raw -f S16_LE -r 16000 | snn-ext listen -"
        ) from error
    pieces: queue.Queue[bytes] = queue.Queue()

    def keep(samples: Any, frames: int, when: Any, status: Any) -> None:
        if status:
            print(status, file=sys.stderr)
        pieces.put(bytes(samples))

    with sounddevice.RawInputStream(SAMPLE_RATE, HOP, channels=1, dtype="int16", callback=keep):
        while True:
            yield torch.frombuffer(bytearray(pieces.get()), dtype=torch.int16)


if __name__ == "__main__":
    torch.set_num_threads(1)  # a window is too little work for more, which would wait for each other
    run_main(main)
