"""Calibration: few time steps without training, by the error of what every channel decodes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from ..._channel_search import least_squares_threshold
from ..._errors import bad_value, check_count
from ...neurons.quantized import NonUniformQuantizedReLU, QuantizedActivation
from ...simulation.analog import AnalogTwin
from ..activations import Activation
from ..batches import Batches
from ..calibration import AnalogSamples, calibrate
from ..canonicalize import AnalogNet
from ..modules import over_channels
from ..net import ConvertedNet
from ..spiking import OUTPUT, ThresholdSetter
from ..tuning import held_out, tune
from .rate import RateRecipe

__all__ = ["CalibratedRecipe"]


@dataclass(eq=False, kw_only=True)
class CalibratedRecipe(RateRecipe):
    r"""Calibration of every channel for ``time_steps`` steps, layer by layer, on the spiking net as it is so far.

    For each channel the threshold :math:`\theta`, the pre-charge v and a bias b are searched that make

    .. math:: E(\theta, v, b) = \left\langle \left[\frac{\theta}{T}\, n(I + b; \theta, v) - a\right]^2 \right\rangle

    small: n is the count of T steps of the neuron under the current I that arrives from the layers before, and a the
    analog activation. The weights before each layer are corrected first, in closed form. The inputs need no labels;
    32 to 256 of them are enough. A net that is calibrated for T steps is worse with fewer steps.

    Parameters
    ----------
    calibration, memory, encoder, seed, readout, fold_scales
        As in :class:`RateRecipe`.
    time_steps : int
        T: as many steps as the net is to run.
    samples : int
        The first inputs of the calibration data are used, up to this number.
    correct_weights : bool
        Correct weights and biases by ridge regression of what the mean current lacks, in each layer in which the error
        on a quarter of the inputs, which is held out, gets smaller.
    schedule : {"streaming", "phased"}
        A net with quantised activations is exact in the phased schedule and is not calibrated.
    wait : int
        The search, and the tuning, simulate the decisions of layers that wait.
    tune : {"nothing", "channels", "weights"}
        Afterwards let thresholds, pre-charges and biases, or the weights too, follow the surrogate gradient of the
        squared distance to the analog output, on the same inputs; a quarter of them, which the calibration does not see
        either, decides when to stop.
    epochs : int
        Of the tuning, at most.

    Notes
    -----
    The threshold starts at the least squared error of the staircase of T steps, with :math:`v = 1/2` and
    :math:`b = 0`. Then each of the three in turn takes the best of a grid, twice, the second time with a finer grid.
    The neurons are plain ones with soft reset: biases are folded into the weights, pre-charges are ``v_init`` per
    channel. ``report`` has the relative error of each layer before and after its search. A quantised activation is one
    that is clipped here, whose levels are approximated; with as many points as steps its neurons are ATIF-nu, whose
    points keep their shape and are calibrated by a factor for each channel, with the better of two recursions.

    Source: Hwang et al. 2021, algorithm 1, with three parameters of each channel; the correction of weights follows Li
    et al. 2021 (calibration).

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from spikingjelly.activation_based.ann2snn import Converter
    >>> from snn_ext.conversion import CalibratedRecipe
    >>> ann = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> layer = Converter(CalibratedRecipe(torch.rand(64, 4), time_steps=4, progress=False)).convert(ann).report[0]
    >>> layer.found_error <= layer.start_error
    True
    """

    time_steps: int = 8
    samples: int = 256
    correct_weights: bool = True
    tune: Literal["nothing", "channels", "weights"] = "nothing"
    epochs: int = 20
    precharge: float = field(default=0.5, init=False)
    reset: Literal["subtract"] = field(default="subtract", init=False)
    residual: Literal["junction"] = field(default="junction", init=False)
    channel_wise: bool = field(default=True, init=False)

    def check(self) -> None:
        """Check the options."""
        super().check()
        check_count("time_steps", self.time_steps)
        check_count("samples", self.samples)
        check_count("epochs", self.epochs)

    def build(self, analog: AnalogNet, batches: Batches) -> ConvertedNet:
        """Build the net; where spikes may come too early the levels of quantised activations are only a target."""
        if not self.exact:
            for name, activation in analog.activations.items():
                if activation.quantized is not None:
                    clip = float(activation.quantized.clip_level().detach())
                    analog.activations[name] = Activation(clip=clip, points=self._points(activation.quantized))
        return super().build(analog, batches)

    @property
    def _between_scales(self) -> bool:
        return True  # which hold the biases of channels too

    def _points(self, quantized: QuantizedActivation) -> tuple[float, ...] | None:
        """Return the points in units of the first, for neurons of as many steps that do not wait."""
        if self.waits or not isinstance(quantized, NonUniformQuantizedReLU) or quantized.levels != self.time_steps:
            return None
        points = quantized.quantization_points().detach()
        return tuple((points / points[0]).tolist())

    def set_thresholds(self, thresholds: ThresholdSetter, analog: AnalogNet, batches: Batches) -> None:
        """Calibrate one layer after the other."""
        inputs = [self._seen(x) for x in batches.upto(self.samples)]
        if self._is_quantised_net(analog):
            if self.tune != "nothing":
                bad_value("tune", self.tune, "'nothing' for quantised activations that are exact")
            for name, layer in AnalogSamples(analog, inputs, 4096, self.memory).layers.items():
                shared = name == OUTPUT
                value = least_squares_threshold(layer.current, layer.target, self.time_steps, shared=shared)
                thresholds.set(name, value[:1] if shared else value, "least squared error")
            return
        tuned, every = self.tune != "nothing", torch.cat(inputs)
        seen = every[: len(every) - held_out(len(every))].split(len(inputs[0])) if tuned else inputs
        calibrate(
            thresholds, analog, seen, self.time_steps,
            correct_weights=self.correct_weights, wait=self.inputs_before, memory=self.memory, progress=self.progress,
        )  # fmt: skip
        if tuned:
            targets = torch.cat([analog.graph(x) for x in inputs])
            tune(
                thresholds, every, targets, self.time_steps,
                epochs=self.epochs, weights=self.tune == "weights", wait=self.inputs_before, progress=self.progress,
            )  # fmt: skip

    def _is_quantised_net(self, analog: AnalogNet) -> bool:
        """Return True if the net is exact and nothing is to be changed: its activations are quantised."""
        return self.exact and any(activation.quantized is not None for activation in analog.activations.values())

    def _check_precharge(self) -> None:
        """Check nothing: the pre-charge is no option, and that of a quantised activation is its own."""

    def _stands_for(self, analog: AnalogNet, thresholds: ThresholdSetter) -> Tensor:
        """Return the output of the net with the corrections in it."""
        if self._is_quantised_net(analog):
            return super()._stands_for(analog, thresholds)
        output: Tensor = AnalogTwin(thresholds.net)(analog.x)
        return output

    def _rates(self, analog: AnalogNet, thresholds: ThresholdSetter) -> dict[str, Tensor]:
        """Return the rates of the analog net: corrections make up for the time that spikes take."""
        if self.waits:
            return {}
        currents: dict[str, Tensor] = {}
        analog.watched(self._seen(analog.x), currents.__setitem__)
        return {
            name: analog.graph.get_submodule(name)(z) / over_channels(thresholds.values[name].to(z), z.ndim)
            for name, z in currents.items()
        }
