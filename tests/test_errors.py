"""Every wrong argument of every constructor and function raises: its name, what came, what is wanted."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from snn_ext import functional as F
from snn_ext.snntorch import ASN, PCMPIF, ATIFnu, ATIFu
from snn_ext.spikingjelly import ASNNode, ATIFnuNode, ATIFuNode, PCMPIFNode

X = torch.rand(4, 3)
ONE = torch.ones(1)

# name of the argument -> values that are wrong for it
NOT_BOOL = [1, 0, "yes", None]
NOT_THRESHOLD = [0, 0.0, -1.0, math.nan, math.inf, True, "1", None, torch.tensor([]), torch.tensor([math.nan])]
NOT_COUNT = [0, -1, 2.0, True, "4", None]
NOT_START = [math.nan, math.inf, True, "0", None, torch.ones(2, 2), torch.tensor([1]), torch.tensor([math.nan])]

ALL_CLASSES: dict[str, list[Any]] = {
    "scale_output": NOT_BOOL,
    "fire_at_threshold": NOT_BOOL,
    "step_mode": ["x", None, 1],
    "backend": ["cupy", "torch", False],
}
OF_SPIKINGJELLY: dict[str, list[Any]] = {
    **ALL_CLASSES,
    "v_threshold": NOT_THRESHOLD,
    "v_reset": [0.5, -1.0, math.nan, True, "0"],
    "surrogate": [3, "sigmoid"],
    "detach_reset": NOT_BOOL,
    "store_v_seq": NOT_BOOL,
}
OF_SNNTORCH: dict[str, list[Any]] = {
    **ALL_CLASSES,
    "threshold": NOT_THRESHOLD,
    "reset_mechanism": ["hard", None, 0],
    "surrogate": [3, "atan"],
    "surrogate_disable": NOT_BOOL,
    "init_hidden": NOT_BOOL,
    "output": NOT_BOOL,
    "learn_threshold": NOT_BOOL,
    "beta": [1.5, -0.1, None],
}
GRAD_SCALE = {"grad_scale": [0, -1.0, "l2", True, math.nan]}
V_INIT = {"v_init": NOT_START}
PRECHARGE = {"precharge": [*NOT_START, -0.1, 1.1, torch.tensor([0.5, 1.5])]}
POINTS = torch.tensor([1.0, 0.75, 0.5, 0.25])
STEPS: dict[str, list[Any]] = {"T": NOT_COUNT, "recursion": ["max", None, 0]}
NOT_POINTS = [POINTS[:3], POINTS.flip(0), POINTS.reshape(2, 2), -POINTS, POINTS - 0.25, POINTS * math.nan]

CLASSES: list[tuple[type, dict[str, Any], dict[str, list[Any]]]] = [
    (ATIFuNode, {}, OF_SPIKINGJELLY | GRAD_SCALE | V_INIT),
    (PCMPIFNode, {}, OF_SPIKINGJELLY | PRECHARGE),
    (
        ATIFnuNode,
        {"T": 4},
        OF_SPIKINGJELLY | GRAD_SCALE | V_INIT | STEPS
        | {"v_reset": [0.0, 0.5, True], "v_threshold": NOT_THRESHOLD + NOT_POINTS},
    ),
    (ATIFu, {}, OF_SNNTORCH | GRAD_SCALE | V_INIT),
    (PCMPIF, {}, OF_SNNTORCH | GRAD_SCALE | PRECHARGE),
    (
        ATIFnu,
        {"T": 4},
        OF_SNNTORCH | GRAD_SCALE | V_INIT | STEPS
        | {"reset_mechanism": ["zero", "none", "hard"], "threshold": NOT_THRESHOLD + NOT_POINTS},
    ),
]  # fmt: skip


def constructor_cases() -> list[Any]:
    cases = []
    for cls, settings, wrong in CLASSES:
        for name, values in wrong.items():
            keyword = name
            if name == "surrogate":
                keyword = "surrogate_function" if cls.__module__.startswith("snn_ext.spikingjelly") else "spike_grad"
            for i, value in enumerate(values):
                cases.append(pytest.param(cls, settings | {keyword: value}, name, id=f"{cls.__name__}-{name}-{i}"))
    return cases


@pytest.mark.parametrize(("cls", "arguments", "name"), constructor_cases())
def test_wrong_constructor_argument_is_named(cls: Any, arguments: dict[str, Any], name: str) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        cls(**arguments)
    message = str(caught.value)
    assert message.startswith(f"{name}: got ") and ", want " in message


@pytest.mark.parametrize("cls", [ATIFnuNode, ATIFnu])
def test_number_of_steps_has_no_default(cls: Any) -> None:
    with pytest.raises(TypeError, match="T: got None, want"):
        cls(1.0)


def integrate_and_fire(**changed: Any) -> Callable[[], Any]:
    arguments: dict[str, Any] = {"x_seq": X, "v": 0.0, "thresholds": ONE} | changed
    return lambda: F.integrate_and_fire(**arguments)


def each(name: str, function: Callable[[Any], Any], *values: Any) -> list[Any]:
    return [pytest.param(lambda value=value: function(value), name, id=f"{name}-{i}") for i, value in enumerate(values)]


FUNCTIONS = [
    *each(
        "x_seq", lambda x: integrate_and_fire(x_seq=x)(), [1.0], None, X.long(), torch.tensor(1.0), torch.zeros(0, 3)
    ),
    *each("v", lambda v: integrate_and_fire(v=v)(), "0", None, True, torch.zeros(2), torch.zeros(1, 3, 1)),
    *each("v", lambda v: integrate_and_fire(v=v)(), torch.zeros(3).long(), torch.zeros(3, device="meta")),
    *each(
        "thresholds", lambda t: integrate_and_fire(thresholds=t)(), 1.0, None, torch.ones(()), torch.ones(3), ONE.long()
    ),
    *each("thresholds", lambda t: integrate_and_fire(thresholds=t)(), torch.ones(1, 2), torch.ones(0)),
    *each("surrogate", lambda s: integrate_and_fire(surrogate=s)(), 4.0, "sigmoid"),
    *each("detach_reset", lambda b: integrate_and_fire(detach_reset=b)(), *NOT_BOOL),
    *each("reset", lambda r: integrate_and_fire(reset=r)(), "hard", None, 0.0),
    *each("fire_at_threshold", lambda b: integrate_and_fire(fire_at_threshold=b)(), *NOT_BOOL),
    *each("scale", lambda s: integrate_and_fire(scale=s)(), "1", True, torch.ones(2)),
    *each("alpha", lambda a: F.Sigmoid(a), *NOT_THRESHOLD[:8]),
    *each("gain", lambda g: F.ATan(2.0, gain=g), 0, -1.0, math.nan, None),
    *each("surrogate", lambda _: F.Surrogate(1.0), None),
    *each("surrogate", F.as_surrogate, 3, "atan"),
    *each("p", F.nonuniform_thresholds, None, [1.0], torch.ones(2, 2), torch.ones(0), torch.ones(3).long(), ONE[0]),
    *each("recursion", lambda r: F.nonuniform_thresholds(POINTS, r), "max", None),
    *each("x", lambda x: F.staircase(x, 1.0, 4), 0.5, None, X.long()),
    *each("threshold", lambda t: F.staircase(X, t, 4), 0.0, -1.0, math.nan, "1", None, True),
    *each("time_steps", lambda n: F.staircase(X, 1.0, n), *NOT_COUNT),
    *each("v", lambda v: F.staircase(X, 1.0, 4, v=v), "0", None, math.nan),
    *each("fire_at_threshold", lambda b: F.staircase(X, 1.0, 4, fire_at_threshold=b), *NOT_BOOL),
    *each("x", lambda x: F.nonuniform_staircase(x, POINTS), 0.5, X.long()),
    *each("p", lambda p: F.nonuniform_staircase(X, p), 0.5, torch.ones(2, 2)),
    *each("count", lambda c: F.decode(c, 1.0, 4), "3", 3),
    *each("scale", lambda s: F.decode(X, s, 4), "1", None, 0.0),
    *each("time_steps", lambda n: F.decode(X, 1.0, n), *NOT_COUNT),
    *each("threshold", lambda t: F.uniform_points(t, 4), 0.0, -1.0, "1", torch.ones(2)),
    *each("time_steps", lambda n: F.uniform_points(1.0, n), *NOT_COUNT),
    *each("x, x_hat", lambda x: F.sqnr(X, x), 1.0, X[:2], X.long()),
    *each("x, x_hat", lambda x: F.sqnr(x, x), torch.zeros(0)),
    *each("x", lambda x: F.best_threshold(x, 4), None, X.long(), -X, torch.zeros(0)),
    *each("v_init", lambda v: F.best_threshold(X, 4, v_init=v), "0", math.nan, None),
    *each("time_steps", lambda n: F.best_threshold(X, n), *NOT_COUNT),
    *each("x", lambda x: F.best_points(x, 4), None, X.long(), -X),
    *each("time_steps", lambda n: F.best_points(X, n), *NOT_COUNT),
    *each("T", lambda n: ATIFnuNode(T=4).at(n), *NOT_COUNT),
    *each("T", lambda n: ATIFnu(T=4).at(n), *NOT_COUNT),
    *each("x", lambda x: ATIFuNode()(x), [1.0], None),
    *each("x_seq", lambda x: ATIFuNode(step_mode="m")(x), torch.tensor(1.0), torch.zeros(0, 3)),
    *each("input_", lambda x: ATIFu(init_hidden=True)(x), [1.0], None),
    *each("input_", lambda x: ATIFu(init_hidden=True, step_mode="m")(x), torch.tensor(1.0), torch.zeros(0, 3)),
    *each("x", lambda x: ATIFuNode()(x), X.long()),
    *each("x", lambda x: ATIFuNode(step_mode="m")(x), X.long()),
    *each("input_", lambda x: ATIFu(init_hidden=True)(x), X.long()),
    *each("grad_scale", lambda x: ATIFuNode(grad_scale="lsq")(x), X),
    *each("v_init", lambda x: ATIFuNode(v_init=torch.ones(2))(x), X, X[0]),
]


@pytest.mark.parametrize(("call", "name"), FUNCTIONS)
def test_wrong_function_argument_is_named(call: Callable[[], Any], name: str) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        call()
    message = str(caught.value)
    assert message.startswith(f"{name}: got ") and ", want " in message


def test_a_tensor_is_described_by_shape_and_dtype_not_by_its_values() -> None:
    wanted = r"shape \[1\] or \[T\] = \[4\], or one that broadcasts to \[1, 3\]"
    said = rf"^thresholds: got a torch.float32 tensor of shape \[3\], want {wanted}$"
    with pytest.raises(ValueError, match=said):
        F.integrate_and_fire(X, 0.0, torch.ones(3))
    with pytest.raises(TypeError) as caught:
        F.integrate_and_fire(X, "0" * 1000, ONE)  # type: ignore[arg-type]
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("held", [0.5, 1e-5])  # torch prints wide numbers in more lines
def test_a_message_is_one_line_whatever_the_values_are(held: float) -> None:
    with pytest.raises(TypeError) as caught:
        F.integrate_and_fire([torch.full((8, 8), held)], 0.0, ONE)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("neuron", [ATIFuNode(), ATIFu(init_hidden=True)], ids=["spikingjelly", "snntorch"])
def test_an_input_of_integers_is_told_with_the_shape_that_came(neuron: Any) -> None:
    with pytest.raises(TypeError, match=r"got a torch.int64 tensor of shape \[4, 3\], want a floating tensor"):
        neuron(X.long())


FOREIGN = [
    *((cls, "threshold", "v_threshold") for cls in (ATIFuNode, PCMPIFNode, ATIFnuNode, ASNNode)),
    *((cls, "v_threshold", "threshold") for cls in (ATIFu, PCMPIF, ATIFnu, ASN)),
    (ATIFuNode, "spike_grad", "surrogate_function"), (ATIFu, "surrogate_function", "spike_grad"),
    (ATIFuNode, "beta", "tau"), (PCMPIFNode, "learn_beta", "learn_tau"), (ATIFu, "tau", "beta"),
    (ATIFnu, "v_reset", "reset_mechanism"),
]  # fmt: skip


@pytest.mark.parametrize(("cls", "given", "here"), FOREIGN)
def test_an_argument_of_the_other_host_is_told_with_its_name_here(cls: Any, given: str, here: str) -> None:
    with pytest.raises(TypeError, match=rf"^{given}: got it as an argument of {cls.__name__}, want {here}"):
        cls(**{given: 0.5})
    assert here in inspect.signature(cls).parameters and given not in inspect.signature(cls).parameters


def test_a_subclass_may_take_an_argument_of_the_other_host() -> None:
    class Mine(ATIFuNode):
        def __init__(self, threshold: float) -> None:
            super().__init__(threshold)

    class Anything(ATIFuNode):
        def __init__(self, **options: Any) -> None:
            super().__init__(options["threshold"])

    assert Mine(threshold=0.5).v_threshold.item() == Anything(threshold=0.5).v_threshold.item() == 0.5


@pytest.mark.parametrize("neuron", [ATIFuNode(), PCMPIF()])
def test_a_backend_that_would_do_nothing_is_refused_as_an_attribute_too(neuron: Any) -> None:
    with pytest.raises(ValueError, match="backend: got 'cupy', want no such argument; .*ask snn_ext.ops"):
        neuron.backend = "cupy"


def test_the_repr_tells_what_is_trained_and_by_which_surrogate() -> None:
    assert "threshold=0.5 (trained), " in repr(ATIFu(0.5)) and "spike_grad=ATan(alpha=2.0" in repr(ATIFu(0.5))
    assert "threshold=1, " in repr(PCMPIF()) and "(trained)" not in repr(ATIFu(learn_threshold=False))
    assert "v_threshold=1 (trained), " in repr(ATIFuNode()) and "Sigmoid(alpha=4.0" in repr(ATIFuNode())
    assert "surrogate_function=ATan(alpha=3.0" in repr(ATIFuNode(surrogate_function=F.ATan(3.0)))
