"""Checkpoints of trained nets, of either host's trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .files import intact, load_tensors

__all__ = ["A_CHECKPOINT", "REMEDY", "load_checkpoint", "load_weights", "spikingjelly_weights"]

A_CHECKPOINT = "a checkpoint of {}"
REMEDY = "restore a copy of it, or name another"


def load_checkpoint(name: str, path: Path, recipe: str = "recipes.train_images") -> dict[str, Any]:
    """Load the checkpoint that an argument of that name points to, or say what is wrong with it."""
    if not path.is_file():
        raise ValueError(f"{name}: got {path}, want a checkpoint that exists")
    checkpoint = load_tensors(path, A_CHECKPOINT.format(recipe), REMEDY)
    with intact(path, A_CHECKPOINT.format(recipe), REMEDY):
        if not all(isinstance(checkpoint[part], dict) for part in ("settings", "model")):
            raise TypeError("settings and model are no dictionaries")
    return checkpoint


def load_weights(net: nn.Module, weights: dict[str, Tensor]) -> None:
    """Load all the weights of a net; ``ValueError`` if they are another net's, or one is not finite."""
    try:
        net.load_state_dict(weights)
    except (RuntimeError, TypeError, AttributeError) as error:
        lines = (line.strip() for line in str(error).splitlines()[:2])  # the first says that there are some
        raise ValueError(f"model: {' '.join(lines)}") from error
    if broken := [name for name, value in weights.items() if not value.isfinite().all()]:
        raise ValueError(f"model: got {broken[0]} that is not finite, want finite weights")


def spikingjelly_weights(weights: dict[str, Tensor], net: nn.Module | None = None) -> dict[str, Tensor]:
    """Return the weights of a checkpoint under the names of SpikingJelly's net; snnTorch's trainer has other names.

    Neurons of snnTorch hold more than those of SpikingJelly: if the net is given, what it does not have is left out.
    """
    if "readout.threshold" not in weights:
        return weights
    found = {
        name.removeprefix("classifier.").replace(".threshold", ".v_threshold"): value
        for name, value in weights.items()
        if name.startswith("classifier.")
    }
    return found if net is None else {name: found[name] for name in net.state_dict()}
