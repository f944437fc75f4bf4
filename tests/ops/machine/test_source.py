"""What follows from a declaration for the C and CUDA sources."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from snn_ext.functional.surrogates import SURROGATES
from snn_ext.ops.machine.source import addresses, arguments, c_declaration, cuda_declaration, gradient_addresses
from snn_ext.ops.sequence import SEGMENT
from tests.ops.emulation import OPERATORS


@pytest.mark.parametrize("operator", OPERATORS)
def test_every_argument_has_a_value(operator: str) -> None:
    """A structure that gets too few values is filled up with zeros, and nothing says so."""
    op = OPERATORS[operator].op
    inputs, settings = OPERATORS[operator]._agreement.case(_grid(), _grid().dtype)
    shared = (
        len(addresses(op, inputs)) + len(op.outputs) + 1 + len(op.places(inputs[0])) + len(settings)
    )  # and checkpoints
    assert len(arguments(op, backward=False)) == shared
    gradients = gradient_addresses(op, [None] * len(op.differentiable))
    assert len(arguments(op, backward=True)) == shared + len(gradients)


def test_names_are_those_of_the_declaration() -> None:
    op = OPERATORS["integrate_and_fire"].op
    text = c_declaration({"forward": arguments(op, backward=False)})
    assert "const void *x_seq; const float *v; index_t v_stride; const float *thresholds;" in text
    assert (
        "int reset; int fire_at_threshold;" in text
        and "float alpha; float gain; int charge; } forward_arguments;" in text
    )
    text = cuda_declaration(op)
    assert "const io_t *__restrict__ x_seq, const float *__restrict__ v, index_t v_stride," in text
    assert "double alpha, double gain, double *workspace" in text and "int reset" not in text


def test_constants_are_those_of_python() -> None:
    text = cuda_declaration(OPERATORS["adaptive_spiking"].op)
    for line in (f"SEGMENT {SEGMENT}", "STATES 4", "BFLOAT16 2", "OUTPUT_POTENTIAL 2", "PIECEWISE_QUADRATIC 2"):
        assert f"#define {line}\n" in text
    assert [curve.id for curve in SURROGATES] == list(range(len(SURROGATES)))


def _grid() -> Any:
    return torch.arange(4 * 40, dtype=torch.float32).reshape(4, 40)
