"""The neurons stand beside the hosts' own, and can be taken away again."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest
import snntorch
from spikingjelly.activation_based import neuron
from spikingjelly.activation_based.distributed.vision import config

import snn_ext
from snn_ext.neurons import NEURONS
from snn_ext.snntorch import ATIFu
from snn_ext.spikingjelly import ATIFnuNode, ATIFuNode, PCMPIFNode


@pytest.fixture(autouse=True)
def clean() -> None:
    yield
    snn_ext.unregister()


def test_registering_twice_is_registering_once() -> None:
    hosts = ("spikingjelly", "snntorch")
    want = {host: [getattr(neuron, host) for neuron in NEURONS.values()] for host in hosts}
    assert snn_ext.register() == snn_ext.register() == want
    assert neuron.ATIFuNode is ATIFuNode and neuron.PCMPIFNode is PCMPIFNode and snntorch.ATIFu is ATIFu


def test_unregistering_leaves_the_hosts_as_they_were() -> None:
    before = set(vars(neuron)), set(vars(snntorch)), dict(config._NEURON_REGISTRY)
    snn_ext.register()
    snn_ext.unregister()
    snn_ext.unregister()
    assert (set(vars(neuron)), set(vars(snntorch)), dict(config._NEURON_REGISTRY)) == before


def test_the_hosts_neuron_config_resolves() -> None:
    snn_ext.register()
    path = "snn_ext.spikingjelly.neurons.ATIFnuNode"
    cls, kwargs = config._resolve_neuron_config(config.NeuronConfig(path, kwargs={"T": 4, "v_threshold": 0.5}))
    assert cls is ATIFnuNode and cls(**kwargs).p.tolist() == [0.5, 0.375, 0.25, 0.125]


def test_the_neuron_config_makes_an_asn() -> None:
    snn_ext.register()
    config_ = config.NeuronConfig("snn_ext.spikingjelly.asn.ASNNode", kwargs={"m_f": 0.2, "tau_phi": 2.5})
    cls, kwargs = config._resolve_neuron_config(config_)
    node = cls(**kwargs)
    assert neuron.ASNNode is cls and node.m_f.item() == pytest.approx(0.2) and node.tau_phi == 2.5


def test_a_name_that_is_taken_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snntorch, "ATIFu", int, raising=False)
    with pytest.raises(RuntimeError, match=r"snntorch\.ATIFu is already <class 'int'>"):
        snn_ext.register()
    assert not hasattr(neuron, "ATIFuNode")


def test_pickles_load_in_a_process_that_has_not_registered(tmp_path: object) -> None:
    snn_ext.register()
    data = pickle.dumps(neuron.ATIFuNode(0.5))
    code = f"import pickle; node = pickle.loads({data!r}); print(type(node).__name__, node.v_threshold.item())"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert out.strip() == "ATIFuNode 0.5"
