"""The net of one step out of a net of snnTorch whose forward pass loops over the steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from .._errors import bad_type, bad_value, check_choice
from ..hosts import host_of, reset_neurons
from .advance import Potential, own_copy
from .graph import module_of, not_training, output_of
from .steps import steps_of

__all__ = ["one_step"]


def one_step(net: nn.Module, x: Tensor, *, frames: str | None = None) -> fx.GraphModule:
    """Return the body of the loop over the steps of an snnTorch net, as a net that keeps its states inside.

    The usual net of snnTorch calls its layers in a loop and hands ``mem`` from step to step. The net of one step has
    the same layers and trains the same parameters, under the same names; its neurons are copies with
    ``init_hidden=True``. So :func:`snn_ext.snntorch.run_steps` and ``bptt`` can fold time into the batch, and
    :func:`snn_ext.accelerate` can fuse its neurons. It returns ``(spk, mem)`` where ``net`` returns both, of the last
    neuron and of every step; else spikes.

    Parameters
    ----------
    net : nn.Module
        Each step of its loop does the same. It stays as it is, on the device where it is.
    x : Tensor
        An input of ``net``, on which both are compared.
    frames : {"TN", "NT"}, optional
        The input has time in this dimension, and the loop takes a frame of it at each step. By default it sees the same
        input at all steps.

    Returns
    -------
    fx.GraphModule
        What the forward pass read from attributes and from its mode when it was traced keeps that value.

    Raises
    ------
    ValueError
        If the loop cannot be taken apart, or a net of one step gives something else.

    Examples
    --------
    >>> import snntorch as snn
    >>> import snn_ext
    >>> from snn_ext.snntorch import run_steps
    >>> class Net(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.fc, self.lif = nn.Linear(4, 3), snn.Leaky(0.9)
    ...     def forward(self, x):
    ...         mem, spikes = self.lif.init_leaky(), []
    ...         for step in range(25):
    ...             spk, mem = self.lif(self.fc(x), mem)
    ...             spikes.append(spk)
    ...         return torch.stack(spikes)
    >>> net, x = Net(), torch.randn(2, 4)
    >>> step = snn_ext.one_step(net, x)
    >>> _ = snn_ext.accelerate(step)
    >>> torch.equal(run_steps(step, x, 25), net(x))
    True
    """
    if not isinstance(net, nn.Module):
        bad_type("net", net, "an nn.Module")
    if not isinstance(x, Tensor):
        bad_type("x", x, "a tensor, as net takes it")
    check_choice("frames", frames, (None, "TN", "NT"))
    steps = steps_of(net, "net", None if frames is None else x.shape[frames.index("T")])
    if steps.frames != frames or not steps.time_steps and not frames:
        found = "no loop over the steps" if not steps.frames else f"a loop over frames={steps.frames!r}"
        bad_value("net", found, f"one with frames={frames!r}; a net of one step goes to run_steps as it is")
    step = steps.graph
    last = module_of(step, output_of(step))
    if isinstance(last, Potential):
        bad_value("net", "a loop that returns potentials first", "one that returns spikes, or (spk, mem)")
    for name, neuron in [(n, m) for n, m in step.named_modules() if host_of(m) == "snntorch"]:
        hidden: Any = own_copy(neuron)
        hidden.init_hidden, hidden.output = True, neuron is last
        parent, _, leaf = name.rpartition(".")
        setattr(step.get_submodule(parent), leaf, hidden)
    _compare(net, step, x, frames, steps.time_steps)
    return step


@torch.no_grad()
def _compare(net: nn.Module, step: fx.GraphModule, x: Tensor, frames: str | None, time_steps: int | None) -> None:
    """Raise unless a net of one step gives what the net gives; let it return ``mem`` only if that is the same, too."""
    x_seq = x.transpose(0, 1) if frames == "NT" else x if frames else x.expand(time_steps or 1, *x.shape)
    with not_training([*net.modules(), *step.modules()]):
        for each in (net, step):
            reset_neurons(each)
        want: Any = net(x)
        found = [step(part) for part in x_seq]
    for each in (net, step):
        reset_neurons(each)
    want = want if isinstance(want, tuple | list) else (want,)
    parts = [*zip(*found, strict=True)] if isinstance(found[0], tuple) else [tuple(found)]
    same = [_is_same(a, torch.stack(b)) for a, b in zip(want, parts, strict=False)]
    if not same[0]:
        bad_value("net", "a loop whose steps depend on more than their input and the states", "equal steps")
    if isinstance(found[0], tuple) and same != [True, True]:
        last: Any = module_of(step, output_of(step))
        last.output = False


def _is_same(want: Any, found: Tensor) -> bool:
    if isinstance(want, tuple | list):
        want = torch.stack([*want])
    return bool(isinstance(want, Tensor) and want.shape == found.shape and torch.allclose(want, found))
