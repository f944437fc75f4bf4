"""IRIS and SONAR: cross-validation of AdSNN against its ANN, with counts of the decisions that differ.

``python -m benchmarks.results.cross_validation --data iris --out runs/iris`` trains and converts a net for each of ten
folds. Finished folds are kept: started again, the command goes on.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from recipes import adsnn
from recipes.data.tables import Table, folds, load_table
from recipes.lib.aan_training import TABLES, build_net
from recipes.lib.cli import Seed
from recipes.lib.command import command, run_main
from recipes.lib.evaluations import Evaluations
from recipes.lib.files import fingerprint
from recipes.lib.ranges import Different, integer
from recipes.lib.run_folder import own_folder
from recipes.lib.training import right, seed_everything, train
from snn_ext import convert, evaluate, set_precision
from snn_ext.simulation import Simulation

from .pages import mean_and_deviation, table, write_report

ELSEWHERE = ("data_dir", "device", "log_every", "out", "resume", "seed", "seeds")
"""Options that do not change a fold of a seed."""


@dataclass(kw_only=True)
class Options(adsnn.Options):
    """Cross-validation."""

    data: Annotated[str, TABLES] = "iris"
    seeds: Annotated[list[Seed], Different] = field(default_factory=lambda: [0])
    folds: Annotated[int, integer(2, 50)] = 10


@command
def main(options: Options) -> str:
    """Train and convert a net for each fold of each seed, write the report, and return it."""
    with own_folder(options.out, "adsnn"):
        data = load_table(options.data, options.data_dir)
        kept, contents = Evaluations(options.out / "folds"), fingerprint(data.features, data.labels)
        settings = {name: str(value) for name, value in vars(options).items() if name not in ELSEWHERE}
        found: list[list[dict[str, Any]]] = []
        for seed in options.seeds:
            found.append([])
            for fold, parts in enumerate(folds(data, options.folds, seed)):
                name, key = f"seed {seed} fold {fold}", {"seed": seed, "fold": fold, "contents": contents}
                make = lambda parts=parts, seed=seed, name=name: _fold(options, data, *parts, seed, name)  # noqa: E731
                found[-1].append(kept.note(name, settings | key, make))
        return write_report(options.out, _section(options, data, found))


def train_fold(options: Options, part: tuple[Tensor, Tensor], classes: int, seed: int, name: str) -> nn.Module:
    """Train a net on the training part of a fold."""
    generator = seed_everything(seed)
    net = build_net(options, (part[0].shape[1],), classes)
    loader = DataLoader(TensorDataset(*part), options.batch_size, shuffle=True, drop_last=True, generator=generator)
    train(net, loader, torch.optim.Adam(net.parameters(), options.lr), options.epochs, name=name)
    return net.eval()


def _fold(
    options: Options, data: Table, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], seed: int,
    name: str,
) -> dict[str, Any]:  # fmt: skip
    net = train_fold(options, train, len(data.classes), seed, name)
    snn = convert(net, train[0], method="adsnn", tau_phi=options.tau_phi)
    with torch.no_grad():
        analog = right(net(test[0]), test[1])
    result: dict[str, Any] = {"analog": int(analog.sum()), "samples": len(analog), "precisions": {}}
    for m_f in options.m_f:
        set_precision(snn, m_f)
        evaluation = evaluate(snn, [test], options.time_steps, ann=net, progress=False)
        spiking = right(_decided(snn, test[0], options.time_steps), test[1])
        pairs = [int((a & b).sum()) for a in (analog, ~analog) for b in (spiking, ~spiking)]
        result["precisions"][f"{m_f:g}"] = {
            "right": int(spiking.sum()), "pairs": pairs, "rate": evaluation.firing_rate,
            "accuracy": [round(float(a), 6) for a in evaluation.accuracy],
        }  # fmt: skip
    return result


def _decided(snn: nn.Module, x: Tensor, time_steps: int) -> Tensor:
    """Return the scores at the last step."""
    return list(Simulation(snn).run(x, time_steps))[-1][-1]


def paired_p(only_first: int, only_second: int) -> float:
    """Return the exact two-sided p of McNemar's test: whether as many decisions differ in either direction.

    Examples
    --------
    >>> paired_p(5, 0)
    0.0625
    """
    n, k = only_first + only_second, min(only_first, only_second)
    return min(1.0, 2.0 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n)


def _section(options: Options, data: Table, found: list[list[dict[str, Any]]]) -> str:
    samples = sum(fold["samples"] for fold in found[0])
    analog = [100 * sum(fold["analog"] for fold in run) / samples for run in found]
    rows = []
    for m_f in options.m_f:
        runs = [[fold["precisions"][f"{m_f:g}"] for fold in run] for run in found]
        right = [100 * sum(fold["right"] for fold in run) / samples for run in runs]
        rates = [sum(f["rate"] for f in run) / len(run) for run in runs]
        times = [_matching_time(run, [f["samples"] for f in folds_]) for run, folds_ in zip(runs, found, strict=True)]
        pairs = [sum(fold["pairs"][k] for run in runs for fold in run) for k in range(4)]
        p = paired_p(pairs[1], pairs[2])
        rows.append([
            f"{m_f:g}", mean_and_deviation(right), mean_and_deviation(rates, 1), mean_and_deviation(times, 0),
            f"{pairs[1]} / {pairs[2]}", f"{p:.2f}" if p >= 0.01 else "< 0.01",
        ])  # fmt: skip
    seeds = f"{len(options.seeds)} seed" + "s" * (len(options.seeds) > 1)
    header = ["m_f", "AdSNN (%)", "rate (Hz)", "matching time (ms)", "only ANN right / only AdSNN right", "p (exact)"]
    return (
        f"### {data.name}: {options.folds}-fold cross-validation\n\n{len(data.features)} samples, net "
        f"{options.layout}, {seeds}. ANN: {mean_and_deviation(analog)} %. Decisions that "
        f"differ are counted over all folds and seeds; p is McNemar's exact test (seeds share samples, so it is a "
        f"guide).\n\n{table(rows, header)}\n"
    )


def _matching_time(run: list[dict[str, Any]], samples: list[int]) -> float:
    """Return the matching time of the accuracy over all folds."""
    weights = torch.tensor(samples, dtype=torch.float64)
    accuracy = (torch.tensor([fold["accuracy"] for fold in run], dtype=torch.float64) * weights[:, None]).sum(0)
    if not bool(accuracy.any()):
        warnings.warn("no decision was right at any time", stacklevel=2)
    return float((accuracy >= 0.99 * accuracy.max() - 1e-9).nonzero()[0]) + 1


if __name__ == "__main__":
    run_main(main, "the same command continues")
