"""Features on disk: never those of other clips or settings, never half of them."""

from __future__ import annotations

import errno
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from recipes.data.features import features, to_float
from recipes.data.mfcc import MFCC
from recipes.data.speech_commands import Clips
from recipes.lib.files import feature_cache


def clips(n: int = 5) -> Clips:
    waveforms = torch.randint(-(2**15), 2**15, (n, 16_000), dtype=torch.int16)
    return Clips(waveforms, torch.zeros(n, dtype=torch.int64), ("yes",), ("somebody",) * n)


class Counting(MFCC):
    calls = 0

    def forward(self, waveform: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return super().forward(waveform)


def test_features_are_computed_once_and_read_afterwards(tmp_path: Path) -> None:
    some, front_end = clips(), Counting()
    first = features(some, front_end, tmp_path / "cache")
    assert first.shape == (5, 1, 48, 10) and first.dtype == torch.float32
    assert torch.equal(features(some, front_end, tmp_path / "cache"), first) and front_end.calls == 1
    torch.testing.assert_close(first, MFCC()(to_float(some.waveforms)))
    torch.testing.assert_close(features(some, front_end), first)


def test_other_clips_settings_or_precision_are_other_features(tmp_path: Path) -> None:
    some = clips()
    changed = Clips(some.waveforms.clone(), some.labels, some.words, some.speakers)
    changed.waveforms[3, 7] += 1
    fewer = Clips(some.waveforms[:4], some.labels[:4], some.words, some.speakers[:4])
    for each in (some, changed, fewer):
        for front_end in (MFCC(), MFCC(49), MFCC(scale="decibel"), MFCC(scale="decibel", top_db=60), MFCC().double()):
            got = features(each, front_end, tmp_path)
            assert got.dtype == torch.float32
            torch.testing.assert_close(got, front_end(to_float(each.waveforms).to(front_end.window.dtype)).float())
    assert len(list(tmp_path.iterdir())) == 15


def test_damaged_cache_is_computed_again_with_a_warning(tmp_path: Path) -> None:
    some = clips()
    first = features(some, MFCC(), tmp_path)
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    for damaged in (content[: len(content) // 2], content[:2000] + b"\x55" + content[2001:], b""):
        path.write_bytes(damaged)
        with pytest.warns(UserWarning, match="damaged or not a file of features; .* computed again"):
            assert torch.equal(features(some, MFCC(), tmp_path), first)
        assert path.read_bytes() == content


def test_every_flipped_bit_of_the_header_and_the_directory_is_noticed(tmp_path: Path) -> None:
    some = clips(2)
    first = features(some, MFCC(), tmp_path)
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    places = [*range(0, 8 * 200, 19), *range(8 * (len(content) - 80), 8 * len(content), 7)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for place in places:
            damaged = bytearray(content)
            damaged[place // 8] ^= 1 << place % 8
            path.write_bytes(damaged)
            assert torch.equal(features(some, MFCC(), tmp_path), first)
        np.savez(path, features=np.zeros((2, 1, 48, 9), np.float32))  # whole, and of something else
        assert torch.equal(features(some, MFCC(), tmp_path), first)


def test_cache_that_nothing_can_be_written_to_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    some, place = clips(), tmp_path / "file"
    place.write_text("x")
    with pytest.warns(UserWarning, match="features are not kept: .*file"):
        assert torch.equal(features(some, MFCC(), place), features(some, MFCC()))
    monkeypatch.setattr("recipes.data.features.np.savez", full)
    with pytest.warns(UserWarning, match="features are not kept: .*No space left"):
        features(some, MFCC(), tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def full(path: Path, **arrays: np.ndarray) -> None:
    path.write_bytes(b"half")
    raise OSError(errno.ENOSPC, "No space left on device")


def test_without_a_home_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SNN_EXT_DATA", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    with pytest.warns(UserWarning, match="SNN_EXT_DATA.*no home folder.*features are not kept"):
        assert feature_cache() is None


def test_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(path: Path, **arrays: np.ndarray) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("recipes.data.features.np.savez", half)
    with pytest.raises(KeyboardInterrupt):
        features(clips(), MFCC(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_more_clips_than_go_at_once_keep_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recipes.data.features.CLIPS_AT_ONCE", 2)
    some = clips()
    torch.testing.assert_close(features(some, MFCC()), MFCC()(to_float(some.waveforms)))
