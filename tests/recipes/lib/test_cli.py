"""A dataclass becomes a command line: names, types, choices, defaults, groups, and checks of several options."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import torch

from recipes.lib.cli import PRESET, Argument, Count, NewFolder, Positive, Seed, defaults, fill, parse, parse_known
from recipes.lib.command import command
from recipes.lib.ranges import Different

PRESETS = {"short": {"epochs": 3, "lr": 0.1}, "paper": {"epochs": 300, "lr": 0.01}}


@dataclass(kw_only=True)
class Training:
    """Training (defaults: the preset)."""

    epochs: Annotated[Count, Argument("--epochs", "-e"), "100 % of them"] = PRESET
    lr: Positive = PRESET


@dataclass(kw_only=True)
class Options(Training):
    """What is trained."""

    out: NewFolder
    preset: Annotated[str, PRESETS] = "short"
    depth: Literal[18, 34] = 18
    start: Annotated[Path | None, Argument("--from"), "a net"] = None
    seeds: Annotated[list[Seed], Different] = field(default_factory=lambda: [0])
    rates: list[Annotated[str, ("50 % of it", "all")]] = field(default_factory=lambda: ["50 % of it"])
    norm: bool = True
    quiet: bool = False
    steps: int = field(init=False)

    def __post_init__(self) -> None:
        fill(self, PRESETS[self.preset])
        self.steps = 10 * self.epochs
        if self.quiet and not self.norm:
            raise ValueError("--quiet: got it with --no-norm, want one of them")


def test_options_have_their_types_and_those_of_a_preset_are_filled_in() -> None:
    line = "--out a --preset paper --lr 2 --depth 34 --from b --seeds 3 4 --no-norm -e 5".split()
    expected = Options(
        out=Path("a"), preset="paper", lr=2.0, depth=34, start=Path("b"), seeds=[3, 4], norm=False, epochs=5
    )
    assert parse(Options, line) == expected and expected.steps == 50
    assert vars(parse(Options, ["--out", "a", "--preset", "paper"]))["epochs"] == 300
    assert parse_known(Options, ["--out", "a", "--width", "2"]) == (Options(out=Path("a")), ["--width", "2"])


def test_defaults_are_known_without_a_command_line() -> None:
    assert defaults(Options) | {"depth": 0} == {
        "out": None, "epochs": None, "lr": None, "preset": "short", "depth": 0, "start": None, "seeds": [0],
        "rates": ["50 % of it"], "norm": True, "quiet": False,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "the following arguments are required: --out"),
        ("--out a --epochs 0", "argument --epochs/-e: got 0, want an int >= 1, of 32 bits"),
        ("--out a --lr nan", "argument --lr: got nan, want a finite number > 0"),
        ("--out a --seeds 1 1", "argument --seeds: got 1 1, want different ones"),
        ("--out a --depth 50", "argument --depth: invalid choice: 50"),
        ("--out a --preset long", "argument --preset: invalid choice: 'long'"),
        ("--out a --quiet --no-norm", "argument --quiet: got it with --no-norm, want one of them"),
        ("--out a --pre paper", "unrecognized arguments: --pre paper"),
    ],
)
def test_wrong_option_is_told_by_its_name(line: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parse(Options, line.split())
    assert end.value.code == 2 and message in capsys.readouterr().err


def test_help_has_groups_defaults_and_the_name_of_the_module(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(Options, ["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "usage: python -m" in text and "test_cli" in text and str(__doc__).split(":")[0] in text
    for part in (
        "what is trained: --out OUT", "--seeds SEEDS [SEEDS ...] (default: 0)", "--from START a net",
        "--norm, --no-norm (default: True)", "--quiet ", "training (defaults: the preset):",
        "100 % of them (default: the preset)", "(default: 50 % of it)",
    ):  # fmt: skip
        assert part in text
    assert text.index("what is trained:") < text.index("training (defaults")


def test_number_without_a_range_is_refused() -> None:
    @dataclass
    class Careless:
        """Careless."""

        width: float = 1.0

    with pytest.raises(TypeError, match="width: got a bare float, want a range"):
        parse(Careless, [])


def test_command_takes_arguments_or_options() -> None:
    @command
    def main(options: Options) -> Any:
        if options.epochs > 400:
            raise ValueError("--epochs: got too many")
        return options.epochs

    assert main(["--out", "a"]) == main(Options(out=Path("a"))) == 3
    for arguments in (["--out", "a", "--epochs", "500"], Options(out=Path("a"), epochs=500)):
        with pytest.raises(SystemExit, match="--epochs: got too many"):
            main(arguments)
    with pytest.raises(SystemExit, match="2"):
        main([])


def test_shared_options_are_checked_together() -> None:
    from recipes.lib.options import DataOptions, ImageOptions, RunOptions, TrainingOptions

    @dataclass(kw_only=True)
    class Both(RunOptions, DataOptions, TrainingOptions, ImageOptions):
        """Both."""

        def __post_init__(self) -> None:
            fill(self, {"epochs": 2})
            super().__post_init__()

    assert Both(out=Path("a"), device="cpu").amp is False and Both(out=Path("a"), amp=True).amp is True
    with pytest.raises(ValueError, match="--lr-warmup-epochs: got 2, want fewer than --epochs, 2"):
        Both(out=Path("a"), lr_warmup_epochs=2)
    assert parse(Both, ["--out", "a", "-b", "8"]).batch_size == 8


def config(path: Path, **options: Any) -> str:
    path.write_text(json.dumps(options), encoding="utf-8")
    return str(path)


def test_options_of_a_file_take_the_place_of_defaults_and_the_command_line_wins(tmp_path: Path) -> None:
    file = config(
        tmp_path / "settings.json", out="a", lr=0.5, depth=34, seeds=[1, 2], norm=False, quiet=False, start=None,
        preset="paper", processes=1, sha256="0" * 64,
    )  # fmt: skip
    wanted = Options(out=Path("a"), lr=0.5, depth=34, seeds=[1, 2], norm=False, preset="paper")
    assert parse(Options, ["--config", file]) == parse(Options, [f"--config={file}"]) == wanted
    line = "--lr 0.25 --seeds 7 --norm --out b -e 9".split()
    assert parse(Options, [*line, "--config", file]) == Options(
        out=Path("b"), lr=0.25, depth=34, seeds=[7], preset="paper", epochs=9
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1}, "argument --lr: got -1, want a finite number > 0 (in "),
        ({"lr": [1]}, "argument --lr: got [1], want one value"),
        ({"seeds": 1}, "argument --seeds: got 1, want a list"),
        ({"seeds": [1, 1]}, "argument --seeds: got [1, 1], want different ones"),
        ({"norm": "yes"}, "argument --norm/--no-norm: got yes, want true or false"),
        ({"depth": 50}, "argument --depth: got 50, want one of 18, 34"),
        ({"wide": 1}, "argument --config: got 'wide' in "),
        ({"quiet": True, "norm": False}, "argument --quiet: got it with --no-norm"),
    ],
)
def test_wrong_option_of_a_file_is_told_by_its_name(
    options: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        parse(Options, ["--out", "a", "--config", config(tmp_path / "settings.json", **options)])
    assert end.value.code == 2 and message in capsys.readouterr().err


def test_wrong_option_of_a_file_that_the_command_line_replaces_does_not_matter(tmp_path: Path) -> None:
    file = config(tmp_path / "settings.json", lr=-1, seeds=[])
    assert parse(Options, ["--out", "a", "--config", file, "--lr", "1", "--seeds", "3"]).lr == 1.0


@pytest.mark.parametrize("content", ["[1]", "{", "\0"])
def test_file_that_holds_no_options_is_refused(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.json").write_text(content, encoding="utf-8")
    for path in (tmp_path / "x.json", tmp_path / "none.json"):
        with pytest.raises(SystemExit) as end:
            parse(Options, ["--out", "a", "--config", str(path)])
        assert end.value.code == 2 and "argument --config: got " in capsys.readouterr().err


def test_positional_of_a_file(tmp_path: Path) -> None:
    @dataclass(kw_only=True)
    class Words:
        """Words."""

        net: Annotated[str, Argument("net")]
        files: Annotated[list[str], Argument("files", nargs="*")] = field(default_factory=list)

    file = config(tmp_path / "x.json", net="a", files=["b", "c"])
    assert parse(Words, ["--config", file]) == Words(net="a", files=["b", "c"])
    assert parse(Words, ["d", "--config", file]) == Words(net="d", files=["b", "c"])


def test_result_is_printed_as_json_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    @dataclass(frozen=True)
    class Word:
        word: str

    @command
    def main(options: Options) -> Any:
        print("working")
        return {"out": options.out, "words": [Word("yes")], "scores": torch.ones(2)}

    main(["--out", "a", "--json"])
    out, err = capsys.readouterr()
    assert json.loads(out) == {"out": "a", "words": [{"word": "yes"}], "scores": [1.0, 1.0]} and err == "working\n"
    main(["--out", "a"])
    assert capsys.readouterr().out == "working\n"
