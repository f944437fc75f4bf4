"""The neurons of both hosts, in every way to run them, against the loop; gradients of their parameters by autograd."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn

pytest.importorskip("spikingjelly")
pytest.importorskip("snntorch")

from spikingjelly.activation_based import functional as host  # noqa: E402

from snn_ext import functional, snntorch, spikingjelly  # noqa: E402
from tests.properties import references as ref  # noqa: E402
from tests.properties.profiles import examples  # noqa: E402
from tests.properties.strategies import cut, pieces, seeds, sequences, state_dtype, values  # noqa: E402

RECURSIONS = ("min", "paper", "cumulative")


class Case(NamedTuple):
    """A neuron, and what it is to do to ``x_seq``."""

    x_seq: Tensor
    kind: str
    level: list[float]  # the threshold, or the quantisation points
    options: dict[str, Any]  # that both hosts have
    reset: str
    v_init: Tensor  # in units of the first threshold, broadcastable to a step

    def thresholds(self) -> list[float]:
        return self.level if self.kind != "nu" else ref.nonuniform_thresholds(self.level, self.options["recursion"])

    def spikingjelly(self, **more: Any) -> Any:
        reset = {"v_reset": 0.0} if self.reset == "zero" else {}
        return getattr(spikingjelly, {"u": "ATIFuNode", "pcmp": "PCMPIFNode", "nu": "ATIFnuNode"}[self.kind])(
            self._level(), **reset, **self._start(), **self.options, **more
        )

    def snntorch(self, **more: Any) -> Any:
        reset = {"reset_mechanism": self.reset} if self.kind != "nu" else {}
        return getattr(snntorch, {"u": "ATIFu", "pcmp": "PCMPIF", "nu": "ATIFnu"}[self.kind])(
            self._level(), **reset, **self._start(), **self.options, **more
        )

    def _level(self) -> Any:
        return torch.tensor(self.level) if self.kind == "nu" else self.level[0]

    def _start(self) -> dict[str, Any]:
        value = self.v_init.flatten() if self.v_init.ndim else float(self.v_init)
        return {"precharge" if self.kind == "pcmp" else "v_init": value}


@st.composite
def cases(draw: Any, kinds: tuple[str, ...] = ("random", "grid", "ulp", "exotic")) -> Case:
    kind = draw(st.sampled_from(("u", "pcmp", "nu")))
    options: dict[str, Any] = {
        "fire_at_threshold": draw(st.booleans()), "scale_output": draw(st.booleans()),
    }  # fmt: skip
    reset, level = "subtract", [draw(st.sampled_from((1.0, 0.5, 0.75, 0.3, 1.1, 1e-6, 1e30)))]
    steps = None
    if kind == "nu":  # on a grid, so that thresholds are the same numbers in any precision
        count = draw(st.integers(1, 8))
        points = draw(st.lists(st.integers(1, 64), min_size=count, max_size=count).map(lambda p: sorted(p)[::-1]))
        level = [point / 32 for point in points]
        options |= {"T": count, "recursion": draw(st.sampled_from(RECURSIONS))}
        # nearly equal points give no threshold at all, which is documented; the clamp has tests of its own
        assume(min(ref.nonuniform_thresholds(level, options["recursion"])) >= 1e-6)
        reset = "none" if options["recursion"] == "cumulative" else "subtract"
        steps = st.just(count)
    elif draw(st.booleans()):
        reset = "zero"
    x_seq = draw(sequences(level[0], kinds=kinds, steps=steps))
    v_init = torch.tensor(
        draw(st.sampled_from((0.0, 0.5, 0.25, 1.0, 0.3) if kind == "pcmp" else (0.0, 0.5, 1.0, -0.5)))
    )
    if x_seq.ndim > 2 and x_seq.shape[2] > 1 and draw(st.booleans()):
        channels = values((x_seq.shape[2],), "grid", 1.0, draw(seeds), torch.float32)
        channels = channels.abs().clamp(max=1.0) if kind == "pcmp" else channels
        v_init = channels.reshape(-1, *[1] * (x_seq.ndim - 3))
    return Case(x_seq, kind, level, options, reset, v_init)


def expected(case: Case) -> tuple[ref.Run, Tensor]:
    """Return what the loop does, and the output in the dtype of the input."""
    wide = state_dtype(case.x_seq.dtype)
    thresholds = torch.tensor(case.thresholds()).to(wide)  # parameters are float32
    start = case.v_init.to(wide) * thresholds[0]
    want = ref.integrate_and_fire(
        ref.as_array(case.x_seq), start.numpy(), thresholds.numpy(), case.reset, case.options["fire_at_threshold"]
    )
    height = torch.tensor(case.level[0]).to(wide) if case.options["scale_output"] else 1.0
    return want, (torch.from_numpy(want.spikes) * height).to(case.x_seq.dtype)


# -- spikes and potentials ---------------------------------------------------------------------------------------------


@examples(60)
@given(st.data(), cases())
def test_node_of_spikingjelly_is_the_loop_in_every_way_to_run_it(data: Any, case: Case) -> None:
    want, spikes = expected(case)
    ends = data.draw(pieces(len(case.x_seq)))
    with torch.no_grad():
        single, whole, watched, chunks = (case.spikingjelly(step_mode=mode) for mode in "smmm")
        watched.store_v_seq = True
        ref.assert_same(torch.stack([single(x) for x in case.x_seq]), spikes)
        ref.assert_same(whole(case.x_seq), spikes)
        ref.assert_same(watched(case.x_seq), spikes)
        ref.assert_same(watched.v_seq, want.after_reset)
        ref.assert_same(torch.cat([chunks(part) for part in cut(case.x_seq, ends)]), spikes)
        for node in (single, whole, watched, chunks):
            ref.assert_same(node.v, want.after_reset[-1])
        host.reset_net(whole)
        ref.assert_same(whole(case.x_seq), spikes)


@examples(60)
@given(st.data(), cases())
def test_neuron_of_snntorch_is_the_loop_in_every_way_to_run_it(data: Any, case: Case) -> None:
    want, spikes = expected(case)
    ends = data.draw(pieces(len(case.x_seq)))
    with torch.no_grad():
        hidden = case.snntorch(init_hidden=True)
        ref.assert_same(torch.stack([hidden(x) for x in case.x_seq]), spikes)
        passed = case.snntorch()
        mem = passed.reset_mem()
        for _ in range(2):
            steps, mems = [], []
            for x in case.x_seq:
                spk, mem = passed(x, mem)
                steps.append(spk)
                mems.append(mem)
            ref.assert_same(torch.stack(steps), spikes)
            ref.assert_same(torch.stack(mems), want.before_reset)
            mem = torch.zeros_like(mem)  # the host's way to start afresh
        spk_seq, mem_seq = case.snntorch(step_mode="m", init_hidden=True, output=True)(case.x_seq)
        ref.assert_same(spk_seq, spikes)
        ref.assert_same(mem_seq, want.before_reset)
        chunks = case.snntorch(step_mode="m", init_hidden=True)
        ref.assert_same(torch.cat([chunks(part) for part in cut(case.x_seq, ends)]), spikes)
        snntorch.reset(chunks)
        ref.assert_same(chunks(case.x_seq), spikes)


# -- copies ------------------------------------------------------------------------------------------------------------

COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy, "pickle": lambda neuron: pickle.loads(pickle.dumps(neuron)),
}  # fmt: skip


@examples(40)
@given(st.data(), cases(), st.sampled_from(sorted(COPIES)), st.booleans())
def test_copy_in_the_middle_of_a_sequence_goes_on_as_the_neuron_does(
    data: Any, case: Case, how: str, in_snntorch: bool
) -> None:
    assume(len(case.x_seq) > 1)
    spikes = expected(case)[1]
    middle = data.draw(st.integers(1, len(case.x_seq) - 1))
    neuron = case.snntorch(step_mode="m", init_hidden=True) if in_snntorch else case.spikingjelly(step_mode="m")
    with torch.no_grad():
        neuron(case.x_seq[:middle])
        twin = COPIES[how](neuron)
        for one in (twin, neuron):
            ref.assert_same(one(case.x_seq[middle:]), spikes[middle:])
        other = case._replace(level=[2 * level for level in case.level])
        other = other._replace(v_init=torch.ones_like(case.v_init))
        fresh = other.snntorch(step_mode="m", init_hidden=True) if in_snntorch else other.spikingjelly(step_mode="m")
        fresh.load_state_dict(neuron.state_dict())
        ref.assert_same(fresh(case.x_seq), spikes)  # parameters travel, the middle of a sequence does not


@examples(30)
@given(cases(("random", "grid")), seeds)
def test_sequence_of_another_shape_starts_afresh(case: Case, seed: int) -> None:
    """A changed batch is a new sequence for a node; its first step is V(0) again."""
    assume(case.x_seq.ndim > 1 and case.kind != "nu")
    spikes = expected(case)[1]
    node, neuron = case.spikingjelly(step_mode="m"), case.snntorch(step_mode="m", init_hidden=True)
    other = torch.cat([case.x_seq, case.x_seq[:, :1], case.x_seq[:, :1]], 1) if case.x_seq.shape[1] else case.x_seq
    assume(other.shape != case.x_seq.shape)
    with torch.no_grad():
        for module in (node, neuron):
            module(other)
            ref.assert_same(module(case.x_seq), spikes)


# -- gradients ---------------------------------------------------------------------------------------------------------


@examples(80)
@given(st.data(), cases(("random", "grid", "ulp")), st.booleans(), st.booleans())
def test_gradients_of_input_threshold_and_points_are_those_of_the_stated_rule(
    data: Any, case: Case, in_snntorch: bool, detach: bool
) -> None:
    """The gradient reaches a threshold by the spike, the reset, the initial potential and the scale of the output."""
    assume(0.05 < case.level[0] < 10)
    level = case.level
    if case.kind == "nu":  # off the grid: of equal candidates in the recursion either may get the gradient
        jitter = torch.rand(len(level), generator=torch.Generator().manual_seed(data.draw(seeds))) / 128
        level = sorted((torch.tensor(level) + jitter).tolist(), reverse=True)
        case = case._replace(level=level)
        thresholds = ref.nonuniform_thresholds([torch.tensor(p).double() for p in level], case.options["recursion"])
        assume(min(float(theta) for theta in thresholds) > 1e-3)
    if in_snntorch:
        detach = True
        surrogate: Any = functional.ATan(2.0)
        neuron = case.snntorch(
            step_mode="m", init_hidden=True, **({"learn_threshold": True} if case.kind == "pcmp" else {})
        )
        parameter = neuron.p if case.kind == "nu" else neuron.threshold
    else:
        surrogate = functional.Sigmoid(4.0)
        neuron = case.spikingjelly(step_mode="m", detach_reset=detach)
        parameter = neuron.p if case.kind == "nu" else neuron.v_threshold
    x_seq = case.x_seq.detach().requires_grad_()
    spike_seq = neuron(x_seq)
    fired = (spike_seq.detach() != 0).double()
    incoming = values(x_seq.shape, "random", 1.0, data.draw(seeds), x_seq.dtype)
    wanted = [x_seq] + ([parameter] if parameter.requires_grad else [])
    got = torch.autograd.grad(spike_seq, wanted, incoming, materialize_grads=True)

    exact = [tensor.detach().double().requires_grad_() for tensor in (x_seq, parameter)]
    thresholds = exact[1]
    if case.kind == "nu":
        found = ref.nonuniform_thresholds(list(exact[1]), case.options["recursion"])
        thresholds = torch.stack(found)
    start = (case.v_init.double() * thresholds[0]).expand(x_seq.shape[1:])
    out, _ = ref.differentiable_integrate_and_fire(
        exact[0], start, thresholds, fired,
        lambda u: ref.DERIVATIVES[type(surrogate).__name__](surrogate.alpha, u), detach, case.reset,
    )  # fmt: skip
    out = out * exact[1][0] if case.options["scale_output"] else out
    want = torch.autograd.grad(out, exact, incoming.double(), materialize_grads=True)
    ref.assert_gradients(got, want[: len(got)], 1e-4, [incoming])


# -- adaptive neurons --------------------------------------------------------------------------------------------------


@examples(40)
@given(st.data(), st.sampled_from((0.5, 1.0, 2.0)), st.sampled_from((0.1, 0.25)), st.booleans())
def test_adaptive_neuron_is_the_loop_in_both_hosts(data: Any, unit: float, m_f: float, analog: bool) -> None:
    x_seq = data.draw(sequences(unit, kinds=("random", "grid")))
    height = data.draw(st.sampled_from(("fixed", "adaptive")))
    bias = data.draw(st.none() | st.sampled_from((0.25, -0.5)).map(lambda b: torch.tensor([b])))
    wide = state_dtype(x_seq.dtype)
    number = np.float64 if wide == torch.float64 else np.float32
    # the constants of a neuron are kept in float32, also for inputs in float64
    c = ref.AdaptiveConstants(number(np.float32(m_f)), number(np.float32(m_f)) * number(unit))
    rest = [np.zeros(x_seq.shape[1:], number)] * 4
    offset = None if bias is None else number(bias.item())
    fired, thetas, _, _ = ref.adaptive_spiking(ref.as_array(x_seq), rest, offset, c, analog, number)
    heights = thetas if height == "adaptive" else [1.0] * len(thetas)
    out = np.stack([np.where(z, theta, 0.0) for z, theta in zip(fired, heights, strict=True)])
    spikes = torch.from_numpy(out).to(x_seq.dtype)
    ends = data.draw(pieces(len(x_seq)))
    options = {"m_f": m_f, "analog_input": analog, "spike_height": height, "bias": bias}
    node: nn.Module = spikingjelly.ASNNode(unit, step_mode="m", **options)
    neuron = snntorch.ASN(unit, init_hidden=True, **options)
    with torch.no_grad():
        ref.assert_same(torch.cat([node(part) for part in cut(x_seq, ends)]), spikes)
        ref.assert_same(torch.stack([neuron(x) for x in x_seq]), spikes)
