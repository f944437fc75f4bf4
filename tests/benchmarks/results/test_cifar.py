"""The study of the nets that come along: one way of each group, and a page that is made again from what is kept."""

import pytest
import torch

from benchmarks.results import cifar
from recipes.data.images import ImageData
from recipes.lib.analog import Analog, Images
from recipes.models.cifar import small_cnn


@pytest.fixture
def analog():
    torch.manual_seed(0)
    images = torch.randint(0, 256, (48, 3, 8, 8), dtype=torch.uint8)
    data = ImageData("noise", (images, torch.arange(48) % 4), (images[:20], torch.arange(20) % 4), tuple("abcd"))
    net = small_cnn(4, 3, width=0.5, size=8)
    for _ in range(3):
        net(images.float() / 255)  # statistics of the batch norms
    return Analog(net.eval(), "small", Images(data, torch.full((3,), 0.5), "cpu"))


def test_the_page_has_every_group_and_is_the_same_without_converting_again(analog, monkeypatch, tmp_path):
    monkeypatch.setitem(cifar.PAPER_STEPS, "AdSNN, adaptive heights", 12)
    ways = ["RateCoding Max", "calibrated for T = 4", "calibrated for T = 4, wait 1", "AdSNN, adaptive heights"]
    options = cifar.Options(
        out=tmp_path, ways=ways, time_steps=6, calibration_images=32, eval_images=20, paper_images=4
    )

    def page():
        return cifar.section("small", {way: cifar.evaluated(analog, way, options, tmp_path) for way in ways})

    first = page()
    assert all(f"| {way} " in first for way in ways)
    steps = [line for line in first.splitlines() if line.startswith("| conversion")]
    assert [cell.strip() for cell in steps[0].split("|")[2:-1]] == ["1", "2", "4", "6", "s"]
    assert [cell.strip() for cell in steps[-1].split("|")[2:-1]] == ["1", "2", "4", "8", "12", "s"]
    monkeypatch.setattr(cifar, "convert", None)
    assert page() == first
