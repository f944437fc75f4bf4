"""``snn-ext doctor`` names cause and remedy of broken set-ups, which are faked one by one."""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from snn_ext.command import checks, doctor
from snn_ext.command.checks import CHECKS, Check, Finding, examine
from snn_ext.ops import registry
from snn_ext.ops.machine import build, cuda_setup

Installed = Callable[..., None]


@pytest.fixture(autouse=True)
def forgetful() -> Iterator[None]:
    """Ask again after every change of the environment."""
    cuda_setup._why_not_device.cache_clear()
    cuda_setup.why_not_cupy.cache_clear()
    yield
    cuda_setup._why_not_device.cache_clear()
    cuda_setup.why_not_cupy.cache_clear()


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Installed:
    """Return what changes the versions that pip has installed, None for none."""
    real = checks.installed

    def fake(**versions: str | None) -> None:
        monkeypatch.setattr(checks, "installed", lambda name: versions[name] if name in versions else real(name))

    return fake


def only(check: Check, name: str | None = None) -> Finding:
    """Return the finding of a check, or that of a name among several."""
    found = [finding for finding in examine(check) if name in (None, finding.check)]
    assert len(found) == 1, found
    return found[0]


def says(finding: Finding, status: str, cause: str, remedy: str) -> None:
    assert finding.status == status and cause in finding.found and remedy in (finding.remedy or ""), finding


def test_no_host(installed: Installed) -> None:
    installed(spikingjelly=None, snntorch=None)
    says(only(checks.hosts), "error", "neither spikingjelly nor snntorch", "pip install 'snn_ext[spikingjelly]'")


def test_host_that_is_too_old_or_too_new(installed: Installed) -> None:
    installed(spikingjelly="0.0.0.0.14", snntorch="2.1")
    says(only(checks.hosts, "spikingjelly"), "error", "0.0.0.0.14 is too old", "pip install -U 'spikingjelly>=2.0,<3'")
    says(only(checks.hosts, "snntorch"), "error", "2.1 is too new", "pip install -U 'snntorch>=1.0,<2'")


def test_host_that_does_not_import(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> ModuleType:
        raise OSError("libtorch.so: undefined symbol\nmore")

    monkeypatch.setattr(checks, "import_module", broken)
    finding = only(checks.hosts, "snntorch")
    says(finding, "error", "does not import: libtorch.so: undefined symbol", "pip install -U 'snntorch")
    assert "more" not in finding.found


def test_torchaudio_of_another_torch(monkeypatch: pytest.MonkeyPatch, installed: Installed) -> None:
    def wrong(name: str) -> ModuleType:
        if name == "torchaudio":
            raise OSError("libtorchaudio.so: undefined symbol: _ZN3c1021throwNullDataPtrErrorEv")
        return ModuleType(name)

    installed(torchaudio="2.7.0")
    monkeypatch.setattr(checks, "import_module", wrong)
    finding = only(checks.torch_companions, "torchaudio")
    says(finding, "warning", "2.7.0 does not import beside torch", "pip uninstall torchaudio")
    assert "undefined symbol" in finding.found


def test_torch_that_is_missing_or_too_old(installed: Installed) -> None:
    installed(torch=None)
    says(only(checks.torch), "error", "not installed", "pip install 'torch>=2.11'")
    installed(torch="2.9.1+cu128")
    says(only(checks.torch), "error", "2.9.1+cu128, and 2.11 is the oldest", "pip install -U 'torch>=2.11'")


def test_what_needs_torch_is_no_error_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    for check in (checks.gpu, checks.operators, checks.self_test):
        says(only(check), "note", "not looked at: torch is not installed", "")


def cupy(monkeypatch: pytest.MonkeyPatch, packages: list[str], runtime: int = 13020, cuda: str | None = "13.0") -> None:
    distributions = [SimpleNamespace(metadata={"Name": name}) for name in packages]
    monkeypatch.setattr(cuda_setup.metadata, "distributions", lambda: distributions)
    api = SimpleNamespace(runtimeGetVersion=lambda: runtime)
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(__version__="14.2.0", cuda=SimpleNamespace(runtime=api)))  # type: ignore[arg-type]
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def fail() -> None:
        raise RuntimeError("Found no NVIDIA driver on your system.\nMore words.")

    monkeypatch.setattr(torch.cuda, "init", fail)


def test_cupy_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    cupy(monkeypatch, ["cupy-cuda13x"])
    cause = "cupy-cuda13x is installed and cannot run: torch cannot use a GPU: Found no NVIDIA driver"
    says(only(checks.gpu, "cupy"), "warning", cause, "install the driver, or pip uninstall cupy-cuda13x")


def test_cupy_for_another_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    cupy(monkeypatch, ["cupy-cuda12x"], runtime=12090)
    says(only(checks.gpu, "cupy"), "warning", "is for CUDA 12 and torch for CUDA 13.0", "pip install cupy-cuda13x")


def test_cupy_beside_a_torch_without_cuda_and_two_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    cupy(monkeypatch, ["cupy-cuda12x"], cuda=None)
    says(only(checks.gpu, "cupy"), "warning", "torch is built without CUDA", "pip uninstall cupy-cuda12x")
    cupy(monkeypatch, ["cupy-cuda12x", "cupy-cuda13x"])
    says(only(checks.gpu, "cupy"), "warning", "overwrite each other", "pip uninstall cupy-cuda12x cupy-cuda13x")


def test_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    says(only(checks.compiler), "warning", "no C compiler: looked for cc, gcc, clang", "install gcc")
    monkeypatch.setenv("CC", "icc -O2")
    says(only(checks.compiler), "warning", "looked for icc -O2", "name a compiler in CC")


def test_cache_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(folder: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(folder))

    monkeypatch.setenv("SNN_EXT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(checks, "fill", refuse)
    says(only(checks.cache), "warning", "it cannot be written (Permission denied)", "SNN_EXT_CACHE=FOLDER")
    (tmp_path / "file").touch()
    monkeypatch.setenv("SNN_EXT_CACHE", str(tmp_path / "file" / "cache"))
    says(only(checks.cache), "warning", "it cannot be written (Not a directory)", "SNN_EXT_CACHE=FOLDER")


def test_cache_on_a_full_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setenv("SNN_EXT_CACHE", str(tmp_path))
    monkeypatch.setattr(checks, "fill", full)
    says(only(checks.cache), "warning", "its disk is full", "make room, or SNN_EXT_CACHE")


@pytest.mark.skipif(sys.platform == "win32", reason="modes of POSIX")
def test_cache_that_others_may_write(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    monkeypatch.setenv("SNN_EXT_CACHE", str(tmp_path))
    says(only(checks.cache), "warning", "others may write", "SNN_EXT_CACHE")
    tmp_path.chmod(0o700)
    assert only(checks.cache).status == "ok" and not [*tmp_path.iterdir()]


def test_no_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SNN_EXT_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    says(only(checks.cache), "warning", "home", "SNN_EXT_CACHE")


@pytest.mark.parametrize(
    ("forced", "cause"),
    [
        ("cuda-nvrtc", "'cuda-nvrtc' is forced and cannot run: it runs on CUDA devices"),
        ("cuda", "SNN_EXT_IMPLEMENTATION: got"),
    ],
)
def test_forced_implementation_that_cannot_run(forced: str, cause: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_forced", forced)
    found = [finding for finding in examine(checks.operators) if "integrate_and_fire" in finding.found]
    says(found[0], "error", cause, "unset SNN_EXT_IMPLEMENTATION, or set it to one of cuda-cupy")
    assert only(checks.self_test).status == "note"


def test_half_installed_extra(monkeypatch: pytest.MonkeyPatch, installed: Installed) -> None:
    wanted = ["torchvision>=0.26; extra == 'recipes'", 'soundfile>=0.12; extra == "recipes"',
              'snn_ext[plots]; extra == "recipes"', 'matplotlib>=3.8; extra == "plots"', "torch>=2.11"]  # fmt: skip
    monkeypatch.setattr(checks.metadata, "requires", lambda name: wanted)
    installed(torchvision="0.26", soundfile=None, matplotlib="3.1")
    finding = only(checks.extras, "recipes")
    says(finding, "warning", "half installed: soundfile is missing, matplotlib 3.1", "pip install 'snn_ext[recipes]'")
    installed(torchvision=None, soundfile=None, matplotlib=None)
    assert only(checks.extras, "recipes").status == "note"
    installed(torchvision="0.26.1", soundfile="1.0", matplotlib="3.10")
    assert only(checks.extras, "recipes").status == only(checks.extras, "plots").status == "ok"


def test_another_copy_of_the_package(installed: Installed) -> None:
    installed(snn_ext="0.0.1")
    says(only(checks.snn_ext, "snn_ext"), "warning", "pip has installed 0.0.1", "pip install it again")


def test_operators_that_are_wrong_fail_the_self_test(monkeypatch: pytest.MonkeyPatch) -> None:
    from snn_ext import ops

    right = ops.integrate_and_fire
    monkeypatch.setattr(
        ops, "integrate_and_fire", lambda x, v, thresholds: right(x, v, thresholds, fire_at_threshold=False)
    )
    says(only(checks.self_test), "error", "the operators disagree", "SNN_EXT_IMPLEMENTATION=torch")


def test_check_that_fails_itself_hides_no_other(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> Iterator[Finding]:
        yield Finding("first", "ok", "here")
        raise RuntimeError("no such thing\nand more")

    def last() -> Iterator[Finding]:
        yield Finding("last", "warning", "slow", "be patient")

    monkeypatch.setattr(doctor, "CHECKS", [broken, last])
    assert doctor.main([]) == 1
    out = capsys.readouterr().out
    assert "error    broken        the check fails: no such thing\n" in out and "remedy: be patient" in out
    assert out.endswith("1 errors, 1 warnings\n")


def test_this_machine_is_told_in_text_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    status = doctor.main(["--json"])
    out, err = capsys.readouterr()
    found = [Finding(**finding) for finding in json.loads(out)]
    assert status == int(any(finding.status == "error" for finding in found))
    assert {"torch", "spikingjelly", "snntorch", "compiler", "cache", "gpu", "operators", "self-test"} <= {
        f.check for f in found
    }
    assert all(doctor.text(finding) in err for finding in found) and max(map(len, err.splitlines())) <= 100
    assert len(CHECKS) == len({check.__name__ for check in CHECKS}) and build.cache_folder()
