"""The conformance suite passes what is right and catches what is wrong."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from typing import Any

import pytest
import snntorch as snn
import torch
from spikingjelly.activation_based import neuron, surrogate
from torch import Tensor

from snn_ext import testing
from snn_ext.neurons import Thresholds
from snn_ext.snntorch import ASN, PCMPIF, ATIFu
from snn_ext.spikingjelly import ASNNode, ATIFnuNode, ATIFuNode, PCMPIFNode
from snn_ext.testing import check_neuron
from snn_ext.testing.suite import CHECKS
from tests import hosts

POINTS = torch.tensor([1.0, 0.6, 0.3, 0.1])

NODES = hosts.NODES | {
    "ATIF-u pre-charged and scaled": lambda: ATIFuNode(0.7, v_init=0.5, scale_output=True),
    "ATIF-u per channel": lambda: ATIFuNode(0.7, v_init=torch.tensor([0.1, 0.2, 0.3, 0.4])),
    "ATIF-u trained pre-charge": lambda: ATIFuNode(0.7, v_init=torch.nn.Parameter(torch.tensor([0.3]))),
    "ATIF-u to zero": lambda: ATIFuNode(0.75, 0.0, surrogate.ATan(), True),
    "ATIF-u above": lambda: ATIFuNode(0.75, fire_at_threshold=False, grad_scale=0.1),
    "ATIF-u unknown surrogate": lambda: ATIFuNode(0.75, surrogate_function=surrogate.S2NN()),
    "ATIF-nu cumulative": lambda: ATIFnuNode(0.9, T=4, recursion="cumulative", scale_output=True),
    "ATIF-nu paper": lambda: ATIFnuNode(POINTS, T=4, recursion="paper", v_init=0.25, grad_scale="lsq"),
    "PCMP": lambda: PCMPIFNode(),
    "ASN": lambda: ASNNode(scale_output=True),
    "ASN of all kinds": lambda: ASNNode(
        2.0,
        detach_reset=True,
        m_f=torch.tensor([0.05, 0.1, 0.2, 0.4]),
        theta_0=0.1,
        tau_phi=0.0,
        analog_input=True,
        bias=torch.nn.Parameter(torch.tensor([0.1, 0.2, 0.0, -0.1])),
    ),
    "PCMP per channel": lambda: PCMPIFNode(0.7, precharge=torch.tensor([0.0, 0.5, 0.25, 1.0])),
}
HOST_NODES = {
    "IFNode": lambda: neuron.IFNode(v_reset=None),
    "LIFNode": lambda: neuron.LIFNode(),
    "ParametricLIFNode": lambda: neuron.ParametricLIFNode(),
}
NEURONS = hosts.NEURONS | {
    "ATIF-u pre-charged and scaled": lambda: ATIFu(0.7, v_init=0.5, scale_output=True),
    "ATIF-u at": lambda: ATIFu(0.75, fire_at_threshold=True, spike_grad=snn.surrogate.sigmoid(25)),
    "ATIF-u to zero": lambda: ATIFu(reset_mechanism="zero"),
    "ATIF-u never reset": lambda: ATIFu(reset_mechanism="none"),
    "ASN trained": lambda: ASN(0.7, learn_threshold=True, output=True, bias=torch.nn.Parameter(torch.tensor([0.1]))),
    "PCMP": lambda: PCMPIF(),
    "PCMP trained": lambda: PCMPIF(0.7, learn_threshold=True),
}


def test_every_public_function_of_a_suite_is_a_check_of_the_hosts_that_its_module_is_for() -> None:
    modules = [importlib.import_module(f"snn_ext.testing.{m.name}") for m in pkgutil.iter_modules(testing.__path__)]
    for host, checks in CHECKS.items():
        functions = {
            name: function
            for module in modules
            if module.__name__.endswith((".both", f".{host}"))
            for name, function in vars(module).items()
            if inspect.isfunction(function) and not name.startswith("_")
            if list(inspect.signature(function).parameters) == ["suite"]
        }
        assert functions and functions == checks


@pytest.mark.parametrize("name", NODES | HOST_NODES)
def test_spikingjelly_nodes_conform(name: str) -> None:
    assert check_neuron((NODES | HOST_NODES)[name], "spikingjelly") == list(CHECKS["spikingjelly"])


@pytest.mark.parametrize("name", NEURONS)
def test_snntorch_neurons_conform(name: str) -> None:
    assert check_neuron(NEURONS[name], "snntorch") == list(CHECKS["snntorch"])


def test_the_hosts_leaky_conforms_but_for_what_it_is_known_not_to_do() -> None:
    known = ("double_is_kept", "half_precision_is_kept", "deepcopy_and_pickle_keep_everything")
    check_neuron(lambda: snn.Leaky(beta=0.9), "snntorch", skip=known)
    with pytest.raises(AssertionError, match=r"(?s)double_is_kept.*half_precision_is_kept.*deepcopy_and_pickle"):
        check_neuron(lambda: snn.Leaky(beta=0.9), "snntorch")


def test_the_multi_step_of_liafnode_is_caught() -> None:
    with pytest.raises(AssertionError, match="single_steps_equal_the_sequence"):
        check_neuron(lambda: neuron.LIAFNode(torch.sigmoid, False))


class InPlace(ATIFuNode):
    """Writes into the state that it was given."""

    def multi_step_functional_forward(self, inputs: Any, states: Any, **kwargs: Any) -> Any:
        if states[0].is_contiguous():  # not the expanded start
            with torch.no_grad():
                states[0].add_(1.0)
        return super().multi_step_functional_forward(inputs, states)


class HalfState(neuron.IFNode):
    """Keeps the potential in the dtype of the input."""

    def __init__(self) -> None:
        super().__init__(0.7, None)

    def multi_step_functional_forward(self, inputs: Any, states: Any, **kwargs: Any) -> Any:
        v, spikes = states[0], []
        for x in inputs[0]:
            v = (v + x).to(inputs[0].dtype)
            spikes.append(self.surrogate_function(v - self.v_threshold))
            v = v - spikes[-1] * self.v_threshold
        return (torch.stack(spikes),), (v,)


class Forgetful(ATIFuNode):
    """Starts every sequence afresh."""

    def materialize_states(self, inputs: Any, states: Any, step_mode: str) -> Any:
        return super().materialize_states(inputs, (0.0,) if step_mode == "m" else states, step_mode)


class NeverReset(ATIFuNode):
    def reset(self) -> None:
        pass


class Destroys(ATIFuNode):
    """Uses the input as its work space."""

    def multi_step_functional_forward(self, inputs: Any, states: Any, **kwargs: Any) -> Any:
        out = super().multi_step_functional_forward((inputs[0].detach().clone(),), states)
        if not inputs[0].requires_grad:
            inputs[0].zero_()
        return out


class StrictTie(ATIFuNode):
    """Fires above the threshold in single steps, at it in sequences: seen on tied data only."""

    def single_step_functional_forward(self, inputs: Any, states: Any, **kwargs: Any) -> Any:
        self.fire_at_threshold = False
        try:
            return super().single_step_functional_forward(inputs, states)
        finally:
            self.fire_at_threshold = True


class Deaf(ATIFuNode):
    """Its threshold gets no gradient."""

    def thresholds(self, x_seq: Tensor | None = None) -> Thresholds:
        return Thresholds(*(part.detach() for part in super().thresholds(x_seq)))


class Silent(PCMPIFNode):
    def multi_step_functional_forward(self, inputs: Any, states: Any, **kwargs: Any) -> Any:
        (spikes,), states = super().multi_step_functional_forward(inputs, states)
        return (0.0 * spikes,), states


class Graded(PCMPIFNode):
    def multi_step_functional_forward(self, inputs: Any, states: Any, **kwargs: Any) -> Any:
        (spikes,), states = super().multi_step_functional_forward(inputs, states)
        return (spikes * inputs[0],), states


class Leaks(ATIFuNode):
    """Its batch shares one input."""

    def multi_step_functional_forward(self, inputs: Any, states: Any, **kwargs: Any) -> Any:
        return super().multi_step_functional_forward((inputs[0] + inputs[0].mean(1, keepdim=True),), states)


@pytest.mark.parametrize(
    ("planted", "check"),
    [
        (Silent, "some_fire_and_some_do_not"),
        (Graded, "spikes_have_one_value"),
        (Leaks, "samples_are_independent"),
        (InPlace, "functional_forward_is_pure"),
        (HalfState, "state_is_wider_than_half"),
        (Forgetful, "chunks_of_time_equal_the_whole"),
        (NeverReset, "reset_starts_afresh"),
        (Destroys, "input_is_not_modified"),
        (StrictTie, "single_steps_equal_the_sequence"),
        (Deaf, "every_parameter_gets_a_gradient"),
    ],
)
def test_planted_bugs_are_caught(planted: type, check: str) -> None:
    with pytest.raises(AssertionError, match=rf"(?m)^{check}:"):
        check_neuron(planted)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((NODES["PCMP"], "norse"), {}, "host: got 'norse'"),
        ((NODES["PCMP"],), {"time_steps": 3}, "time_steps: got 3"),
        ((NODES["PCMP"],), {"shape": (1,)}, "shape: got (1,)"),
        ((NODES["PCMP"],), {"skip": ("speed",)}, "skip: got ['speed']"),
        ((lambda: 3,), {}, "factory: got"),
        ((ATIFuNode(),), {}, "factory: got 'ATIFuNode'"),
        ((NODES["PCMP"],), {"skip": "double_is_kept"}, "skip: got 'double_is_kept'"),
    ],
)
def test_wrong_arguments_are_named(arguments: tuple[Any, ...], options: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        check_neuron(*arguments, **options)
    assert message in str(caught.value) and "want" in str(caught.value)
