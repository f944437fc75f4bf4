"""The package as a whole: light to import, typed, documented by examples that run."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import snn_ext

MODULES = [m.name for m in pkgutil.walk_packages(snn_ext.__path__, "snn_ext.")]


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_importing_needs_torch_alone() -> None:
    blocked = "('spikingjelly', 'snntorch', 'torchvision', 'torchaudio', 'matplotlib', 'cupy', 'tqdm', 'numpy.testing')"
    run(
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] in {blocked}: raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Block())\n"
        "import torch, snn_ext, snn_ext.functional, snn_ext.ops, snn_ext.testing\n"
        "x = torch.ones(4, 2)\n"
        "assert snn_ext.functional.integrate_and_fire(x, 0.0, torch.ones(1))[0].sum() == 8\n"
    )


def test_importing_imports_no_host_and_no_heavy_package() -> None:
    loaded = run("import snn_ext, sys; print(sorted({m.split('.')[0] for m in sys.modules}))")
    for name in ("torch", "numpy", "spikingjelly", "snntorch", "torchvision", "torchaudio", "matplotlib", "cupy"):
        assert f"'{name}'" not in loaded


def test_hosts_are_imported_without_torchaudio() -> None:
    # Its newest release does not import beside the newest torch.
    loaded = run("import snn_ext.spikingjelly, snn_ext.snntorch, sys; print([m for m in sys.modules])")
    assert "'torchaudio'" not in loaded and "'spikingjelly.datasets'" not in loaded


@pytest.mark.parametrize(
    ("host", "part"), [("spikingjelly", "spikingjelly"), ("spikingjelly", "conversion"), ("snntorch", "snntorch")]
)
def test_a_missing_host_is_named_with_its_extra(host: str, part: str) -> None:
    run(
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {host!r}: raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Block())\n"
        f"try:\n    import snn_ext.{part}\n"
        f"except ModuleNotFoundError as error:\n    told, name = str(error), error.name\n"
        f"assert name == {host!r}\n"
        f"assert told == \"snn_ext.{part} needs {host}, want it installed: pip install 'snn_ext[{host}]'\", told\n"
    )


def test_the_oldest_versions_that_are_promised_are_those_that_are_tested() -> None:
    root = Path(snn_ext.__file__).parents[1]
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    promised = [*project["dependencies"], *extras["spikingjelly"], *extras["snntorch"]]
    lowest = dict(re.findall(r"^(\w+)==([\d.]+)$", (root / "constraints-lowest.txt").read_text("utf-8"), re.MULTILINE))
    for name in ("torch", "spikingjelly", "snntorch"):
        (least,) = (line.split(">=")[1].split(",")[0] for line in promised if line.startswith(f"{name}>="))
        assert lowest[name].startswith(f"{least}."), name


def test_types_are_declared() -> None:
    assert (Path(snn_ext.__file__).parent / "py.typed").exists()


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_run(name: str) -> None:
    module = importlib.import_module(name)
    assert doctest.testmod(module).failed == 0


def test_parts_are_reachable_after_importing_the_package_alone() -> None:
    parts = ("conversion", "evaluation", "functional", "neurons", "ops", "simulation", "testing")
    run(
        f"import snn_ext, sys\nparts = {parts}\n"
        "assert {*parts, 'spikingjelly', 'snntorch'} <= {*dir(snn_ext)}\n"
        "assert not any(m.startswith(('snn_ext.conversion', 'snn_ext.evaluation')) for m in sys.modules)\n"
        "for part in parts:\n"
        "    assert getattr(snn_ext, part) is sys.modules[f'snn_ext.{part}']\n"
    )
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = snn_ext.nothing


def test_set_precision_is_public_in_one_place() -> None:
    import snn_ext.conversion

    assert "set_precision" in snn_ext.__all__ and not hasattr(snn_ext.conversion, "set_precision")


def test_public_names_are_there() -> None:
    from snn_ext import conversion, evaluation, functional, ops, snntorch, spikingjelly, testing

    for module in (snn_ext, conversion, evaluation, functional, ops, snntorch, spikingjelly, testing):
        for name in module.__all__:
            assert getattr(module, name).__doc__ or isinstance(getattr(module, name), str | tuple), f"{module}.{name}"
