"""The CUDA kernels on a GPU, by both loaders."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from snn_ext import ops
from snn_ext.ops import implementation, use_implementation
from tests.ops.asn import cases as asn_cases
from tests.ops.integrate_and_fire import cases

pytestmark = pytest.mark.gpu


@pytest.fixture(params=["cuda-cupy", "cuda-nvrtc"])
def running(request: pytest.FixtureRequest):
    reason = implementation("integrate_and_fire", "cuda").unavailable.get(request.param)
    if reason is not None:
        pytest.skip(reason)
    torch.use_deterministic_algorithms(False)
    with use_implementation(request.param):
        yield request.param


@pytest.mark.slow
def test_it_is_the_definition(running: str) -> None:
    cases.Case.check_all("cuda")


@pytest.mark.slow
def test_the_adaptive_neuron_is_the_definition(running: str) -> None:
    asn_cases.Case.check_all("cuda")


def test_the_adaptive_neuron_in_a_graph(running: str) -> None:
    asn_cases.check_graph("cuda")


def test_the_same_input_gives_the_same_bits(running: str) -> None:
    cases.check_reproducible("cuda")


def test_a_side_stream(running: str) -> None:
    cases.check_side_stream("cuda")


def test_a_graph_can_be_captured_and_replayed(running: str) -> None:
    cases.check_graph("cuda")


def test_a_second_device(running: str) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU only")
    x_seq = torch.randn(4, 1000)
    want = cases.training_results(x_seq.to("cuda:0"))
    found = cases.training_results(x_seq.to("cuda:1"))
    assert all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(found, want, strict=True))


def test_torch_compile(running: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda x_seq, theta: ops.integrate_and_fire(2 * x_seq, 0.0, theta)[0].square(), fullgraph=True
    )
    theta = nn.Parameter(torch.ones(1, device="cuda"))
    x_seq = torch.randn(4, 1000, device="cuda")
    want = ops.integrate_and_fire(2 * x_seq, 0.0, theta)[0]
    assert torch.equal(compiled(x_seq, theta), want)
    compiled(x_seq, theta).sum().backward()
    assert theta.grad is not None
    torch._dynamo.reset()


def test_torch_compile_with_graphs(running: str) -> None:
    """Its warm-up allocates from the pool of a graph, and refuses what stays there."""
    torch._dynamo.reset()
    theta = nn.Parameter(torch.ones(1, device="cuda"))
    compiled = torch.compile(
        lambda x_seq: ops.integrate_and_fire(2 * x_seq, 0.0, theta)[0].square(), mode="reduce-overhead"
    )
    x_seq = torch.randn(4, 1000, device="cuda")
    for _ in range(4):
        theta.grad = None
        torch.compiler.cudagraph_mark_step_begin()
        compiled(x_seq).sum().backward()
    found = theta.grad.clone()
    theta.grad = None
    ops.integrate_and_fire(2 * x_seq, 0.0, theta)[0].square().sum().backward()
    torch.testing.assert_close(found, theta.grad)
    torch._dynamo.reset()


def test_autocast_leaves_the_state_in_float32(running: str) -> None:
    with torch.autocast("cuda", dtype=torch.bfloat16):
        x_seq = nn.functional.linear(torch.rand(4, 8, 8, device="cuda"), torch.rand(16, 8, device="cuda"))
        spike_seq, v = ops.integrate_and_fire(x_seq, 0.0, torch.ones(1, device="cuda"))
    assert x_seq.dtype == spike_seq.dtype == torch.bfloat16 and v.dtype == torch.float32


def test_training_keeps_nothing_but_the_input(running: str) -> None:
    x_seq = torch.randn(4, 4_000_000, device="cuda", requires_grad=True)
    cases.training_results(x_seq)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    spike_seq, v = ops.integrate_and_fire(x_seq, 0.0, torch.ones(1, device="cuda", requires_grad=True))
    kept = torch.cuda.memory_allocated() - before - spike_seq.nbytes - v.nbytes
    assert kept < 1_000_000
