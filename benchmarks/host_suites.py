"""Run the hosts' own tests with our neurons instead of theirs, and explain every difference.

``python -m benchmarks.host_suites --spikingjelly CHECKOUT --snntorch CHECKOUT``

The tests come from a checkout of the host, the host itself is the installed one. Each file that names the host's
neuron (``IFNode``, ``snn.Leaky``) runs twice: as it is, and with our neuron under that name. A test that ends
differently needs an explanation in ``EXPLANATIONS``; one without makes the exit status 1.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from recipes.lib.command import command, run_main
from recipes.lib.ranges import new_file, number

ROOT = Path(__file__).resolve().parents[1]
PLACE, REPORT = "SNN_EXT_IN_THE_PLACE", "SNN_EXT_REPORT"

EXPLANATIONS: dict[str, str] = {
    r"Lemaire formulas do not support": "The host knows formulas for its own classes, and names all others.",
    r"TestLeaky::test_leaky ": "The test states the arithmetic of a leak of 0.5; our neurons have none.",
    r"learn_graded_spikes_factor: got True": "Refused by name: spikes are binary, or scaled by scale_output.",
}
"""From a regular expression, which matches a test and then the message that it fails with, to why it does."""


@dataclass(frozen=True)
class Host:
    """The tests of a host, the name of its neuron there, and our neurons that may stand for it."""

    tests: str
    names: str
    neurons: tuple[str, ...]


HOSTS = {
    "spikingjelly": Host("test/activation_based", r"(?<![A-Za-z])IFNode\b", ("PCMPIFNode", "ATIFuNode")),
    "snntorch": Host("tests", r"\bsnn\.Leaky\(", ("PCMPIF", "ATIFu")),
}


@dataclass(frozen=True)
class Difference:
    """A test that ends differently with our neuron."""

    test: str
    host: str
    ours: str
    message: str

    @property
    def explanation(self) -> str | None:
        told = f"{self.test} {self.message}"
        return next((why for pattern, why in EXPLANATIONS.items() if re.search(pattern, told, re.DOTALL)), None)


def differences(host: dict[str, list[str]], ours: dict[str, list[str]]) -> list[Difference]:
    """Compare two runs, ``{test: [outcome, message]}``; a test that is in one of them only differs, too."""
    absent = ["absent", ""]
    pairs = {test: (host.get(test, absent), ours.get(test, absent)) for test in sorted(host.keys() | ours.keys())}
    return [Difference(t, was[0], now[0], now[1]) for t, (was, now) in pairs.items() if was[0] != now[0]]


def run(checkout: Path, host: Host, neuron: str, timeout: float, only: Sequence[str] = ()) -> dict[str, Any]:
    """Run the host's tests that name its neuron, with ours in its place or, for an empty name, with its own."""
    files = [
        path
        for path in sorted((checkout / host.tests).rglob("test_*.py"))
        if re.search(host.names, path.read_text(encoding="utf-8"))
    ]
    files = [path for path in files if not only or path.name in only]
    if not files:
        raise SystemExit(f"{checkout / host.tests}: has no tests that name the neuron, want a checkout of the host")
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        environment = {
            **os.environ,
            PLACE: neuron,
            REPORT: str(report),
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
        }
        command = [
            sys.executable, "-W", "ignore", "-m", "pytest", "-q", "-p", "benchmarks.host_suites",
            "-p", "no:cacheprovider", "--continue-on-collection-errors", "-c", os.devnull, "--rootdir", str(checkout),
            "--timeout", str(timeout), *map(str, files),
        ]  # fmt: skip
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        if not report.exists():
            raise RuntimeError(f"pytest ended with {done.returncode}: {(done.stdout + done.stderr)[-3000:]}")
        return json.loads(report.read_text(encoding="utf-8"))


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; returns 1 if a difference has no explanation."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.host_suites", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in HOSTS:
        parser.add_argument(f"--{name}", type=Path, metavar="CHECKOUT", help="leave out to leave the host out")
    parser.add_argument("--only", nargs="+", default=[], metavar="FILE", help="only test files of these names")
    parser.add_argument("--timeout", type=number(above=0.0), default=300.0, help="seconds for a test (default: 300)")
    parser.add_argument("--out", type=new_file, default=ROOT / "runs" / "host_suites.json")
    options = parser.parse_args(arguments)
    chosen = {name: getattr(options, name) for name in HOSTS if getattr(options, name) is not None}
    if not chosen:
        parser.error("got no checkout, want --spikingjelly, --snntorch or both")

    found, unexplained = [], 0
    lines = [
        "| host | our neuron | tests | use it | passed | failed | skipped | differences |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for name, checkout in chosen.items():
        was = run(checkout, HOSTS[name], "", options.timeout, options.only)
        for neuron in ("", *HOSTS[name].neurons):
            now = run(checkout, HOSTS[name], neuron, options.timeout, options.only) if neuron else was
            counts = Counter(outcome for outcome, _ in now["tests"].values())
            other = differences(was["tests"], now["tests"])
            found += [{**vars(one), "neuron": neuron, "explanation": one.explanation} for one in other]
            cells = [name, neuron or "(the host's own)", len(now["tests"]), now["used"] if neuron else "-"]
            cells += [counts[outcome] for outcome in ("passed", "failed", "skipped")] + [len(other)]
            lines.append(f"| {' | '.join(map(str, cells))} |")
    print("\n".join(lines))
    for one in found:
        unexplained += one["explanation"] is None
        why = one["explanation"] or f"NO EXPLANATION: {one['message'][:400]}"
        print(f"\n{one['neuron']}: {one['test']}: {one['host']} -> {one['ours']}\n    {why}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"table": lines, "differences": found}, indent=1) + "\n", encoding="utf-8")
    print(f"\n{len(found)} differences, {unexplained} without an explanation; written: {options.out}")
    return int(unexplained > 0)


# -- the plugin of pytest that puts our neuron instead of the host's ---------------------------------------------

if REPORT in os.environ:  # before the checkout is on the path, which holds a copy of the host
    import snntorch
    import spikingjelly.activation_based.neuron


class _Plugin:
    """Collects how each test ends, and which of them build our neuron."""

    def __init__(self) -> None:
        self.tests: dict[str, list[str]] = {}
        self.using: set[str] = set()
        self.current = ""
        self.seen: ModuleType | None = None

    def built(self) -> None:
        self.using.add(self.current)

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        for tests in {item.module for item in items} if self.seen else ():
            for name, value in list(vars(tests).items()):
                if getattr(value, "__name__", None) == "snntorch":
                    setattr(tests, name, self.seen)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.current = nodeid

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or report.outcome != "passed":
            crash = getattr(report.longrepr, "reprcrash", None)
            self.tests[report.nodeid] = [report.outcome, "" if crash is None else crash.message[:2000]]

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.tests[report.nodeid] = ["failed", str(report.longrepr)[-2000:]]

    def pytest_sessionfinish(self) -> None:
        Path(os.environ[REPORT]).write_text(
            json.dumps({"tests": self.tests, "used": len(self.using)}), encoding="utf-8"
        )


def pytest_configure(config: Any) -> None:
    """Called by pytest in the process that runs the host's tests."""
    if REPORT not in os.environ:
        return
    plugin = _Plugin()
    config.pluginmanager.register(plugin)
    neuron = os.environ[PLACE]
    if neuron in HOSTS["spikingjelly"].neurons:
        spikingjelly.activation_based.neuron.IFNode = _as_if_node(neuron, plugin)
    elif neuron in HOSTS["snntorch"].neurons:
        plugin.seen = ModuleType("snntorch")  # ours are built on snn.Leaky: only the tests see another one
        plugin.seen.__dict__.update(vars(snntorch), Leaky=_as_leaky(neuron, plugin))


def _as_if_node(name: str, plugin: _Plugin) -> type:
    """Return our node with the arguments and the defaults of SpikingJelly's ``IFNode``."""
    from spikingjelly.activation_based import surrogate

    import snn_ext.spikingjelly

    ours = getattr(snn_ext.spikingjelly, name)
    more = {"precharge": 0.0} if name == "PCMPIFNode" else {}

    class IFNode(ours):  # type: ignore[misc, valid-type]
        def __init__(
            self, v_threshold: float = 1.0, v_reset: float | None = 0.0, surrogate_function: Any = None,
            detach_reset: bool = False, step_mode: str = "s", store_v_seq: bool = False,
        ) -> None:  # fmt: skip
            plugin.built()
            curve = surrogate.Sigmoid() if surrogate_function is None else surrogate_function
            super().__init__(v_threshold, v_reset, curve, detach_reset, step_mode, store_v_seq, **more)

    IFNode.__qualname__ = "IFNode"
    return IFNode


def _as_leaky(name: str, plugin: _Plugin) -> type:
    """Return our neuron with the arguments of ``snn.Leaky``; a leak, which it does not have, is left out."""
    import snn_ext.snntorch

    ours = getattr(snn_ext.snntorch, name)
    more = {"precharge": 0.0} if name == "PCMPIF" else {}

    class Leaky(ours):  # type: ignore[misc, valid-type]
        def __init__(self, beta: Any, threshold: Any = 1.0, **options: Any) -> None:
            plugin.built()
            super().__init__(threshold, **more, **options)

    Leaky.__qualname__ = "Leaky"
    return Leaky


if __name__ == "__main__":
    run_main(main)
