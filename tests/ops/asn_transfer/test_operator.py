"""The fused transfer function against the definition in float64."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pytest
import torch
from torch import Tensor

from snn_ext import functional, ops
from snn_ext.ops import implementation, use_implementation
from tests.ops.emulation import Emulator, emulated, guard_zones, installed, source_of, untested
from tests.ops.harness import LAYOUTS, saved_tensors

RUNNING = [n for n in ("cpu", "torch") if n not in implementation("asn_transfer", "cpu").unavailable]
CONSTANTS = ({}, {"m_f": 0.03}, {"m_f": 1.0, "theta_0": 0.5}, {"tau_gamma": 40.0, "tau_eta": 10.0, "tau_beta": 10.0})


@contextmanager
def forced(name: str, source: str | None = None) -> Iterator[None]:
    """Force an implementation; "emulated" is the CUDA source on the CPU."""
    with use_implementation(name) if name != "emulated" else installed(emulated("asn_transfer", EMULATOR, source)):
        yield


EMULATOR = Emulator()


@pytest.fixture(params=[*RUNNING, "emulated"])
def running(request: pytest.FixtureRequest):
    with forced(request.param):
        yield request.param


@pytest.fixture(params=RUNNING)
def running_on_cpu(request: pytest.FixtureRequest):
    with forced(request.param):
        yield request.param


@pytest.mark.parametrize("constants", CONSTANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_values_and_gradients_are_those_of_the_definition(dtype: torch.dtype, constants: dict) -> None:
    s = torch.cat((torch.linspace(-1.0, 8.0, 5001), torch.tensor([0.0, 1e-30, 1e6, torch.inf, -torch.inf]))).to(dtype)
    weight = torch.randn(len(s)).to(dtype)
    wide = s.double().requires_grad_()
    want = functional.asn_transfer(wide, **constants)
    (slope,) = torch.autograd.grad(want, wide, weight.double())
    tolerance = {torch.float16: 1e-3, torch.bfloat16: 8e-3, torch.float32: 2e-6, torch.float64: 1e-14}[dtype]
    for name in [*RUNNING, "emulated"] if dtype != torch.float64 else ["torch"]:
        with forced(name):
            leaf = s.clone().requires_grad_()
            found = ops.asn_transfer(leaf, **constants)
            (gradient,) = torch.autograd.grad(found, leaf, weight)
        assert found.dtype == dtype and gradient.dtype == dtype
        torch.testing.assert_close(found.double(), want.detach(), rtol=tolerance, atol=tolerance / 4)
        smooth = want.detach() > 1e-6  # f may be 0 on one side of rounding
        torch.testing.assert_close(gradient.double()[smooth], slope[smooth], rtol=4 * tolerance, atol=4 * tolerance)


ROW = "\n    const Vector<io_t> row = load(s + n)"
BUGS = {
    "no bounds check": (f"if (n >= N) return;{ROW};", f"{ROW};"),
    "last elements missing": (f"if (n >= N) return;{ROW};", f"if (n + VECTOR >= N) return;{ROW};"),
    "first gradient for all": ("g = load(grad_f + n)", "g = load(grad_f)"),
    "poor polynomial": ("3.3333328e-1f", "3.3233328e-1f"),
    "slope of the wrong sign": ("k * k - 1.0f", "1.0f - k * k"),
}  # fmt: skip


@pytest.mark.parametrize("bug", [None, *BUGS])
def test_bugs_planted_in_the_cuda_source_are_caught(bug: str | None) -> None:
    changes = () if bug is None else (BUGS[bug],)
    source = source_of("asn_transfer", *changes)
    s = torch.linspace(-0.5, 8.0, 44).requires_grad_()
    weight = torch.randn(44)
    with untested(), forced("emulated", source), guard_zones() as check_zones:
        with nullcontext() if bug is None else pytest.raises(AssertionError):
            found = ops.asn_transfer(s)
            (gradient,) = torch.autograd.grad(found, s, weight)
            check_zones()
            want = functional.asn_transfer(s)
            torch.testing.assert_close(found, want, rtol=2e-6, atol=1e-6)
            torch.testing.assert_close(gradient, *torch.autograd.grad(want, s, weight), rtol=1e-5, atol=1e-5)


def test_nan_stays_and_the_cut_is_sharp(running: str) -> None:
    s = torch.tensor([torch.nan, 0.05, torch.nextafter(torch.tensor(0.05), torch.tensor(1.0)).item()])
    f = ops.asn_transfer(s, cut=0.05)
    assert f[0].isnan() and f[1] == 0 and abs(f[2] / functional.asn_spike_height() - 0.5) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_cut_is_not_rounded_to_16_bits(running: str, dtype: torch.dtype) -> None:
    # Cuts close to a number of 16 bits, so that rounding them to its dtype moves that number to the other side.
    numbers = torch.linspace(0.01, 0.5, 60).to(dtype)
    for s in numbers:
        for cut in (float(s) * (1 - 1e-4), float(s), float(s) * (1 + 1e-4)):
            row = s.repeat(9).requires_grad_()
            found, want = ops.asn_transfer(row, cut=cut), functional.asn_transfer(row.float(), cut=cut)
            assert torch.equal(found == 0, want == 0) and bool((found == 0).all()) == (float(s) <= cut)
            (slope,) = torch.autograd.grad(found.sum(), row)
            assert bool((slope == 0).all()) == (float(s) <= cut)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout(running: str, layout: str) -> None:
    s = LAYOUTS[layout](torch.randn(5, 3, 4, 5, 6)).detach().requires_grad_()
    weight = torch.randn(s.shape)
    results = []
    for module in (ops, functional):
        f = module.asn_transfer(s)
        results.append((f, *torch.autograd.grad(f, s, weight)))
    for found, want in zip(*results, strict=True):
        torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-6)


def test_the_input_alone_is_kept(running: str) -> None:
    s = torch.rand(1000, requires_grad=True)
    with saved_tensors() as saved:
        ops.asn_transfer(s)
    assert [tensor.data_ptr() for tensor in saved if tensor.numel()] == [s.data_ptr()]


def test_empty_and_single(running: str) -> None:
    assert ops.asn_transfer(torch.zeros(3, 0)).shape == (3, 0)
    assert abs(ops.asn_transfer(torch.tensor(1.0)) - 1.0) < 1e-6


def test_what_only_the_definition_can_do_says_so_when_forced() -> None:
    s = torch.rand(10)
    for settings in ({"m_f": torch.full((10,), 0.2)}, {"tau_beta": 30.0}, {"exact": True}):
        assert torch.equal(ops.asn_transfer(s, **settings), functional.asn_transfer(s, **settings))
        with use_implementation("cpu"), pytest.raises(RuntimeError, match="cannot run: (a constant|the exact)"):
            ops.asn_transfer(s, **settings)
    with pytest.raises(ValueError, match="theta_0: got 2"):
        ops.asn_transfer(s, 2.0)


def test_a_second_backward_says_so(running: str) -> None:
    s = torch.rand(10, requires_grad=True)
    (gradient,) = torch.autograd.grad(ops.asn_transfer(s).sum(), s, create_graph=True)
    with pytest.raises(RuntimeError, match="asn_transfer: a second backward"):
        gradient.sum().backward()


def test_opcheck_and_compile(running_on_cpu: str) -> None:
    s = torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last).requires_grad_()
    coefficients = (0.03, 0.01, 0.02, 0.06, 0.01, 0.0)
    torch.use_deterministic_algorithms(False)
    torch.library.opcheck(torch.ops.snn_ext.asn_transfer.default, (s, *coefficients, True))
    arguments = (torch.rand(4, 3, 2, 2), s.detach(), torch.empty(0, 0, 0), *coefficients, [True])
    torch.library.opcheck(torch.ops.snn_ext.asn_transfer_backward.default, arguments)

    def step(s: Tensor) -> Tensor:
        return ops.asn_transfer(2 * s, 0.2).square()

    for dynamic in (False, True):
        torch._dynamo.reset()
        compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=dynamic)
        for leaf in (s, torch.randn(5, 7, requires_grad=True), torch.randn(6, 8, requires_grad=True)):
            found, want = (torch.autograd.grad(f(leaf).sum(), leaf)[0] for f in (compiled, step))
            assert torch.equal(found, want)
    torch._dynamo.reset()
