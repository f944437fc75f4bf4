"""Conversion of trained ReLU nets to spiking ones; needs SpikingJelly."""

from ..hosts import need

need("spikingjelly", __name__)

from ..neurons.quantized import QuantizedReLU  # noqa: E402
from .convert import convert  # noqa: E402
from .diagnosis import LayerDiagnosis, diagnose  # noqa: E402
from .methods import AdSNNRecipe, CalibratedRecipe, ConversionRecipe, DataNormRecipe, RateRecipe, SpikeNormRecipe  # noqa: E402
from .modules import PoissonEncoder, Scale, SpikeMaxPool1d, SpikeMaxPool2d, SpikeMaxPool3d  # noqa: E402
from .net import ConvertedNet  # noqa: E402
from .phased import PhasedATIFnuNode, PhasedIFNode  # noqa: E402
from .precharge import lower_thresholds, optimize_precharge  # noqa: E402
from .report import LayerReport, Report  # noqa: E402
from .scales import fold_scales  # noqa: E402

__all__ = [
    "AdSNNRecipe",
    "CalibratedRecipe",
    "ConversionRecipe",
    "ConvertedNet",
    "DataNormRecipe",
    "LayerDiagnosis",
    "LayerReport",
    "PhasedATIFnuNode",
    "PhasedIFNode",
    "PoissonEncoder",
    "QuantizedReLU",
    "RateRecipe",
    "Report",
    "Scale",
    "SpikeMaxPool1d",
    "SpikeMaxPool2d",
    "SpikeMaxPool3d",
    "SpikeNormRecipe",
    "convert",
    "diagnose",
    "fold_scales",
    "lower_thresholds",
    "optimize_precharge",
]
