"""The base of all conversion methods, as recipes for SpikingJelly's own ``Converter``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

import torch
from spikingjelly.activation_based.ann2snn import FXConversionRecipe
from torch import Tensor, fx, nn

from ..._errors import check_bool, check_choice, check_count
from ..._progress import bar
from ...simulation.analog import AnalogTwin
from ...simulation.engine import Simulation
from ..batches import Batches
from ..canonicalize import AnalogNet, canonicalize
from ..graph_tools import free_name
from ..modules import InputShape, over_channels
from ..net import ConvertedNet
from ..preparation import TOLERANCE, check_values, relative_error

__all__ = ["ConversionRecipe", "check_result", "measure_rates"]

_SAMPLES = 16
"""Samples of the calibration data on which copies are compared and rates are measured."""


@dataclass(eq=False, kw_only=True)
class ConversionRecipe(FXConversionRecipe):
    """Base of the conversion methods: from a net and calibration data to a spiking net.

    A method is a dataclass that derives from this class. Its fields are the options that :func:`snn_ext.convert`
    takes; :meth:`check` validates them, and :meth:`build` makes the spiking net.

    Parameters
    ----------
    calibration : Tensor, iterable or callable
        A batch of inputs, a loader, or a function that returns a loader. Leave it out in a recipe for
        :func:`snn_ext.convert`, which gets the calibration data itself.
    memory : int
        Bytes that the simulations during conversion may take.
    output : str or int, optional
        The output to convert, of a net with several: a key of a dict, a field of a dataclass, or a place in a tuple.
    progress : bool
        Show progress bars (tqdm) on a terminal.

    Notes
    -----
    The host's ``Converter`` traces the net between its hooks. Here the net is traced by this package, so that other
    threads may call modules meanwhile: the first hook does all the work, and the last one hands over the result.
    """

    calibration: Any = field(default=None, repr=False, kw_only=False)
    memory: int = 1 << 30
    output: str | int | None = None
    progress: bool = True
    _result: ConvertedNet | None = field(default=None, init=False, repr=False)

    pools: ClassVar[Literal["behind", "before"]] = "behind"
    """The side of activations on which :meth:`build` wants maximum poolings."""

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> None:
        """Raise if an option has a wrong value; fields that are a choice or a bool are checked by their annotation."""
        check_count("memory", self.memory)
        hints = get_type_hints(type(self))
        for option in fields(self):
            value, kind = getattr(self, option.name), hints[option.name]
            if get_origin(kind) is Literal:
                check_choice(option.name, value, get_args(kind))
            elif kind is bool:
                check_bool(option.name, value)

    def check_inputs(self, x: Tensor) -> None:
        """Raise or warn if the method cannot convert for inputs like the first batch."""

    def build(self, analog: AnalogNet, batches: Batches) -> ConvertedNet:
        """Return the spiking net, checked by :func:`check_result`, with its report."""
        raise NotImplementedError

    @torch.no_grad()
    def converted(self, ann: nn.Module, device: torch.device | None = None) -> ConvertedNet:
        """Return the spiking net for a trained one, which is not changed."""
        check_values(ann)
        batches = Batches(self.calibration, device)
        x = batches.first()
        self.check_inputs(x)
        analog = canonicalize(ann, x[:_SAMPLES], pools=self.pools, output=self.output)
        net = self.build(analog, batches)
        for layer in net.report:
            layer.notes[:0] = analog.notes
        if analog.sized:
            name = free_name(net, "input_shape")
            net.add_submodule(name, InputShape(x.shape[1:]))
            _begin_with(net, lambda input: net.graph.call_module(name, (input,)))
        if analog.notes:  # a net of float32 takes the 16-bit inputs of the net that it was converted from
            _begin_with(net, lambda input: net.graph.call_method("float", (input,)))
        for parameter in net.parameters():
            if parameter.ndim == 4:  # of a 2d convolution, whose fast layout on a CPU it is
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        return net.eval()

    # -- the host's hooks -------------------------------------------------------------------------------------------

    def validate(self, converter: Any) -> None:
        """Check the options again: a field may have been changed."""
        self.check()

    def before_trace(self, converter: Any, ann: nn.Module) -> nn.Module:
        """Convert the net; return a module that the host can trace."""
        self._result = self.converted(ann, converter.device)
        return nn.Identity()

    def finalize(self, converter: Any, fx_model: Any) -> nn.Module:
        """Return the converted net."""
        net, self._result = self._result, None
        assert net is not None
        return net


def _begin_with(net: ConvertedNet, call: Callable[[fx.Node], fx.Node]) -> None:
    """Insert an operation on the input."""
    x = next(node for node in net.graph.nodes if node.op == "placeholder")
    with net.graph.inserting_after(x):
        node = call(x)
    node.meta = dict(x.meta)
    x.replace_all_uses_with(node, lambda user: user is not node)
    net.recompile()


def check_result(net: ConvertedNet, x: Tensor, wanted: Tensor | None) -> dict[str, Tensor]:
    """Check that the analog net that a spiking one stands for has the wanted output for some samples.

    Returns
    -------
    dict of str to Tensor
        The rate that each neuron is to approach, by layer.

    Raises
    ------
    RuntimeError
        If it has not: the conversion is wrong then.
    """
    twin = AnalogTwin(net)
    result = twin(x)
    if wanted is not None:
        error = relative_error(result, wanted)
        if not error <= TOLERANCE:
            raise RuntimeError(
                f"conversion: the spiking net stands for another analog net, which differs by {error:.3g} of its "
                "output; this is a defect of snn_ext"
            )
    return twin.activations


def measure_rates(
    net: ConvertedNet,
    x: Tensor,
    rates: dict[str, Tensor],
    steps: int,
    *,
    skip: int = 0,
    window: int | None = None,
    memory: int,
    progress: bool,
) -> None:
    """Run some samples, and write into the report by how much the rates differ from those that are wanted.

    Spikes are counted in ``steps`` steps after the first ``skip`` ones; all of them come in a ``window`` of fewer steps
    in a phased net.
    """
    counts: dict[str, Any] = {}
    seen: dict[str, int] = {}

    def count(name: str, module: nn.Module, spikes: Tensor) -> None:
        late = max(0, skip - seen.get(name, 0))
        counts[name] = counts.get(name, 0) + spikes[late:].sum(0)
        seen[name] = seen.get(name, 0) + len(spikes)

    with bar("measure rates", "step", total=skip + steps, progress=progress) as shown:
        for outputs in Simulation(net, memory=memory).run(x, skip + steps, count):
            shown.update(len(outputs))
    for layer in net.report:
        wanted = rates[layer.name]
        error = counts[layer.name] / (window or steps) - wanted
        layer.rate_error, layer.steps = _rms(error), steps
        scale = over_channels(torch.as_tensor(layer.scale).to(wanted).reshape(-1), wanted.ndim)
        size = _rms(wanted * scale)
        layer.value_error = _rms(error * scale) / size if size else None


def _rms(values: Tensor) -> float:
    return float(values.double().square().mean().sqrt())
