"""Swapping the neurons of a net: :func:`replace_neurons`."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ._calls import is_activation, survey
from ._errors import bad_type, bad_value, check_bool, describe
from ._own_modules import module_for_each_call
from ._together import all_or_nothing
from .functional import ATan, Sigmoid, as_surrogate, uniform_points
from .hosts import host_of, is_neuron, is_relu
from .neurons import (
    AdaptiveSpikingNeuron,
    IntegrateAndFireNeuron,
    NonUniformIntegrateAndFireNeuron,
    ThresholdNeuron,
)
from .neurons.leak import BetaLeak, TauLeak
from .neurons.quantized import NonUniformQuantizedReLU, QuantizedActivation, QuantizedReLU

__all__ = ["DROPPABLE", "Factory", "check_factory", "new_neurons", "replace_neurons", "swap_neurons"]

Factory = Callable[[nn.Module], nn.Module]

DROPPABLE = ("leak", "recurrence", "hard reset", "initial potential", "dynamics")
"""Properties of the old neuron that a replacement may lose, each only if ``drop`` names it."""


def replace_neurons(
    net: nn.Module, factory: Factory, *, drop: str | tuple[str, ...] = (), functional: bool = False
) -> int:
    """Replace every neuron of a net, spiking or analog (a ReLU, ReLU6 or quantised ReLU), in place.

    Threshold (one or one per channel), surrogate, ``detach_reset``, ``step_mode`` and ``store_v_seq`` (in snnTorch:
    threshold, ``spike_grad``, ``init_hidden``, ``output``), the leak, the tie rule, ``scale_output`` and ``grad_scale``
    are copied from the old neuron wherever the factory has left them at their defaults; a default that it gives
    explicitly cannot be told apart. An instance that stands in several places is replaced by one instance.

    From a :class:`snn_ext.QuantizedReLU` threshold, ``v_init`` and tie rule are copied in the same way, from a
    :class:`snn_ext.NonUniformQuantizedReLU` the points, to a neuron of as many steps, and the neuron scales its output.
    In as many steps as there are levels it is then the activation's exact twin, where its input is constant: ATIF-nu
    for any points with ``recursion="cumulative"``.

    A subclass of ``nn.ReLU`` or ``nn.ReLU6`` with a forward pass of its own is no ReLU: it stays, and is warned of.

    A neuron fires at most once a step, so that its threshold is its ceiling, behind a ReLU as behind a ReLU6; that of a
    ReLU6 at 6 is kept by no higher threshold.

    Parameters
    ----------
    net : nn.Module
        Holds ReLUs, ReLU6s or quantised ReLUs as modules, or neurons of SpikingJelly or snnTorch, at any depth.
    factory : callable
        ``factory(old) -> new``; returning ``old`` leaves that neuron alone.
    drop : str or tuple of str
        Properties that may be lost: "leak", "recurrence", "hard reset", "initial potential" (of the old neuron, where
        the new one has none), "dynamics" (any other equation than integrate-and-fire). Nothing by default.
    functional : bool
        Also replace functional ReLUs (``F.relu``, ``torch.relu``, ``x.relu()``, their forms in place, ``F.relu6``; a
        clamp or ``F.hardtanh`` with the bounds of a ReLU or a ReLU6) of what depends on the input, and give every call
        of a shared ReLU a neuron of its own. The factory is called with an ``nn.ReLU`` or ``nn.ReLU6`` for each. The
        forward pass of a module with such calls becomes that of its graph, traced once for training and once for
        evaluation; its class is a subclass of the old one, and names and values of all other modules stay. A module
        that is called several times, or with optional arguments, is taken up into the one around it. What a traced
        forward pass reads from attributes, such as a number of repetitions, and its optional arguments keep the values
        they have now. Refused are forward passes that choose at random in Python, set attributes, or enter contexts
        such as ``torch.no_grad``, for a graph does neither. Give a net of one step, not one that loops over time
        itself: it would get a neuron for each step. :class:`snn_ext.ConstantInputNet` is known.

    Returns
    -------
    int
        Number of neurons replaced.

    Raises
    ------
    ValueError
        If nothing was replaced, something would be lost that ``drop`` does not name, or a net with ``functional=True``
        cannot be traced. The net is unchanged then.
    TypeError
        If an argument is of the wrong kind, or the factory does not return a module.

    Warns
    -----
    UserWarning
        Names, with their number, the activations that stay analog: functional ReLUs, and other activations than ReLUs.
        Another warning names ReLUs that one forward pass calls several times, as in torchvision's residual blocks: as
        one neuron their calls share one state, which is hardly ever intended. A net that cannot be traced is searched
        for names only.

    Examples
    --------
    >>> from torch import nn
    >>> from snn_ext import replace_neurons
    >>> from snn_ext.spikingjelly import ATIFuNode
    >>> net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> replace_neurons(net, lambda old: ATIFuNode(0.5, step_mode="m"))
    1
    """
    if not isinstance(net, nn.Module):
        bad_type("net", net, "an nn.Module")
    check_factory(factory)
    check_bool("functional", functional)
    names = (drop,) if isinstance(drop, str) else drop
    unknown = [name for name in names if name not in DROPPABLE] if isinstance(names, tuple | list) else [names]
    if unknown:
        bad_value("drop", drop, f"a tuple of names out of {DROPPABLE}")
    if _replaceable(net):
        bad_value("net", type(net).__name__, "a net that holds neurons; a single neuron cannot be replaced in place")
    with module_for_each_call(net) if functional else nullcontext():
        new = new_neurons(net, factory, names)
        _warn(net, new)
        swap_neurons(net, new)
    return len(new)


def new_neurons(net: nn.Module, factory: Factory, drop: tuple[str, ...] = ()) -> dict[nn.Module, nn.Module]:
    """Return the new neuron for each old one that is to be replaced, with the settings of the old one, all checked."""
    places = list(_places(net))
    new = {old: factory(old) for _, _, old in places}  # factory once per instance; modules hash by identity
    names = {old: name for _, name, old in reversed(places)}
    taken: dict[Any, str] = {}
    for old, neuron in new.items():
        _check(names[old], old, neuron, drop)
        if neuron in taken:
            got = f"one {type(neuron).__name__} for {taken[neuron]} and {names[old]}"
            bad_value("factory", got, "a new neuron at each call: a neuron has a state")
        taken[neuron] = names[old]
    swapped = {old: neuron for old, neuron in new.items() if neuron is not old}
    if not swapped:
        raise ValueError(
            "net: got no neuron to replace, want nn.ReLU modules or neurons of SpikingJelly or snnTorch "
            f"(functional calls such as torch.relu are found with functional=True; modules here: {_kinds(net)})"
        )
    settings = {old: _settings(old, neuron) for old, neuron in swapped.items()}
    for old, neuron in swapped.items():
        for name, value in settings[old].items():
            _assign(neuron, name, value)
    return swapped


def swap_neurons(net: nn.Module, new: dict[nn.Module, nn.Module]) -> None:
    """Put new neurons in the places of old ones, all of them or none."""
    device = next((p.device for p in net.parameters()), None)
    for old, neuron in new.items():
        neuron.train(old.training)
        neuron.to(device)
    _invalidate_reset_cache(net)  # before, for an interruption between the two does no harm then
    places = [place for place in _places(net) if place[2] in new]
    with all_or_nothing((parent, _leaf(name)) for parent, name, _ in places):
        for parent, name, old in places:
            setattr(parent, _leaf(name), new[old])


def check_factory(factory: Any) -> None:
    """Raise if a factory is no callable of the old neuron: a module, or a class of them."""
    if not callable(factory) or isinstance(factory, nn.Module | type):
        bad_type(
            "factory",
            factory,
            "a callable: factory(old) -> new, such as lambda old: ATIFuNode()",
        )


def _replaceable(module: nn.Module) -> bool:
    return is_activation(module) or is_neuron(module)


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def _places(
    parent: nn.Module, prefix: str = "", seen: set[int] | None = None
) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    seen = set() if seen is None else seen
    for name, child in parent._modules.items():
        if child is None:
            continue
        if _replaceable(child):
            yield parent, prefix + name, child
        elif id(child) not in seen:  # a shared block is walked once
            seen.add(id(child))
            yield from _places(child, f"{prefix}{name}.", seen)


def _check(name: str, old: nn.Module, new: Any, drop: tuple[str, ...]) -> None:
    if not isinstance(new, nn.Module):
        bad_type(f"factory({name})", new, "an nn.Module")
    if new is old:
        return
    lost = {what: remedy for what, remedy in _losses(old, new).items() if what not in drop}
    if lost:
        raise ValueError(
            f"factory: got {type(new).__name__} for {name} ({type(old).__name__}), which loses its "
            f"{' and '.join(lost)}, want {''.join(lost.values())}drop={tuple(lost)} to allow it"
        )


def _warn(net: nn.Module, new: dict[nn.Module, nn.Module]) -> None:
    """Say what stays analog, and which neurons are hardly what was meant, each kind in one warning with a number."""
    found, names = survey(net), {module: name for name, module in reversed(list(net.named_modules()))}
    high = [old for old, neuron in new.items() if isinstance(old, nn.ReLU6) and _ceiling(neuron) > 6]
    for items, got, want in (
        (
            [*found.functional, *found.analog],
            "{n} activation{s} left analog",
            "functional=True for functional ReLUs, nn.ReLU in place of others, or know that they emit no spikes",
        ),
        (
            [f"{names[old]} ({n} times)" for old, n in found.calls.items() if n > 1 and old in new],
            "{n} ReLU{s} called several times in one forward pass",
            "a module of its own for each call, as functional=True makes it; as one spiking neuron its calls share one "
            "membrane potential",
        ),
        (
            found.overwriting,
            "{n} ReLU{s} in place whose result is read from the input",
            "the returned value to be used, as functional=True does it; a neuron leaves its input alone",
        ),
        (
            [names[old] for old in high],
            "{n} ReLU6 with a neuron whose ceiling is above 6",
            "a threshold of at most 6: it is the ceiling of a neuron that fires at most once a step",
        ),
    ):
        if items:
            listed = ", ".join(items[:8]) + (f" and {len(items) - 8} more" if len(items) > 8 else "")
            got = got.format(n=len(items), s="s" * (len(items) > 1))
            warnings.warn(f"net: got {got}: {listed}, want {want}", stacklevel=3)


def _ceiling(neuron: nn.Module) -> float:
    """Return the largest value that the rate of a neuron stands for."""
    if isinstance(neuron, IntegrateAndFireNeuron):
        return float(neuron.thresholds().clip_level.detach().max())
    return math.inf if isinstance(neuron, AdaptiveSpikingNeuron) else 0.0


def _losses(old: nn.Module, new: nn.Module) -> dict[str, str]:
    """Return the properties that the new neuron would lose, each with the first half of a remedy."""
    if isinstance(old, QuantizedActivation):
        return _losses_of_quantized(old, new)
    if is_relu(old):
        return {}
    lost: dict[str, str] = {}
    if _dynamics(old) != _dynamics(new):
        lost["dynamics"] = ""
    elif isinstance(old, AdaptiveSpikingNeuron) and old.bias is not None and getattr(new, "bias", None) is None:
        lost["dynamics"] = "its bias in the factory or "
    kinds = {base.__name__ for base in type(old).__mro__}
    leak_is_kept = isinstance(new, TauLeak | BetaLeak) and new.takes_leak_of(old)
    if isinstance(old, TauLeak | BetaLeak) and old.leaks and not leak_is_kept:
        lost["leak"] = ""
    if isinstance(old, NonUniformIntegrateAndFireNeuron):
        # Points other than the uniform ones are not copied: they belong to one number of steps.
        if _threshold(old) is None and not (
            isinstance(new, NonUniformIntegrateAndFireNeuron) and _threshold(new) is None
        ):
            lost["dynamics"] = "its points in the factory (as of old.at(T)) or "
    elif not isinstance(old, ThresholdNeuron) and type(old) is not type(new):
        if kinds & {"RLeaky", "RSynaptic", "SLSTM", "SConv2dLSTM"}:
            lost["recurrence"] = ""
        if leak_is_kept:
            pass
        elif kinds & {"Leaky", "RLeaky"}:
            beta = old.beta.detach().flatten()  # type: ignore[operator]
            if isinstance(old.beta, nn.Parameter) or (beta != 1).any():
                lost["leak"] = ""
        elif any(hasattr(old, name) for name in ("tau", "decay_input", "beta", "alpha", "membrane_decay")):
            lost["leak"] = ""
        elif not kinds & {"IFNode", "SimpleIFNode", "HalfThresholdIFNode", "ActivationAwareIFNode"}:
            lost["dynamics"] = ""
    if _reset(old) != _reset(new):
        zero = "v_reset=0.0" if host_of(old) == "spikingjelly" else "reset_mechanism='zero'"
        lost["hard reset"] = (
            f"{zero} in the factory or " if _reset(old) == "zero" else "the same reset in the factory or "
        )
    if _initial(old) and not _initial(new):
        lost["initial potential"] = "v_init in the factory or "
    return lost


def _losses_of_quantized(old: QuantizedActivation, new: nn.Module) -> dict[str, str]:
    lost: dict[str, str] = {}
    if host_of(new) is None:  # another activation
        return lost
    if _dynamics(new) != IntegrateAndFireNeuron.dynamics:
        lost["dynamics"] = ""
    elif isinstance(old, NonUniformQuantizedReLU) and not takes_over(old, new):
        lost["dynamics"] = f"ATIF-nu with T={old.levels} in the factory or "
    elif isinstance(new, NonUniformIntegrateAndFireNeuron) and not takes_over(old, new):
        lost["dynamics"] = "recursion='min' in the factory or "
    elif _reset(new) != "subtract":
        lost["dynamics"] = "reset by subtraction in the factory or "
    if old.v_init and not isinstance(new, IntegrateAndFireNeuron):
        lost["initial potential"] = "ATIF-u or PCMP IF in the factory or "
    return lost


def takes_over(old: QuantizedActivation, new: nn.Module) -> bool:
    """Return True if a new neuron can have the edges of a quantised activation.

    Of the neurons with points, those that subtract what they fire round as one threshold does.
    """
    if isinstance(old, NonUniformQuantizedReLU):
        return isinstance(new, NonUniformIntegrateAndFireNeuron | NonUniformQuantizedReLU) and len(new.p) == old.levels
    if isinstance(new, NonUniformIntegrateAndFireNeuron):
        return new.recursion == "min" or (new.recursion == "cumulative" and old.v_init == 0)
    return isinstance(new, IntegrateAndFireNeuron | QuantizedReLU)


def _dynamics(module: nn.Module) -> str:
    """Return the equation of our neurons; of the host's, :func:`_losses` finds out what else they are."""
    return module.dynamics if isinstance(module, ThresholdNeuron) else IntegrateAndFireNeuron.dynamics


def _reset(module: nn.Module) -> str:
    if host_of(module) == "snntorch":
        return str(getattr(module, "reset_mechanism", "subtract"))
    v_reset = getattr(module, "v_reset", None)
    return "subtract" if v_reset is None else "zero" if v_reset == 0 else f"to {v_reset}"


def _initial(module: nn.Module) -> bool:
    if isinstance(module, IntegrateAndFireNeuron):
        return bool((module.v_init != 0).any())
    start = getattr(module, "_memories_rv", {}).get("v", 0.0)
    return _reset(module) == "subtract" and (isinstance(start, Tensor) or start != 0)


def _settings(old: nn.Module, new: nn.Module) -> dict[str, Any]:
    """Collect the settings to be copied: those of the old neuron that the new one has at their defaults."""
    settings: dict[str, Any] = {}
    own = _channel_thresholds(old)
    if own is not None:
        if not getattr(new, "threshold_per_channel", False):
            got = describe(own)
            raise ValueError(f"net: got a neuron with {got} as threshold, want one number per neuron layer")
        if _has_default_threshold(new):
            settings["thresholds"] = own
    elif _threshold(old) is not None and _has_default_threshold(new):
        settings["threshold"] = _threshold(old)
    defaults = {"detach_reset": False, "step_mode": "s", "store_v_seq": False, "init_hidden": False, "output": False}
    defaults |= {"scale_output": False, "grad_scale": None}
    for name, default in defaults.items():
        if hasattr(old, name) and hasattr(new, name) and getattr(new, name) == default:
            settings[name] = getattr(old, name)
    if isinstance(old, QuantizedActivation):
        settings |= _settings_of_quantized(old, new)
    if isinstance(new, IntegrateAndFireNeuron) and not is_relu(old):
        habit = host_of(new) == "spikingjelly"  # its neurons fire at the threshold, snnTorch's above it
        rule = getattr(old, "fire_at_threshold", host_of(old) == "spikingjelly")
        if new.fire_at_threshold == habit != rule:
            settings["fire_at_threshold"] = rule
    if isinstance(new, TauLeak | BetaLeak) and not new.leaks and new.takes_leak_of(old):
        settings["leak"] = old
    if is_activation(old) and getattr(new, "init_hidden", True) is False:
        settings["init_hidden"] = True  # instead of a ReLU, which returns one tensor
    for name, surrogate in (("surrogate_function", Sigmoid(4.0)), ("spike_grad", ATan(2.0))):
        if hasattr(old, name) and hasattr(new, name) and as_surrogate(getattr(new, name)) == surrogate:
            settings[name] = getattr(old, name)
    return settings


def _settings_of_quantized(old: QuantizedActivation, new: nn.Module) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if _has_default_threshold(new):
        found["threshold"] = float(old.clip_level().detach())
        if isinstance(old, NonUniformQuantizedReLU) and takes_over(old, new):
            found["points"] = old.quantization_points().detach()
    if isinstance(new, IntegrateAndFireNeuron):
        found["scale_output"] = True  # the activation is in units of its threshold
        default = 0.5 if hasattr(new, "precharge") else 0.0
        if takes_over(old, new) and bool((new.v_init == default).all()):
            found["v_init"] = old.v_init
    return found


def _channel_thresholds(module: nn.Module) -> Tensor | None:
    """Return the thresholds of the channels of a neuron that has them, ``[C]``."""
    if isinstance(module, NonUniformIntegrateAndFireNeuron | NonUniformQuantizedReLU):
        return None
    value = getattr(module, "v_threshold", getattr(module, "threshold", None))
    if not isinstance(value, Tensor) or value.numel() == 1:
        return None
    if value.ndim < 1 or value.numel() != len(value):  # the hosts' broadcast: [C, 1, 1] before an image
        got = describe(value)
        raise ValueError(f"net: got a neuron with {got} as threshold, want one number per neuron layer, or per channel")
    return value.reshape(-1)


def _has_default_threshold(module: nn.Module) -> bool:
    return _channel_thresholds(module) is None and _threshold(module) == 1.0


def _threshold(module: nn.Module) -> float | None:
    if isinstance(module, NonUniformIntegrateAndFireNeuron | NonUniformQuantizedReLU):
        uniform = uniform_points(module.p[0], len(module.p)).to(module.p)
        return float(module.p.detach()[0]) if torch.equal(module.p.detach(), uniform) else None
    value = getattr(module, "v_threshold", getattr(module, "threshold", None))
    return None if value is None else float(torch.as_tensor(value).detach())


def _assign(module: nn.Module, name: str, value: Any) -> None:
    if isinstance(module, TauLeak | BetaLeak) and name == "leak":
        module.take_leak(value)
    elif name == "points":
        module.p.data.copy_(value)  # type: ignore[operator]
    elif name == "thresholds":
        module._take_threshold(value)  # type: ignore[operator]
    elif name == "v_init":
        module.v_init.data.fill_(value)  # type: ignore[operator]
    elif name != "threshold":
        setattr(module, name, value)
    elif isinstance(module, NonUniformIntegrateAndFireNeuron | NonUniformQuantizedReLU):
        module.p.data.copy_(uniform_points(value, len(module.p)))
    elif isinstance(module, ThresholdNeuron | QuantizedActivation):
        module._raw_threshold().data.fill_(value)
    elif isinstance(getattr(module, "threshold", None), Tensor):
        module.threshold.data.fill_(value)  # type: ignore[operator]
    elif hasattr(module, "v_threshold"):
        module.v_threshold = value


def _invalidate_reset_cache(net: nn.Module) -> None:
    if "spikingjelly" in sys.modules:
        from spikingjelly.activation_based import functional

        # reset_net remembers the resettable modules of whatever it was called with.
        for module in net.modules():
            functional.invalidate_reset_cache(module)


def _kinds(net: nn.Module) -> str:
    kinds = sorted({type(m).__name__ for m in net.modules() if not m._modules})
    return ", ".join(kinds[:8]) + (", ..." if len(kinds) > 8 else "")
