"""A torch operator made from one declaration: its inputs, outputs and settings.

The declaration gives the schema, the layout of all arrays, checkpoints, the backward pass and the fake implementations
for ``torch.compile`` here, and in :mod:`snn_ext.ops.machine` the arguments and constants of the C and CUDA sources and
the comparison with torch before compiled code is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from collections.abc import Sequence as SequenceOf
from typing import Annotated, Any, Literal, NamedTuple, Protocol, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from ..functional.integrate_and_fire import state_dtype
from .layout import as_step_of, as_steps_of, dense, empty_step, in_order_of, is_one
from .recomputed import keep, kept
from .registry import select

__all__ = [
    "SEGMENT",
    "Array",
    "Channel",
    "ChannelTable",
    "One",
    "OptionalStep",
    "PerStep",
    "Sequence",
    "SequenceImplementation",
    "SequenceOp",
    "Setting",
    "State",
    "Step",
    "Table",
    "checkpoint_count",
]

SEGMENT = 16
"""Steps between two checkpoints of the states; the backward pass recomputes a segment from the one before it."""

# What an array is, from its annotation. In memory sequences are [T][N] and steps [N], in the order of the input.
Sequence = Annotated[Tensor, "sequence"]
"""``[T, N, ...]`` in the dtype of the input; the first input and the first output are one."""
State = Annotated[Tensor, "state"]
"""``[N, ...]`` or one element, before the first step; its value after the last step is an output."""
Step = Annotated[Tensor, "step"]
"""``[N, ...]`` or one element, the same for all steps."""
OptionalStep = Annotated[Tensor | None, "step"]
"""The same, or not given."""
PerStep = Annotated[Tensor, "per step"]
"""``[1]`` or ``[T]``, the same for all neurons; or ``[1, N, ...]``, the same for all steps."""
One = Annotated[Tensor | None, "one"]
"""One element, or not given."""
Channel = Annotated[Tensor | None, "channel"]
"""``[C]``, for the neurons of each channel (dim 1 of a step), or not given."""
ChannelTable = Annotated[Tensor | None, "channel table"]
"""The same; has no gradient."""
Table = Annotated[Tensor, "table"]
"""``[K]`` or ``[K, N, ...]``; has no gradient."""

library = torch.library.Library("snn_ext", "FRAGMENT")


class Array(NamedTuple):
    """An input or output."""

    name: str
    kind: str
    optional: bool


class Setting(NamedTuple):
    """An argument that is not a tensor; ``values`` are the names that it may have, if it is a choice of names."""

    name: str
    type: type
    values: tuple[str, ...]


class SequenceImplementation(Protocol):
    """One way to run an operator: two functions that fill arrays.

    Arrays are laid out as their kinds say, states and parameters in float64 for float64 input, else in float32. A
    state or step of one element is expanded to its shape, or has no dimension; then its gradient is one element, the
    sum over neurons. The gradient of a channel has an element for each neuron, and is summed here. ``checkpoints``
    are the states ``[K][N]`` before every ``SEGMENT``-th step but 0.
    """

    name: str

    def why_not(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """Return why it cannot run for this device and dtype; None if it can."""

    def forward(self, inputs: Any, settings: Any, checkpoints: Tensor | None, outputs: Any) -> None:
        """Fill the outputs, and the checkpoints if there are any."""

    def backward(self, inputs: Any, settings: Any, checkpoints: Tensor | None, incoming: Any, gradients: Any) -> None:
        """Fill the gradients that are not None, from gradients of the outputs; one of these that is None is zero."""


class SequenceOp:
    """A torch operator ``snn_ext::name`` and its backward pass, run by the implementation that the registry selects.

    Parameters
    ----------
    name : str
        Name of the operator.
    inputs, outputs, settings : NamedTuple classes
        Fields of the inputs and outputs are annotated with their kind, as :data:`Sequence`; inputs without gradient
        come last. Outputs are the sequence and the states after the last step, in their order. Settings are numbers,
        bools and choices of names (``Literal``). Inputs also name the gradients that go out, and outputs those that
        come in.
    backward_only : collection of str
        Settings that the forward pass does not use.
    used_states : callable, optional
        Number of states that the settings use, the first ones; all by default. A pass that does not use all of them
        needs no checkpoints: it recomputes nothing.
    timeless : bool
        The sequence has no time: every element is on its own.
    exact : bool
        Implementations agree to the last bit in the outputs; else as close as gradients do.
    """

    def __init__(
        self,
        name: str,
        inputs: type[Any],
        outputs: type[Any],
        settings: type[Any],
        *,
        backward_only: SequenceOf[str] = (),
        used_states: Callable[[Any], int] | None = None,
        timeless: bool = False,
        exact: bool = True,
    ) -> None:
        self.name, self.timeless, self.exact, self.backward_only = name, timeless, exact, tuple(backward_only)
        self.Inputs, self.Outputs, self.Settings = inputs, outputs, settings
        self.inputs, self.outputs, self.settings = _arrays(inputs), _arrays(outputs), _settings(settings)
        self.states = [array.name for array in self.inputs if array.kind == "state"]
        self.differentiable = [array for array in self.inputs if array.kind not in ("table", "channel table")]
        self.has_channels = any(array.kind == "channel" for array in self.inputs)
        self._used_states = used_states
        self._lay_out = [_LAY_OUT.get(array.kind) for array in self.inputs]
        self._register()

    def __call__(self, inputs: Any, settings: Any) -> tuple[Tensor, ...]:
        """Run the operator and return its outputs, keeping checkpoints if something needs a gradient."""
        keep = torch.is_grad_enabled() and any(array is not None and array.requires_grad for array in inputs)
        return self._operator(*inputs, *settings, keep)[:-1]

    def sizes(self, x_seq: Tensor) -> tuple[int, int]:
        """Return the number of time steps and of neurons."""
        time_steps, elements = 1 if self.timeless else x_seq.shape[0], x_seq.numel()
        return time_steps, elements // time_steps

    def places(self, x_seq: Tensor) -> tuple[int, ...]:
        """Return the sizes, and where there are channels their number and how far apart two are in memory."""
        if not self.has_channels:
            return self.sizes(x_seq)
        return *self.sizes(x_seq), *((x_seq.shape[2], x_seq.stride(2)) if x_seq.ndim > 2 else (1, 1))

    def codes(self, settings: Any) -> tuple[float, ...]:
        """Return the settings as numbers: the place of a name among those that it may be."""
        choices = zip(self.settings, settings, strict=True)
        return tuple(setting.values.index(value) if setting.values else value for setting, value in choices)

    # -- memory: what an implementation fills ----------------------------------------------------------------------

    def room(self, inputs: Any, settings: Any, keep_checkpoints: bool) -> tuple[list[Tensor], Tensor]:
        """Return room for the outputs and the checkpoints of a dense input; a state that is not used has no element."""
        x_seq, total = inputs[0], len(self.states)
        used = total if self._used_states is None else self._used_states(settings)
        dtype, device, shape, strides = state_dtype(x_seq.dtype), x_seq.device, x_seq.shape, x_seq.stride()
        outputs = [torch.empty_strided(shape, strides, dtype=x_seq.dtype, device=device)]
        for _ in range(used):
            outputs.append(torch.empty_strided(shape[1:], strides[1:], dtype=dtype, device=device))
        for _ in range(total - used):
            outputs.append(torch.empty(0, dtype=dtype, device=device))
        count = checkpoint_count(shape[0]) if keep_checkpoints and used == total and not self.timeless else 0
        size = (count, total, x_seq.numel() // shape[0]) if count else (0,)
        return outputs, outputs[0].new_empty(size, dtype=dtype)

    def room_for_gradients(self, inputs: Any, wanted: Iterable[bool]) -> list[Tensor]:
        """Return room for the gradients; an operator has to return tensors, so one not wanted has no element."""
        x_seq = inputs[0]
        found = []
        for array, value, is_wanted in zip(self.differentiable, inputs, wanted, strict=False):
            if not is_wanted:
                found.append(torch.empty(0, dtype=(x_seq if value is None else value).dtype, device=x_seq.device))
            elif array.kind == "sequence":
                found.append(torch.empty_strided(x_seq.shape, x_seq.stride(), dtype=x_seq.dtype, device=x_seq.device))
            elif value.dim() and array.kind in ("state", "step"):
                found.append(empty_step(x_seq, value.dtype))
            elif value.dim() > 1 and array.kind == "per step":
                found.append(empty_step(x_seq, value.dtype).unsqueeze(0))
            else:
                found.append(torch.empty(value.shape, dtype=value.dtype, device=x_seq.device))
        return found

    def _dense(self, x_seq: Tensor) -> Tensor:
        return dense(x_seq.unsqueeze(0))[0] if self.timeless and not x_seq.is_contiguous() else dense(x_seq)

    def _laid_out(self, x_seq: Tensor, inputs: SequenceOf[Any]) -> Any:
        """Return the inputs in the memory order of a dense sequence."""
        arrays = [array if lay is None else lay(x_seq, array) for lay, array in zip(self._lay_out, inputs, strict=True)]
        return self.Inputs(x_seq, *arrays[1:])

    # -- the operator and its backward pass ------------------------------------------------------------------------
    # An implementation is selected when an operator runs, not when a model is compiled.

    def _forward(self, *arguments: Any) -> tuple[Tensor, ...]:
        inputs, settings, keep = self._split(arguments)
        x_seq = self._dense(inputs[0])
        outputs, checkpoints = self.room((x_seq, *inputs[1:]), settings, keep)
        if x_seq.numel():
            select(self.name, x_seq.device, x_seq.dtype).forward(
                self._laid_out(x_seq, inputs),
                settings,
                checkpoints if checkpoints.shape[0] else None,
                self.Outputs(*outputs),
            )
        return *outputs, checkpoints

    def _backward(self, *arguments: Any) -> Any:
        count = len(self.outputs)
        incoming, (inputs, checkpoints, settings, wanted) = arguments[:count], self._split_backward(arguments[count:])
        x_seq = self._dense(inputs[0])
        gradients = self.room_for_gradients((x_seq, *inputs[1:]), wanted)
        if x_seq.numel() == 0 or all(gradient is None for gradient in incoming):
            return self._returned([gradient.zero_() for gradient in gradients])
        filled = [gradient if is_wanted else None for gradient, is_wanted in zip(gradients, wanted, strict=True)]
        of_channels = [k for k, a in enumerate(self.differentiable) if a.kind == "channel" and filled[k] is not None]
        for k in of_channels:
            filled[k] = empty_step(x_seq, gradients[k].dtype)
        used = len(self.states) if self._used_states is None else self._used_states(settings)
        for k, array in enumerate(self.differentiable):
            if array.name in self.states[used:]:
                gradients[k].zero_()
                filled[k] = None
        g_seq, *g_states = incoming
        select(self.name, x_seq.device, x_seq.dtype).backward(
            self._laid_out(x_seq, inputs),
            settings,
            checkpoints if checkpoints.shape[0] else None,
            self.Outputs(
                None if g_seq is None else in_order_of(x_seq, g_seq),
                *(None if g is None or k >= used else as_step_of(x_seq, g) for k, g in enumerate(g_states)),
            ),
            self.Inputs(*filled, *[None] * (len(self.inputs) - len(filled))),
        )
        for k in of_channels:
            gradients[k].copy_(_sum_of_channels(filled[k]))
        return self._returned(gradients)

    def _split(self, arguments: SequenceOf[Any]) -> tuple[SequenceOf[Any], Any, Any]:
        """Return the inputs, the settings, and the last argument."""
        count = len(self.inputs)
        return arguments[:count], self.Settings(*arguments[count:-1]), arguments[-1]

    def _split_backward(self, arguments: SequenceOf[Any]) -> tuple[SequenceOf[Any], Tensor, Any, Any]:
        count = len(self.inputs)
        return arguments[:count], arguments[count], self.Settings(*arguments[count + 1 : -1]), arguments[-1]

    def _returned(self, gradients: list[Tensor]) -> Any:
        return gradients if len(gradients) > 1 else gradients[0]

    # -- what torch wants to know ----------------------------------------------------------------------------------

    def _register(self) -> None:
        inputs = ", ".join(f"Tensor{'?' if array.optional else ''} {array.name}" for array in self.inputs)
        outputs = ", ".join(f"Tensor {array.name}" for array in self.outputs)
        incoming = ", ".join(f"Tensor? grad_{array.name}" for array in self.outputs)
        gradients = ", ".join(f"Tensor grad_{array.name}" for array in self.differentiable)
        settings = ", ".join(f"{_SCHEMA[setting.type]} {setting.name}" for setting in self.settings)
        library.define(f"{self.name}({inputs}, {settings}, bool keep_checkpoints) -> ({outputs}, Tensor checkpoints)")
        library.define(
            f"{self.name}_backward({incoming}, {inputs}, Tensor checkpoints, {settings}, "
            f"bool[{len(self.differentiable)}] wanted) -> ({gradients})"
        )
        for name, function, fake in (
            (self.name, self._forward, self._fake_forward),
            (f"{self.name}_backward", self._backward, self._fake_backward),
        ):
            library.impl(name, function, "CompositeExplicitAutograd")
            torch.library.register_fake(f"snn_ext::{name}", fake, lib=library)
        torch.library.register_autograd(
            f"snn_ext::{self.name}", self._differentiate, setup_context=self._keep_for_backward, lib=library
        )
        torch.library.register_autograd(f"snn_ext::{self.name}_backward", self._refuse_second_derivative, lib=library)
        self._operator = getattr(torch.ops.snn_ext, self.name).default
        self._backward_operator = getattr(torch.ops.snn_ext, f"{self.name}_backward").default

    def _fake_forward(self, *arguments: Any) -> tuple[Tensor, ...]:
        inputs, settings, keep = self._split(arguments)
        outputs, checkpoints = self.room((self._dense(inputs[0]), *inputs[1:]), settings, keep)
        return *outputs, checkpoints

    def _fake_backward(self, *arguments: Any) -> Any:
        inputs, _, _, wanted = self._split_backward(arguments[len(self.outputs) :])
        return self._returned(self.room_for_gradients((self._dense(inputs[0]), *inputs[1:]), wanted))

    def _keep_for_backward(self, ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        count, checkpoints = len(self.inputs), output[-1]
        tensors, ctx.settings = inputs[:count], inputs[count:-1]
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(checkpoints)
        keep(ctx, *tensors, checkpoints)

    def _differentiate(self, ctx: Any, *incoming: Tensor | None) -> tuple[Tensor | None, ...]:
        *inputs, checkpoints = kept(ctx)
        wanted = list(ctx.needs_input_grad[: len(self.differentiable)])
        found = self._backward_operator(*incoming[:-1], *inputs, checkpoints, *ctx.settings, wanted)
        gradients = found if len(wanted) > 1 else [found]
        rest = len(ctx.needs_input_grad) - len(wanted)
        return *(g if is_wanted else None for g, is_wanted in zip(gradients, wanted, strict=True)), *[None] * rest

    def _refuse_second_derivative(self, ctx: Any, *gradients: Tensor | None) -> None:
        raise RuntimeError(
            f"{self.name}: a second backward was asked for, through the gradient itself, want only the first: the "
            f"fused operator has no second derivative; use snn_ext.functional.{self.name}"
        )


def checkpoint_count(time_steps: int) -> int:
    """Return how many checkpoints a sequence of T steps has: none up to ``SEGMENT`` steps.

    Examples
    --------
    >>> checkpoint_count(16), checkpoint_count(17), checkpoint_count(33)
    (0, 1, 2)
    """
    return (time_steps - 1) // SEGMENT


_SCHEMA = {int: "int", float: "float", bool: "bool", str: "str"}


def _step(x_seq: Tensor, value: Tensor | None) -> Tensor | None:
    return value if value is None or is_one(value) else as_step_of(x_seq, value)


def _table(x_seq: Tensor, value: Tensor) -> Tensor:
    return as_steps_of(x_seq, value) if value.dim() > 1 else value.contiguous()


def _channel(x_seq: Tensor, value: Tensor | None) -> Tensor | None:
    return None if value is None else value.contiguous()


def _sum_of_channels(step: Any) -> Tensor:
    """Sum over all neurons of a channel: within a sample pairwise, as torch does, over samples in float64."""
    samples = step if step.dim() == 2 else step.sum(list(range(2, step.dim())))
    found: Tensor = samples.sum(0, dtype=torch.float64)
    return found


_LAY_OUT: dict[str, Callable[[Tensor, Any], Any]] = {
    "state": _step,
    "step": _step,
    "per step": _table,
    "table": _table,
    "channel": _channel,
    "channel table": _channel,
}


def _arrays(fields: type[Any]) -> list[Array]:
    hints = get_type_hints(fields, include_extras=True)
    return [Array(name, get_args(hint)[1], type(None) in get_args(get_args(hint)[0])) for name, hint in hints.items()]


def _settings(fields: type[Any]) -> list[Setting]:
    settings = []
    for name, hint in get_type_hints(fields).items():
        values = get_args(hint) if get_origin(hint) is Literal else ()
        settings.append(Setting(name, str if values else hint, values))
    return settings
