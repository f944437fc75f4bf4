"""Conversion of trained ReLU nets to spiking ones; needs SpikingJelly."""

from ..neurons.quantized import QuantizedReLU
from .convert import convert
from .diagnosis import LayerDiagnosis, diagnose
from .methods import AdSNNRecipe, CalibratedRecipe, ConversionRecipe, DataNormRecipe, RateRecipe, SpikeNormRecipe
from .modules import PoissonEncoder, Scale, SpikeMaxPool1d, SpikeMaxPool2d, SpikeMaxPool3d
from .net import ConvertedNet
from .phased import PhasedATIFnuNode, PhasedIFNode
from .precharge import lower_thresholds, optimize_precharge
from .report import LayerReport, Report
from .scales import fold_scales

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
