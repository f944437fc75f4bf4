"""The contract of snnTorch 1.0 for a neuron of any dynamics: attributes, ``mem``, reset, detach.

The host carries ``mem``, the potential before its reset, and resets or detaches a neuron by replacing or detaching that
tensor. These neurons carry another state beside ``mem`` and notice both.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Any, ClassVar

import snntorch as snn
import torch
from torch import Tensor, nn

from .._errors import bad_type, bad_value, check_bool, check_choice, describe
from ..functional import ATan, as_surrogate
from ..neurons.base import Admits, ThresholdNeuron, admit_threshold, carried, copied

__all__ = ["HostNeuron", "neutral"]


_MEANINGLESS: dict[str, tuple[Any, str]] = {
    "beta": (1.0, "1: these neurons do not leak"),
    "inhibition": (False, "False: there is no inhibition here"),
    "learn_beta": (False, "False: there is no leak to learn"),
    "state_quant": (False, "False: the state is kept in full precision"),
    "graded_spikes_factor": (1.0, "1: spikes are binary, or scaled by scale_output=True"),
    "learn_graded_spikes_factor": (False, "False: spikes are binary, or scaled by scale_output=True"),
    "reset_delay": (True, "True: the host's reset_delay=False never fires on a stored charge"),
}
"""Options of the host without a meaning here: the neutral value, and the explanation for any other."""


def neutral(name: str, want: str = "") -> Callable[[Any, Any], Any]:
    """Return the check that an option of the host has its neutral value; ``want`` is another explanation."""
    only, reason = _MEANINGLESS[name]

    def admit(neuron: Any, value: Any) -> Any:
        known = isinstance(value, int | float) or type(value) is Tensor and value.numel() == 1 and not value.is_meta
        if not known or value != only:
            bad_value(name, value, want or reason)
        return value

    return admit


class HostNeuron(ThresholdNeuron, snn.Leaky):
    """Base of all neurons: the state beside the host's ``mem``, and the host's contract."""

    threshold_name = "threshold"
    admits: ClassVar[Admits] = {
        "threshold": admit_threshold,
        "mem": lambda neuron, value: _mem(neuron, value),
        "spike_grad": lambda neuron, value: _spike_grad(value),
        "init_hidden": lambda neuron, value: check_bool("init_hidden", value),
        "output": lambda neuron, value: check_bool("output", value),
        "step_mode": lambda neuron, value: check_choice("step_mode", value, ("s", "m")),
        "surrogate_disable": lambda neuron, value: _fixed(neuron, "surrogate_disable", value, "set spike_grad instead"),
        "state_function": lambda neuron, value: _fixed(neuron, "state_function", value, "set reset_mechanism instead"),
        "reset_mechanism_val": lambda neuron, value: _reset_mechanism_val(neuron, value),
        **{name: neutral(name) for name in _MEANINGLESS},
    }
    keywords_elsewhere: ClassVar[dict[str, str]] = {
        "v_threshold": "threshold",
        "surrogate_function": "spike_grad",
        "v_reset": "reset_mechanism: 'subtract' or 'zero'",
    }
    only_subtraction: ClassVar[str] = ""  # why no other reset is possible; empty where one is
    beta: Tensor
    graded_spikes_factor: Tensor
    reset_dict: dict[str, int]
    reset_mechanism: str
    mem: Tensor
    reset_mechanism_val: Tensor
    _own_mem: Tensor | None  # the mem of the last call; another one in its place means that the host has reset
    _mem_seq: Tensor | None  # all mems of the last call in step mode "m", where they are passed along
    _mem_version: int  # of that mem: a change in place would be lost
    _state: Any  # what is carried over, a named tuple of tensors; None at the start
    _time_in_batch: int | None  # T while bptt feeds [T * N, ...]
    resets_too: tuple[Any, ...] = ()
    """Modules with memories that the host does not know: they are reset with this neuron."""

    def _init_host(self, given: dict[str, Any]) -> None:
        """Check the host's options among the arguments of a constructor, and run the host's own constructor."""
        for name in _MEANINGLESS:
            self.admits[name](self, given[name])
        for name in ("surrogate_disable", "init_hidden", "output", "learn_threshold"):
            check_bool(name, given[name])
        self._check_reset_mechanism(given["reset_mechanism"])
        check_choice("step_mode", given["step_mode"], ("s", "m"))
        handed_on = ("surrogate_disable", "init_hidden", "reset_mechanism", "output")
        with torch.device("cpu"):  # the host looks at its buffers, which the meta device does not allow
            snn.Leaky.__init__(
                self, beta=1.0, spike_grad=_spike_grad(given["spike_grad"]), **{name: given[name] for name in handed_on}
            )
        for name in ("beta", "graded_spikes_factor", "reset_mechanism_val", "mem"):
            self._buffers[name] = getattr(self, name).to(torch.get_default_device())
        self.step_mode = given["step_mode"]
        self._time_in_batch = None
        self._forget()

    def _check_reset_mechanism(self, value: Any) -> Any:
        check_choice("reset_mechanism", value, tuple(self.reset_dict))
        if self.only_subtraction and value != "subtract":
            bad_value("reset_mechanism", value, f"'subtract': {self.only_subtraction}")
        return value

    # -- forward -------------------------------------------------------------------------------------------------

    def forward(self, input_: Tensor, mem: Tensor | None = None) -> Any:
        """Advance by one step ``[N, ...]`` (step mode "s") or by a sequence ``[T, N, ...]`` ("m").

        Returns ``spk`` with ``init_hidden=True``; ``(spk, mem)`` without it or with ``output=True``. ``mem`` is the
        potential before the reset, in float32 or float64, of the shape of ``spk``. A ``mem`` that did not come from
        this neuron's last call starts a fresh sequence.
        """
        if not isinstance(input_, Tensor) or not input_.is_floating_point():
            bad_type("input_", input_, "a floating tensor")
        _refuse_export(type(self).__name__)
        if mem is not None and self.init_hidden:
            raise TypeError("`mem` should not be passed as an argument while `init_hidden=True`")
        if mem is not None and not isinstance(mem, Tensor):
            bad_type("mem", mem, "a tensor, as returned by the last call")
        x_seq = self._as_sequence(input_)
        self._warn_in_training()
        state = self._carried(x_seq, mem)
        if self.init_hidden and not self.output:
            spk, mem, state = self._advance(x_seq, state)
            self._remember(mem, state)
            return self._as_input(spk)
        spk, mem_seq, state = self._advance_with_mem(x_seq, state)
        self._remember(mem_seq[-1], state)
        if self.step_mode == "s" and self._time_in_batch is None:
            return spk[0], self.mem  # this very tensor: the next call knows it by it
        stacked = torch.stack(mem_seq)
        if not self.init_hidden:
            self._mem_seq = stacked  # kept, so that no other tensor can get its memory and be taken for it
        return self._as_input(spk), self._as_input(stacked)

    def _as_sequence(self, input_: Tensor) -> Tensor:
        if self._time_in_batch is not None:  # bptt: [T * N, ...]
            return input_.unflatten(0, (self._time_in_batch, -1))
        if self.step_mode == "s":
            return input_.unsqueeze(0)
        if input_.ndim < 1 or input_.shape[0] < 1:
            bad_value("input_", input_, "[T, N, ...] with at least one time step")
        return input_

    def _as_input(self, seq: Tensor) -> Tensor:
        if self._time_in_batch is not None:
            return seq.flatten(0, 1)
        return seq[0] if self.step_mode == "s" else seq

    # -- to be defined by the dynamics ------------------------------------------------------------------------------

    def _advance(self, x_seq: Tensor, state: Any) -> tuple[Tensor, Tensor, Any]:
        """Return spikes, the last ``mem`` and the new state; ``state`` is ``None`` at the start of a sequence."""
        raise NotImplementedError

    def _advance_with_mem(self, x_seq: Tensor, state: Any) -> tuple[Tensor, list[Tensor], Any]:
        """Return spikes, every ``mem`` and the new state."""
        raise NotImplementedError

    def _describe(self) -> str:
        raise NotImplementedError

    # -- state ---------------------------------------------------------------------------------------------------

    def _carried(self, x_seq: Tensor, mem: Tensor | None) -> Any:
        """Return the state; ``None`` after a reset by the host, for another ``mem`` and for another shape."""
        state = self._state
        if state is not None and self._own_mem is not None and self._version_of(self._own_mem) != self._mem_version:
            raise ValueError(
                "mem: got it modified in place, want it unchanged: this neuron carries its own potential; "
                "reset the neuron, or pass zeros to start afresh"
            )
        own = self.mem is self._own_mem and self._is_last(mem)
        if state is None or state[0].shape != x_seq.shape[1:] or not own:
            self._warn_of_foreign(mem)
            return None
        self._refuse_recomputation(self._state)
        if not (self.mem if mem is None else mem).requires_grad:
            state = _mapped(Tensor.detach, state)
        return _mapped(lambda part: carried(part, x_seq), state)

    def _warn_of_foreign(self, mem: Tensor | None) -> None:
        """Warn if a potential is dropped that was passed along, or that other code has put into ``mem``."""
        foreign = self.mem if mem is None and self.mem is not self._own_mem else mem
        if foreign is not None and not torch.compiler.is_compiling() and not foreign.is_meta and bool(foreign.any()):
            warnings.warn(
                "mem: got a potential that this neuron did not return from its last call, want that one (not a "
                "copy, nor another neuron's) or zeros; a fresh sequence starts",
                stacklevel=5,
            )

    def _is_last(self, mem: Tensor | None) -> bool:
        """Return True if ``mem`` is the tensor that the last call returned, its last step, or one of them detached."""
        if mem is None or mem is self.mem:
            return True
        returned = self.mem if self.step_mode == "s" else self._mem_seq
        if returned is None or not mem.numel():  # all that is empty has one address: only the very tensor counts
            return False
        return mem.untyped_storage().data_ptr() == returned.untyped_storage().data_ptr()

    def _remember(self, mem: Tensor, state: Any) -> None:
        self._own_mem = self.mem = mem  # in this order: another mem in the neuron is a reset
        self._mem_version = self._version_of(mem)
        self._state = state
        self._leave(state)

    @staticmethod
    def _version_of(mem: Tensor) -> int:
        """Return how often a tensor was modified in place; always 0 under the compiler and for inference tensors."""
        return 0 if torch.compiler.is_compiling() or mem.is_inference() else mem._version

    def _forget(self) -> None:
        self._own_mem = None
        self._mem_seq = None
        self._state = self._left = None
        self._mem_version = 0

    def reset_mem(self) -> Tensor:
        """Start a fresh sequence; returns the host's zero ``mem``, which may be passed to the first step."""
        self._forget()
        self.mem = self._own_mem = torch.zeros_like(self.mem)
        self._mem_version = self._version_of(self.mem)
        return self.mem

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if not self.beta.ndim:  # the host's own, which does nothing
            self.beta.fill_(1.0)
        self.graded_spikes_factor.fill_(1.0)
        self.reset_mechanism_val.fill_(self.reset_dict[self.reset_mechanism])
        self.reset_mem()

    def detach_mem(self) -> None:
        """Cut the state off the graph, as truncated backpropagation through time does between chunks."""
        if self._state is not None:
            own = self.mem is self._own_mem
            self._state, mem = _mapped(Tensor.detach, self._state), self.mem.detach()
            self._own_mem, self._mem_seq = (mem if own else None), None
            self.mem = mem
            self._mem_version = self._version_of(self.mem)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        own = self.mem is self._own_mem
        super()._apply(fn, recurse)  # replaces the buffer mem
        self._own_mem = self.mem if own else None
        self._mem_version = self._version_of(self.mem)
        self._state = None if self._state is None else _mapped(fn, self._state)
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Give copies and pickles the values of the state without its graph, and no state that the host has reset."""
        mem, own = copied(self.mem), self.mem is self._own_mem
        return self.__dict__ | {
            "_buffers": self._buffers | {"mem": mem},
            "_own_mem": mem if own else None,
            "_mem_seq": copied(self._mem_seq) if own else None,
            "_state": _mapped(copied, self._state) if own and self._state is not None else None,
            "_left": None,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._mem_version = self._version_of(self.mem)  # copies count afresh
        snn.SpikingNeuron.instances.append(self)  # as a constructor does, so that the host resets it

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in ("graded_spikes_factor",) if self.beta.ndim else ("beta", "graded_spikes_factor"):
            value = state_dict.get(prefix + name)
            if value is not None and bool((value != 1.0).any()):
                args[-1].append(
                    f"{prefix}{name}: got {value.tolist()}, want 1: this neuron has no leak and binary spikes"
                )
                return
        value = state_dict.get(f"{prefix}reset_mechanism_val")
        if value is not None and int(value) != int(self.reset_mechanism_val):
            args[-1].append(
                f"{prefix}reset_mechanism_val: got {int(value)}, want {int(self.reset_mechanism_val)}: the "
                f"reset_mechanism of this neuron is {self.reset_mechanism!r}, and a checkpoint does not change it"
            )
            return
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        text = f"{self._describe()}, reset_mechanism={self.reset_mechanism!r}, step_mode={self.step_mode!r}"
        text += f", spike_grad={describe(self.spike_grad)}"
        return text + "".join(f", {name}=True" for name in ("init_hidden", "output") if getattr(self, name))


def _mapped(fn: Callable[[Tensor], Tensor], state: Any) -> Any:
    """Apply a function to the parts of a state but for the step index, which stays on the CPU."""
    return type(state)(*(fn(p) if isinstance(p, Tensor) and p.is_floating_point() else p for p in state))


def _refuse_export(kind: str) -> None:
    """Raise while the host's exporter to NIR runs a net: it would take these neurons for those of their base class."""
    if nn.Module.__call__.__module__ != "nirtorch.graph":  # it records the calls of modules
        return
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_globals.get("__name__") == "snntorch.export_nir":
            bad_value("module", kind, "neurons of snnTorch alone: snn_ext.to_nir exports those of snn_ext to NIR")


def _mem(neuron: Any, value: Any) -> Any:
    """Notice at once that the host resets a neuron, by putting another ``mem`` into it."""
    if value is not neuron._own_mem:
        for module in neuron.resets_too:
            module.reset()
    return value


def _fixed(neuron: Any, name: str, value: Any, instead: str) -> Any:
    """Refuse to change an attribute that has an effect in the host's constructor only."""
    if name in neuron.__dict__ and value is not neuron.__dict__[name]:
        bad_value(name, value, f"{neuron.__dict__[name]!r}, the value of the constructor: {instead}")
    return value


def _spike_grad(function: Any) -> Any:
    # The host's closures cannot be pickled: the same curve as an object can. Its default is atan(2).
    return ATan(2.0) if function is None else as_surrogate(function)


def _reset_mechanism_val(neuron: Any, value: Any) -> Any:
    """Keep name and number of the reset mechanism in step, whichever of them is set."""
    names = {number: name for name, number in neuron.reset_dict.items()}
    neuron._reset_mechanism = neuron._check_reset_mechanism(names.get(int(value), value))
    return value
