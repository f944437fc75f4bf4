"""Tensors of few values as codes: every bit comes back, and one value too many is never lost."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from snn_ext.ops import implementation, registry, use_implementation
from snn_ext.ops.machine.cpu import Library
from snn_ext.ops.value_codes import WIDTHS, Codes, CpuImplementation, decode, encode

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.bool, torch.int8, torch.int32, torch.int64)
IMPLEMENTATIONS = ("cpu", "torch")
COMPILED = "no C compiler" not in implementation("value_codes", "cpu").unavailable.get("cpu", "")
compiled = pytest.mark.skipif(not COMPILED, reason="no C compiler")


@pytest.fixture(params=IMPLEMENTATIONS)
def name(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "cpu" and not COMPILED:
        pytest.skip("no C compiler")
    with use_implementation(request.param):
        yield request.param


def few(values: int, size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return a tensor in which each of the values is there."""
    return torch.cat([torch.arange(values), torch.randint(values, (size - values,))])[torch.randperm(size)].to(dtype)


def same_bits(found: Tensor, want: Tensor) -> bool:
    """Return True if tensors agree bit by bit: NaN with NaN, and -0.0 not with 0.0."""
    as_bytes = [t.contiguous().flatten().view(torch.uint8) for t in (found, want)]
    return found.dtype == want.dtype and torch.equal(*as_bytes)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_size_and_number_of_values_comes_back(name: str, dtype: torch.dtype) -> None:
    for values in (1, 2, 3, 4, 5, 16):
        for size in (values, 17, 63, 64, 65, 2049, 16385, 40001):
            x = few(values, max(size, values), dtype)
            found = encode(x)
            assert found is not None and found.bits == next(b for b in WIDTHS if len(x.unique()) <= 1 << b)
            assert found.codes.numel() == -(-x.numel() * found.bits // 8)
            assert same_bits(decode(found), x), (values, size)


def test_one_value_more_than_codes_can_tell_apart_is_found_wherever_it_is(name: str) -> None:
    for values in (2, 4, 16):
        for size in (1000, 33000):  # beside the sample, too
            for place in (0, 1, size // 2 + 1, size - 2, size - 1):
                x = few(values, size)
                x[place] = 99.0
                found = encode(x)
                if values == 16 and len(x.unique()) > 16:
                    assert found is None
                else:
                    assert found is not None and same_bits(decode(found), x)


def test_neighbours_of_a_spike_are_other_values(name: str) -> None:
    one = torch.ones(4000)
    one[3999] = torch.nextafter(torch.tensor(1.0), torch.tensor(2.0))
    one[1] = torch.nextafter(torch.tensor(1.0), torch.tensor(0.0))
    found = encode(one)
    assert found is not None and found.bits == 2 and same_bits(decode(found), one)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_signed_zeros_infinities_and_all_kinds_of_nan_come_back(name: str, dtype: torch.dtype) -> None:
    x = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1e-45, -1.0, 1.0] * 700).to(dtype)
    bits = x.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])
    bits[4::16] ^= 1  # another NaN
    found = encode(x)
    assert found is not None and same_bits(decode(found), x)


def test_heights_that_are_no_dyadic_numbers_come_back(name: str) -> None:
    for height in (0.1, 1 / 3, 0.7, 1e-30, 3.4e38):
        x = few(2, 9000) * height
        found = encode(x)
        assert found is not None and found.bits == 1 and same_bits(decode(found), x)


def test_the_order_of_memory_is_kept_and_gaps_are_refused(name: str) -> None:
    x = few(2, 2 * 3 * 8 * 8).view(2, 3, 8, 8)
    for dense in (x, x.to(memory_format=torch.channels_last), x.transpose(0, 3), x[1:], x.permute(3, 1, 0, 2)):
        found = encode(dense)
        assert found is not None
        assert same_bits(decode(found).as_strided(dense.shape, dense.stride()), dense)
    for gaps in (x[:, :2], x[..., ::2], x[:1].expand(4, 3, 8, 8), x[:0]):
        assert encode(gaps) is None
    assert encode(torch.zeros(3, dtype=torch.complex128)) is None  # 16 bytes


def test_a_tensor_with_a_gradient_is_coded_as_its_values(name: str) -> None:
    x = few(2, 100).requires_grad_()
    for tensor in (x, x * 2):
        found = encode(tensor)
        assert found is not None and not decode(found).requires_grad


@compiled
def test_both_implementations_make_codes_that_the_other_reads() -> None:
    for values in (2, 4, 16):
        x = few(values, 12345)
        for writer, reader in (IMPLEMENTATIONS, IMPLEMENTATIONS[::-1]):
            with use_implementation(writer):
                found = encode(x)
            assert found is not None
            with use_implementation(reader):
                assert same_bits(decode(found), x)


@compiled
def test_threads_that_meet_new_values_at_once_agree_on_one_table() -> None:
    threads = torch.get_num_threads()
    try:
        for seed in range(20):
            torch.manual_seed(seed)
            x = torch.zeros(300_001)
            x[torch.randint(len(x), (14,))] = torch.arange(1.0, 15.0)  # the sample hardly meets them
            torch.set_num_threads(4)
            found = encode(x)
            assert found is not None and same_bits(decode(found), x)
            x[torch.randint(len(x), (40,))] = torch.arange(20.0, 60.0)
            assert encode(x) is None
    finally:
        torch.set_num_threads(threads)


@compiled
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("return !(any & 128)", "return 1"),
        ("limit = 1 << bits;", "limit = bits == 1 ? 4 : 1 << bits;"),
        ("row[i] |= (uint8_t)(code[i] << j * bits)", "row[i] |= (uint8_t)(code[i] << bits)"),
        ("? (uint8_t)k : code", "? (uint8_t)(k | 1) : code"),
        ("memset(row, 0, m)", "memset(row, 0, 1)"),
        ("(k == 2 ? c : d)", "(k == 2 ? d : c)"),
    ],
)
def test_a_bug_in_the_source_is_found_before_it_is_used(
    old: str, new: str, monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    monkeypatch.setenv("SNN_EXT_CACHE", str(tmp_path))
    sources = CpuImplementation().sources()
    changed = {file: text.replace(old, new) for file, text in sources.items()}
    assert changed != sources
    broken = CpuImplementation(changed)
    assert broken.why_not(torch.device("cpu"), torch.float32) == "the compiled code disagrees with torch"


def test_codes_are_not_touched_by_modes_of_the_caller() -> None:
    x = few(2, 5000)
    with torch.autocast("cpu"), torch.device("meta"), torch.inference_mode():
        found = encode(x)
        assert isinstance(found, Codes)
        again = decode(found)
    assert same_bits(again, x)


def test_all_implementations_are_registered() -> None:
    found = registry.IMPLEMENTATIONS["value_codes"]
    assert set(found) == {"cpu", "torch"} and isinstance(found["cpu"], Library)
