"""Change the package in one place at a time, and see whether a test notices: ``python -m benchmarks.mutation``.

A first pass notes which functions each test calls. A mutant is then run against the tests that call its function, in
a fork of a process that has imported torch, pytest and the hosts, but nothing of the package. Whatever is found is kept
on disk: the same call goes on where it was interrupted, and a larger ``--sample`` of the same seed adds to a smaller
one.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import hashlib
import importlib.abc
import importlib.util
import io
import json
import os
import random
import resource
import signal
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from recipes.lib.command import command, run_main
from recipes.lib.ranges import SEED, integer, new_folder, number

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "snn_ext"
TESTS = {
    "functional": ("functional", "ops", "neurons/test_aan.py", "test_errors.py"),
    "ops": ("ops", "functional", "neurons/test_aan.py"),
    "simulation": ("simulation", "evaluation", "conversion"),
    "conversion": ("conversion", "evaluation"),
    "evaluation": ("evaluation", "simulation", "conversion"),
}
"""Folders of the package, and the tests that stand for each: the mirrored ones, and those that rest on it."""
MEMORY = 16 << 30
"""Bytes of address space that a mutant may take."""

SWAPS: dict[type, tuple[str, ...]] = {
    ast.Lt: ("<=", ">"), ast.LtE: ("<", ">="), ast.Gt: (">=", "<"), ast.GtE: (">", "<="), ast.Eq: ("!=",),
    ast.NotEq: ("==",), ast.Is: ("is not",), ast.IsNot: ("is",), ast.In: ("not in",), ast.NotIn: ("in",),
    ast.Add: ("-",), ast.Sub: ("+",), ast.Mult: ("/",), ast.Div: ("*",), ast.FloorDiv: ("*",), ast.Mod: ("*",),
    ast.Pow: ("*",), ast.And: ("or",), ast.Or: ("and",),
}  # fmt: skip
CLAMPS = {"clamp": "", "clamp_": "", "clip": "", "minimum": "maximum", "maximum": "minimum", "min": "max", "max": "min",
          "amin": "amax", "amax": "amin", "floor": "ceil", "ceil": "floor"}  # fmt: skip
"""Functions that bound: their name is exchanged for its opposite, or their bounds are left out."""


@dataclass(frozen=True)
class Mutant:
    """One change of the source text of a file: ``text[start:end]`` becomes ``new``."""

    path: str
    line: int
    function: str
    kind: str
    start: int
    end: int
    new: str

    def apply(self, text: str) -> str:
        return text[: self.start] + self.new + text[self.end :]

    @property
    def key(self) -> str:
        return hashlib.sha256(f"{self.path} {self.kind} {self.start} {self.end} {self.new}".encode()).hexdigest()[:12]


def mutants(path: Path, root: Path | None = None) -> list[Mutant]:
    """Return all mutants of a file, in the order of its text."""
    text = path.read_text(encoding="utf-8")
    lines = [0]
    for line in text.splitlines(keepends=True):
        lines.append(lines[-1] + len(line))
    rows = text.splitlines(keepends=True)

    def place(row: int, column: int) -> int:  # the columns of ast count bytes
        return lines[row - 1] + len(rows[row - 1].encode()[:column].decode())

    def span(node: Any) -> tuple[int, int]:
        return place(node.lineno, node.col_offset), place(node.end_lineno, node.end_col_offset)

    found: list[Mutant] = []

    def add(node: Any, function: str, kind: str, start: int, end: int, new: str) -> None:
        found.append(Mutant(str(path.relative_to(root or ROOT)), node.lineno, function, kind, start, end, new))

    def visit(node: ast.AST, function: str) -> None:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            function = f"{node.name}:{min([node.lineno, *(d.lineno for d in node.decorator_list)])}"
        for start, end, new, kind in _changes(node, text, span):
            add(node, function, kind, start, end, new)
        for child in _inner(node):
            visit(child, function)

    visit(ast.parse(text), "")
    return sorted(found, key=lambda m: (m.start, m.end, m.new))


def _inner(node: ast.AST) -> Iterator[ast.AST]:
    """Return the children that do something when the program runs: no annotations, no docstrings, no ``__all__``."""
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "type_comment"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or _is_text(child):
                continue
            if isinstance(child, ast.Assign) and "__all__" in ast.unparse(child.targets[0]):
                continue
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            yield child


def _is_text(node: ast.AST) -> bool:
    """Return whether a statement is a docstring."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _changes(node: Any, text: str, span: Any) -> Iterator[tuple[int, int, str, str]]:
    """Yield the changes of one node: start, end, new text, kind."""
    if isinstance(node, ast.Compare):
        sides = [node.left, *node.comparators]
        for operator, left, right in zip(node.ops, sides, sides[1:], strict=False):
            yield from _swap(operator, span(left)[1], span(right)[0], text, "comparison")
    elif isinstance(node, ast.BinOp):
        yield from _swap(node.op, span(node.left)[1], span(node.right)[0], text, "arithmetic")
    elif isinstance(node, ast.BoolOp):
        for left, right in zip(node.values, node.values[1:], strict=False):
            yield from _swap(node.op, span(left)[1], span(right)[0], text, "boolean")
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
        start, end = span(node)
        yield start, end, f"({ast.get_source_segment(text, node.operand)})", "sign or not"
    elif isinstance(node, ast.Constant) and not isinstance(node.value, str | bytes | type(None) | type(...)):
        start, end = span(node)
        if isinstance(node.value, bool):
            yield start, end, str(not node.value), "boolean"
        elif not isinstance(node.value, complex):
            yield start, end, repr(node.value + 1), "constant"
            yield start, end, f"({node.value - 1!r})" if node.value < 1 else repr(node.value - 1), "constant"
    elif isinstance(node, ast.If | ast.While | ast.IfExp):
        start, end = span(node.test)
        yield start, end, f"(not ({text[start:end]}))", "condition"
    elif isinstance(node, ast.Return) and node.value is not None:
        start, end = span(node.value)
        yield start, end, "None", "return"
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name):
        yield from _clamp(node, text, span)
    if isinstance(node, ast.Expr | ast.Raise | ast.AugAssign) and not _is_text(node):
        yield *span(node), "pass", "statement removed"
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute | ast.Subscript):
        yield *span(node), "pass", "statement removed"


def _swap(operator: ast.AST, start: int, end: int, text: str, kind: str) -> Iterator[tuple[int, int, str, str]]:
    for new in SWAPS.get(type(operator), ()):
        between = text[start:end]
        old = between.strip(" ()\\\n\t")
        if "#" not in between and old:
            yield start, end, between.replace(old, new, 1), kind


def _clamp(node: ast.Call, text: str, span: Any) -> Iterator[tuple[int, int, str, str]]:
    name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id  # type: ignore[attr-defined]
    if name not in CLAMPS:
        return
    if CLAMPS[name]:
        end = span(node.func)[1]
        yield end - len(name), end, CLAMPS[name], "bound"
        return
    of_torch = (
        isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name) and node.func.value.id == "torch"
    )
    bounds = dict(zip(("min", "max"), node.args[of_torch:], strict=False)) | {k.arg: k.value for k in node.keywords}
    for side, argument in bounds.items():
        if side in ("min", "max"):
            yield *span(argument), "float('-inf')" if side == "min" else "float('inf')", "bound"


# -- running them ------------------------------------------------------------------------------------------------------


class _Source(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports a module from a text instead of its file."""

    def __init__(self, name: str, path: Path, text: str) -> None:
        self.name, self.path, self.text = name, path, text

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        if fullname != self.name:
            return None
        is_package = self.path.name == "__init__.py"
        places = [str(self.path.parent)] if is_package else None
        return importlib.util.spec_from_file_location(
            fullname, self.path, loader=self, submodule_search_locations=places
        )

    def exec_module(self, module: Any) -> None:
        exec(compile(self.text, str(self.path), "exec"), module.__dict__)


class _Tests:
    """A plugin of pytest: which functions of the package each test calls, how long it takes, and which one fails."""

    def __init__(self, watch: str | None = None) -> None:
        self.watch, self.calls, self.seconds, self.failed = watch, defaultdict(set), {}, []
        self.current: set[str] = set()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.current = self.calls[nodeid]
        self.began = time.perf_counter()
        if self.watch:
            sys.settrace(self._called)
            threading.settrace(self._called)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        sys.settrace(None)
        threading.settrace(None)  # type: ignore[arg-type]
        self.seconds[nodeid] = time.perf_counter() - self.began

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.failed.append(report.nodeid)

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.failed.append(report.nodeid or "collection")

    def _called(self, frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if self.watch and code.co_filename.startswith(self.watch):
            path = os.path.relpath(code.co_filename, ROOT)
            self.current.add(f"{path}:{code.co_name}:{code.co_firstlineno}")


def in_fork(work: Any, seconds: float) -> Any:
    """Return what ``work`` returns in a fork, as JSON; "timeout" if it takes longer, "crash" if it dies."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.setsid()
        os.close(reading)
        status = 1
        try:
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
                os.dup2(nowhere.fileno(), 1), os.dup2(nowhere.fileno(), 2)
                found = json.dumps(work()).encode()
            with os.fdopen(writing, "wb") as file:
                file.write(found)
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    killed: list[bool] = []

    def kill() -> None:
        killed.append(True)
        os.killpg(child, signal.SIGKILL)

    timer = threading.Timer(seconds, kill)
    timer.start()
    with os.fdopen(reading, "rb") as file:
        content = file.read()
    os.waitpid(child, 0)
    timer.cancel()
    timer.join()
    return "timeout" if killed else json.loads(content) if content else "crash"


def run_tests(tests: Sequence[str], *, watch: str | None = None, stop: bool = True) -> _Tests:
    """Run tests in this process, which is a fork, in one thread."""
    import pytest
    import torch

    torch.set_num_threads(1)
    os.chdir(ROOT)
    plugin = _Tests(watch)
    options = ["-q", "-p", "no:cacheprovider", "-o", "addopts=--import-mode=importlib", "--rootdir", str(ROOT)]
    sys.stdout, sys.stderr = io.StringIO(), io.StringIO()
    status = pytest.main([*options, *(["-x"] if stop else []), *tests], plugins=[plugin])
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):  # names of tests may follow from the package
        plugin.failed.append(f"pytest: {pytest.ExitCode(status).name}")
    return plugin


def calls_of_tests(files: Iterable[Path], kept: Path) -> dict[str, dict[str, Any]]:
    """Return for each test what it calls and how long it takes; what is known of a file that is as it was is kept."""
    known = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    state = hashlib.sha256(b"".join(path.read_bytes() for path in sorted((ROOT / PACKAGE).rglob("*.py")))).hexdigest()
    tests: dict[str, dict[str, Any]] = {}
    for file in files:
        name = str(file.relative_to(ROOT))
        key = f"{state[:16]} {hashlib.sha256(file.read_bytes()).hexdigest()[:16]}"
        if known.get(name, {}).get("key") != key:
            print(f"which functions does {name} call?", file=sys.stderr, flush=True)
            known[name] = {"key": key, "tests": in_fork(lambda name=name: _calls([name]), 3600)}
            if isinstance(known[name]["tests"], str):
                raise RuntimeError(f"{name}: {known[name]['tests']}")
            _write(kept, known)
        tests |= known[name]["tests"]
    return tests


def _calls(tests: Sequence[str]) -> dict[str, dict[str, Any]]:
    found = run_tests(tests, watch=str(ROOT / PACKAGE), stop=False)
    good = set(found.seconds) - set(found.failed)  # one that fails anyway tells nothing
    return {test: {"seconds": found.seconds[test], "calls": sorted(found.calls[test])} for test in sorted(good)}


def outcome(mutant: Mutant, tests: dict[str, dict[str, Any]], budget: float) -> dict[str, Any]:
    """Run a mutant: what killed it, or which tests it survived."""
    path = ROOT / mutant.path
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    text = mutant.apply(path.read_text(encoding="utf-8"))
    called = f"{mutant.path}:{mutant.function}"
    chosen = [test for test, known in tests.items() if not mutant.function or called in known["calls"]]
    if not mutant.function:  # at the level of the module: every test of the module, and those that call anything in it
        of_package = path.name == "__init__.py"
        mirrored = f"/{path.parent.name}/" if of_package else f"/test_{path.stem}.py::"
        chosen = [
            test for test in tests
            if mirrored in test or any(call.startswith(f"{mutant.path}:") for call in tests[test]["calls"])
        ]  # fmt: skip
    chosen.sort(key=lambda test: tests[test]["seconds"])
    spent, within = 0.0, []
    for test in chosen:
        spent += tests[test]["seconds"]
        if spent <= budget:
            within.append(test)
    record: dict[str, Any] = {
        **vars(mutant),
        "key": mutant.key,
        "tests": len(within),
        "left out": len(chosen) - len(within),
    }
    if not within:
        return record | {"outcome": "no test"}

    def work() -> list[str]:
        sys.meta_path.insert(0, _Source(name, path, text))
        return run_tests(within).failed

    try:
        compile(text, mutant.path, "exec")
    except SyntaxError:
        return record | {"outcome": "invalid"}
    expected = sum(tests[test]["seconds"] for test in within)
    found = in_fork(work, 60 + 5 * expected)
    if isinstance(found, str):
        return record | {"outcome": "killed", "by": found}
    if found:
        return record | {"outcome": "killed", "by": found[0]}
    return record | {"outcome": "survived", "diff": difference(path, text)}


def difference(path: Path, text: str) -> str:
    """Return the changed lines, with a sign before each."""
    lines = difflib.unified_diff(path.read_text(encoding="utf-8").splitlines(), text.splitlines(), n=0, lineterm="")
    return "\n".join(line for line in list(lines)[2:] if not line.startswith("@@"))


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; prints the score by folder and the survivors."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.mutation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("paths", nargs="*", type=Path, help=f"files or folders (default: {', '.join(TESTS)})")
    parser.add_argument("--tests", nargs="+", type=Path, help="files or folders (default: what stands for each folder)")
    parser.add_argument("--sample", type=integer(0), default=50, help="mutants of each path; 0 for all (default: 50)")
    parser.add_argument("--seed", type=SEED, default=0)
    parser.add_argument(
        "--seconds", type=number(above=0.0), default=60.0, help="tests of a mutant take so long at most (default: 60)"
    )
    parser.add_argument("--out", type=new_folder, default=ROOT / "runs" / "mutation", help="folder for what is kept")
    options = parser.parse_args(arguments)
    paths = [path.resolve() for path in options.paths] or [ROOT / PACKAGE / folder for folder in TESTS]
    _warm_up()

    files = sorted(
        {
            file
            for path in paths
            for test in options.tests or _tests_of(path)
            for file in _files(test.resolve(), "test_")
        }
    )
    tests = calls_of_tests(files, options.out / "tests.json")
    records: dict[str, list[dict[str, Any]]] = {}
    for path in paths:
        found = [mutant for file in _files(path) for mutant in mutants(file)]
        random.Random(options.seed).shuffle(found)
        chosen = found[: options.sample or None]
        name = str(path.relative_to(ROOT))
        kept_in = options.out / f"{name.replace('/', '-')}.json"
        kept = json.loads(kept_in.read_text(encoding="utf-8")) if kept_in.exists() else {}
        records[name] = []
        for index, mutant in enumerate(chosen):
            key = f"{mutant.key} {hashlib.sha256((ROOT / mutant.path).read_bytes()).hexdigest()[:12]}"
            if key not in kept:
                kept[key] = outcome(mutant, tests, options.seconds)
                _write(kept_in, kept)
            records[name].append(kept[key])
            print(
                f"{name} {index + 1} of {len(chosen)} (of {len(found)}): {kept[key]['outcome']}",
                file=sys.stderr,
                flush=True,
            )
    _write(options.out / "survivors.json", [r for found in records.values() for r in found if r["outcome"] in ALIVE])
    print(table(records))
    return 0


ALIVE = ("survived", "no test")


def table(records: dict[str, list[dict[str, Any]]]) -> str:
    """Return the score by path as a table in Markdown, and the survivors."""
    lines = ["| path | mutants | killed | survived | no test calls it | score |", "|---|--:|--:|--:|--:|--:|"]
    for name, found in records.items():
        counts = Counter(record["outcome"] for record in found)
        valid = sum(counts.values()) - counts["invalid"]
        score = f"{100 * counts['killed'] / valid:.0f} %" if valid else "-"
        lines.append(
            f"| {name} | {valid} | {counts['killed']} | {counts['survived']} | {counts['no test']} | {score} |"
        )
    for record in (record for found in records.values() for record in found if record["outcome"] in ALIVE):
        lines += [
            "",
            f"{record['path']}:{record['line']} {record['kind']}: {record['outcome']} ({record['tests']} tests)",
        ]
        lines += [f"    {line}" for line in record.get("diff", f"in {record['function']}").splitlines()]
    return "\n".join(lines)


def _tests_of(path: Path) -> list[Path]:
    """Return the tests that stand for a path."""
    folder = path.relative_to(ROOT / PACKAGE).parts[0]
    if folder not in TESTS:
        raise SystemExit(f"--tests: got none for {path}, want files of tests, or a path in {', '.join(TESTS)}")
    return [ROOT / "tests" / name for name in TESTS[folder]]


def _files(path: Path, begin: str = "") -> list[Path]:
    return [path] if path.is_file() else sorted(file for file in path.rglob("*.py") if file.name.startswith(begin))


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


def _warm_up() -> None:
    """Import once what every mutant needs, and nothing of the package."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    os.environ["MPLBACKEND"] = "Agg"
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # a mutant has a limit of its own, and importing plugins is slow
    import matplotlib.pyplot  # noqa: F401
    import pytest  # noqa: F401
    import snntorch  # noqa: F401
    import spikingjelly.activation_based  # noqa: F401
    import torch.fx  # noqa: F401
    import torchvision  # noqa: F401

    with suppress(ImportError):
        import hypothesis  # noqa: F401

    assert not any(name.split(".")[0] == PACKAGE for name in sys.modules)


if __name__ == "__main__":
    run_main(main)
