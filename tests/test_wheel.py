"""The package that pip installs: a wheel built from a copy of the sources, away from the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import snn_ext

ROOT = Path(snn_ext.__file__).parents[1]
pytest.importorskip("setuptools", minversion="77")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder that the files of the wheel are installed into."""
    sources, installed = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("installed")
    unwanted = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("snn_ext", "recipes"):
        shutil.copytree(ROOT / name, sources / name, ignore=unwanted)
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, sources)
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-compile"]
    command += ["--disable-pip-version-check", "--target", str(installed), str(sources)]
    subprocess.run(command, check=True, capture_output=True, cwd=sources, timeout=300)
    return installed


def python(wheel: Path, *words: str, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, *words], env=os.environ | {"PYTHONPATH": str(wheel)}, cwd=cwd, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_file_of_the_package_and_the_recipes_is_there_under_one_name(wheel: Path) -> None:
    for source, target in ((ROOT / "snn_ext", wheel / "snn_ext"), (ROOT / "recipes", wheel / "snn_ext" / "recipes")):
        wanted = {
            str(path.relative_to(source))
            for path in source.rglob("*")
            if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"
        }
        there = {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()}
        assert wanted <= there, wanted - there
    assert (wheel / "snn_ext/recipes/__init__.py").read_bytes() == (ROOT / "recipes/__init__.py").read_bytes()
    assert {path.name for path in wheel.iterdir() if path.suffix != ".dist-info"} == {"snn_ext", "bin"}


def test_command_and_trained_nets_work_without_the_checkout(wheel: Path, tmp_path: Path) -> None:
    pytest.importorskip("spikingjelly")
    pytest.importorskip("soundfile")
    code = (
        "import sys, snn_ext, snn_ext.recipes.lib.spotter as spotter\n"
        "from snn_ext.recipes.data.embedded import fashion_mnist_subset\n"
        "from snn_ext.command import main\n"
        f"assert all(m.__file__.startswith({str(wheel)!r}) for m in (snn_ext, spotter))\n"
        "assert len(spotter.load_spotter(spotter.CHECKPOINT).words) == 35\n"
        "assert len(fashion_mnist_subset()[1]) == 2000 and 'recipes' not in sys.modules\n"
        "try:\n    main(['bench', 'operators'])\n"
        "except SystemExit as end:\n    assert 'are in a checkout' in end.code\n"
    )
    python(wheel, "-c", code, cwd=tmp_path)
    assert python(wheel, "-m", "snn_ext", "--version", cwd=tmp_path) == f"snn_ext {snn_ext.__version__}\n"
    assert "usage: python -m snn_ext.recipes.listen" in python(
        wheel, "-m", "snn_ext.recipes.listen", "-h", cwd=tmp_path
    )
