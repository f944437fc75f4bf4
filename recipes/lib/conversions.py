"""Ways to convert a net, ours and SpikingJelly's, and evaluations of them that are kept."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spikingjelly.activation_based.ann2snn import Converter
from spikingjelly.activation_based.ann2snn.recipes import LocalThresholdBalancingRecipe, RateCodingRecipe
from torch import nn

from benchmarks.results.quickstart_report import environment
from snn_ext import convert, evaluate
from snn_ext.evaluation import Evaluation
from snn_ext.evaluation.fingerprint import fingerprint as digest

from .files import DamagedFileError, intact, read_json, write_json

__all__ = ["OURS", "RIVALS", "Conversion", "Evaluations", "digest", "set_poisson_seed"]

Conversion = Callable[[nn.Module, Iterable[Any]], nn.Module]
"""From an analog net and calibration batches to a spiking net; the analog net stays as it is."""


@dataclass(frozen=True)
class _Way:
    """A conversion; its repr says all about it, so that what is kept of it is known by that."""

    options: dict[str, Any]
    recipe: type | None = None
    passes: int = 1

    def __call__(self, ann: nn.Module, calibration: Iterable[Any]) -> nn.Module:
        if self.recipe is None:
            return convert(ann, calibration, **self.options)
        return Converter(self.recipe(list(calibration) * self.passes, **self.options)).convert(copy.deepcopy(ann))


def _host(recipe: type, passes: int = 1, **options: Any) -> Conversion:
    return _Way(options, recipe, passes)


def _ours(**options: Any) -> Conversion:
    return _Way(options)


_BEST = {"channel_wise": True, "pre_spike_maxpool": True, "half_threshold": True}
RIVALS: dict[str, Conversion] = {
    "RateCoding Max": _host(RateCodingRecipe, mode="Max"),
    "RateCoding 99.9 %": _host(RateCodingRecipe, mode="99.9%"),
    "RateCoding Max, channel-wise, half threshold": _host(RateCodingRecipe, mode="Max", **_BEST),
    "RateCoding 99.9 %, channel-wise, half threshold": _host(RateCodingRecipe, mode="99.9%", **_BEST),
    # It moves the thresholds a little with each batch: with one pass over 256 images they are far from their end.
    "LocalThresholdBalancing, 40 passes": _host(LocalThresholdBalancingRecipe, passes=40),
}
"""SpikingJelly's converter: as most use it, in the setting that is best here, and its newest recipe."""

OURS: dict[str, Conversion] = {
    "data-norm, maximum": _ours(method="data-norm"),
    "data-norm, maximum, pre-charge 0.5": _ours(method="data-norm", precharge=0.5),
    "data-norm 99.9 %, pre-charge 0.5": _ours(method="data-norm", percentile=99.9, precharge=0.5),
    "data-norm 99.9 % per channel, pre-charge 0.5": _ours(
        method="data-norm", percentile=99.9, channel_wise=True, precharge=0.5
    ),
    "data-norm 99.9 %, pre-charge optimised": _ours(
        method="data-norm", percentile=99.9, precharge="optimize", time_steps=64
    ),
    "data-norm 99 % per channel, pre-charge 0.5": _ours(
        method="data-norm", percentile=99.0, channel_wise=True, precharge=0.5
    ),
    "data-norm 99.9 % per channel, pre-charge optimised": _ours(
        method="data-norm", percentile=99.9, channel_wise=True, precharge="optimize", time_steps=64
    ),
    "Spike-Norm": _ours(method="spike-norm", reset="subtract", time_steps=100),
    "Spike-Norm, pre-charge 0.5": _ours(method="spike-norm", reset="subtract", time_steps=100, precharge=0.5),
}
"""Ours, all with a constant input and a linear read-out, as the rivals have them."""


class Evaluations:
    """Evaluations in a folder: each is made once, and continued after an interruption.

    Parameters
    ----------
    folder : Path
        Holds a file for each evaluation, with what it depends on.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(
        self,
        name: str,
        settings: dict[str, Any],
        make: Callable[[], nn.Module],
        loader: Iterable[Any],
        time_steps: int,
        **options: Any,
    ) -> tuple[Evaluation, dict[str, Any]]:
        """Return an evaluation, from its file if it is there with the same settings, and notes on the conversion.

        Parameters
        ----------
        name : str
            What is evaluated, in words; the file is named after it.
        settings : dict
            What the net and the data depend on, JSON values.
        make : callable
            Returns the spiking net.
        loader, time_steps, **options
            For :func:`snn_ext.evaluate`.
        """
        slug, key = _slug(name), _key({**settings, "time_steps": time_steps, **options})
        kept = self._kept(slug, key)
        if kept is not None:
            with intact(self.folder / f"{slug}.json", A_KEPT):
                return Evaluation.from_json(kept["evaluation"]), kept["notes"]
        state = self.folder / f"{slug}-{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:8]}.pt"
        snn = make()
        evaluation = evaluate(snn, loader, time_steps, resume=state, **options)
        notes = {"layers": _report(snn)}
        content = {"settings": key, "evaluation": evaluation.to_json(), "notes": notes}
        write_json(self.folder / f"{slug}.json", content)
        return evaluation, notes

    def note(self, name: str, settings: dict[str, Any], make: Callable[[], Any]) -> Any:
        """Return a JSON value, from its file if it is there with the same settings, or else made now."""
        slug, key = _slug(name), _key(settings)
        kept = self._kept(slug, key)
        if kept is not None:
            return kept["value"]
        value = json.loads(json.dumps(make()))
        write_json(self.folder / f"{slug}.json", {"settings": key, "value": value})
        return value

    def _kept(self, slug: str, key: dict[str, Any]) -> dict[str, Any] | None:
        """Return what is kept with a key; what is damaged is put aside, for it may be somebody else's."""
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


A_KEPT = "a kept evaluation"


def _key(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a result depends on as JSON values: all that is given, nets by their weights, and the versions."""
    nets = {name: digest(value) for name, value in settings.items() if isinstance(value, nn.Module)}
    return json.loads(json.dumps({**settings, **nets, "versions": environment()["versions"]}, default=_as_json))


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")


def _as_json(value: Any) -> Any:
    return list(value) if isinstance(value, Iterable) else repr(value)


def _report(snn: nn.Module) -> list[dict[str, Any]]:
    """Return what the conversion says about each layer, of ours only."""
    report = getattr(snn, "report", None)
    return json.loads(report.to_json()) if report is not None else []


def set_poisson_seed(snn: nn.Module, seed: int) -> nn.Module:
    """Give the Poisson encoder of a converted net another seed, and return the net."""
    encoders = [module for module in snn.modules() if type(module).__name__.startswith("Poisson")]
    if not encoders:
        raise ValueError(f"snn: got {type(snn).__name__} without a Poisson encoder, want encoder='poisson'")
    for encoder in encoders:
        encoder.seed = seed
    return snn
