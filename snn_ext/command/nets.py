"""Trained nets: by the name that torchvision or timm has for them, or from a function of the user's own file."""

from __future__ import annotations

import importlib.util
import inspect
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .._errors import first_line
from .._files import intact, load_tensors
from ..recipes.lib.checkpoints import load_weights
from ..recipes.models.trained import SHIPPED, load_shipped

__all__ = ["TrainedNet", "keywords", "trained_net"]

REMEDY = "restore a copy of it, or name another"
WRAPPED = ("state_dict", "model_state_dict", "model")
"""Where checkpoints keep the weights beside other things."""


@dataclass
class TrainedNet:
    """A net in eval mode, and what is known of its images: transform, names of its classes."""

    net: nn.Module
    name: str
    size: int | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    categories: Sequence[str] | None = None


def trained_net(source: str, weights: Path | None, pretrained: bool, arguments: Mapping[str, Any]) -> TrainedNet:
    """Build the net of ``FILE.py:FUNCTION``, or of a name: one that comes along, of torchvision, else of timm.

    The file of the user is executed; that of the weights is not.

    Raises
    ------
    ValueError
        If there is no such file, function or name, or the weights are those of another net.
    """
    state = None if weights is None else read_weights(weights)
    if ".py:" in source:
        if pretrained:
            raise ValueError(f"--pretrained: got it with {source}, want it with a net of torchvision or timm")
        found = TrainedNet(_of_file(source, arguments), Path(source).name)
    else:
        if (weights is None) is not pretrained:
            got = "both" if pretrained else "neither"
            raise ValueError(f"--weights: got {got} with --pretrained, want a file of weights or --pretrained")
        found = _by_name(source, state, arguments)
    if state is not None:
        try:
            load_weights(found.net, state)
        except ValueError as error:
            raise ValueError(f"--weights: got {weights}, want those of {source} ({error})") from error
    found.net.eval()
    return found


def keywords(option: str, words: Sequence[str]) -> dict[str, Any]:
    """Return keyword arguments of ``NAME=VALUE``, where a value that is no JSON is a text.

    Examples
    --------
    >>> keywords("--set", ["percentile=99.9", "reset=subtract", "channel_wise=true"])
    {'percentile': 99.9, 'reset': 'subtract', 'channel_wise': True}
    """
    found: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not (name.isidentifier() and equals):
            raise ValueError(f"{option}: got {word}, want NAME=VALUE")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the weights in a file of torch or safetensors; nothing in it is executed.

    A dictionary inside a checkpoint is found by its usual names, and what DataParallel and ``torch.compile`` put before
    the names is taken off.
    """
    kind = "a file of weights, .pt or .safetensors"
    state: Any
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        with intact(path, kind, REMEDY):
            state = load_file(path)
    else:
        state = load_tensors(path, kind, REMEDY)
    for name in WRAPPED:
        if isinstance(state, dict) and isinstance(state.get(name), dict):
            state = state[name]
    if not (isinstance(state, dict) and state and all(isinstance(value, Tensor) for value in state.values())):
        raise ValueError(f"--weights: got {path}, which is no dictionary of tensors, want net.state_dict()")
    for prefix in ("module.", "_orig_mod."):
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _of_file(source: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Execute a file, and call its function."""
    name, _, function = source.rpartition(":")
    path = Path(name)
    if not path.is_file():
        raise ValueError(f"net: got {source}, want a file that exists before the colon")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.resolve().parent))  # for what it imports, as ``python FILE`` has it
    sys.modules[path.stem] = module  # dataclasses and pickles look it up
    spec.loader.exec_module(module)
    if not callable(getattr(module, function, None)):
        known = ", ".join(name for name, value in vars(module).items() if callable(value) and name[0] != "_")
        raise ValueError(f"net: got {source}, want a function of that file: {known}")
    try:
        inspect.signature(getattr(module, function)).bind(**arguments)
    except TypeError as error:
        raise ValueError(f"--net-args: got {dict(arguments)} for {source}: {error}") from error
    net = getattr(module, function)(**arguments)
    if not isinstance(net, nn.Module):
        raise ValueError(f"net: got {source}, which returns a {type(net).__name__}, want an nn.Module")
    return net


def _by_name(name: str, state: Mapping[str, Tensor] | None, arguments: Mapping[str, Any]) -> TrainedNet:
    """Build a net of torchvision, or of timm where torchvision has none of that name; published weights if no others.

    The number of classes is that of the weights.
    """
    if name in SHIPPED:
        return _that_comes_along(name, state is None, arguments)
    import torchvision

    options = dict(arguments)
    if state is not None and "num_classes" not in options:
        last = [value for key, value in state.items() if key.endswith("bias") or value.ndim == 2]
        options |= {"num_classes": last[-1].shape[0]} if last else {}
    try:
        if name in torchvision.models.list_models(torchvision.models):
            return _of_torchvision(name, state is None, options)
        return _of_timm(name, state is None, options)
    except (TypeError, RuntimeError) as error:
        raise ValueError(f"net: got {name} with {options}, which it does not take: {first_line(error)}") from error
    except OSError as error:
        raise ValueError(f"--pretrained: the weights of {name} cannot be downloaded ({first_line(error)})") from error


def _that_comes_along(name: str, published: bool, arguments: Mapping[str, Any]) -> TrainedNet:
    if not published:
        raise ValueError(f"--weights: got it with {name}, which has its own, want --pretrained")
    if arguments:
        raise ValueError(f"--net-args: got {dict(arguments)} for {name}, want none")
    found = load_shipped(name)
    mean = found.mean.tolist()
    return TrainedNet(found.net, name, found.size, mean, [1.0] * len(mean), found.classes)


def _of_torchvision(name: str, published: bool, options: dict[str, Any]) -> TrainedNet:
    import torchvision

    weights = torchvision.models.get_model_weights(name).DEFAULT
    transform = weights.transforms()
    size = transform.crop_size[0] if hasattr(transform, "crop_size") else None
    net = torchvision.models.get_model(name, weights=weights if published else None, **options)
    mean, std = transform.mean, transform.std
    return TrainedNet(net, f"{name} of torchvision", size, mean, std, weights.meta["categories"] if published else None)


def _of_timm(name: str, published: bool, options: dict[str, Any]) -> TrainedNet:
    import torchvision

    if find_spec("timm") is None:
        close = [other for other in torchvision.models.list_models() if other.startswith(name[:4])]
        known = f", such as {', '.join(close[:5])}" if close else ""
        raise ValueError(
            f"net: got {name}, want a net of torchvision{known}, of timm after pip install 'snn_ext[timm]', "
            f"{', '.join(SHIPPED)}, or FILE.py:FUNCTION"
        )
    import timm

    if not timm.is_model(name):
        others = f"{', '.join(SHIPPED)}, or FILE.py:FUNCTION"
        raise ValueError(f"net: got {name}, want a net of torchvision or timm, {others}")
    net = timm.create_model(name, pretrained=published, **options)
    about = timm.data.resolve_model_data_config(net)
    return TrainedNet(net, f"{name} of timm", about["input_size"][-1], about["mean"], about["std"])
