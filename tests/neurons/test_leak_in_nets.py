"""Leaky neurons and thresholds per channel in the hosts' nets, and under torch's tools for large ones."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from spikingjelly.activation_based import functional, memopt
from spikingjelly.activation_based.distributed.vision import config
from spikingjelly.activation_based.model import spiking_resnet
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import snn_ext
from snn_ext.snntorch import ATIFu
from snn_ext.spikingjelly import ATIFuNode
from tests.hosts import grid, reset

TAUS = [1.5, 2.5, 7.3]


def sj_net(**leak: Any) -> nn.Sequential:
    torch.manual_seed(0)
    node = ATIFuNode(torch.tensor([0.5, 0.75, 1.0]), tau=torch.tensor(TAUS), learn_tau=True, step_mode="m", **leak)
    return nn.Sequential(nn.Linear(3, 3), node, nn.Linear(3, 3))


def st_net() -> nn.Sequential:
    torch.manual_seed(0)
    beta = torch.tensor([0.5, 0.7, 0.9])
    node = ATIFu(torch.tensor([0.5, 0.75, 1.0]), beta=beta, learn_beta=True, step_mode="m", init_hidden=True)
    return nn.Sequential(nn.Linear(3, 3), node, nn.Linear(3, 3))


NETS = {"spikingjelly": sj_net, "snntorch": st_net}


def test_models_of_the_host_train_with_a_leak_also_under_autocast() -> None:
    leak = {"tau": 2.0, "decay_input": False, "learn_tau": True}
    net = spiking_resnet.spiking_resnet18(spiking_neuron=ATIFuNode, num_classes=3, v_threshold=0.25, **leak)
    functional.set_step_mode(net, "m")
    nodes = [m for m in net.modules() if isinstance(m, ATIFuNode)]
    assert len(nodes) == 17 and all(node.leaks for node in nodes)
    x_seq = 3.0 * torch.rand(2, 2, 3, 32, 32)
    for autocast in (False, True):
        net.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = net(x_seq)
        nn.functional.cross_entropy(out.float().mean(0), torch.tensor([0, 2])).backward()
        assert all(node.w.grad.isfinite().all() and node.w.grad.any() for node in nodes), autocast
        assert all(node.v.dtype == torch.float32 for node in nodes)
        functional.reset_net(net)


def test_the_hosts_neuron_config_makes_a_leaky_neuron() -> None:
    snn_ext.register()
    try:
        path, leak = "snn_ext.spikingjelly.neurons.ATIFuNode", {"tau": 3.0, "decay_input": False}
        cls, kwargs = config._resolve_neuron_config(config.NeuronConfig(path, kwargs=leak))
    finally:
        snn_ext.unregister()
    node = cls(**kwargs)
    assert node.tau == 3.0 and not node.decay_input


@pytest.mark.parametrize("host", NETS)
def test_autocast_changes_the_input_of_a_leaky_neuron_and_not_its_state(host: str) -> None:
    node = NETS[host]()[1]
    x_seq = grid(6, (4, 3)).to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        narrow = node(x_seq)
    state = node.v if host == "spikingjelly" else node.mem
    reset(node)
    assert narrow.dtype == torch.bfloat16 and state.dtype == torch.float32
    assert torch.equal(narrow.float(), node(x_seq.float()))


@pytest.mark.parametrize("chunks", [1, 2])
def test_checkpoints_that_keep_the_states_give_the_gradients_without_them(chunks: int) -> None:
    net, found = sj_net(), []
    for run in (net, memopt.checkpoint_module(net, chunks=chunks)):
        functional.reset_net(net)
        net.zero_grad()
        x = grid(4, (2, 3)).requires_grad_()
        torch.cat([run(x[:2]), run(x[2:])]).square().sum().backward()
        found.append([x.grad, *(p.grad.clone() for p in net.parameters())])
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_processes_together_have_the_gradients_of_the_whole_batch(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_distributed_step, (port, 2, str(tmp_path)), 2)
    for host in NETS:
        want = _gradients(NETS[host](), grid(4, (4, 3)))
        for name, gradient in torch.load(tmp_path / f"{host}.pt").items():
            torch.testing.assert_close(gradient, want[name], rtol=1e-4, atol=1e-5)


def _distributed_step(rank: int, port: int, processes: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=processes)
    for host, make in NETS.items():
        net = DistributedDataParallel(make())
        found = _gradients(net, grid(4, (4, 3))[:, rank::processes])
        if rank == 0:
            torch.save({name.removeprefix("module."): g for name, g in found.items()}, f"{folder}/{host}.pt")
    dist.destroy_process_group()


def _gradients(net: nn.Module, x_seq: Tensor) -> dict[str, Tensor]:
    net(x_seq).square().mean().backward()
    return {name: p.grad for name, p in net.named_parameters()}
