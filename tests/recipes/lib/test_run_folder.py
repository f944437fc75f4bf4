"""Folders of runs and of results: whole, of one run, and nobody else's; and what is kept in them."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("spikingjelly")
pytest.importorskip("torchvision")

from benchmarks.results import cross_validation, normalisation  # noqa: E402
from benchmarks.results import images as table_images  # noqa: E402
from benchmarks.results import keywords as table_keywords  # noqa: E402
from benchmarks.results import listener as measure_listener  # noqa: E402
from recipes import adsnn, autoencoder, convert, fit_quantizer, precharge, quickstart  # noqa: E402
from recipes.lib.evaluations import Evaluations, digest  # noqa: E402
from recipes.lib.files import DamagedFileError, fingerprint, read_json  # noqa: E402
from recipes.lib.run_folder import RunFolder, own_folder, read_log  # noqa: E402
from recipes.lib.spotter import CHECKPOINT, load_spotter  # noqa: E402
from recipes.train_images import load_net  # noqa: E402
from snn_ext import AAN  # noqa: E402
from snn_ext import convert as convert_net  # noqa: E402
from tests.test_files import full_disk  # noqa: E402


def run_of_two_epochs(path: Path) -> Path:
    folder = RunFolder(path, {"seed": 0}, resume=False)
    for epoch in range(2):
        folder.log(epoch=epoch, step=0, loss=0.1234567890123)
        folder.log(epoch=epoch, loss=0.5, thresholds=[1.0, 0.25])
        folder.save({"epochs": epoch + 1}, best=epoch == 0)
    folder.finish({"accuracy": 0.75})
    folder.close()
    return path


def resumed(path: Path) -> Any:
    folder = RunFolder(path, {"seed": 0}, resume=True)
    try:
        return folder.result, folder.checkpoint(), read_log(path / "log.jsonl")
    finally:
        folder.close()


@pytest.mark.parametrize("name", ["settings.json", "result.json", "last.pt", "log.jsonl"])
def test_damaged_run_is_refused_by_the_name_of_the_file_and_changes_nothing(tmp_path: Path, name: str) -> None:
    path = run_of_two_epochs(tmp_path / "run") / name
    good, content, draw, refused = resumed(path.parent), path.read_bytes(), random.Random(0), 0
    cuts = [content[: draw.randrange(len(content) - 1)] for _ in range(15)]
    for _ in range(60):
        flipped = bytearray(content)
        flipped[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        cuts.append(bytes(flipped))
    lines = content.splitlines(keepends=True)
    cuts += [b"".join(lines[:-1]), b"".join(lines[1:]), b"".join(lines[:1] + lines)]  # whole lines of a log
    for damage in cuts:
        path.write_bytes(damage)
        try:
            assert resumed(path.parent) == good
        except ValueError as error:
            assert name in str(error)
            assert path.read_bytes() == damage
            refused += 1
    assert refused > 40


def test_log_can_be_removed_and_the_run_goes_on_without_it(tmp_path: Path) -> None:
    path = run_of_two_epochs(tmp_path) / "log.jsonl"
    path.write_text("damaged")
    folder = RunFolder(tmp_path, {"seed": 0}, resume=True)
    with pytest.raises(ValueError, match=r"log\.jsonl: damaged or not the log of a run; remove it to go on without"):
        folder.checkpoint()
    path.unlink()
    assert folder.checkpoint() == {"epochs": 2}
    folder.log(epoch=2)
    folder.save({"epochs": 3}, best=False)
    folder.log(epoch=3)
    folder.close()
    folder = RunFolder(tmp_path, {"seed": 0}, resume=True)
    assert folder.checkpoint() == {"epochs": 3} and [line["epoch"] for line in read_log(path)] == [2]
    folder.close()


def test_full_disk_names_the_log(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, {"seed": 0}, resume=False)
    folder.log(epoch=0)
    with full_disk(1), pytest.raises(OSError, match=r"log\.jsonl"):
        folder.log(epoch=1)
    folder.close()


def test_what_a_run_started_from_may_be_gone_but_not_be_another(tmp_path: Path) -> None:
    def run(content: str | None, resume: bool = True) -> dict[str, Any]:
        folder = RunFolder(tmp_path, {"start": "a.pt", "content": content}, resume, forgotten=("content",))
        folder.finish({})
        folder.close()
        return folder.settings

    assert run("1", resume=False) == run("1") == run(None) == {"start": "a.pt", "content": "1"}
    with pytest.raises(ValueError, match="content='1', and now content='2'"):
        run("2")


# -- folders of results ------------------------------------------------------------------------------------------------

RECIPES: dict[str, tuple[Callable[[list[str]], Any], list[str]]] = {
    "adsnn": (adsnn.main, ["--data", "digits"]),
    "autoencoder": (autoencoder.main, []),
    "convert": (convert.main, []),
    "cross_validation": (cross_validation.main, []),
    "fit_quantizer": (fit_quantizer.main, []),
    "measure_listener": (measure_listener.main, ["--data", "sample"]),
    "normalisation": (normalisation.main, []),
    "precharge": (precharge.main, []),
    "quickstart": (quickstart.main, []),
    "table_images": (table_images.main, ["--report-only"]),
    "table_keywords": (table_keywords.main, ["--report-only"]),
}


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name", ["report.md", "results.json", "figure.png"])
def test_results_of_somebody_else_are_not_overwritten(tmp_path: Path, recipe: str, name: str) -> None:
    main, options = RECIPES[recipe]
    (tmp_path / name).write_text("mine")
    with pytest.raises(SystemExit, match=f"--out: got .*, which holds a {name} of something else, want a new folder"):
        main([*options, "--out", str(tmp_path)])
    assert (tmp_path / name).read_text() == "mine" and {p.name for p in tmp_path.iterdir()} <= {name, "lock"}


def test_folder_is_of_one_recipe_and_of_one_run_at_a_time(tmp_path: Path) -> None:
    with own_folder(tmp_path, "adsnn"):
        (tmp_path / "report.md").write_text("ours")
        with pytest.raises(ValueError, match="another run is under way"), own_folder(tmp_path, "adsnn"):
            pytest.fail("was begun")
    with own_folder(tmp_path, "adsnn"):
        pass
    with pytest.raises(ValueError, match=r"holds results of recipes\.adsnn, want another"), own_folder(tmp_path, "x"):
        pytest.fail("was begun")
    (tmp_path / "recipe.json").write_text('{"recipe": "adsmn"}')
    with pytest.raises(ValueError, match=r"recipe\.json: damaged or not the mark"), own_folder(tmp_path, "adsmn"):
        pytest.fail("was begun")


def test_folder_that_can_not_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "x", tmp_path / ("n" * 300)):
        with pytest.raises(ValueError, match="--out: got .*, where nothing can be written"), own_folder(path, "adsnn"):
            pytest.fail("was begun")
        with pytest.raises(ValueError, match="--out: got .*, where nothing can be written"):
            RunFolder(path, {}, resume=True)


# -- what is kept ------------------------------------------------------------------------------------------------------


def test_damaged_evaluation_is_put_aside_and_made_again(tmp_path: Path) -> None:
    ann = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    x = torch.rand(4, 1, 4, 4)
    data, kept, made = [(x, torch.arange(4) % 3)], Evaluations(tmp_path), []

    def make() -> nn.Module:
        made.append(1)
        return convert_net(ann, x, method="data-norm")

    def get() -> str:
        return kept.get("e", {"a": 1}, make, data, 4, ann=ann, progress=False)[0].to_json()

    whole = get()
    assert get() == whole and len(made) == 1
    content = (tmp_path / "e.json").read_bytes()
    place = content.index(b"synops")
    for damage in (b"", b"{}", b"[]", b"\xff", content[:-9], content[:place] + b"T" + content[place + 1 :]):
        (tmp_path / "e.json").write_bytes(damage)
        with pytest.warns(UserWarning, match=r"e\.json: damaged or not a kept .* put aside as e\.json\.damaged"):
            assert get() == whole
        assert (tmp_path / "e.json.damaged").read_bytes() == damage
    with torch.no_grad():
        ann[1].weight[0, 0] += 1
    made.clear(), get()
    assert made  # the analog net that it is compared with is another one


def test_what_is_kept_is_known_by_all_that_it_depends_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Evaluations(tmp_path)
    assert [kept.note("n", {"a": a}, lambda a=a: a) for a in (1, 2, 2, 1.5)] == [1, 2, 2, 1.5]
    monkeypatch.setattr("recipes.lib.evaluations.versions", lambda: {"torch": "another"})
    assert kept.note("n", {"a": 1.5}, lambda: "made with another torch") == "made with another torch"
    nets = [nn.Sequential(nn.Linear(2, 2), AAN(tau_eta=t)) for t in (50.0, 60.0)]
    nets[1].load_state_dict(nets[0].state_dict())
    assert digest(nets[0]) != digest(nets[1])
    a = torch.arange(6.0)
    assert len({fingerprint(v) for v in (a, a.view(2, 3), a.view(3, 2), a.double(), a.int(), a.tolist())}) == 6
    assert fingerprint(a.view(2, 3).T) == fingerprint(a.view(2, 3).T.contiguous())


def test_folds_of_one_table_are_not_taken_for_those_of_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    whole = cross_validation.load_table("iris")
    half = cross_validation.Table("half", whole.features[::2], whole.labels[::2], whole.classes)
    monkeypatch.setattr(cross_validation, "_fold", lambda options, data, *_: made.append(data.name) or {})
    monkeypatch.setattr(cross_validation, "_section", lambda *_: "")
    command = ["--folds", "2", "--out", str(tmp_path)]
    calls: list[tuple[Any, list[str]]] = [(whole, []), (half, []), (half, []), (half, ["--opt", "sgd"])]
    for table, options in [*calls, calls[-1]]:
        monkeypatch.setattr(cross_validation, "load_table", lambda *_, t=table: t)
        cross_validation.main([*command, *options])
    assert made == ["IRIS"] * 2 + ["half"] * 4


# -- checkpoints of other contents -------------------------------------------------------------------------------------


def test_whole_checkpoint_of_something_else_is_refused_by_name(tmp_path: Path) -> None:
    good = torch.load(CHECKPOINT, weights_only=True)
    nan = {k: v * float("nan") if v.is_floating_point() else v for k, v in good["model"].items()}
    others = {
        "no model": {"settings": {}}, "a list": [1], "other types": {"settings": 3, "model": 4},
        "fewer words": {**good, "words": good["words"][:-1]}, "no words": {**good, "words": None},
        "other shapes": {**good, "model": {k: v[:1] if v.ndim else v for k, v in good["model"].items()}},
        "NaN": {**good, "model": nan}, "std of 0": {**good, "std": [0.0] * len(good["std"])},
        "fewer coefficients": {**good, "mean": good["mean"][:3], "std": good["std"][:3]},
        "another net": {**good, "settings": good["settings"] | {"model": "resnet8"}},
    }  # fmt: skip
    for content in others.values():
        torch.save(content, tmp_path / "x.pt")
        with pytest.raises(DamagedFileError, match=r"x\.pt: damaged or not a checkpoint of recipes\.spot_keywords"):
            load_spotter(tmp_path / "x.pt")
    shutil.copy(CHECKPOINT, tmp_path / "words.pt")
    with pytest.raises(DamagedFileError, match=r"words\.pt: damaged or not a checkpoint of recipes\.train_images"):
        load_net(tmp_path / "words.pt")


def test_flipped_bits_of_the_listener_s_net_are_noticed(tmp_path: Path) -> None:
    content, draw = CHECKPOINT.read_bytes(), random.Random(1)
    for _ in range(30):
        flipped = bytearray(content)
        flipped[draw.randrange(2000, len(content) // 10 * 9)] ^= 1 << draw.randrange(8)
        (tmp_path / "x.pt").write_bytes(flipped)
        try:
            got = load_spotter(tmp_path / "x.pt").state_dict()
        except DamagedFileError:
            continue
        assert all(torch.equal(got[name], value) for name, value in load_spotter(CHECKPOINT).state_dict().items())


def test_mark_is_readable(tmp_path: Path) -> None:
    with own_folder(tmp_path / "new", "adsnn"):
        assert read_json(tmp_path / "new" / "recipe.json", "a mark") == {"recipe": "adsnn"}
