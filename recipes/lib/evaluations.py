"""Evaluations that are kept on disk: each is made once, and continued after an interruption."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from snn_ext import evaluate
from snn_ext.evaluation import Evaluation
from snn_ext.evaluation.fingerprint import fingerprint as digest

from .files import DamagedFileError, intact, read_json, write_json

__all__ = ["Evaluations", "digest", "versions"]

A_KEPT = "a kept evaluation"


class Evaluations:
    """Results in a folder, a file each, with everything that they depend on: settings, nets and versions.

    Parameters
    ----------
    folder : Path
        Holds the files; made when the first is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(
        self, name: str, settings: dict[str, Any], make: Callable[[], nn.Module], loader: Iterable[Any],
        time_steps: int | None, **options: Any,
    ) -> tuple[Evaluation, list[dict[str, Any]]]:  # fmt: skip
        """Return an evaluation and the layers of its conversion's report; read if they are there, made otherwise.

        Parameters
        ----------
        name : str
            Names the file.
        settings : dict
            JSON values that the net and the data depend on; nets among ``options`` are known by their weights.
        make : callable
            Returns the spiking net.
        loader, time_steps, **options
            For :func:`snn_ext.evaluate`; ``None`` for the steps that the net needs.
        """
        slug, key = _slug(name), _key({**settings, "time_steps": time_steps, **options})
        kept = self._kept(slug, key)
        if kept is not None:
            with intact(self.folder / f"{slug}.json", A_KEPT):
                return Evaluation.from_json(kept["evaluation"]), kept["layers"]
        state = self.folder / f"{slug}-{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:8]}.pt"
        snn = make()
        evaluation = evaluate(snn, loader, time_steps, resume=state, **options)
        report = getattr(snn, "report", None)  # only our conversions write one
        layers = [] if report is None else json.loads(report.to_json())
        write_json(
            self.folder / f"{slug}.json", {"settings": key, "evaluation": evaluation.to_json(), "layers": layers}
        )
        return evaluation, layers

    def note(self, name: str, settings: dict[str, Any], make: Callable[[], Any]) -> Any:
        """Return a JSON value; read if it is there with the same settings, made otherwise."""
        slug, key = _slug(name), _key(settings)
        kept = self._kept(slug, key)
        if kept is not None:
            return kept["value"]
        value = json.loads(json.dumps(make()))
        write_json(self.folder / f"{slug}.json", {"settings": key, "value": value})
        return value

    def _kept(self, slug: str, key: dict[str, Any]) -> dict[str, Any] | None:
        """Return the content with this key; put a damaged file aside, as it may not be ours."""
        path = self.folder / f"{slug}.json"
        if not path.exists():
            return None
        try:
            content = read_json(path, A_KEPT)
        except DamagedFileError as error:
            aside = path.with_name(f"{path.name}.damaged")
            os.replace(path, aside)
            warnings.warn(f"{error}: it is put aside as {aside.name} and made again", stacklevel=3)
            return None
        return content if content.get("settings") == key else None


def versions() -> dict[str, str]:
    """Return the versions of the libraries that results depend on."""
    libraries = {name: version(name) for name in ("spikingjelly", "numpy", "matplotlib")}
    return {"python": platform.python_version(), "torch": str(torch.__version__), **libraries}


def _key(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return everything a result depends on as JSON values, nets by their weights."""
    nets = {name: digest(value) for name, value in settings.items() if isinstance(value, nn.Module)}
    return json.loads(json.dumps({**settings, **nets, "versions": versions()}, default=_as_json))


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")


def _as_json(value: Any) -> Any:
    return list(value) if isinstance(value, Iterable) else repr(value)
