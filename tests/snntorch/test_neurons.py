"""The neurons for snnTorch: against ``snn.Leaky``, and one test for each trap of the hosts guide (2.1, 2.2)."""

from __future__ import annotations

import copy
import importlib.util
import pickle
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import snntorch as snn
import snntorch.functional as SF
import torch
from snntorch import surrogate, utils
from snntorch.functional import probe
from torch import Tensor, nn

from snn_ext.functional import ATan, Sigmoid
from snn_ext.snntorch import PCMPIF, ATIFnu, ATIFu, detach, reset
from tests.reference import awkward_inputs, each_input, each_reset

NEURONS: dict[str, Callable[..., Any]] = {
    "u": ATIFu,
    "nu": lambda *a, **k: ATIFnu(*a, T=4, **k),
    "cumulative": lambda *a, **k: ATIFnu(*a, T=4, recursion="cumulative", **k),
    "pcmp": PCMPIF,
}
each_neuron = pytest.mark.parametrize("make", NEURONS.values(), ids=NEURONS)
each_mode = pytest.mark.parametrize("mode", ["s", "m"])


def steps(neuron: Any, x_seq: Tensor) -> Tensor:
    """Run a hidden neuron on a sequence in whatever step mode it has."""
    if getattr(neuron, "step_mode", "s") == "m":
        return neuron(x_seq)
    return torch.stack([neuron(x) for x in x_seq])


# -- the host's own neuron --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threshold", [0.5, 0.75, 1.0, 1.25])
@each_reset
def test_no_mismatch_against_leaky_on_dyadic_input(threshold: float, reset: str) -> None:
    # In spikes and in mem, which is h before the reset. Not on random input: the host sums in another order.
    settings: dict[str, Any] = {"reset_mechanism": reset, "init_hidden": True, "output": True}
    x_seq = awkward_inputs(16, (20_000,), threshold)["grid"]
    ours, theirs = ATIFu(threshold, **settings), snn.Leaky(beta=1.0, threshold=threshold, **settings)
    for x in x_seq:
        (spk, mem), (want, want_mem) = ours(x), theirs(x)
        assert torch.equal(spk, want) and torch.equal(mem, want_mem)


def test_no_mismatch_against_leaky_in_a_million_neuron_steps_and_few_on_random_input() -> None:
    for kind, bound in (("grid", 0), ("random", 3)):
        x_seq = awkward_inputs(16, (65_000,))[kind]
        ours, theirs = ATIFu(init_hidden=True), snn.Leaky(beta=1.0, init_hidden=True)
        assert int((steps(ours, x_seq) != steps(theirs, x_seq)).sum()) <= bound


@each_input
def test_ties_do_not_fire_by_default_as_in_this_host(kind: str) -> None:
    x = awkward_inputs(1, (5000,))[kind][0]
    assert torch.equal(ATIFu(init_hidden=True)(x), snn.Leaky(beta=1.0, init_hidden=True)(x))
    assert ATIFu(init_hidden=True)(torch.ones(1)).item() == 0.0
    assert ATIFu(init_hidden=True, fire_at_threshold=True)(torch.ones(1)).item() == 1.0


@pytest.mark.parametrize("spike_grad", [None, surrogate.atan(3.0), surrogate.sigmoid(5), surrogate.fast_sigmoid(10)])
def test_input_gradient_is_that_of_leaky(spike_grad: Any) -> None:
    x_seq = awkward_inputs(6, (50,))["grid"]
    found = []
    for neuron in (ATIFu(spike_grad=spike_grad, init_hidden=True), snn.Leaky(1.0, 1.0, spike_grad, init_hidden=True)):
        x = x_seq.clone().requires_grad_()
        (steps(neuron, x) * x_seq).sum().backward()
        found.append(x.grad)
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-5)


def test_threshold_gradient_is_that_of_a_leaky_which_learns_it() -> None:
    x_seq = awkward_inputs(6, (50,))["grid"]
    grads = []
    for neuron in (ATIFu(0.75, init_hidden=True), snn.Leaky(1.0, 0.75, learn_threshold=True, init_hidden=True)):
        (steps(neuron, x_seq) * x_seq).sum().backward()
        grads.append(neuron.threshold.grad.reshape(()))
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-3)


# -- constructors -----------------------------------------------------------------------------------------------------


def test_takes_the_hosts_positional_order_after_beta() -> None:
    neuron = ATIFu(0.5, surrogate.atan(3.0), False, True, False, False, True, "zero", False, True, 1.0, False, True)
    assert neuron.spike_grad == ATan(3.0) and neuron.init_hidden and neuron.output
    assert neuron.reset_mechanism == "zero" and isinstance(neuron.threshold, nn.Parameter)


@each_neuron
@pytest.mark.parametrize(
    "option",
    [
        {"inhibition": True},
        {"state_quant": lambda mem: mem},
        {"graded_spikes_factor": 2.0},
        {"learn_graded_spikes_factor": True},
        {"reset_delay": False},
    ],
    ids=lambda option: next(iter(option)),
)
def test_option_without_a_meaning_here_is_refused_by_name(make: Any, option: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(option))}: got .*, want "):
        make(**option)


@each_neuron
def test_refused_constructor_leaves_no_instance_with_the_host(make: Any) -> None:
    # Every snn.SpikingNeuron ever made stays in a list of the host and is reset and detached with all others.
    before = len(snn.SpikingNeuron.instances)
    for wrong in ({"beta": 1.5}, {"reset_mechanism": "x"}, {"step_mode": "x"}, {"backend": "cupy"}):
        with pytest.raises(ValueError):
            make(**wrong)
    assert len(snn.SpikingNeuron.instances) == before


@each_neuron
def test_threshold_learns_unless_told_not_to(make: Any) -> None:
    learned = {name for name, _ in make().named_parameters()}
    assert learned == (set() if make is PCMPIF else {"p"} if make is not ATIFu else {"threshold"})
    trained = [p for p in make(learn_threshold=True).parameters() if p.requires_grad]
    fixed = [p for p in make(learn_threshold=False).parameters() if p.requires_grad]
    assert len(trained) == 1 and not fixed


@pytest.mark.parametrize("cls", [ATIFu, PCMPIF])
def test_parameter_keeps_the_hosts_name_and_shape_one(cls: Any) -> None:
    assert cls(0.75).threshold.shape == (1,) and cls(0.75).threshold.item() == 0.75


def test_hosts_closures_become_values_that_pickle() -> None:
    with pytest.raises((AttributeError, pickle.PicklingError)):
        pickle.dumps(snn.Leaky(1.0, spike_grad=surrogate.fast_sigmoid()))
    assert pickle.loads(pickle.dumps(ATIFu(spike_grad=surrogate.sigmoid(7)))).spike_grad == Sigmoid(7.0)


def test_default_surrogate_is_the_hosts() -> None:
    assert ATIFu().spike_grad == ATan(2.0)


def test_surrogate_disable_lets_no_gradient_through_spikes() -> None:
    neuron = ATIFu(init_hidden=True, surrogate_disable=True, fire_at_threshold=True)
    x = torch.ones(3, requires_grad=True)
    out = neuron(x)
    assert out.tolist() == [1.0, 1.0, 1.0] and not out.requires_grad


# -- mem --------------------------------------------------------------------------------------------------------------


@each_mode
@each_input
@pytest.mark.parametrize(
    ("name", "mechanism"),
    [(name, "subtract") for name in NEURONS] + [(name, other) for name in ("u", "pcmp") for other in ("zero", "none")],
)
def test_mem_is_the_potential_before_reset_whether_or_not_it_is_returned(
    mode: str, name: str, kind: str, mechanism: str
) -> None:
    make = NEURONS[name]
    x_seq = awkward_inputs(4, (3, 40), 0.75)[kind]
    kept = make(0.75, init_hidden=True, reset_mechanism=mechanism, step_mode=mode)
    returned = make(0.75, init_hidden=True, reset_mechanism=mechanism, output=True)
    steps(kept, x_seq)
    for x in x_seq:
        _, mem = returned(x)
    assert mem is returned.mem
    if kind == "random":  # v + theta rounds once where h was above twice the threshold
        torch.testing.assert_close(kept.mem, mem, rtol=2e-7, atol=1e-7)
    else:
        assert torch.equal(kept.mem, mem)


@each_neuron
def test_mem_owns_its_storage_so_that_the_host_can_detach_it_in_place(make: Any) -> None:
    for mode in ("s", "m"):
        for output in (False, True):
            neuron = make(init_hidden=True, output=output, step_mode=mode)
            x_seq = torch.rand(2, 3, 5, requires_grad=True)
            neuron(x_seq if mode == "m" else x_seq[0])
            assert neuron.mem.untyped_storage().nbytes() == neuron.mem.numel() * neuron.mem.element_size()
            assert neuron.mem.requires_grad
            neuron.mem.detach_()


@each_neuron
def test_mem_is_a_buffer_that_is_not_saved(make: Any) -> None:
    neuron = make(init_hidden=True)
    neuron(torch.rand(3))
    assert "mem" in dict(neuron.named_buffers()) and "mem" not in neuron.state_dict()


@each_mode
def test_explicit_mem_in_both_step_modes(mode: str) -> None:
    x_seq = awkward_inputs(4, (3, 5))["grid"]
    want = steps(ATIFu(init_hidden=True, step_mode="m"), x_seq)
    neuron = ATIFu(step_mode=mode)
    mem = neuron.reset_mem()
    if mode == "s":
        spikes = []
        for x in x_seq:
            spk, mem = neuron(x, mem)
            spikes.append(spk)
        got = torch.stack(spikes)
    else:
        first, mem = neuron(x_seq[:2], mem)
        assert mem.shape == (2, 3, 5)
        second, mem = neuron(x_seq[2:], mem[-1])
        got = torch.cat((first, second))
    assert torch.equal(got, want)


def test_mem_of_another_origin_starts_a_fresh_sequence() -> None:
    neuron = ATIFu(0.75)
    x = torch.full((3,), 0.5)
    _, first = neuron(x)
    _, _ = neuron(x, first)
    _, mem = neuron(x, torch.zeros(3))
    assert torch.equal(mem, x)
    for foreign in (first, torch.ones(3), mem.clone()):
        with pytest.warns(UserWarning, match="mem: got a potential .* want that one"):  # never silently
            _, mem = neuron(x, foreign)
        assert torch.equal(mem, x)


def test_mem_is_refused_where_the_neuron_keeps_it() -> None:
    with pytest.raises(TypeError, match="init_hidden=True"):
        ATIFu(init_hidden=True)(torch.rand(3), torch.zeros(3))


def test_sequence_is_never_taken_for_a_batch() -> None:
    # A (T, N, ...) tensor given to the host's Leaky is silently a batch.
    x_seq = torch.full((4, 2), 0.5)
    assert ATIFu(0.9, init_hidden=True)(x_seq).sum() == 0
    assert ATIFu(0.9, init_hidden=True, step_mode="m")(x_seq).sum() == 4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_spikes_keep_the_inputs_dtype(dtype: torch.dtype) -> None:
    assert ATIFu(init_hidden=True)(torch.rand(3, dtype=dtype)).dtype == dtype
    net = nn.Sequential(nn.Linear(3, 4), ATIFu(init_hidden=True), nn.Linear(4, 2)).to(dtype)
    assert net(torch.rand(5, 3, dtype=dtype)).dtype == dtype


# -- reset and detach -------------------------------------------------------------------------------------------------


@each_neuron
@pytest.mark.parametrize(
    "start_again",
    [
        lambda neuron: utils.reset(nn.Sequential(neuron)),
        lambda neuron: reset(nn.Sequential(nn.Sequential(neuron))),
        lambda neuron: neuron.reset_mem(),
        lambda neuron: neuron.init_leaky(),
        lambda neuron: type(neuron).reset_hidden(),
        lambda neuron: setattr(neuron, "mem", torch.zeros_like(neuron.mem)),
    ],
    ids=["utils.reset", "our reset", "reset_mem", "init_leaky", "reset_hidden", "mem replaced"],
)
def test_every_way_to_reset_restores_start_and_step_index(make: Any, start_again: Any) -> None:
    name = "precharge" if make is PCMPIF else "v_init"
    neuron = make(0.75, init_hidden=True, **{name: 0.5})
    x_seq = awkward_inputs(4, (3, 5))["grid"]
    want = steps(neuron, x_seq)
    start_again(neuron)
    assert torch.equal(steps(neuron, x_seq), want)


def test_changed_batch_starts_afresh() -> None:
    neuron = ATIFnu(0.75, T=2, init_hidden=True)
    for size in (3, 3, 5, 5):
        neuron(torch.rand(size))


def test_upstream_reset_misses_nested_nets_and_copies_ours_does_not() -> None:
    def nested() -> nn.Sequential:
        return copy.deepcopy(nn.Sequential(nn.Sequential(nn.Sequential(ATIFu(init_hidden=True), nn.Identity()))))

    x = torch.full((3,), 0.6)
    for start_again, fresh in ((utils.reset, False), (reset, True)):
        net = nested()
        first = net(x)
        start_again(net)
        assert torch.equal(net(x), first) == fresh


def test_reset_touches_no_other_net_and_serves_the_hosts_neurons() -> None:
    net = nn.Sequential(nn.Sequential(snn.Leaky(0.9, init_hidden=True)), snn.Synaptic(0.9, 0.8, init_hidden=True))
    other = ATIFu(init_hidden=True)
    other(torch.full((3,), 0.5))
    net(torch.rand(3))
    reset(net)
    assert net[0][0].mem.abs().sum() == 0 and net[1].mem.abs().sum() == 0
    assert torch.equal(other.mem, torch.full((3,), 0.5))


@pytest.mark.parametrize("cut", [detach, lambda net: snn.Leaky.detach_hidden()], ids=["ours", "upstream"])
@each_neuron
@each_mode
def test_detach_cuts_the_graph_and_keeps_the_state(cut: Any, make: Any, mode: str) -> None:
    x_seq = awkward_inputs(4, (3, 5))["grid"].requires_grad_()
    want = steps(make(0.75, init_hidden=True), x_seq.detach())
    neuron = make(0.75, init_hidden=True, step_mode=mode)
    spikes = []
    for part in (x_seq[:2], x_seq[2:]):
        out = steps(neuron, part)
        out.sum().backward()
        cut(nn.Sequential(neuron))
        assert not neuron.mem.requires_grad
        spikes.append(out.detach())
    assert torch.equal(torch.cat(spikes), want)


def test_detach_works_on_the_hosts_neurons_in_nested_nets() -> None:
    net = nn.Sequential(nn.Sequential(snn.Leaky(0.9, init_hidden=True)), nn.Sequential(ATIFu(init_hidden=True)))
    for _ in range(2):
        net(torch.rand(3, requires_grad=True)).sum().backward()
        detach(net)


def test_more_steps_than_thresholds_raise_and_change_nothing() -> None:
    for mode in ("s", "m"):
        neuron = ATIFnu(0.75, T=4, init_hidden=True, output=True, step_mode=mode)
        x_seq = awkward_inputs(4, (3, 5))["grid"]
        for x in x_seq if mode == "s" else [x_seq]:
            neuron(x)
        before = neuron.mem, neuron._state, neuron.mem.clone()
        with pytest.raises(ValueError, match=r"step 5 since the last reset, want at most T=4.*reset.*\.at\(T\)"):
            neuron(x_seq[0] if mode == "s" else x_seq[:1])
        assert neuron.mem is before[0] and neuron._state is before[1] and neuron._state.t == 4
        assert torch.equal(neuron.mem, before[2])


def test_at_is_a_fresh_neuron_for_another_number_of_steps() -> None:
    neuron = ATIFnu(torch.tensor([1.0, 0.6, 0.35, 0.1]), T=4, init_hidden=True, learn_threshold=False)
    neuron(torch.rand(3))
    twin = neuron.at(2)
    assert twin.p.tolist() == pytest.approx([1.0, 0.35]) and not twin.p.requires_grad
    for _ in range(2):
        assert steps(twin, torch.ones(2, 7)).shape == (2, 7) and neuron._state.t == 1
        utils.reset(nn.Sequential(twin))  # a copy, but the host knows it


# -- copies and checkpoints -------------------------------------------------------------------------------------------


@each_neuron
def test_copy_in_the_middle_of_a_sequence_goes_on_with_it(make: Any) -> None:
    x_seq = awkward_inputs(4, (3, 5))["grid"]
    neuron = make(0.75, init_hidden=True)
    with torch.no_grad():
        steps(neuron, x_seq[:2])
        twins = copy.deepcopy(neuron), pickle.loads(pickle.dumps(neuron))
        want = steps(neuron, x_seq[2:])
        for twin in twins:
            assert torch.equal(steps(twin, x_seq[2:]), want)


@each_neuron
def test_copy_after_a_backward_and_a_reset_by_the_host(make: Any) -> None:
    neuron = make(0.75, init_hidden=True)
    neuron(torch.rand(3, requires_grad=True)).sum().backward()
    utils.reset(nn.Sequential(neuron))
    assert torch.equal(copy.deepcopy(neuron)(torch.ones(3)), neuron(torch.ones(3)))


def test_state_moves_with_the_neuron() -> None:
    neuron = ATIFu(0.75, init_hidden=True)
    x_seq = awkward_inputs(4, (3, 5))["grid"]
    want = steps(ATIFu(0.75, init_hidden=True), x_seq)
    head = steps(neuron, x_seq[:2])
    neuron.double()
    tail = steps(neuron, x_seq[2:].double())
    assert neuron.mem.dtype == torch.float64 and torch.equal(torch.cat((head, tail.float())), want)


@pytest.mark.parametrize("cls", [ATIFu, PCMPIF])
def test_checkpoint_of_leaky_loads_with_its_threshold(cls: Any) -> None:
    net = nn.Sequential(nn.Linear(3, 2), snn.Leaky(beta=1.0, threshold=0.6))
    ours = nn.Sequential(nn.Linear(3, 2), cls())
    ours.load_state_dict(net.state_dict(), strict=True)
    assert ours[1].threshold.shape == (1,) and ours[1].threshold.item() == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("theirs", "name"),
    [
        (snn.Leaky(beta=0.9), "beta"),
        (snn.Leaky(beta=torch.tensor([1.0, 0.5])), "beta"),
        (snn.Leaky(beta=1.0, graded_spikes_factor=2.0), "graded_spikes_factor"),
        (snn.Leaky(beta=1.0, reset_mechanism="zero"), "reset_mechanism_val"),
    ],
    ids=["beta", "betas", "graded", "reset"],
)
def test_checkpoint_of_another_neuron_is_refused_by_name_and_changes_nothing(theirs: nn.Module, name: str) -> None:
    ours = ATIFu(0.3)
    with pytest.raises(RuntimeError, match=f"{name}: got .*, want "):
        ours.load_state_dict(theirs.state_dict(), strict=True)
    assert ours.threshold.item() == pytest.approx(0.3) and ours.beta == 1 and ours.reset_mechanism_val == 0


@each_neuron
def test_own_checkpoint_without_its_threshold_does_not_load(make: Any) -> None:
    state = make().state_dict()
    del state["p" if "p" in state else "threshold"]
    with pytest.raises(RuntimeError, match="Missing key"):
        make().load_state_dict(state)


# -- the host's losses, plots and probes ------------------------------------------------------------------------------


@each_neuron
@pytest.mark.parametrize(
    "criterion",
    [
        SF.ce_rate_loss(),
        SF.ce_count_loss(),
        SF.mse_count_loss(correct_rate=0.8, incorrect_rate=0.2),
        SF.ce_temporal_loss(),
        SF.mse_temporal_loss(),
    ],
    ids=lambda c: c.__name__,
)
def test_losses_on_spikes(make: Any, criterion: Any) -> None:
    net = nn.Sequential(nn.Linear(6, 3), make(0.5, init_hidden=True))
    spikes = torch.stack([net(torch.rand(5, 6)) for _ in range(4)])
    loss = criterion(spikes, torch.tensor([0, 1, 2, 0, 1]))
    loss.backward()
    assert loss.isfinite() and net[0].weight.grad.isfinite().all()
    assert 0 <= SF.accuracy_rate(spikes, torch.zeros(5)) <= 1


@each_neuron
@pytest.mark.parametrize("criterion", [SF.ce_max_membrane_loss(), SF.mse_membrane_loss()], ids=lambda c: c.__name__)
def test_losses_on_mem(make: Any, criterion: Any) -> None:
    net = nn.Sequential(nn.Linear(6, 3), make(0.5, init_hidden=True, output=True))
    mem = torch.stack([net(torch.rand(5, 6))[1] for _ in range(4)])
    loss = criterion(mem, torch.tensor([0, 1, 2, 0, 1]))
    loss.backward()
    assert loss.isfinite() and net[0].weight.grad.abs().sum() > 0


def test_spikeplot_draws_a_raster(monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib.pyplot as plt

    if importlib.util.find_spec("pandas") is None:  # the host imports it without declaring it, for one other plot
        monkeypatch.setitem(sys.modules, "pandas", ModuleType("pandas"))
    from snntorch import spikeplot

    figure, axes = plt.subplots()
    spikes = steps(ATIFu(init_hidden=True, step_mode="m"), torch.rand(20, 12)).detach()
    spikeplot.raster(spikes, axes)
    assert len(axes.collections) > 0
    plt.close(figure)


def test_probe_records_outputs_and_mem() -> None:
    net = nn.Sequential(nn.Linear(6, 5), ATIFu(init_hidden=True))
    outputs = probe.OutputMonitor(net, ATIFu)
    mems = probe.AttributeMonitor("mem", False, net, instance=ATIFu)
    spikes = [net(torch.rand(2, 6)) for _ in range(3)]
    assert len(outputs.records) == len(mems.records) == 3
    assert all(torch.equal(a, b) for a, b in zip(outputs.records, spikes, strict=True))
    assert torch.equal(mems.records[-1], net[1].mem)


@each_neuron
def test_empty_batch_and_scalar_steps_run(make: Any) -> None:
    assert make(init_hidden=True, step_mode="m")(torch.zeros(4, 0, 3)).shape == (4, 0, 3)
    assert make(init_hidden=True)(torch.tensor(0.5)).shape == ()


def test_mem_modified_in_place_is_refused_rather_than_ignored() -> None:
    neuron = ATIFu(0.75)
    _, mem = neuron(torch.full((3,), 0.5))
    with torch.no_grad():
        mem[0] = 0.0
    with pytest.raises(ValueError, match="mem: got it modified in place, want it unchanged"):
        neuron(torch.full((3,), 0.5), mem)
    reset(nn.Sequential(neuron))
    neuron(torch.full((3,), 0.5))


@pytest.mark.parametrize("spike_grad", [surrogate.atan, surrogate.fast_sigmoid, Sigmoid])
def test_surrogate_factory_that_was_not_called_is_refused(spike_grad: Any) -> None:
    with pytest.raises(TypeError, match="surrogate: got .* call the class or factory first"):
        ATIFu(spike_grad=spike_grad)
