"""Words in a stream of sound: a window of a second slides over it, and peaks of its posteriors are words."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.features import to_float
from ..data.speech_commands import SAMPLE_RATE
from .spotter import Spotter

__all__ = ["HOP", "MARGIN", "SMOOTHING", "THRESHOLD", "WINDOW", "Detection", "Listener", "WordDecision"]

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

    Attributes
    ----------
    best : Detection or None
        The largest mean so far, whether it is a word or not.
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
        self.best: Detection | None = None
        self.peak: Detection | None = None
        self.said: Detection | None = None

    def push(self, middle: float, posterior: Tensor) -> Detection | None:
        """Take the posterior ``[words]`` of the window around ``middle`` (in seconds); return a word that is over."""
        self.last.append(posterior)
        value, index = torch.stack(tuple(self.last)).mean(0).max(0)
        now, confidence, over = middle - self.delay, float(value), None
        if self.peak is not None and (confidence < self.threshold or now - self.peak.time > self.longest):
            over = self.end()
        if self.best is None or confidence > self.best.confidence:
            self.best = Detection(self.words[int(index)], now, confidence)
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

    Every window is a batch by itself, on a grid that begins half a second before the stream. So the words do not depend
    on how the stream is cut into pieces, to the last bit.

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
