"""The quickstart on a few images, and the net, the training and the measurements it is made of."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from spikingjelly.activation_based import functional
from torch.utils.data import DataLoader

from recipes import quickstart as script
from recipes.data import LabelledImages, fashion_mnist_subset
from recipes.lib.files import replacing
from recipes.lib.run_folder import own_folder
from recipes.lib.training import train
from recipes.models import plain, small_cnn
from recipes.quickstart import Options
from snn_ext import ConstantInputNet, replace_neurons
from snn_ext.evaluation import measure_activity
from snn_ext.spikingjelly import ATIFnuNode, ATIFuNode, PCMPIFNode

FILES = {
    "accuracy_against_spikes.png", "accuracy_latency_synops.png", "staircases.png", "threshold_history.png",
    "results.json", "settings.json", "lock", "recipe.json",
}  # fmt: skip
VARIANTS = ["ReLU", "IF, threshold 1", "ATIF-u", "ATIF-nu", "ATIF-u, pre-charged", "ATIF-u, calibrated"]


CONVERSIONS = [
    "SpikingJelly, RateCoding 99.9 %", "data-norm 99.9 %, pre-charge 0.5", "calibrated for T = 4",
    "calibrated for T = 4, wait 1",
]  # fmt: skip
TINY = [
    "--epochs", "1", "--fine-tune-epochs", "1", "--train-images", "128", "--test-images", "50", "--conversion-images",
    "8", "--conversion-steps", "6", "--calibration-images", "16",
]  # fmt: skip


@pytest.fixture(scope="module")
def few_images() -> tuple[LabelledImages, LabelledImages]:
    train_set, test_set = fashion_mnist_subset()
    return train_set.first(128), test_set.first(50)


@pytest.fixture(autouse=True)
def settings_of_torch():
    """Restore what a run sets."""
    yield
    torch.use_deterministic_algorithms(False)


def results(folder):
    return json.loads((folder / "results.json").read_text())


# -- end to end ---------------------------------------------------------------------------------------------------


def test_a_run_writes_all_its_files_and_prints_every_variant(tmp_path, capsys):
    script.main([*TINY, "--out", str(tmp_path / "new" / "folder")])
    assert {path.name for path in (tmp_path / "new" / "folder").iterdir()} == FILES
    for path in (tmp_path / "new" / "folder").glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "Fashion-MNIST subset (10,000 + 2,000 images)" in printed
    assert all(f"\n{name} " in printed for name in VARIANTS)
    assert max(map(len, printed.split("- swapped")[0].splitlines())) <= 80

    written = results(tmp_path / "new" / "folder")
    (samples,) = {evaluation["samples"] for evaluation in written["conversions"].values()}
    assert f"on the first {samples} test images:" in printed  # fewer than in the table above
    assert written["setting"]["data"] == "Fashion-MNIST subset (10,000 + 2,000 images)"
    rows = written["rows"]
    assert [row["name"] for row in rows] == VARIANTS
    for row in rows[1:]:
        assert len(row["after"]["layers"]) == 3 and len(row["threshold_history"]) == 3  # before, and two batches
        assert 0.0 < row["after"]["spikes_per_neuron"] < 4.0
        assert all(math.isfinite(layer["sqnr_db"]) for layer in row["after"]["layers"])
    fixed, *trained = rows[1:]
    assert fixed["thresholds"] == [[1.0]] * 3
    assert all(row["thresholds"] != row["threshold_history"][0] for row in trained)

    names = [f"{name}, fine-tuned" for name in VARIANTS[1:]] + CONVERSIONS
    assert list(written["conversions"]) == names and all(f"\n{name} " in printed for name in names)
    for name, conversion in written["conversions"].items():
        steps = 4 if "fine-tuned" in name else 7 if "wait" in name else 6
        assert conversion["time_steps"] == steps and conversion["samples"] == 8
        assert (
            conversion["macs"] == written["conversions"][names[0]]["macs"] and conversion["layers"][0]["synops"][-1] > 0
        )


def test_the_same_seed_gives_the_same_rows_and_another_seed_others(few_images):
    def rows(seed):
        options = Options(seed=seed, time_steps=2, epochs=1, fine_tune_epochs=1)
        return [row.as_json() for row in script.quickstart(*few_images, options)[1]]

    assert rows(0) == rows(0)
    assert rows(0) != rows(1)


@pytest.mark.parametrize("time_steps", [1, 6])
def test_other_numbers_of_time_steps_run(few_images, time_steps):
    rows = script.quickstart(*few_images, Options(time_steps=time_steps, epochs=1, fine_tune_epochs=1))[1]
    assert [row.name for row in rows] == VARIANTS
    assert [len(p) for p in rows[3].thresholds] == [time_steps] * 3


def test_an_interrupted_run_leaves_the_old_results_and_no_fragments(tmp_path, monkeypatch):
    with own_folder(tmp_path, "quickstart"):
        (tmp_path / "results.json").write_text("old")

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(script, "measure_activity", interrupt)
    with pytest.raises(KeyboardInterrupt):
        script.main([*TINY, "--out", str(tmp_path)])
    assert {path.name for path in tmp_path.iterdir()} == {"results.json", "lock", "recipe.json"}
    assert (tmp_path / "results.json").read_text() == "old"


def test_a_write_that_fails_half_way_keeps_the_old_file(tmp_path):
    target = tmp_path / "file.txt"
    target.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(target) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert target.read_text() == "old" and list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--time-steps", "0"], "--time-steps: got 0, want an int >= 1"),
        (["--epochs", "many"], "--epochs: got many, want an int >= 1"),
        (["--fine-tune-epochs", "-1"], "--fine-tune-epochs"),
        (["--seed", "1.5"], "--seed: got 1.5, want an int >= 0"),
        (["--out", "{file}"], "--out: got {file}, want a folder: {file} is a file"),
    ],
)
def test_a_bad_argument_is_named_before_any_training(arguments, message, tmp_path, capsys):
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(SystemExit) as exit_:
        script.main([argument.format(file=file, folder=tmp_path) for argument in arguments])
    assert exit_.value.code == 2
    assert message.format(file=file, folder=tmp_path) in capsys.readouterr().err


# -- the net --------------------------------------------------------------------------------------------------------


def settled_net() -> ConstantInputNet:
    """A net whose batch norm has seen images, in eval mode."""
    torch.manual_seed(0)
    net = small_cnn()
    for _ in range(20):
        net(torch.rand(16, 1, 28, 28))
    return net.eval()


def test_a_spiking_net_with_fine_thresholds_and_many_steps_agrees_with_the_analog_net():
    net, images = settled_net(), torch.rand(4, 1, 28, 28)
    error = {}
    with torch.no_grad():
        analog = net(images)
        for time_steps in (16, 256):
            snn = copy.deepcopy(net)
            replace_neurons(snn, lambda relu: ATIFuNode(8.0, v_init=0.5, scale_output=True))
            functional.set_step_mode(snn, "m")
            snn.time_steps = time_steps
            error[time_steps] = float((snn(images) - analog).abs().max() / analog.abs().max())
    assert error[256] < 0.03 and error[256] < error[16] / 4


def test_the_stem_runs_once_whatever_the_number_of_steps():
    net, shapes = settled_net(), []
    replace_neurons(net, lambda relu: PCMPIFNode(1.0, precharge=0.0, scale_output=True))
    functional.set_step_mode(net, "m")
    net.time_steps = 5
    net.stem.register_forward_hook(lambda module, inputs, output: shapes.append(output.shape))
    assert net(torch.rand(2, 1, 28, 28)).shape == (2, 10)
    assert shapes == [(2, 8, 28, 28)]


def test_plain_copy_is_the_same_net_of_torch_layers_alone():
    net, images = settled_net(), torch.rand(4, 1, 28, 28)
    same = plain(net)
    assert torch.equal(same(images), net(images)) and all(type(m).__module__.startswith("torch") for m in same)


# -- training and measuring -----------------------------------------------------------------------------------------


def test_no_state_leaks_from_batch_to_batch(few_images):
    torch.manual_seed(0)
    net = small_cnn()
    replace_neurons(net, lambda relu: ATIFnuNode(1.0, T=2, scale_output=True))  # raises on a third step
    functional.set_step_mode(net, "m")
    net.time_steps = 2
    train(net, DataLoader(few_images[0], 32), torch.optim.SGD(net.parameters(), 1e-3), 1, name="leak")
    first, second = (measure_activity(net, DataLoader(few_images[1], batch)).accuracy for batch in (50, 10))
    assert first == second
    for module in net.modules():
        if isinstance(module, ATIFnuNode):
            assert module.v == 0.0 and module.t == 0
