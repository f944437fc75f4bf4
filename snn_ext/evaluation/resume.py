"""The file of an evaluation that may be interrupted; it continues only with the same nets, settings and batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn, Protocol

from torch import Tensor

from .._errors import bad_value
from .._files import intact, load_tensors, save_tensors
from .fingerprint import DataFingerprint

__all__ = ["ResumeFile"]


class Sums(Protocol):
    """Sums over batches that can be saved and restored."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class ResumeFile:
    """Sums of an evaluation on disk, written after every batch.

    Parameters
    ----------
    path : Path or str
        The file, there from an interrupted evaluation or not.
    settings : dict
        Everything that an interrupted evaluation and the one that continues it must share, by name.
    """

    _kind = "a state of snn_ext.evaluate", "remove it to start afresh"

    def __init__(self, path: Path | str, settings: dict[str, Any]) -> None:
        self.path, self.settings = Path(path), settings
        self._data, self._digest, self._done = DataFingerprint(), "", 0
        if self.path.is_dir():
            bad_value("resume", str(path), "a file, that is there or not")

    def restore(self, sums: Sums) -> None:
        """Load the sums of the interrupted evaluation, if there is one."""
        if not self.path.exists():
            return
        content = load_tensors(self.path, *self._kind)
        with intact(self.path, *self._kind):
            state, found = content["run"], {name: content["settings"][name] for name in self.settings}
            self._done, self._digest = int(state["done"]), str(state["digest"])
        for name, value in self.settings.items():
            if found[name] != value:
                told = {"snn": "another net", "ann": "another ann"}.get(name, f"{name}={found[name]!r}")
                self._refuse(f"with {told}")
        with intact(self.path, *self._kind):
            sums.load_state_dict(state)

    def batches(
        self, numbered: Iterable[tuple[int, Tensor, Tensor | None]]
    ) -> Iterator[tuple[int, Tensor, Tensor | None, bool]]:
        """Yield number, inputs and labels of all batches, and True for those that the sums hold already.

        Raises
        ------
        ValueError
            If those are not the first batches of the loader.
        """
        done, digest, number = self._done, self._digest, 0
        for number, x, labels in numbered:
            self._done, self._digest = number, self._data.add(x, labels)
            if number == done and self._digest != digest:
                self._refuse(f"of other data: its {done} batches are not the first {done} of loader")
            yield number, x, labels, number <= done
        if number < done:
            self._refuse(f"of other data: it has {done} batches, and loader {number}")

    def save(self, sums: Sums) -> None:
        """Write the sums, which hold the batches yielded so far."""
        run = sums.state_dict() | {"done": self._done, "digest": self._digest}
        save_tensors({"settings": self.settings, "run": run}, self.path)

    def remove(self) -> None:
        """Remove the file at the end of the evaluation."""
        self.path.unlink(missing_ok=True)

    def _refuse(self, difference: str) -> NoReturn:
        raise ValueError(
            f"resume: got {self.path}, the state of an evaluation {difference}, want the one that was interrupted; "
            "remove the file to begin anew"
        )
