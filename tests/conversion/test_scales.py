"""fold_scales on trained nets: the same function, and only 0/1 spikes on the way."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

pytest.importorskip("spikingjelly")

from spikingjelly.activation_based import layer  # noqa: E402

from snn_ext.conversion import ConvertedNet, Scale, fold_scales  # noqa: E402
from snn_ext.spikingjelly import ATIFnuNode, ATIFuNode  # noqa: E402
from tests.conversion.nets import ResNet, dyadic, images, loop, trained, vgg  # noqa: E402
from tests.reference import assert_unchanged, snapshot  # noqa: E402

T = 4


def atif(threshold: float = 0.5) -> nn.Module:
    return ATIFuNode(threshold, v_init=0.5, scale_output=True)


def atif_nu() -> nn.Module:
    return ATIFnuNode(0.5, T=T, scale_output=True)


@pytest.mark.parametrize("node", [atif, atif_nu], ids=["ATIF-u", "ATIF-nu"])
@pytest.mark.parametrize("make", [vgg, ResNet], ids=["vgg", "resnet"])
def test_folded_net_computes_the_same_with_binary_spikes(make: object, node: object) -> None:
    net, x = trained(dyadic(make(node), 3)), images()  # type: ignore[operator]
    if make is ResNet:
        for block in net.blocks:
            block.relu2 = node()  # type: ignore[operator]
    before = snapshot(net)
    folded = fold_scales(net)
    assert_unchanged(net, before)
    assert isinstance(folded, ConvertedNet)
    assert not any(getattr(m, "scale_output", False) for m in folded.modules())
    torch.testing.assert_close(loop(folded, x, T), loop(net, x, T), rtol=1e-4, atol=1e-4)


def test_identity_shortcut_keeps_its_scale_as_a_named_synapse() -> None:
    net = ResNet(atif)
    for block in net.blocks:
        block.relu2 = atif(0.25)
    folded = fold_scales(net.eval())
    scales = {name: m.weight.item() for name, m in folded.named_modules() if isinstance(m, Scale)}
    assert scales == {"blocks_0_shortcut_scale": 0.5, "blocks_2_shortcut_scale": 0.25}


def test_spikes_that_reach_a_neuron_without_weights_scale_its_threshold() -> None:
    net = nn.Sequential(nn.Flatten(), atif(0.5), atif(0.75), nn.Linear(128, 2))
    folded = fold_scales(net)
    assert folded.get_submodule("2").v_threshold.item() == 1.5
    x = images()
    torch.testing.assert_close(loop(folded, x, T), loop(net, x, T))


def test_equal_scales_add_up_without_a_synapse_others_meet_in_the_units_of_the_net() -> None:
    class Add(nn.Module):
        def __init__(self, one: float, other: float) -> None:
            super().__init__()
            self.one, self.other, self.head = atif(one), atif(other), nn.Linear(2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.one(x) + self.other(x))

    for one, other, count in ((0.5, 0.5, 0), (0.5, 0.25, 2)):
        net, x = Add(one, other), torch.rand(4, 2)
        folded = fold_scales(net)
        assert sum(isinstance(m, Scale) for m in folded.modules()) == count
        torch.testing.assert_close(loop(folded, x, T), loop(net, x, T))


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.node, self.function, self.head = atif(0.25), function, nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.function(self.node(x)))


@pytest.mark.parametrize(
    ("function", "scales"),
    [
        (torch.tanh, 1),  # of half a spike no half of the value
        (lambda x: x * x, 1),
        (lambda x: x.reshape(x.size(0), x.shape[1] * x.size(2)), 0),
        (lambda x: F.dropout(F.pad(x.flatten(1), (0, 0)), 0.5, False), 0),
    ],
)
def test_a_scale_is_moved_through_functions_of_which_that_is_known(
    function: Callable[[Tensor], Tensor], scales: int
) -> None:
    net, x = Function(function).eval(), torch.rand(4, 2, 4)
    if scales:
        x = x.flatten(1)
    folded = fold_scales(net)
    assert sum(isinstance(m, Scale) for m in folded.modules()) == scales
    torch.testing.assert_close(loop(folded, x, T), loop(net, x, T))


def test_output_of_spikes_keeps_its_units_and_folding_twice_is_folding_once() -> None:
    net, x = nn.Sequential(nn.Flatten(), layer.Linear(128, 3), atif(0.25)), images()
    folded = fold_scales(net)
    assert set(loop(folded, x, T).unique().tolist()) <= {0.0, 0.25}
    with pytest.raises(ValueError, match="net: got .ConvertedNet"):
        fold_scales(folded)


def tied(tie: str) -> nn.Module:
    net = nn.Sequential(
        *(nn.Linear(6, 6), atif(0.5), nn.Linear(6, 6), atif(0.3), nn.Linear(6, 6), atif(0.8), nn.Linear(6, 2))
    )
    if tie == "parameter":
        net[4].weight, net[4].bias = net[2].weight, net[2].bias
    elif tie == "view":
        net[4].weight = nn.Parameter(net[2].weight.detach().T)
    elif tie == "module":
        net[4] = net[2]
    else:
        net[3].v_threshold = net[5].v_threshold = net[1].v_threshold
    return net


@pytest.mark.parametrize("tie", ["parameter", "view", "module", "threshold"])
def test_tied_layers_take_up_the_scale_of_their_own_spikes_only(tie: str) -> None:
    net, x = tied(tie), torch.randint(0, 17, (8, 6)) / 16
    before = snapshot(net)
    folded = fold_scales(net)
    assert_unchanged(net, before)
    torch.testing.assert_close(loop(folded, x, T), loop(net, x, T))


def test_bad_nets_are_named() -> None:
    with pytest.raises(TypeError, match="net: got 3"):
        fold_scales(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="scale_output=True"):
        fold_scales(nn.Sequential(nn.Flatten(), ATIFuNode()))
