"""The conformance suite for spiking neurons: :func:`check_neuron`, for ours, the hosts' and anybody's."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ._errors import bad_value, check_choice, check_count

__all__ = ["check_neuron", "grid_input"]

Factory = Callable[[], nn.Module]


def check_neuron(
    factory: Factory,
    host: Literal["spikingjelly", "snntorch"] = "spikingjelly",
    *,
    time_steps: int = 4,
    shape: tuple[int, ...] = (3, 4, 5, 5),
    skip: tuple[str, ...] = (),
) -> list[str]:
    """Hold a neuron against everything that its host and its users expect of one.

    Equality is exact, of spikes and states, on random input and on a grid where ties are frequent.

    Parameters
    ----------
    factory : callable
        ``factory()`` returns a fresh neuron; its parameters may be random.
    host : {"spikingjelly", "snntorch"}
        Whose habits to expect.
    time_steps : int
        Length of the sequences, at least 4; no sequence is longer.
    shape : tuple of int
        Shape of one step of input, ``[N, ...]``, N >= 2.
    skip : tuple of str
        Names of checks to leave out.

    Returns
    -------
    list of str
        Names of the checks that ran; all have passed.

    Raises
    ------
    AssertionError
        Names every check that failed, with what was found.

    Examples
    --------
    >>> from snn_ext.spikingjelly import ATIFuNode
    >>> "chunks_of_time_equal_the_whole" in check_neuron(lambda: ATIFuNode(0.75))
    True
    """
    check_choice("host", host, ("spikingjelly", "snntorch"))
    if check_count("time_steps", time_steps) < 4:
        bad_value("time_steps", time_steps, "an int >= 4")
    if len(shape) < 1 or shape[0] < 2:
        bad_value("shape", shape, "one step of input [N, ...] with N >= 2")
    if isinstance(factory, nn.Module) or not callable(factory) or not isinstance(factory(), nn.Module):
        bad_value("factory", type(factory).__name__, "a callable without arguments that returns a fresh nn.Module")
    if not isinstance(skip, tuple):
        bad_value("skip", skip, "a tuple of names")
    checks = {name: check for name, (hosts, check) in _CHECKS.items() if host in hosts}
    unknown = set(skip) - set(checks)
    if unknown:
        bad_value("skip", sorted(unknown), "names out of " + ", ".join(checks))
    suite = (_SpikingJelly if host == "spikingjelly" else _SnnTorch)(factory, time_steps, tuple(shape))
    failures, ran = [], []
    for name, check in checks.items():
        if name in skip:
            continue
        try:
            check(suite)
        except Exception as error:  # a crash is a failed check like any other
            failures.append(f"{name}: {type(error).__name__}: {error}")
        else:
            ran.append(name)
    if failures:
        kind = type(factory()).__name__
        raise AssertionError(
            f"{kind} fails {len(failures)} of {len(checks) - len(skip)} checks\n" + "\n".join(failures)
        )
    return ran


def grid_input(time_steps: int, shape: tuple[int, ...], seed: int = 0, step: float = 1 / 16) -> Tensor:
    """Return input on a grid around 0.3, where charges meet thresholds exactly: random data hides wrong ties.

    Examples
    --------
    >>> grid_input(4, (2, 3)).shape
    torch.Size([4, 2, 3])
    """
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-10, 21, (time_steps, *shape), generator=generator) * step


# -- the hosts' habits ------------------------------------------------------------------------------------------


@dataclass
class _Suite:
    factory: Factory
    time_steps: int
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        self.parameters = self.factory().state_dict()

    def new(self, **settings: Any) -> Any:
        """Return a fresh neuron with the suite's parameters."""
        neuron = self.factory()
        neuron.load_state_dict(self.parameters)
        for name, value in settings.items():
            setattr(neuron, name, value)
        return neuron

    def inputs(self) -> list[Tensor]:
        generator = torch.Generator().manual_seed(1)
        random = torch.randn((self.time_steps, *self.shape), generator=generator) * 0.6 + 0.3
        return [random, grid_input(self.time_steps, self.shape)]

    def has_modes(self, *modes: str) -> bool:
        raise NotImplementedError

    def has_explicit_mem(self) -> bool:
        """Whether ``mem`` may be passed along: a neuron whose state is more than that says ``explicit_mem = False``."""
        return bool(getattr(self.factory(), "explicit_mem", True))

    def sequence(self, neuron: Any, x_seq: Tensor) -> Tensor:
        """Run multi-step where the neuron has it, else step by step."""
        if self.has_modes("m"):
            neuron.step_mode = "m"
            return _spikes(neuron(x_seq))
        return self.steps(neuron, x_seq)

    def steps(self, neuron: Any, x_seq: Tensor) -> Tensor:
        if self.has_modes("m"):
            neuron.step_mode = "s"
        return torch.stack([_spikes(neuron(x)) for x in x_seq])

    def state(self, neuron: Any) -> list[Any]:
        raise NotImplementedError

    def reset(self, neuron: Any) -> None:
        raise NotImplementedError

    def detach(self, neuron: Any) -> None:
        raise NotImplementedError


class _SpikingJelly(_Suite):
    def has_modes(self, *modes: str) -> bool:
        supported = self.factory().supported_step_mode()  # type: ignore[operator]
        return all(mode in supported for mode in modes)

    def state(self, neuron: Any) -> list[Any]:
        return list(neuron._memories.values())

    def reset(self, neuron: Any) -> None:
        from spikingjelly.activation_based import functional

        functional.reset_net(neuron)

    def detach(self, neuron: Any) -> None:
        from spikingjelly.activation_based import functional

        functional.detach_net(neuron)


class _SnnTorch(_Suite):
    def __post_init__(self) -> None:
        super().__post_init__()
        self._modes = ("s", "m") if hasattr(self.factory(), "step_mode") else ("s",)

    def has_modes(self, *modes: str) -> bool:
        return all(mode in self._modes for mode in modes)

    def state(self, neuron: Any) -> list[Any]:
        return [neuron.mem]

    def reset(self, neuron: Any) -> None:
        from snntorch import utils

        utils.reset(nn.Sequential(neuron))

    def detach(self, neuron: Any) -> None:
        type(neuron).detach_hidden()


def _spikes(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def _assert_equal(what: str, got: Any, want: Any) -> None:
    if isinstance(want, list | tuple):
        assert len(got) == len(want), f"{what}: {len(got)} of them, want {len(want)}"
        for i, (a, b) in enumerate(zip(got, want, strict=True)):
            _assert_equal(f"{what} {i}", a, b)
    elif isinstance(want, Tensor):
        assert isinstance(got, Tensor) and got.shape == want.shape, f"{what}: got {got}, want shape {list(want.shape)}"
        assert got.dtype == want.dtype, f"{what}: got {got.dtype}, want {want.dtype}"
        wrong = int((got != want).sum())
        assert torch.equal(got, want), f"{what}: {wrong} of {want.numel()} values differ"
    else:
        assert got == want, f"{what}: got {got}, want {want}"


_CHECKS: dict[str, tuple[tuple[str, ...], Callable[[_Suite], None]]] = {}


def _check(*hosts: str) -> Callable[[Callable[[_Suite], None]], Callable[[_Suite], None]]:
    """Put a check on the list of these hosts: what is not on a list is not run."""

    def listed(check: Callable[[_Suite], None]) -> Callable[[_Suite], None]:
        _CHECKS[check.__name__.lstrip("_")] = hosts, check
        return check

    return listed


# -- checks for both hosts ------------------------------------------------------------------------------------------


@_check("spikingjelly", "snntorch")
def _single_steps_equal_the_sequence(suite: _Suite) -> None:
    if not suite.has_modes("s", "m"):
        return
    for x_seq in suite.inputs():
        one, all_at_once = suite.new(), suite.new()
        _assert_equal("spikes", suite.steps(one, x_seq), suite.sequence(all_at_once, x_seq))
        _assert_equal("state", suite.state(one), suite.state(all_at_once))


@_check("spikingjelly", "snntorch")
def _chunks_of_time_equal_the_whole(suite: _Suite) -> None:
    for x_seq in suite.inputs():
        whole, chunked = suite.new(), suite.new()
        want = suite.sequence(whole, x_seq)
        got = torch.cat([suite.sequence(chunked, part) for part in (x_seq[:1], x_seq[1:3], x_seq[3:])])
        _assert_equal("spikes", got, want)
        _assert_equal("state", suite.state(chunked), suite.state(whole))


@_check("spikingjelly", "snntorch")
def _some_fire_and_some_do_not(suite: _Suite) -> None:
    for x_seq in suite.inputs():
        fired = suite.sequence(suite.new(), x_seq) != 0
        assert fired.any(), "no neuron fires"
        assert not fired.all(), "every neuron fires at every step"
    silent = suite.sequence(suite.new(), torch.full_like(suite.inputs()[0], -3.0))
    assert not silent.any(), "neurons fire on negative input"


@_check("spikingjelly", "snntorch")
def _spikes_have_one_value(suite: _Suite) -> None:
    for x_seq in suite.inputs():
        values = suite.sequence(suite.new(), x_seq).unique()
        assert len(values) <= 2, f"got {len(values)} values, want 0 and one other"


@_check("spikingjelly", "snntorch")
def _samples_are_independent(suite: _Suite) -> None:
    for x_seq in suite.inputs():
        together = suite.sequence(suite.new(), x_seq)
        _assert_equal("spikes of a part of the batch", suite.sequence(suite.new(), x_seq[:, 1:]), together[:, 1:])
        spoiled = x_seq.clone()
        spoiled[:, 0] = torch.nan
        out = suite.sequence(suite.new(), spoiled)
        _assert_equal("spikes beside a sample of NaN", out[:, 1:], together[:, 1:])


@_check("spikingjelly", "snntorch")
def _gradients_of_steps_equal_those_of_the_sequence(suite: _Suite) -> None:
    if not suite.has_modes("s", "m"):
        return
    weight = torch.randn(suite.inputs()[0].shape, generator=torch.Generator().manual_seed(2))
    for x_seq in suite.inputs():
        found = []
        for run in (suite.steps, suite.sequence):
            neuron, x = suite.new(), x_seq.clone().requires_grad_()
            (run(neuron, x) * weight).sum().backward()
            found.append([x.grad] + [p.grad for p in neuron.parameters()])
        for i, (a, b) in enumerate(zip(*found, strict=True)):
            assert (a is None) == (b is None), f"gradient {i}: there in one step mode only"
            if a is not None:
                assert a.isfinite().all(), f"gradient {i}: not finite"
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@_check("spikingjelly", "snntorch")
def _every_parameter_gets_a_gradient(suite: _Suite) -> None:
    neuron = suite.new()
    if not list(neuron.parameters()):
        return
    weight = torch.randn(suite.inputs()[0].shape, generator=torch.Generator().manual_seed(2))
    (suite.sequence(neuron, suite.inputs()[0]) * weight).sum().backward()
    for name, parameter in neuron.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), f"{name}: no finite gradient"
        assert (parameter.grad != 0).any(), f"{name}: the gradient is zero"


@_check("spikingjelly", "snntorch")
def _input_is_not_modified(suite: _Suite) -> None:
    x_seq = suite.inputs()[0]
    before = x_seq.clone()
    suite.sequence(suite.new(), x_seq)
    _assert_equal("input", x_seq, before)


@_check("spikingjelly", "snntorch")
def _reset_starts_afresh(suite: _Suite) -> None:
    x_seq = suite.inputs()[1]
    neuron = suite.new()
    first = suite.sequence(neuron, x_seq)
    suite.reset(neuron)
    _assert_equal("spikes after reset", suite.sequence(neuron, x_seq), first)


@_check("spikingjelly", "snntorch")
def _reset_works_in_nested_copies(suite: _Suite) -> None:
    x_seq = suite.inputs()[1]
    net = copy.deepcopy(nn.Sequential(nn.Sequential(suite.new())))
    inner = next(m for m in net.modules() if not isinstance(m, nn.Sequential))
    first = suite.sequence(inner, x_seq)
    if isinstance(suite, _SpikingJelly):
        suite.reset(net)
    else:
        from .snntorch import reset

        reset(net)
    _assert_equal("spikes after reset", suite.sequence(inner, x_seq), first)


@_check("spikingjelly", "snntorch")
def _changed_batch_starts_afresh(suite: _Suite) -> None:
    x_seq = suite.inputs()[1]
    neuron = suite.new()
    suite.sequence(neuron, x_seq[:2])
    smaller = x_seq[:, 1:]
    _assert_equal("spikes", suite.sequence(neuron, smaller), suite.sequence(suite.new(), smaller))


@_check("spikingjelly", "snntorch")
def _detach_cuts_the_graph(suite: _Suite) -> None:
    neuron = suite.new()
    x = suite.inputs()[0].clone().requires_grad_()
    for part in (x[:2], x[2:]):
        suite.sequence(neuron, part).sum().backward()  # raises on a second backward through the first part
        suite.detach(neuron)


@_check("spikingjelly", "snntorch")
def _memory_layout_does_not_matter(suite: _Suite) -> None:
    for x_seq in suite.inputs():
        want = suite.sequence(suite.new(), x_seq)
        strided = x_seq.transpose(0, -1).contiguous().transpose(0, -1)
        _assert_equal("spikes", suite.sequence(suite.new(), strided), want)


@_check("spikingjelly", "snntorch")
def _double_is_kept(suite: _Suite) -> None:
    out = suite.sequence(suite.new().double(), suite.inputs()[0].double())
    assert out.dtype == torch.float64, f"spikes: got {out.dtype} for float64 input"


@_check("spikingjelly", "snntorch")
def _state_follows_to(suite: _Suite) -> None:
    x_seq = suite.inputs()[1]
    want = suite.sequence(suite.new(), x_seq)
    neuron = suite.new()
    head = suite.sequence(neuron, x_seq[:2])
    neuron.double()  # values of the grid are exact in both
    tail = suite.sequence(neuron, x_seq[2:].double())
    _assert_equal("spikes", torch.cat((head, tail.to(head.dtype))), want)


@_check("spikingjelly", "snntorch")
def _half_precision_is_kept(suite: _Suite) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        x_seq = suite.inputs()[0].to(dtype)
        out = suite.sequence(suite.new().to(dtype), x_seq)
        assert out.dtype == dtype, f"spikes: got {out.dtype} for {dtype} input"
        assert out.isfinite().all(), f"spikes: not finite for {dtype} input"


@_check("spikingjelly", "snntorch")
def _state_is_wider_than_half(suite: _Suite) -> None:
    # A 16-bit potential changes up to a fifth of the spike trains; one of 32 bits none.
    for dtype in (torch.float16, torch.bfloat16):
        x_seq = suite.inputs()[0].to(dtype)
        for run in (suite.steps, suite.sequence) if suite.has_modes("s") else (suite.sequence,):
            want = run(suite.new(), x_seq.float()) != 0  # the value of a scaled spike is rounded
            _assert_equal(f"spikes for {dtype} input", run(suite.new(), x_seq) != 0, want)


@_check("spikingjelly", "snntorch")
def _autocast_trains(suite: _Suite) -> None:
    size = suite.shape[-1]
    layer = nn.Linear(size, size)
    neuron = suite.new()
    with torch.autocast("cpu", torch.bfloat16):
        out = suite.sequence(neuron, layer(suite.inputs()[0]))
        loss = out.float().square().mean()
    loss.backward()
    for name, parameter in [*layer.named_parameters(), *neuron.named_parameters()]:
        assert parameter.grad is not None and parameter.grad.isfinite().all(), (
            f"{name}: no finite gradient under autocast"
        )


@_check("spikingjelly", "snntorch")
def _inference_mode_leaves_no_trace(suite: _Suite) -> None:
    x_seq = suite.inputs()[0]
    neuron = suite.new()
    with torch.inference_mode():
        want = suite.sequence(neuron, x_seq).clone()
    suite.reset(neuron)
    x = x_seq.clone().requires_grad_()
    got = suite.sequence(neuron, x)
    got.sum().backward()
    _assert_equal("spikes", got.detach(), want)


@_check("spikingjelly", "snntorch")
def _deepcopy_and_pickle_keep_everything(suite: _Suite) -> None:
    x_seq = suite.inputs()[0]
    neuron = suite.new()
    want = suite.sequence(neuron, x_seq).detach()
    suite.reset(neuron)
    buffer = io.BytesIO()
    torch.save(neuron, buffer)
    buffer.seek(0)
    twins = copy.deepcopy(neuron), pickle.loads(pickle.dumps(neuron)), torch.load(buffer, weights_only=False)
    for how, twin in zip(("deepcopy", "pickle", "torch.save"), twins, strict=True):
        _assert_equal(f"spikes after {how}", suite.sequence(twin, x_seq).detach(), want)


@_check("spikingjelly", "snntorch")
def _state_dict_round_trip(suite: _Suite) -> None:
    neuron = suite.new()
    with torch.no_grad():
        for parameter in neuron.parameters():
            parameter.mul_(0.875)
    want = suite.sequence(neuron, suite.inputs()[1])
    twin = suite.new()
    twin.load_state_dict(neuron.state_dict(), strict=True)
    _assert_equal("spikes", suite.sequence(twin, suite.inputs()[1]), want)


@_check("spikingjelly", "snntorch")
def _compiles_without_graph_breaks(suite: _Suite) -> None:
    from torch._dynamo.testing import CompileCounter

    x_seq = suite.inputs()[1]
    for mode in ("m", "s"):
        if not suite.has_modes(mode):
            continue
        torch._dynamo.reset()
        counter = CompileCounter()
        try:
            neuron, plain = suite.new(), suite.new()
            compiled = torch.compile(neuron, fullgraph=True, backend=counter)
            if suite.has_modes("m"):
                neuron.step_mode = plain.step_mode = mode
            run = [x_seq] if mode == "m" else list(x_seq[:4])
            got = torch.stack([_spikes(compiled(x)) for x in run])
            _assert_equal("spikes", got, torch.stack([_spikes(plain(x)) for x in run]))
        finally:
            torch._dynamo.reset()
        graphs = counter.frame_count
        assert graphs <= 2, f"{graphs} graphs for {len(run)} steps, want one for the first and one for all others"


# -- checks for SpikingJelly ------------------------------------------------------------------------------------------


@_check("spikingjelly")
def _stored_voltage_changes_nothing(suite: _Suite) -> None:
    if not hasattr(suite.factory(), "store_v_seq"):
        return
    for x_seq in suite.inputs():
        plain, stored, stepped = suite.new(), suite.new(store_v_seq=True), suite.new(store_v_seq=True)
        _assert_equal("spikes", suite.sequence(stored, x_seq), suite.sequence(plain, x_seq))
        _assert_equal("state", suite.state(stored), suite.state(plain))
        _assert_equal("last v_seq", stored.v_seq[-1], plain.v)
        suite.steps(stepped, x_seq)
        _assert_equal("v_seq", stored.v_seq, stepped.v_seq)


@_check("spikingjelly")
def _functional_forward_is_pure(suite: _Suite) -> None:
    from spikingjelly.activation_based import base

    neuron = suite.new(step_mode="m" if suite.has_modes("m") else "s")
    x = suite.inputs()[1] if suite.has_modes("m") else suite.inputs()[1][0]
    memories = list(neuron._memories.values())
    forward = base.to_functional_forward(neuron)
    states = tuple(base.extract_memories(neuron))
    first, after = forward((x,), states)
    second, again = forward((x,), states)
    _assert_equal("outputs of a second call", list(second), list(first))
    _assert_equal("states of a second call", list(again), list(after))
    assert len(after) == len(states), f"states: got {len(after)}, want {len(states)}"
    _assert_equal("memories", list(neuron._memories.values()), memories)
    # States as tensors, after one step: they must not be written to.
    step = x[:1] if suite.has_modes("m") else x
    _, states = forward((step,), states)
    before = [s.clone() if isinstance(s, Tensor) else s for s in states]
    forward((step,), states)
    _assert_equal("states given", list(states), before)


@_check("spikingjelly")
def _memory_optimised_checkpointing(suite: _Suite) -> None:
    from spikingjelly.activation_based import memopt

    if not suite.has_modes("m"):
        return
    x_seq = suite.inputs()[1]
    found = []
    for chunks in (None, 1, 2):
        neuron = suite.new(step_mode="m")
        module = neuron if chunks is None else memopt.checkpoint_module(neuron, chunks=chunks)
        x = x_seq.clone().requires_grad_()
        out = _spikes(module(x))
        out.square().sum().backward()
        found.append((out.detach(), x.grad, [p.grad for p in neuron.parameters()]))
    for out, grad, grads in found[1:]:
        _assert_equal("spikes", out, found[0][0])
        torch.testing.assert_close(grad, found[0][1], rtol=1e-5, atol=1e-6)
        for a, b in zip(grads, found[0][2], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@_check("spikingjelly")
def _unknown_step_mode_is_refused(suite: _Suite) -> None:
    neuron = suite.new()
    try:
        neuron.step_mode = "x"
    except ValueError:
        return
    raise AssertionError("step_mode = 'x' was accepted")


# -- checks for snnTorch ------------------------------------------------------------------------------------------


@_check("snntorch")
def _hidden_state_equals_explicit_mem(suite: _Suite) -> None:
    if not suite.has_explicit_mem():
        return _explicit_mem_is_refused(suite)
    for x_seq in suite.inputs():
        hidden, explicit = suite.new(init_hidden=True, output=True), suite.new(init_hidden=False, output=False)
        mem = explicit.init_leaky() if hasattr(explicit, "init_leaky") else None
        for x in x_seq:
            want = hidden(x)
            spk, mem = explicit(x, mem)
            _assert_equal("spikes", spk, want[0])
            _assert_equal("mem", mem, want[1])


@_check("snntorch")
def _detached_mem_goes_on(suite: _Suite) -> None:
    if not suite.has_explicit_mem():
        return _explicit_mem_is_refused(suite)
    x_seq = suite.inputs()[1]
    want = suite.steps(suite.new(), x_seq)
    neuron = suite.new(init_hidden=False, output=False)
    mem, spikes = None, []
    for x in x_seq.clone().requires_grad_():
        spk, mem = neuron(x, mem)
        mem = mem.detach()
        spikes.append(spk.detach())
    _assert_equal("spikes", torch.stack(spikes), want.detach())


def _explicit_mem_is_refused(suite: _Suite) -> None:
    try:
        suite.new(init_hidden=False)(suite.inputs()[0][0], None)
    except ValueError:
        return
    raise AssertionError("init_hidden=False was accepted by a neuron with explicit_mem = False")


@_check("snntorch")
def _trainers_run(suite: _Suite) -> None:
    import warnings

    from snntorch import functional as SF

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from snntorch import backprop
    steps = suite.time_steps
    for trainer, settings in ((backprop.BPTT, {}), (backprop.TBPTT, {"K": 2}), (backprop.RTRL, {})):
        hidden, last = suite.new(init_hidden=True, output=False), suite.new(init_hidden=True, output=True)
        net = nn.Sequential(nn.Linear(6, 5), hidden, nn.Linear(5, 3), last)
        data = [(torch.rand(4, 6), torch.randint(3, (4,))) for _ in range(2)]
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        loss = trainer(net, data, optimizer, SF.ce_count_loss(), num_steps=steps, time_var=False, **settings)
        assert torch.as_tensor(loss).isfinite(), f"{trainer.__name__}: the loss is {loss}"


@_check("snntorch")
def _spikes_suit_losses_and_accuracies(suite: _Suite) -> None:
    from snntorch import functional as SF

    x_seq = suite.inputs()[0]
    x_seq = x_seq.reshape(x_seq.shape[0], -1, suite.shape[-1])
    spk = suite.steps(suite.new(), x_seq)
    targets = torch.zeros(x_seq.shape[1], dtype=torch.long)
    for criterion in (SF.ce_rate_loss(), SF.ce_count_loss(), SF.mse_count_loss(correct_rate=0.8, incorrect_rate=0.2)):
        assert criterion(spk, targets).isfinite(), f"{criterion.__name__}: not finite"
    accuracy = float(SF.accuracy_rate(spk, targets))
    assert 0.0 <= accuracy <= 1.0, f"accuracy_rate: {accuracy}"
