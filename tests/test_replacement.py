"""Swapping neurons: all of them, with their settings, or nothing at all."""

from __future__ import annotations

import copy
import pickle
import random
import warnings
from typing import Any

import numpy as np
import pytest
import snntorch as snn
import torch
from spikingjelly.activation_based import functional, neuron, surrogate
from spikingjelly.activation_based.model import spiking_vgg
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import mobilenet_v2, resnet

import snn_ext
from snn_ext import NonUniformQuantizedReLU, QuantizedReLU, replace_neurons
from snn_ext.evaluation.fingerprint import fingerprint
from snn_ext.snntorch import PCMPIF, ATIFnu, ATIFu
from snn_ext.spikingjelly import ATIFnuNode, ATIFuNode, PCMPIFNode
from tests.reference import assert_unchanged, snapshot


def test_settings_are_copied_where_the_factory_left_the_default() -> None:
    old = neuron.IFNode(0.5, None, surrogate.ATan(3.0), True, "m", True)
    net = nn.Sequential(old)
    assert replace_neurons(net, lambda _: ATIFuNode()) == 1
    new = net[0]
    assert new.v_threshold.tolist() == [0.5] and new.surrogate_function is old.surrogate_function
    assert (new.detach_reset, new.step_mode, new.store_v_seq) == (True, "m", True)


class OfOtherDynamics(ATIFuNode):
    """Shares the parameters of an integrate-and-fire neuron, and not its equation."""

    dynamics = "another"


@pytest.mark.parametrize(("old", "new"), [(OfOtherDynamics, ATIFuNode), (ATIFuNode, OfOtherDynamics)])
def test_a_subclass_of_another_equation_is_not_taken_for_its_base(old: type, new: type) -> None:
    net = nn.Sequential(old())
    with pytest.raises(ValueError, match="which loses its dynamics"):
        replace_neurons(net, lambda _: new())
    assert replace_neurons(net, lambda _: new(), drop=("dynamics",)) == 1


def test_what_the_factory_says_wins() -> None:
    net = nn.Sequential(neuron.IFNode(0.5, None, surrogate.ATan(3.0)))
    replace_neurons(net, lambda _: ATIFuNode(2.0, surrogate_function=surrogate.Erf()))
    assert net[0].v_threshold.item() == 2.0 and isinstance(net[0].surrogate_function, surrogate.Erf)


def test_a_threshold_becomes_a_uniform_quantiser() -> None:
    net = nn.Sequential(neuron.IFNode(0.5, None))
    replace_neurons(net, lambda _: ATIFnuNode(T=4))
    assert net[0].p.tolist() == [0.5, 0.375, 0.25, 0.125]
    replace_neurons(net, lambda _: ATIFuNode())  # and back
    assert net[0].v_threshold.item() == 0.5


def test_shared_instances_stay_shared() -> None:
    relu = nn.ReLU()
    net = nn.Sequential(nn.Sequential(relu, relu), relu, nn.ReLU())
    with pytest.warns(UserWarning, match=r"1 ReLU called several times in one forward pass: 0.0 \(3 times\)"):
        assert replace_neurons(net, lambda _: ATIFuNode()) == 2
    assert net[0][0] is net[0][1] is net[1] is not net[2]


def test_a_shared_block_is_replaced_everywhere() -> None:
    block = nn.Sequential(nn.ReLU())
    net = nn.ModuleDict({"a": block, "b": block})
    assert replace_neurons(net, lambda _: ATIFuNode()) == 1
    assert isinstance(net["a"][0], ATIFuNode) and net["b"][0] is net["a"][0]


def test_relus_that_are_called_twice_are_named_in_one_warning() -> None:
    net = resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1])
    message = r"got 4 ReLUs called several times in one forward pass: layer1.0.relu \(2 times\), .*functional=True"
    with pytest.warns(UserWarning, match=message) as caught:
        assert replace_neurons(net, lambda _: ATIFuNode()) == 5
    assert len(caught) == 1 and caught[0].filename == __file__


def test_what_takes_the_place_of_a_relu_returns_one_tensor() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    replace_neurons(net, lambda _: ATIFu())
    assert net(torch.rand(4, 2)).shape == (4, 2)


def test_a_replaced_neuron_is_reset_though_the_host_caches_the_list() -> None:
    net = nn.Sequential(nn.ReLU())
    functional.reset_net(net)  # the host now remembers that there is nothing to reset
    replace_neurons(net, lambda _: ATIFuNode())
    first = net(torch.full((2,), 0.75))
    functional.reset_net(net)
    assert torch.equal(net(torch.full((2,), 0.75)), first)


def test_a_builder_of_the_host_is_converted_whole() -> None:
    net = spiking_vgg.spiking_vgg11_bn(
        spiking_neuron=neuron.IFNode, num_classes=10, v_reset=None, surrogate_function=surrogate.ATan(), step_mode="m"
    )
    count = sum(isinstance(m, neuron.IFNode) for m in net.modules())
    assert replace_neurons(net, lambda _: ATIFuNode()) == count > 8
    assert not any(isinstance(m, neuron.IFNode) for m in net.modules())


def test_returning_the_old_neuron_leaves_it_alone() -> None:
    net = nn.Sequential(nn.ReLU(), nn.ReLU())
    first = net[0]
    assert replace_neurons(net, lambda old: old if old is first else ATIFuNode()) == 1
    assert net[0] is first


def test_training_flag_and_device_follow_the_net() -> None:
    net = nn.Sequential(nn.Linear(2, 2, device="meta"), nn.ReLU()).eval()
    replace_neurons(net, lambda _: ATIFuNode())
    assert not net[1].training and net[1].v_threshold.device.type == "meta"


def test_our_own_settings_and_the_tie_rule_are_copied_across_hosts() -> None:
    net = nn.Sequential(ATIFuNode(0.5, scale_output=True, grad_scale=0.1), neuron.IFNode(v_reset=None))
    replace_neurons(net, lambda _: ATIFu())
    assert net[0].scale_output and net[0].grad_scale == 0.1
    assert net[0].fire_at_threshold and net[1].fire_at_threshold, "SpikingJelly fires at the threshold"


def test_snntorch_settings_are_copied() -> None:
    net = nn.Sequential(snn.Leaky(beta=1.0, threshold=0.5, init_hidden=True, output=True))
    replace_neurons(net, lambda _: ATIFu())
    assert net[0].threshold.tolist() == [0.5] and net[0].init_hidden and net[0].output


class Act(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu6(x * 3.0)


LOSSES = {
    "leak": (neuron.LIFNode(v_reset=None), lambda _: ATIFnuNode(T=4)),
    "hard reset": (neuron.IFNode(), lambda _: ATIFuNode()),
    "initial potential": (neuron.HalfThresholdIFNode(), lambda _: ATIFuNode()),
    "dynamics": (neuron.PSN(4), lambda _: ATIFuNode(step_mode="m")),
    "recurrence": (snn.RLeaky(beta=1.0, linear_features=3), lambda _: ATIFu()),
}


@pytest.mark.parametrize("what", LOSSES)
def test_nothing_is_lost_without_being_told(what: str) -> None:
    old, factory = LOSSES[what]
    net = nn.Sequential(nn.Linear(3, 3), copy.deepcopy(old))
    kept = net[1]
    with pytest.raises(ValueError, match=what) as caught:
        replace_neurons(net, factory)
    assert "drop=" in str(caught.value) and net[1] is kept
    assert replace_neurons(net, factory, drop=(what,)) == 1


@pytest.mark.parametrize("learned", [False, True])
def test_a_leak_is_kept_where_the_new_neuron_has_one(learned: bool) -> None:
    x_seq = torch.rand(5, 4, 3) * 4
    kind = neuron.ParametricLIFNode if learned else neuron.LIFNode
    net = nn.Sequential(kind(3.0, False, v_reset=None, step_mode="m"))
    want = net(x_seq)
    replace_neurons(net, lambda _: ATIFuNode())
    assert torch.equal(net(x_seq), want) and hasattr(net[0], "w") == learned
    replace_neurons(net, lambda _: PCMPIFNode(precharge=0.0))  # ours for ours
    assert torch.equal(net(x_seq), want)
    with pytest.raises(ValueError, match="leak"):
        replace_neurons(net, lambda _: ATIFnuNode(T=5))
    leaky = nn.Sequential(snn.Leaky(0.6, learn_beta=learned, init_hidden=True))
    want = torch.stack([leaky(x) for x in x_seq])
    replace_neurons(leaky, lambda _: ATIFu())
    assert torch.equal(torch.stack([leaky(x) for x in x_seq]), want)
    assert isinstance(leaky[0].beta, nn.Parameter) == learned


def test_a_leaky_with_a_leak_is_refused_and_one_without_is_not() -> None:
    with pytest.raises(ValueError, match="leak"):
        replace_neurons(nn.Sequential(snn.Leaky(beta=0.9)), lambda _: ATIFnu(T=4))
    assert replace_neurons(nn.Sequential(snn.Leaky(beta=1.0)), lambda _: ATIFu()) == 1


def test_a_hard_reset_that_is_kept_is_no_loss() -> None:
    assert replace_neurons(nn.Sequential(neuron.IFNode()), lambda _: ATIFuNode(v_reset=0.0)) == 1
    with pytest.raises(ValueError, match="hard reset"):  # to another potential than zero
        replace_neurons(nn.Sequential(neuron.IFNode(v_reset=-0.5)), lambda _: ATIFuNode(v_reset=0.0))
    assert replace_neurons(nn.Sequential(neuron.HalfThresholdIFNode()), lambda _: PCMPIFNode()) == 1


def test_points_that_would_be_lost_are_refused() -> None:
    net = nn.Sequential(ATIFnuNode(torch.tensor([1.0, 0.3, 0.2, 0.1]), T=4))
    with pytest.raises(ValueError, match=r"dynamics.*old\.at\(T\)"):
        replace_neurons(net, lambda _: ATIFuNode())
    assert replace_neurons(net, lambda old: old.at(8)) == 1


def test_a_failure_half_way_changes_nothing() -> None:
    net = nn.Sequential(nn.ReLU(), neuron.IFNode(v_reset=None), nn.ReLU())
    before = list(net)

    def factory(old: nn.Module) -> object:
        return ATIFuNode() if old is not before[2] else "ATIFuNode"

    with pytest.raises(TypeError, match=r"factory\(2\): got 'ATIFuNode'"):
        replace_neurons(net, factory)
    assert list(net) == before


@pytest.mark.parametrize(
    ("net", "factory", "options", "message"),
    [
        (nn.Sequential(nn.Linear(2, 2)), lambda _: ATIFuNode(), {}, "net: got no neuron to replace"),
        (nn.Sequential(nn.ReLU()), lambda old: old, {}, "net: got no neuron to replace"),
        (nn.ReLU(), lambda _: ATIFuNode(), {}, "net: got 'ReLU'"),
        ("net", lambda _: ATIFuNode(), {}, "net: got 'net'"),
        (nn.Sequential(nn.ReLU()), ATIFuNode(), {}, "factory: got ATIFuNode("),
        (
            nn.Sequential(nn.ReLU()),
            ATIFuNode,
            {},
            "factory: got <class 'snn_ext.spikingjelly.neurons.ATIFuNode'>",
        ),
        (nn.Sequential(nn.ReLU()), lambda _: ATIFuNode(), {"drop": ("speed",)}, "drop: got ('speed',)"),
        (nn.Sequential(nn.ReLU()), lambda _: ATIFuNode(), {"drop": 1}, "drop: got 1"),
        (nn.Sequential(nn.ReLU()), lambda _: ATIFuNode(), {"functional": 1}, "functional: got 1"),
        (Act(), lambda old: old, {"functional": True}, "net: got no neuron to replace"),
    ],
)
def test_wrong_arguments_are_named(net: object, factory: object, options: dict[str, object], message: str) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        replace_neurons(net, factory, **options)
    assert message in str(caught.value) and "want" in str(caught.value)


def test_one_new_neuron_for_two_old_ones_is_refused() -> None:
    net, shared = nn.Sequential(nn.ReLU(), nn.Linear(2, 2), nn.ReLU()), ATIFuNode()
    before = snapshot(net)
    with pytest.raises(ValueError, match="factory: got 'one ATIFuNode for 0 and 2', want a new neuron at each call"):
        replace_neurons(net, lambda old: shared)
    assert_unchanged(net, before)


# -- functional activations, and modules called several times ----------------------------------------------------------


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.relu = nn.Linear(4, 4), nn.ReLU()

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return self.relu(self.linear(self.relu(x)) * scale + x)


class Net(nn.Module):
    """ReLUs in every spelling: functional, in place, of a module without children, shared, in a block called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks, self.act, self.relu = nn.Linear(3, 4), nn.Sequential(Block(), Block()), Act(), nn.ReLU()
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.dropout(x, 0.5, self.training)
        x = self.blocks[0](self.blocks(x))
        x = torch.relu(self.act(self.act(x) - 1.0)) - 0.5
        if mask is not None:
            x = x * mask
        x.relu_()
        x = self.relu(x - 0.1).relu()
        if self.training:
            x = F.relu(x - 0.1)
        return self.head(x)

    def score(self, x: Tensor) -> Tensor:
        return self(x).argmax(1)


PLACES = [
    "relu", "relu_1", "relu_2", "relu_3", "relu_4", "relu_5", "act.relu6", "act.relu6_1",
    *(f"blocks.{k}" for k in ("0.relu", "0.relu_1", "0.relu_2", "0.relu_3", "1.relu", "1.relu_1")),
]  # fmt: skip


def net_and_input() -> tuple[Any, Tensor]:
    torch.manual_seed(0)
    return Net().eval(), torch.rand(16, 3)


def names_of(net: nn.Module, *kinds: type[nn.Module]) -> set[str]:
    return {name for name, module in net.named_modules() if isinstance(module, kinds)}


def test_every_call_gets_a_module_of_its_own_and_nothing_else_changes() -> None:
    (net, x), old = net_and_input(), net_and_input()[0]
    calls: list[nn.Module] = []
    assert replace_neurons(net, lambda old: calls.append(old) or type(old)(), functional=True) == len(PLACES)
    assert names_of(net, nn.ReLU, nn.ReLU6) == set(PLACES) and len(calls) == len(set(calls))
    assert names_of(net, nn.ReLU6) == {"act.relu6", "act.relu6_1"}
    assert isinstance(net, Net) and type(net).__name__ == "Net" and torch.equal(net.score(x), old.score(x))
    assert list(net.state_dict()) == list(old.state_dict())
    for mode in (False, True, False):
        net.train(mode), old.train(mode)
        torch.manual_seed(1)
        want = old(x)
        torch.manual_seed(1)
        assert torch.equal(net(x), want)
    for copied in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(copied(x), old(x)) and list(copied.state_dict()) == list(old.state_dict())
        copied.stem.weight.data.zero_()
    assert torch.equal(net(x), old(x))


def test_functional_and_shared_relus_become_neurons_with_a_state_each() -> None:
    for make, of in ((ATIFuNode, ATIFuNode), (ATIFu, ATIFu)):
        net, x = net_and_input()
        assert replace_neurons(net, lambda _, make=make: make(0.5), functional=True) == len(PLACES)
        assert names_of(net, of) == set(PLACES) and not names_of(net, nn.ReLU, nn.ReLU6)
        net(x).sum().backward()
        twin = copy.deepcopy(net)
        assert torch.equal(twin(x), net(x))


def test_a_rewritten_net_is_evaluated_saved_and_compiled(tmp_path: Any) -> None:
    net, x = net_and_input()
    replace_neurons(net, lambda _: ATIFuNode(0.5), functional=True)
    assert len(snn_ext.evaluate(net, [(x, torch.zeros(16, dtype=torch.long))], time_steps=3).accuracy) == 3
    snn_ext.save(net, tmp_path / "net.pt")
    functional.reset_net(net)
    want = net(x)
    assert torch.equal(snn_ext.load(tmp_path / "net.pt")(x), want)
    functional.reset_net(net)
    assert torch.equal(torch.compile(net, backend="eager", fullgraph=True)(x), want)


class Coder(nn.Module):
    """An encoder that is also used alone, and a decoder that cannot be traced alone, for it branches on an argument."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = Encoder(), Decoder()

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x), 2)


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 4), Act())

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.layers(x) - 0.1)


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.relu = nn.Linear(4, 4), nn.ReLU()

    def forward(self, x: Tensor, times: int) -> Tensor:
        for _ in range(times):
            x = self.relu(self.linear(x))
        return x


def test_modules_inside_are_rewritten_and_can_be_used_alone_with_their_hooks() -> None:
    torch.manual_seed(0)
    net, x, seen = Coder(), torch.rand(16, 3), []
    want, code = net(x), net.encoder(x)
    assert replace_neurons(net, lambda old: type(old)(), functional=True) == 4
    assert names_of(net, nn.ReLU, nn.ReLU6) == {
        "encoder.relu",
        "encoder.layers.1.relu6",
        "decoder.relu",
        "decoder.relu_1",
    }
    twin = pickle.loads(pickle.dumps(net.encoder))
    net.encoder.register_forward_hook(lambda *_: seen.append(1))
    assert torch.equal(net(x), want) and torch.equal(net.encoder(x), code) and torch.equal(twin(x), code)
    replace_neurons(net, lambda _: ATIFuNode(0.5))
    assert seen == [1, 1], "tracing calls no hooks"
    assert ((alone := net.encoder(x)) == alone.round()).all(), "spikes"
    seen.clear()
    net(x)
    assert seen == [1]


def test_rewritten_nets_are_told_apart_by_their_forward_pass() -> None:
    class Other(Net):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            return -F.dropout(F.relu(self.stem(x)), 0.5, self.training)

    prints = []
    for kind in (Net, Net, Other):
        torch.manual_seed(0)
        net = kind()
        replace_neurons(net, lambda old: type(old)(), functional=True)
        prints.append(fingerprint(net))
    assert prints[0] == prints[1] != prints[2]


def test_an_optional_argument_keeps_its_default_or_is_refused() -> None:
    net, x = net_and_input()
    want = net(x)
    replace_neurons(net, lambda old: type(old)(), functional=True)
    assert torch.equal(net(x, mask=None), want)
    with pytest.raises(ValueError, match=r"mask: got .*tensor.*, want None, with which functional=True has traced"):
        net(x, mask=torch.ones(4))


def test_what_a_relu_in_place_has_written_is_read_from_its_result() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.relu = nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            y = x - 0.5
            self.relu(y)
            return y * 2.0

    net, x = InPlace(), torch.rand(8)
    with pytest.warns(UserWarning, match="1 ReLU in place whose result is read from the input"):
        replace_neurons(net, lambda _: ATIFuNode())
    net = InPlace()
    replace_neurons(net, lambda _: nn.ReLU(), functional=True)
    assert torch.equal(net(x), InPlace()(x)) and (net(x) >= 0).all()


class Making(nn.Module):
    """Makes tensors in its forward pass: of one value in both modes, of two, from a buffer, one that it writes into."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)
        self.register_buffer("scale", torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        x = (x - torch.tensor([0.4, 0.5, 0.6])) / (self.scale * 2.0)
        total = torch.zeros(2, 4)
        total += F.relu(self.linear(x))
        return total * (torch.full((4,), 3.0) if self.training else torch.ones(4))


def test_tensors_that_a_forward_pass_makes_are_kept_with_the_net(tmp_path: Any) -> None:
    torch.manual_seed(0)
    net, x = Making(), torch.rand(2, 3)
    old, names = copy.deepcopy(net), list(net.state_dict())
    assert replace_neurons(net, lambda relu: type(relu)(), functional=True) == 1
    copies = net, copy.deepcopy(net), pickle.loads(pickle.dumps(net))
    old.scale.fill_(3.0)
    for one in copies:
        one.load_state_dict(old.state_dict())
        for mode in (True, False, False):
            assert torch.equal(one.train(mode)(x), old.train(mode)(x)) and list(one.state_dict()) == names
    assert copy.deepcopy(net).to("meta")(x.to("meta")).is_meta, "they follow the device"
    snn_ext.save(net, tmp_path / "net.pt")
    assert torch.equal(snn_ext.load(tmp_path / "net.pt")(x), old(x))
    before = snapshot(net := Making())
    with pytest.raises(TypeError, match="got 'no neuron'"):
        replace_neurons(net, lambda _: "no neuron", functional=True)
    assert_unchanged(net, before)
    assert type(net) is Making and list(dict(net.named_buffers())) == ["scale"]


def test_an_instance_in_several_places_is_split_on_request_only() -> None:
    relu = nn.ReLU()
    net = nn.Sequential(nn.Sequential(nn.Linear(2, 2), relu), relu, nn.Linear(2, 2))
    assert replace_neurons(net, lambda _: ATIFuNode(), functional=True) == 2
    assert net[0][1] is not net[1] and len(net) == 3 and type(net) is nn.Sequential


def test_a_failed_call_with_functional_relus_changes_nothing() -> None:
    net, calls = net_and_input()[0], list[nn.Module]()

    def factory(old: nn.Module) -> object:
        calls.append(old)
        return ATIFuNode() if len(calls) < 5 else "ATIFuNode"

    before, names, attributes = list(net.modules()), str(net), dict(net.__dict__)
    with pytest.raises(TypeError, match="got 'ATIFuNode'"):
        replace_neurons(net, factory, functional=True)
    assert list(net.modules()) == before and str(net) == names and type(net) is Net and net.__dict__ == attributes


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x) if x.sum() > 0 else F.gelu(self.relu(x))


def test_a_net_that_cannot_be_traced_is_searched_for_names_and_refused_on_request() -> None:
    message = "2 activations left analog: perhaps relu in Branching.forward, perhaps gelu in Branching.forward"
    with pytest.warns(UserWarning, match=message):
        assert replace_neurons(Branching(), lambda _: ATIFuNode()) == 1
    with pytest.raises(ValueError, match="net: got Branching, which cannot be traced"):
        replace_neurons(Branching(), lambda _: ATIFuNode(), functional=True)


def rectified(x: Tensor) -> Tensor:
    return helped(x)


def helped(x: Tensor) -> Tensor:
    return x.relu()


class Helped(nn.Module):
    """Has no children, and leaves its activations to functions, methods and attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.act = F.relu

    def forward(self, x: Tensor) -> Tensor:
        return self.act(rectified(x) - 0.1) + self.method(x) + self.static(x - 0.2)

    def method(self, x: Tensor) -> Tensor:
        return torch.relu(x - 0.3)

    @staticmethod
    def static(x: Tensor) -> Tensor:
        return x.relu()


def test_activations_behind_functions_and_methods_are_found() -> None:
    net, x = nn.Sequential(Helped(), nn.ReLU()), torch.rand(8)
    with pytest.warns(UserWarning, match="net: got 4 activations left analog: relu "):
        assert replace_neurons(copy.deepcopy(net), lambda _: ATIFuNode()) == 1
    want = net(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert replace_neurons(net, lambda _: nn.ReLU(), functional=True) == 5 and torch.equal(net(x), want)


def test_a_method_of_the_name_of_its_new_module_becomes_a_call_of_it() -> None:
    net = Calling(lambda x: x.relu())
    replace_neurons(net, lambda _: ATIFuNode(2.0), functional=True)
    assert net(torch.ones(3)).tolist() == [1.0] * 3 and net.relu.v.tolist() == [1.0] * 3


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:.*torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("functional", [False, True])
def test_a_scripted_module_inside_is_left_as_it_is(functional: bool) -> None:
    class Scripted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.relu = torch.jit.script(nn.Linear(3, 3)), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.relu(self.layer(x)))

    net, x = Scripted(), torch.rand(4, 3)
    want = net(x)
    assert replace_neurons(net, lambda _: nn.ReLU(), functional=functional) == 1 + functional
    assert torch.equal(net(x), want)


def test_a_graph_is_not_given_another_forward_pass() -> None:
    graph = torch.fx.symbolic_trace(Act())
    with pytest.raises(ValueError, match="want the net that it was traced from"):
        replace_neurons(graph, lambda old: ATIFuNode(), functional=True)


def test_steps_of_a_net_with_constant_input_are_not_taken_for_calls() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        replace_neurons(snn_ext.ConstantInputNet(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), 4), lambda _: ATIFuNode())


def within_a_helper(x: Tensor, context: Any) -> Tensor:
    with context:
        return x * 2.0


@pytest.mark.parametrize(
    ("context", "name"),
    [
        (torch.no_grad, "a gradient mode"),
        (torch.enable_grad, "a gradient mode"),
        (torch.inference_mode, "a gradient mode"),
        (lambda: torch.autocast("cpu"), "autocast on cpu"),
        (lambda: torch.autocast("cpu", enabled=False), "autocast on cpu"),
    ],
)
@pytest.mark.parametrize("usual", [True, False])
def test_a_context_that_a_graph_would_leave_out_is_refused(context: Any, name: str, usual: bool) -> None:
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return F.relu(x if self.training else within_a_helper(x, context()))

    net = Frozen()
    message = rf"net: got '{name} of its own for mul \(test_replacement.py, line \d+\)'"
    with torch.set_grad_enabled(usual), pytest.raises(ValueError, match=message):
        replace_neurons(net, lambda old: ATIFuNode(), functional=True)
    assert type(net) is Frozen and list(net._modules) == ["stem"]


GENERATOR = torch.Generator()


@pytest.mark.parametrize(
    "draw",
    [
        lambda: torch.rand(()),
        lambda: torch.rand((), generator=GENERATOR),
        lambda: torch.zeros(2).uniform_(),
        lambda: F.dropout(torch.ones(2)),
        random.random,
        lambda: np.random.rand(),
    ],
)
def test_what_is_drawn_at_random_is_not_fixed_but_refused(draw: Any) -> None:
    class Random(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.relu(x * 1.5) if not self.training else F.relu(x * draw())

    net = Random()
    with pytest.raises(ValueError, match="net: got 'random numbers, drawn once.*want none with functional=True"):
        replace_neurons(net, lambda old: ATIFuNode(), functional=True)
    assert type(net) is Random and not net._modules


def test_random_calls_of_a_graph_stay_random() -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.relu(F.dropout(x, 0.5, True) + torch.rand_like(x))

    net, x = Noisy(), torch.rand(64)
    replace_neurons(net, lambda old: nn.ReLU(), functional=True)
    assert not torch.equal(net(x), net(x))


class Counting(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, self.calls, self.last = name, 0, None
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean.mul_(0.5).add_(x.mean())
        if self.name:
            setattr(self, self.name, x if self.name == "last" else getattr(self, self.name) + 1)
        return F.relu(x)


@pytest.mark.parametrize("name", ["calls", "last", "count", ""])
def test_an_attribute_that_a_forward_pass_sets_is_refused_and_kept(name: str) -> None:
    net = nn.Sequential(Counting(name), nn.ReLU())
    before, values = snapshot(net), dict(vars(net[0]))
    with pytest.warns(UserWarning, match="1 activation left analog: relu "):
        replace_neurons(copy.deepcopy(net), lambda old: nn.ReLU())
    if name:
        with pytest.raises(ValueError, match=f"net: got 'attribute {name} of Counting, set in its forward pass'"):
            replace_neurons(net, lambda old: nn.ReLU(), functional=True)
        assert_unchanged(net, before)
        assert vars(net[0]) == values and type(net[0]) is Counting
    else:
        replace_neurons(net, lambda old: nn.ReLU(), functional=True)
        for mode, mean in ((True, 2.0), (True, 3.0), (False, 3.0)):
            net.train(mode)(torch.full((3,), 2.0))
            assert net[0].mean == mean


def test_a_context_of_a_module_that_stays_as_it_is_is_kept() -> None:
    class Stem(nn.Linear):
        @torch.no_grad()
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = Stem(2, 2), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.head(self.stem(x)))

    net = Frozen()
    replace_neurons(net, lambda old: nn.ReLU(), functional=True)
    net(torch.rand(3, 2)).sum().backward()
    assert net.stem.weight.grad is None and net.head.weight.grad is not None


def test_the_activation_inside_a_layer_of_torch_is_named() -> None:
    net = nn.Sequential(nn.TransformerEncoderLayer(4, 2, 4), nn.ReLU())
    with pytest.warns(UserWarning, match=r"1 activation left analog: 0.activation \(TransformerEncoderLayer\)"):
        replace_neurons(net, lambda _: ATIFuNode())


def test_what_stays_analog_is_named_once_with_a_number() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.GELU(), nn.Sequential(nn.SiLU()), nn.Softmax(1))
    with pytest.warns(UserWarning, match=r"2 activations left analog: 2 \(GELU\), 3.0 \(SiLU\), want") as caught:
        replace_neurons(net, lambda _: ATIFuNode())
    assert len(caught) == 1
    net, _ = net_and_input()
    message = r"6 activations left analog: relu \(test_replacement.py, line \d+\), relu6"
    with pytest.warns(UserWarning, match=message) as caught:
        replace_neurons(net, lambda _: ATIFuNode())
    assert "blocks.0.relu (4 times), blocks.1.relu (2 times)" in str(caught[1].message) and len(caught) == 2


def test_nothing_is_warned_of_where_nothing_is_left() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert replace_neurons(mobilenet_v2(), lambda _: ATIFuNode()) == 35, "ReLU6"
        net, _ = net_and_input()
        replace_neurons(net, lambda _: ATIFuNode(), functional=True)


class Shifted(nn.ReLU):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x - 0.5)


class Soft(nn.ReLU6):
    def forward(self, x: Tensor) -> Tensor:
        return torch.log1p(x.exp())


class Named(nn.ReLU):
    """Has the forward pass of its base."""


def test_a_subclass_of_relu_with_a_forward_pass_of_its_own_is_no_relu() -> None:
    x = torch.tensor([0.4, 0.75])
    net = nn.Sequential(Shifted(), Soft(), Named())
    want = net[:2](x)
    message = r"net: got 2 activations left analog: relu \(test_replacement.py, line \d+\), 1 \(Soft\), want"
    with pytest.warns(UserWarning, match=message):
        assert replace_neurons(net, lambda _: ATIFuNode()) == 1
    assert torch.equal(net[:2](x), want) and isinstance(net[2], ATIFuNode)
    with pytest.warns(UserWarning, match=r"net: got 1 activation left analog: 1 \(Soft\), want"):
        assert replace_neurons(net, lambda old: nn.ReLU(), functional=True) == 2
    assert torch.equal(net[:2](x), want)


RECTIFIERS = {
    "clamp_min": (lambda x: x.clamp_min(0), nn.ReLU),
    "clamp_min, of torch": (lambda x: torch.clamp_min(x, min=0.0), nn.ReLU),
    "clamp": (lambda x: x.clamp(min=0), nn.ReLU),
    "clamp, of torch": (lambda x: torch.clamp(x, 0.0, None), nn.ReLU),
    "clip, in place": (lambda x: (x * 1.0).clip_(0), nn.ReLU),
    "clamp to 6": (lambda x: x.clamp(0, 6), nn.ReLU6),
    "clamp to 6, by name": (lambda x: torch.clamp(input=x, max=6, min=0), nn.ReLU6),
    "hardtanh": (lambda x: F.hardtanh(x, 0.0, 6.0), nn.ReLU6),
    "hardtanh, in place": (lambda x: F.hardtanh(x * 1.0, 0.0, max_val=6.0, inplace=True), nn.ReLU6),
}
OTHERS = {
    "clamp from below zero": lambda x: x.clamp(-1, 6),
    "clamp to 4": lambda x: x.clamp(0, 4),
    "clamp from above": lambda x: x.clamp(max=0),
    "clamp_max": lambda x: torch.clamp_max(x, 0),
    "hardtanh": F.hardtanh,
    "maximum": lambda x: torch.maximum(x, torch.zeros(())),
    "max": lambda x: torch.max(x, x - 1.0),
}


class Calling(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function, self.act, self.slope = function, nn.ReLU(), nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.function(x) * self.slope.clamp(min=0) + 9.0)


@pytest.mark.parametrize("name", RECTIFIERS)
def test_a_clamp_that_is_a_relu_is_replaced_as_one(name: str) -> None:
    function, kind = RECTIFIERS[name]
    x = torch.linspace(-10.0, 10.0, 9)
    with pytest.warns(UserWarning, match="net: got 1 activation left analog: "):
        assert replace_neurons(Calling(function), lambda _: ATIFuNode()) == 1
    net, found = Calling(function), list[Any]()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert replace_neurons(net, lambda old: found.append(type(old)) or type(old)(), functional=True) == 2
    assert sorted(map(str, found)) == sorted(map(str, [nn.ReLU, kind])) and torch.equal(net(x), Calling(function)(x))


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("functional", [False, True])
def test_a_clamp_that_is_no_relu_is_named_as_left_analog(name: str, functional: bool) -> None:
    with pytest.warns(UserWarning, match="net: got 1 activation left analog: [a-z_]+ ") as caught:
        assert replace_neurons(Calling(OTHERS[name]), lambda _: ATIFuNode(), functional=functional) == 1
    assert len(caught) == 1


def test_the_pooling_of_a_maximum_is_no_activation() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        replace_neurons(Calling(lambda x: x.max(0, keepdim=True)[0] + torch.max(x)), lambda _: ATIFuNode())


def test_the_ceiling_of_a_relu6_is_said_to_be_lost_where_it_is() -> None:
    for threshold, lost in ((6.0, False), (1.0, False), (8.0, True)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            net = nn.Sequential(nn.Linear(2, 2), nn.ReLU6())
            replace_neurons(net, lambda _, threshold=threshold: ATIFuNode(threshold, scale_output=True, step_mode="m"))
        assert [("1 ReLU6 with a neuron whose ceiling is above 6: 1" in str(w.message)) for w in caught] == [
            True
        ] * lost
    net[1].v_threshold = 6.0
    assert net[1](torch.full((4, 1), 100.0)).mean().item() == 6.0


# -- quantised activations ---------------------------------------------------------------------------------------------

UNIFORM: dict[str, Any] = {
    "ATIFuNode": ATIFuNode, "ATIFu": ATIFu, "PCMPIFNode": PCMPIFNode, "PCMPIF": PCMPIF,
    "ATIFnuNode": lambda: ATIFnuNode(T=4), "ATIFnu": lambda: ATIFnu(T=4),
}  # fmt: skip


def mean_of_steps(net: nn.Module, x: Tensor, time_steps: int) -> Tensor:
    with torch.no_grad():
        return torch.stack([net(x) for _ in range(time_steps)]).mean(0)


@pytest.mark.parametrize("rounding", ["floor", "round", "ceil"])
@pytest.mark.parametrize("name", UNIFORM)
def test_a_quantised_activation_becomes_its_exact_twin(name: str, rounding: Any) -> None:
    x = torch.arange(-16, 32).reshape(-1, 1) / 16  # every edge and tie is among them
    net = nn.Sequential(QuantizedReLU(4, 0.75, rounding))
    wanted = net(x).detach()
    replace_neurons(net, lambda _: UNIFORM[name]())
    assert torch.equal(mean_of_steps(net, x, 4), wanted)


@pytest.mark.parametrize("kind", [ATIFnuNode, ATIFnu])
def test_points_become_those_of_the_neuron_also_where_training_has_crossed_them(kind: Any) -> None:
    x = torch.arange(-16, 32).reshape(-1, 1) / 16
    net = nn.Sequential(NonUniformQuantizedReLU(4))
    net[0].p.data.copy_(torch.tensor([1.0, 0.5, 0.75, 0.125]))
    wanted = net(x).detach()
    replace_neurons(net, lambda _: kind(T=4, recursion="cumulative"))
    assert net[0].p.tolist() == [1.0, 0.75, 0.75, 0.125] and net[0].scale_output
    assert torch.equal(mean_of_steps(net, x, 4), wanted)


def test_what_the_factory_says_wins_over_a_quantised_activation() -> None:
    net = nn.Sequential(QuantizedReLU(4, 0.75), NonUniformQuantizedReLU(2, 0.5))
    replace_neurons(net, lambda old: ATIFuNode(2.0, v_init=0.25) if old is net[0] else ATIFnuNode(2.0, T=2))
    assert (net[0].v_threshold.item(), net[0].v_init.item()) == (2.0, 0.25) and net[1].p.tolist() == [2.0, 1.0]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (lambda: QuantizedReLU(4), lambda: neuron.IFNode(v_reset=None), "loses its initial potential"),
        (lambda: QuantizedReLU(4), lambda: ATIFuNode(v_reset=0.0), "loses its dynamics, want reset by subtraction"),
        (lambda: QuantizedReLU(4), OfOtherDynamics, "loses its dynamics"),
        (lambda: QuantizedReLU(4), lambda: ATIFnuNode(T=4, recursion="cumulative"), "want recursion='min'"),
        (lambda: QuantizedReLU(4, 1.0, "floor"), lambda: ATIFnuNode(T=4, recursion="paper"), "want recursion='min'"),
        (lambda: NonUniformQuantizedReLU(4), ATIFuNode, "loses its dynamics, want ATIF-nu with T=4"),
        (lambda: NonUniformQuantizedReLU(4), lambda: ATIFnuNode(T=2), "loses its dynamics, want ATIF-nu with T=4"),
    ],
)
def test_no_neuron_of_another_staircase_by_accident(old: Any, new: Any, message: str) -> None:
    net = nn.Sequential(old())
    before = snapshot(net)
    with pytest.raises(ValueError, match=message):
        replace_neurons(net, lambda _: new())
    assert_unchanged(net, before)
    assert replace_neurons(net, lambda _: new(), drop=("dynamics", "initial potential")) == 1


def test_one_activation_becomes_another_with_its_threshold() -> None:
    net = nn.Sequential(QuantizedReLU(4, 0.5), nn.ReLU())
    assert replace_neurons(net, lambda _: NonUniformQuantizedReLU(2)) == 2
    assert [layer.p.tolist() for layer in net] == [[0.5, 0.25], [1.0, 0.5]]
    assert replace_neurons(net, lambda _: nn.ReLU()) == 2


def test_every_call_of_a_shared_quantised_activation_gets_a_neuron() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.act = nn.Linear(3, 3), QuantizedReLU(4, 0.75)

        def forward(self, x: Tensor) -> Tensor:
            return self.act(self.layer(self.act(x)))

    net = Twice()
    assert replace_neurons(net, lambda _: ATIFuNode(), functional=True) == 2
    assert [m.v_threshold.item() for m in net.modules() if isinstance(m, ATIFuNode)] == [0.75, 0.75]


def test_drop_takes_one_name_as_a_string() -> None:
    net = nn.Sequential(neuron.LIFNode(v_reset=None))
    assert replace_neurons(net, lambda old: ATIFuNode(), drop="leak") == 1
    with pytest.raises(ValueError, match="drop: got 'leek', want a tuple of names"):
        replace_neurons(nn.Sequential(nn.ReLU()), lambda old: ATIFuNode(), drop="leek")
