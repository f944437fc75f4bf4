"""The CUDA source as NVRTC compiles it for real architectures; no GPU is needed."""

from __future__ import annotations

import itertools
import os
import sys
from pathlib import Path

import pytest
import torch

from snn_ext.ops.machine import cuda_loaders
from snn_ext.ops.machine.cuda import options
from snn_ext.ops.machine.cuda_loaders import DriverLoader
from snn_ext.ops.machine.nvrtc import CompileError, Nvrtc, load_nvrtc
from snn_ext.ops.machine.source import DTYPES
from tests.ops import machine_code
from tests.ops.emulation import OPERATORS, source_of
from tests.ops.machine_code import ARCHITECTURES, compile_variant, instructions, variants

try:
    load_nvrtc()
except CompileError as error:
    if sys.platform == "linux":  # the extra [test] brings it; to skip these tests there would hide a broken kernel
        raise RuntimeError(f"{error}; pip install nvidia-cuda-nvrtc") from error
    pytestmark = pytest.mark.skip(reason=str(error))

needs_disassembler = pytest.mark.skipif(not machine_code.disassembler(), reason="no disassembler: Triton brings one")

IF = "integrate_and_fire"
# Forward and backward at T = 4, float32 and bfloat16 at full width: per-step thresholds and a scale are the hardest.
FORWARD = {dtype: (0, dtype, 4, 4 if dtype == 0 else 8, 1, 0, 1, 0, 0, 0, 1, 0, 0, 0) for dtype in (0, 1, 2)}
ASN = (0, 0, 4, 4, 1, 1, 0, 0, 0)
BACKWARD = {dtype: (1, dtype, 4, 4 if dtype == 0 else 8, 1, 0, 1, 0, 0, 0, 1, 0, 0, 0) for dtype in (0, 1, 2)}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_register_is_spilled_at_four_steps(architecture: str) -> None:
    for variant in (*FORWARD.values(), BACKWARD[0], BACKWARD[2]):
        found = compile_variant(IF, variant, architecture)
        assert found.spilled == 0 and 0 < found.registers <= 128, f"{variant}: {found}"


@pytest.mark.parametrize("architecture", ARCHITECTURES[::2])
def test_a_leak_spills_no_register_at_four_steps(architecture: str) -> None:
    half_as_wide = (*BACKWARD[2][:3], 4, *BACKWARD[2][4:])
    for variant, charge in itertools.product((FORWARD[0], BACKWARD[0], half_as_wide), (2, 5)):
        found = compile_variant(IF, (*variant[:-1], charge), architecture)
        assert found.spilled == 0, f"{variant}, {charge}: {found}"


@pytest.mark.parametrize("architecture", ARCHITECTURES[::2])
def test_a_norm_spills_no_register_at_four_steps(architecture: str) -> None:
    half_as_wide = (*BACKWARD[2][:3], 4, *BACKWARD[2][4:])
    for variant in (FORWARD[0], FORWARD[2], BACKWARD[0], half_as_wide):
        found = compile_variant(IF, (*variant[:7], 1, 1, *variant[9:]), architecture)
        assert found.spilled == 0, f"{variant}: {found}"


def test_spills_are_seen_in_the_report() -> None:
    variant = (1, 0, 0, 2, 1, 0, 1, 0, 0, 0, 1, 0, 0, 0)
    cramped = source_of(IF, ("BLOCKS_BACKWARD = STEPS ? 4 : 3", "BLOCKS_BACKWARD = 16"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine_code, "source_of", lambda operator: cramped)
        compile_variant.cache_clear()
        assert compile_variant(IF, variant, "sm_90").spilled > 0
    compile_variant.cache_clear()


@pytest.mark.parametrize("dtype", FORWARD)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@needs_disassembler
def test_four_wide_loads_are_in_flight_before_the_first_step(architecture: str, dtype: int) -> None:
    lines = instructions(compile_variant(IF, FORWARD[dtype], architecture).code)
    first_step = next(i for i, line in enumerate(lines) if line.startswith("FADD"))
    wide = [line for line in lines[:first_step] if line.startswith("LDG") and ".128" in line]
    assert len(wide) >= 4, f"{len(wide)} of {[line for line in lines if line.startswith('LDG')]}"
    stores = [line for line in lines if line.startswith("STG")]
    assert stores and all(".128" in line for line in stores), stores


@needs_disassembler
def test_contraction_and_flushing_are_off_where_the_state_is_computed() -> None:
    chosen = ((IF, FORWARD[0]), (IF, FORWARD[2]), ("adaptive_spiking", ASN))
    for operator, variant in chosen:
        lines = instructions(compile_variant(operator, variant, "sm_90").code)
        assert [line for line in lines if line.startswith("FADD")]
        assert not [line for line in lines if line.startswith("FFMA") or ".FTZ" in line]


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_sample_of_the_variants_compiles(architecture: str, operator: str) -> None:
    place = ARCHITECTURES.index(architecture)
    first, step = (place, 11) if operator == "asn_transfer" else (31 * place, 331)
    sample = list(itertools.islice(variants(False, operator), first, None, step))
    assert len(sample) >= 2 and {variant[0] for variant in sample} == {0, 1}
    for variant in sample:
        found = compile_variant(operator, variant, architecture)
        assert found.code[:4] == b"\x7fELF" and not (found.spilled and 0 < variant[2] <= 4)


def test_the_list_of_variants_holds_whatever_a_call_asks_for() -> None:
    for operator in (IF, "adaptive_spiking"):
        found, every = OPERATORS[operator], set(machine_code.geometries(operator))
        for backward, dtype, steps, size in itertools.product(
            (False, True), DTYPES, (1, 2, 4, 5, 8, 9, 16, 17, 255), (64, 12, 6, 7)
        ):
            rest = [None if array.optional else torch.empty(()) for array in found.op.inputs[1:]]
            width = found.width(backward, found.op.Inputs(torch.empty(steps, size, dtype=dtype), *rest), ())
            assert (int(backward), DTYPES[dtype], steps if steps <= 16 else 0, width) in every
    for operator, backward in itertools.product(OPERATORS, (0, 1)):
        chosen = {v[4:] for v in variants(False, operator) if v[0] == backward}
        assert chosen == set(machine_code.settings(operator, backward))


def test_the_compilers_words_are_kept() -> None:
    with pytest.raises(CompileError, match=r'error: identifier "y" is undefined') as error:
        changed = source_of(IF, ("return v + x;", "return v + y;"))
        load_nvrtc().compile(changed, options(OPERATORS[IF].op, FORWARD[0]), "sm_90")
    assert "\n" not in str(error.value)
    with pytest.raises(CompileError, match="invalid value for --gpu-architecture"):
        load_nvrtc().compile(source_of(IF), options(OPERATORS[IF].op, FORWARD[0]), "sm_11")


def test_a_missing_library_says_where_it_was_looked_for() -> None:
    with pytest.raises(CompileError, match="no NVRTC: looked for libnvrtc.so.7 in"):
        load_nvrtc(7)


# -- the cache ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def loader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DriverLoader:
    monkeypatch.setenv("SNN_EXT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cuda_loaders, "architecture", lambda device: f"sm_{80 + 10 * (device.index or 0)}")
    return DriverLoader()


SMALL = 'extern "C" __global__ void f(float *x) { *x = NUMBER; }'
DEVICE = torch.device("cuda", 1)


def test_what_is_cached_is_not_compiled_again(
    loader: DriverLoader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, code = loader._compile(SMALL, ("-DNUMBER=1",), "f", DEVICE)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [name]
    monkeypatch.setattr(Nvrtc, "compile", lambda *arguments: pytest.fail("compiled again"))
    assert loader._compile(SMALL, ("-DNUMBER=1",), "f", DEVICE) == (name, code)


def test_source_options_architecture_and_compiler_are_part_of_the_name(
    loader: DriverLoader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Nvrtc, "compile", lambda *arguments: b"code")
    names = [
        loader._compile(SMALL, ("-DNUMBER=1",), "f", DEVICE)[0],
        loader._compile(SMALL, ("-DNUMBER=2",), "f", DEVICE)[0],
        loader._compile(SMALL + " ", ("-DNUMBER=1",), "f", DEVICE)[0],
        loader._compile(SMALL, ("-DNUMBER=1",), "f", torch.device("cuda", 0))[0],
    ]
    monkeypatch.setattr(load_nvrtc(), "version", (99, 0))
    names.append(loader._compile(SMALL, ("-DNUMBER=1",), "f", DEVICE)[0])
    assert len(set(names)) == len(names)


def test_damaged_machine_code_is_made_anew(loader: DriverLoader, tmp_path: Path) -> None:
    name, code = loader._compile(SMALL, ("-DNUMBER=1",), "f", DEVICE)
    path = tmp_path / "cache" / name
    path.write_bytes(path.read_bytes()[:-100])
    assert loader._compile(SMALL, ("-DNUMBER=1",), "f", DEVICE)[1] == code


def test_a_cache_that_can_not_be_written_is_done_without_and_says_so(
    loader: DriverLoader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("SNN_EXT_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.warns(RuntimeWarning, match="every process compiles again: it cannot be written; SNN_EXT_CACHE"):
        assert loader._compile(SMALL, ("-DNUMBER=1",), "f", DEVICE)[1][:4] == b"\x7fELF"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_forked_processes_that_compile_at_once(loader: DriverLoader, tmp_path: Path) -> None:
    options_ = ("-DNUMBER=3",)
    children = []
    for _ in range(3):
        children.append(os.fork())
        if children[-1] == 0:
            os._exit(0 if loader._compile(SMALL, options_, "f", DEVICE)[1][:4] == b"\x7fELF" else 1)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".cubin"]
