"""The page of results of the keyword spotting table, in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

import numpy as np

from recipes.data.speech_commands import OFFICIAL, SYNTHETIC

from .keyword_plots import Line, best_line, not_beaten
from .pages import provenance, spread, table

__all__ = ["page"]

# Castagnetti et al. 2023, table and text; * is not stated, but follows from a difference that is.
PAPER = [
    ["ResNet-18, ReLU", "-", "94.46 *"],
    ["ResNet-18, ATIF", "4", "94.31"],
    ["ResNet-8, converted (E2E)", "32", "92.9"],
]

NOTES = """\
Epochs: of the ReLU net, and of the fine-tuning from there.
Means over the seeds, with (smallest..largest). Accuracy is that of the last epoch, on the test split. Spikes per
neuron: of one clip in all T steps, over all neurons of the net. SynOps: each spike times the synapses that it meets.
Energy of one clip: 0.9 pJ an accumulate and 4.6 pJ a multiply-accumulate (45 nm, arithmetic alone); the analog input is
paid once, and the front end is not in it. Data share: part of the training time that augmentation and features took.
T = 4 of 13: each layer waits for one more input, then decides four times; the answer comes at step 13.
"""


def page(
    found: Sequence[Line], command: str, seeds: Sequence[int], listener: dict[str, Any] | None = None,
    prefix: str = "",
) -> str:  # fmt: skip
    """Return the page: table, unbeaten nets, confusions, the listener, and how all of it was made."""
    data = next(line.results[0]["data"] for line in found if line.results)
    parts = [
        "# Keyword spotting: results",
        _about(data),
        "## In a minute",
        _short(found),
        "## Nets and neurons",
        _results(found),
        NOTES,
        "The paper's, theirs on Google Speech Commands V2 (35 words, Castagnetti et al. 2023; * follows from a "
        "difference that it states):",
        table(PAPER, ["net", "T", "accuracy (%)"]),
        "## Accuracy and energy",
        _front(found),
        f"![accuracy over energy]({prefix}pareto.png)",
        *_depth(found),
        "## Which words are mistaken",
        _mistakes(found),
        f"![confusion matrix]({prefix}confusion.png)",
    ]
    if listener is not None:
        parts += ["## Listening", _listening(listener)]
    parts += ["## How it was made", provenance(command, " ".join(map(str, seeds)))]
    if listener is not None and "command" in listener:
        parts.append(f"    {listener['command']} --out runs/listener")
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _about(data: str) -> str:
    """Say what the figures are for: synthetic speech is split by voice, everything else by speaker."""
    if data == OFFICIAL:
        return f"All figures of this page are for {data}; those of the paper stand in a table of their own."
    split = "voice" if data.startswith(SYNTHETIC) else "speaker or by its own lists"
    return (
        f"All figures of this page are for {data}, split by {split}. They are no figures of Google Speech Commands; "
        "those of the paper are, and stand in a table of their own."
    )


def _short(found: Sequence[Line]) -> str:
    """Return what each neuron of the first net gives, and at which cost."""
    lines = [line for line in found if line.results and line.model == found[0].model]
    analog = next((line for line in lines if line.row == "ReLU"), None)
    rows = []
    for line in lines:
        accuracy, energy = fmean(line.values("accuracy")), fmean(line.values("energy_nj"))
        spikes = line.values("spikes_per_neuron")
        rows.append([
            line.row, line.results[0]["time_steps"] if spikes else None, f"{100 * accuracy:.1f}",
            None if analog is None else f"{100 * (accuracy - fmean(analog.values('accuracy'))):+.1f}",
            f"{fmean(spikes):.2f}" if spikes else None,
            None if analog is None else f"{100 * energy / fmean(analog.values('energy_nj')):.0f}",
        ])  # fmt: skip
    header = ["neuron", "T", "accuracy (%)", "against ReLU (points)", "spikes per neuron", "energy (% of ReLU)"]
    size = f"{lines[0].results[0]['parameters']:,} parameters"
    text = f"The net {found[0].model}, {size}: what each neuron gives, and what it costs."
    return f"{text}\n\n{table(rows, header)}"


def _depth(found: Sequence[Line]) -> list[str]:
    """Return where spikes are lost: accuracy and spikes of the layers right after the swap, and when trained."""
    rows = []
    for line in found:
        for result in line.results[:1]:
            for when, measured in (("swapped", result.get("swapped")), ("trained", result)):
                if measured is not None and "swapped" in result:
                    layers = [layer["theta"] * measured["time_steps"] for layer in measured["layers"]]
                    cells = [f"{100 * measured['accuracy']:.1f}", f"{measured['spikes_per_neuron']:.2f}"]
                    rows.append([line.model, line.row, when, *cells, " ".join(f"{spikes:.2f}" for spikes in layers)])
    if not rows:
        return []
    text = """\
A threshold that suits the inputs of a ReLU is no threshold for what arrives: a layer of spikes begins late and rounds
down, so that each next one gets less. First seed, before the first step of the fine-tuning ("swapped") and after it:"""
    header = [
        "net",
        "neuron",
        "when",
        "accuracy (%)",
        "spikes per neuron",
        "layer by layer, from the first to the last",
    ]
    return ["## Spikes that are lost with depth", text, table(rows, header)]


def _results(found: Sequence[Line]) -> str:
    header = [
        "net", "neuron", "parameters", "seeds", "epochs", "T", "accuracy (%)", "spikes per neuron", "10^3 SynOps",
        "energy (nJ)", "digits of real speakers (%)", "data share (%)",
    ]  # fmt: skip

    def cell(line: Line, name: str, digits: int, factor: float = 1.0) -> str | None:
        values = [factor * value for value in line.values(name)]
        return spread(values, digits) if values else None

    rows = []
    for line in found:
        if not line.results:
            rows.append([line.model, line.row, None, f"0 of {line.wanted}", *[None] * 8])
            continue
        first = line.results[0]
        analog = line.row == "ReLU"
        rows.append([
            line.model, line.row, f"{first['parameters']:,}", f"{len(line.results)} of {line.wanted}",
            first["epochs"], None if analog else first["time_steps"], cell(line, "accuracy", 2, 100),
            cell(line, "spikes_per_neuron", 3), cell(line, "synops", 1, 1e-3), cell(line, "energy_nj", 0),
            cell(line, "real_digits", 1, 100), cell(line, "data_share", 0, 100),
        ])  # fmt: skip
    return table(rows, header)


def _front(found: Sequence[Line]) -> str:
    rows = [
        [line.model, line.row, f"{fmean(line.values('energy_nj')):.0f}", f"{100 * fmean(line.values('accuracy')):.2f}"]
        for line in not_beaten(found)
    ]
    text = "No other line of the table is better than these in mean accuracy and in mean energy at once:"
    return f"{text}\n\n{table(rows, ['net', 'neuron', 'energy (nJ)', 'accuracy (%)'])}"


def _mistakes(found: Sequence[Line], most: int = 8) -> str:
    line = best_line(found)
    counts = np.sum([result["confusion"] for result in line.results], axis=0)
    words, said = line.results[0]["words"], counts.sum(1)
    wrong = [(counts[i, j] / said[i], words[i], words[j]) for i, j in zip(*np.nonzero(counts), strict=True) if i != j]
    worst = [[f"{a} taken for {b}", f"{100 * share:.0f}"] for share, a, b in sorted(wrong, reverse=True)[:most]]
    text = f"{line.model}, {line.row}, over its seeds ({said.sum():,} decisions). The most frequent mistakes:"
    return f"{text}\n\n{table(worst, ['words', '% of the clips'])}"


def _listening(measured: dict[str, Any]) -> str:
    said = measured["words_said"]
    rows = [
        [
            threshold, sum(at["false_alarms"].values()),
            ", ".join(f"{kind} {count}" for kind, count in at["false_alarms"].items() if count) or None,
            f"{100 * at['hits'] / said:.1f}", f"{100 * at['wrong'] / said:.1f}", f"{100 * at['between'] / said:.1f}",
            *([f"{at['unknown'] / measured['unknown_hours']:.1f}"] if "unknown_hours" in measured else []),
        ]
        for threshold, at in measured["at"].items()
    ]  # fmt: skip
    header = ["threshold", f"words in {measured['hours']:g} h of noise", "of them in", "found (%)", "mistaken (%)"]
    text = f"""\
{measured["net"]}, listens to {measured["hours"]:g} h of silence, noises, hum, clicks, tones and engines (some of kinds
that it was not trained on), and to the {said:,} test clips one after another with pauses in noise
({measured["stream_seconds"] / 60:.0f} minutes). Found: the word, once, while its clip lasts. Mistaken: another word
there, or the word again. Between: a word in a pause. In percent of the words said. The default threshold is
{measured["threshold"]:g}, for a mean over {measured["smoothing"]} windows, of which there are ten in a second."""
    speed = (
        f"The listener hears {measured['times_real_time']:.0f} seconds of sound in a second of processor time "
        f"(median), so it is so many times faster than real time on a free core."
    )
    header += ["between (%)", *(["unknown words: false alarms an hour"] if "unknown_hours" in measured else [])]
    return "\n\n".join([text, *_unknown(measured), table(rows, header), speed])


def _unknown(measured: dict[str, Any]) -> list[str]:
    """Say what becomes of words that the net does not know, and give the operating points."""
    if "unknown_hours" not in measured:
        return []
    hours, said, words = measured["unknown_hours"], measured["unknown_said"], measured["unknown_words"]
    rows = []
    for rate, threshold in measured["operating_points"].items():
        at = measured["at"][f"{threshold:g}"]
        noise = sum(at["false_alarms"].values()) / measured["hours"]
        rows.append([
            f"at most {rate} an hour", f"{threshold:g}", f"{at['unknown'] / hours:.1f}", f"{noise:.1f}",
            f"{100 * at['hits'] / measured['words_said']:.1f}", f"{100 * at['wrong'] / measured['words_said']:.1f}",
        ])  # fmt: skip
    header = ["wanted in unknown words", "threshold", "false alarms an hour there", "in an hour of noise", "found (%)"]
    text = f"""\
Unknown words: {said:,} clips of {len(words)} words that the net was not trained on in any way ({", ".join(words)}),
one after another with pauses too, {said / hours:,.0f} in an hour. Each word found there is a false alarm. Two operating
points, the lowest thresholds that keep false alarms to so many on the voices of the validation split:"""
    return [text, table(rows, [*header, "mistaken (%)"])]
