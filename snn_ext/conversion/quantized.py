"""The quantised activations under their earlier name, which files and pickles hold."""

from ..neurons.quantized import QuantizedReLU, quantized_relu

__all__ = ["QuantizedReLU", "quantized_relu"]
