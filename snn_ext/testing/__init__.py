"""The conformance suite for spiking neurons: :func:`check_neuron`, for ours, the hosts' and anybody's.

The checks are in ``both.py``, ``spikingjelly.py`` and ``snntorch.py``; the decorator ``check`` of ``suite.py``
registers a new one.
"""

from __future__ import annotations

from torch import nn

from .._errors import bad_value, check_choice, check_count
from ..hosts import Host
from . import both, snntorch, spikingjelly  # noqa: F401  (they register their checks)
from .suite import CHECKS, Factory, SnnTorchSuite, SpikingJellySuite, grid_input

__all__ = ["check_neuron", "grid_input"]


def check_neuron(
    factory: Factory,
    host: Host = "spikingjelly",
    *,
    time_steps: int = 4,
    shape: tuple[int, ...] = (3, 4, 5, 5),
    skip: tuple[str, ...] = (),
) -> list[str]:
    """Check a neuron against all that its host and its users expect of one.

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
    check_choice("host", host, tuple(CHECKS))
    if check_count("time_steps", time_steps) < 4:
        bad_value("time_steps", time_steps, "an int >= 4")
    if len(shape) < 1 or shape[0] < 2:
        bad_value("shape", shape, "one step of input [N, ...] with N >= 2")
    if isinstance(factory, nn.Module) or not callable(factory) or not isinstance(factory(), nn.Module):
        bad_value("factory", type(factory).__name__, "a callable without arguments that returns a fresh nn.Module")
    if not isinstance(skip, tuple):
        bad_value("skip", skip, "a tuple of names")
    checks = CHECKS[host]
    unknown = set(skip) - set(checks)
    if unknown:
        bad_value("skip", sorted(unknown), "names out of " + ", ".join(checks))
    suite = {"spikingjelly": SpikingJellySuite, "snntorch": SnnTorchSuite}[host](factory, time_steps, tuple(shape))
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
