"""Find words in a recording or in what a microphone hears.

``python -m recipes.listen speech.wav``, ``python -m recipes.listen --microphone``, or raw 16-bit samples at 16 kHz from
a pipe: ``arecord -t raw -f S16_LE -r 16000 | python -m recipes.listen -``. One line for each word: when, which, how
sure. ``--checkpoint`` takes a net of ``recipes.spot_keywords``; the one that comes along knows synthetic speech alone.
"""

from __future__ import annotations

import argparse
import queue
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .data.audio import read_samples
from .data.features import to_float
from .data.speech_commands import SAMPLE_RATE
from .lib.command import command, run_main
from .lib.options import integer, number, old_file
from .lib.spotter import Spotter, load_spotter

__all__ = ["CHECKPOINT", "Detection", "Listener", "WordDecision", "main"]

CHECKPOINT = Path(__file__).parent / "models" / "keywords.pt"
WINDOW, MARGIN = SAMPLE_RATE, SAMPLE_RATE // 2
HOP = SAMPLE_RATE // 10
SMOOTHING, THRESHOLD = 3, 0.95


@dataclass(frozen=True)
class Detection:
    """A word, when it was said (the middle of it, in seconds), and its smoothed posterior at the peak."""

    word: str
    time: float
    confidence: float


class WordDecision:
    """From the posteriors of a sliding window to words: one for each peak of the smoothed posteriors.

    Parameters
    ----------
    words : tuple of str
        In the order of the posteriors.
    threshold : float
        A word is said while the largest mean of the last posteriors is at least this.
    smoothing : int
        Number of posteriors in the mean.
    hop, longest : float
        Seconds between two posteriors; and from a peak on until it is taken for a word that is over.
    """

    def __init__(
        self, words: tuple[str, ...], threshold: float = THRESHOLD, smoothing: int = SMOOTHING,
        hop: float = HOP / SAMPLE_RATE, longest: float = 0.5,
    ) -> None:  # fmt: skip
        if not 0 < threshold <= 1:
            raise ValueError(f"threshold: got {threshold}, want a number in (0, 1]")
        if smoothing < 1:
            raise ValueError(f"smoothing: got {smoothing}, want an int >= 1")
        self.words, self.threshold, self.longest = words, threshold, longest
        self.last: deque[Tensor] = deque([torch.zeros(len(words))] * smoothing, smoothing)
        self.delay = (smoothing - 1) / 2 * hop
        self.peak: Detection | None = None
        self.said: Detection | None = None

    def push(self, middle: float, posterior: Tensor) -> Detection | None:
        """Take the posterior ``[words]`` of the window around ``middle`` (in seconds); return a word that is over."""
        self.last.append(posterior)
        value, index = torch.stack(tuple(self.last)).mean(0).max(0)
        now, confidence, over = middle - self.delay, float(value), None
        if self.peak is not None and (confidence < self.threshold or now - self.peak.time > self.longest):
            over = self.end()
        if confidence >= self.threshold and (self.peak is None or confidence > self.peak.confidence):
            self.peak = Detection(self.words[int(index)], now, confidence)
        return over

    def end(self) -> Detection | None:
        """Return the word that is being said, if any; the last one again within ``longest`` is that word still."""
        before, word, self.peak = self.said, self.peak, None
        if word is None:
            return None
        self.said = word
        again = before is not None and before.word == word.word and word.time - before.time <= self.longest
        return None if again else word


class Listener:
    """Slides a window of a second over a stream and decides which words are said.

    Every window is a batch of its own, on a grid that begins half a second before the stream: what is found does not
    depend on how the stream is cut into pieces, to the last bit.

    Parameters
    ----------
    spotter : Spotter
        From a second of sound to scores.
    threshold, smoothing
        Of :class:`WordDecision`.

    Attributes
    ----------
    seconds : float
        Length of the stream so far.

    Examples
    --------
    >>> listener = Listener(load_spotter("runs/words/best.pt"))  # doctest: +SKIP
    >>> for piece in stream:  # doctest: +SKIP
    ...     for word in listener.push(piece):
    ...         print(word)
    """

    def __init__(self, spotter: Spotter, threshold: float = THRESHOLD, smoothing: int = SMOOTHING) -> None:
        self.spotter = spotter
        self.decision = WordDecision(spotter.words, threshold, smoothing)
        self.buffer = torch.zeros(MARGIN)
        self.middle = 0  # sample in the middle of the next window
        self.samples = 0

    @property
    def seconds(self) -> float:
        return self.samples / SAMPLE_RATE

    def push(self, samples: Tensor) -> list[Detection]:
        """Take the next samples ``[n]``, int16, or floating in [-1, 1]; return the words that are over."""
        if samples.ndim != 1 or not (samples.is_floating_point() or samples.dtype == torch.int16):
            raise ValueError(f"samples: got {samples.dtype} {list(samples.shape)}, want int16 or floating [n]")
        if samples.is_floating_point() and not (samples.abs() <= 1).all():  # a NaN is not, either
            worst = samples[~(samples.abs() <= 1)][0]
            raise ValueError(f"samples: got {float(worst):g}, want floating ones in [-1, 1]")
        self.samples += len(samples)
        return self._push(samples.float() if samples.is_floating_point() else to_float(samples))

    def finish(self) -> list[Detection]:
        """Say that the stream is over; return the last words. The listener is of no use afterwards."""
        found = self._push(torch.zeros(MARGIN))
        last = self.decision.end()
        return found if last is None else [*found, last]

    def posteriors(self, samples: Tensor) -> Iterator[tuple[float, Tensor]]:
        """Take the next samples, and yield for each window that is complete its middle and its posterior."""
        self.buffer = torch.cat([self.buffer, samples])
        while len(self.buffer) >= WINDOW:
            scores = self.spotter(self.buffer[:WINDOW].unsqueeze(0).clone())
            if not scores.isfinite().all():
                raise FloatingPointError(f"scores: got {scores[0].tolist()}, want finite ones: the net is damaged")
            middle = self.middle
            self.buffer, self.middle = self.buffer[HOP:], middle + HOP  # at once: an interruption leaves both right
            yield middle / SAMPLE_RATE, scores[0].softmax(0).cpu()
        self.buffer = self.buffer.clone()  # without the memory of what is over

    def _push(self, samples: Tensor) -> list[Detection]:
        decided = (self.decision.push(middle, posterior) for middle, posterior in self.posteriors(samples))
        return [word for word in decided if word is not None]


# -- where the samples come from -------------------------------------------------------------------------------------


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
    """Yield what arrives at a binary stream (by default the standard input) as int16 samples at 16 kHz."""
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
    """Yield what the default input of the sound card records, as int16 samples at 16 kHz; needs sounddevice."""
    try:
        import sounddevice
    except (ImportError, OSError) as error:  # OSError: it is there, and PortAudio is not
        raise ValueError(
            f"--microphone: got no sounddevice ({error}), want 'pip install sounddevice', or raw samples in a pipe: "
            f"arecord -t raw -f S16_LE -r 16000 | python -m recipes.listen -"
        ) from error
    pieces: queue.Queue[bytes] = queue.Queue()

    def keep(samples: Any, frames: int, when: Any, status: Any) -> None:
        if status:
            print(status, file=sys.stderr)
        pieces.put(bytes(samples))

    with sounddevice.RawInputStream(SAMPLE_RATE, HOP, channels=1, dtype="int16", callback=keep):
        while True:
            yield torch.frombuffer(bytearray(pieces.get()), dtype=torch.int16)


# -- the command -----------------------------------------------------------------------------------------------------


def listen(listener: Listener, pieces: Iterable[Tensor], endless: bool = False) -> float:
    """Print a line for each word in the pieces of a stream, and return the seconds that the work took.

    After Ctrl-C the words so far are told; where the stream is endless, it is how to end it.
    """
    spent, interruption = 0.0, None
    try:
        for piece in pieces:
            began = time.perf_counter()
            words = listener.push(piece)
            spent += time.perf_counter() - began
            _print(words)
    except KeyboardInterrupt as error:
        interruption = error
        print()
    _print(listener.finish())
    if interruption is not None and not endless:
        raise interruption
    return spent


def _print(words: Iterable[Detection]) -> None:
    for word in words:
        print(f"{word.time:9.2f} s  {word.word:<10} {word.confidence:.2f}", flush=True)


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse and check the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.listen", description=__doc__.split("\n\n")[0], allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )  # fmt: skip
    parser.add_argument("recordings", nargs="*", help="sound files, or - for raw 16-bit samples at 16 kHz")
    parser.add_argument("--microphone", action="store_true", help="listen until interrupted; needs sounddevice")
    parser.add_argument("--checkpoint", type=old_file, default=CHECKPOINT, help="of recipes.spot_keywords")
    parser.add_argument(
        "--threshold", type=number(above=0.0, high=1.0), default=THRESHOLD, help="least mean posterior of a word"
    )
    parser.add_argument("--smoothing", type=integer(), default=SMOOTHING, help="windows in that mean, ten in a second")
    args = parser.parse_args(argv)
    if bool(args.recordings) == args.microphone:
        parser.error(
            "argument recordings: got "
            + ("both" if args.microphone else "none")
            + ", want sound files, - or --microphone"
        )
    return args


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and listen."""
    args = parse_arguments(argv)
    spotter = load_spotter(args.checkpoint)
    for name in args.recordings or ["microphone"]:
        listener = Listener(spotter, args.threshold, args.smoothing)
        source = {"-": raw_samples, "microphone": microphone}.get(name)
        pieces = source() if source is not None and (name == "-" or args.microphone) else recording(Path(name))
        print(name)
        spent = listen(listener, pieces, endless=source is microphone and args.microphone)
        speed = f", {listener.seconds / spent:.0f} times faster than real time" if spent else ""
        print(f"{listener.seconds:.1f} s of sound{speed}")


if __name__ == "__main__":
    torch.set_num_threads(1)  # a window is too little work for more, which would wait for each other
    run_main(main)
