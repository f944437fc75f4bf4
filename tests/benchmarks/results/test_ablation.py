"""The ablation: every row trains on the same images, and comparisons are paired."""

import random

import pytest
import torch

from benchmarks.results.ablation import ROWS, Options, measured
from benchmarks.results.ablation_page import REFERENCE, accuracy_over_spikes, difference, section
from recipes.data.images import ImageData
from recipes.models.cifar import small_cnn
from recipes.models.trained import ShippedNet


@pytest.fixture(scope="module")
def small():
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (96, 3, 8, 8), dtype=torch.uint8, generator=draw)
    labels = (images.float().mean((1, 2, 3)) > 127).long()
    data = ImageData("noise", (images, labels), (images[:40], labels[:40]), ("dark", "light"))
    net = small_cnn(2, 3, width=0.5, size=8).eval()
    settings = {"model": "small-cnn", "width": 0.5, "data": "noise"}
    return ShippedNet(net, "small", torch.full((3,), 0.5), ("dark", "light"), 0.5, 8, settings), data


def options(**given):
    return Options(**{"out": "unused", "train_images": 96, "eval_images": 40, "calibration_images": 64} | given)


@pytest.mark.parametrize("name", ROWS)
def test_a_row_trains_and_is_repeated_by_its_seed(small, monkeypatch, name):
    monkeypatch.setattr("benchmarks.results.ablation.untrained", lambda shipped: small_cnn(2, 3, width=0.5, size=8))
    weights = [p.clone() for p in small[0].net.parameters()]
    first, second = (measured(*small, ROWS[name], 3, options()) for _ in range(2))
    assert first == second
    assert all(torch.equal(a, b) for a, b in zip(weights, small[0].net.parameters(), strict=True))
    assert len(first["after"]["right"]) == 40
    spiking = ROWS[name].neuron != "relu"
    assert bool(first["after"]["spikes"]) == spiking
    if spiking and ROWS[name].neuron not in ("if", "pcmp"):
        assert first["before"]["thresholds"] != first["after"]["thresholds"]
    if ROWS[name].neuron in ("if", "pcmp"):
        assert first["before"]["thresholds"] == first["after"]["thresholds"]


def test_the_factor_of_a_row_is_that_of_its_thresholds(small):
    found = {name: measured(*small, ROWS[name], 0, options()) for name in ("ATIF-u", "ATIF-u, thresholds x 0.7")}
    plain, scaled = (torch.tensor(run["before"]["thresholds"]) for run in found.values())
    assert torch.allclose(scaled, 0.7 * plain)


def test_paired_difference_is_that_of_the_same_images():
    def run(bits):
        return {"after": {"right": bits}}

    draw = random.Random(0)
    a = ["".join(draw.choice("01") for _ in range(400)) for _ in range(2)]
    same = [run(bits) for bits in a]
    assert difference(same, [run(bits) for bits in a]) == "+0.00 ± 0.00"
    better = [run("1" * 20 + bits[20:]) for bits in a]
    gained = sum(bits[:20].count("0") for bits in a) / 2 / 400
    assert difference(better, same).startswith(f"{100 * gained:+.2f} ±")


def test_page_and_picture_of_some_rows(small):
    names = ["ReLU", "IF, threshold 1", REFERENCE]
    runs = {name: [measured(*small, ROWS[name], seed, options()) for seed in (0, 1)] for name in names}
    text = section("small, T = 4", runs)
    assert all(f"| {name} " in text for name in names)
    assert len(accuracy_over_spikes(runs, "small").axes) == 1
