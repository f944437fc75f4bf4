"""The command ``snn-ext``, also ``python -m snn_ext``: one table of commands, each a module with a ``main``.

Options are dataclasses on argparse (``recipes.lib.cli``): it loads in a hundredth of a second, and no library was found
that keeps the messages of the ranges. A module is imported when its command runs, so that ``--help`` needs no torch.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Sequence
from importlib import import_module, metadata
from typing import Any, NamedTuple

from .. import __version__
from ..recipes.lib.cli import PROGRAM
from ..recipes.lib.command import missing, run_main

__all__ = ["COMMANDS", "Command", "main", "run", "versions"]


class Command(NamedTuple):
    """The module of a command, relative to the package, and what the command does."""

    module: str
    about: str


COMMANDS = {
    "doctor": Command("command.doctor", "name what runs here, what does not, why, and what helps"),
    "convert": Command("command.convert", "convert a trained net, measure and save it"),
    "evaluate": Command("command.evaluate", "measure a saved net on images"),
    "quickstart": Command("recipes.quickstart", "train, swap the neurons and convert, in minutes"),
    "train images": Command("recipes.train_images", "train a spiking net on images"),
    "train keywords": Command("recipes.spot_keywords", "train a spiking net on spoken words"),
    "train analog": Command("recipes.train_analog", "train an analog net that is to be converted"),
    "listen": Command("recipes.listen", "find words in recordings, a pipe or a microphone"),
    "bench": Command("command.bench", "measure the operators here; in a checkout, run a study"),
}
"""By name; what begins with the same word is a group."""


def run() -> None:
    """Run the command line as the program; its status is 0, 1 after a failure, 2 after wrong usage."""
    run_main(main)


def main(argv: Sequence[str] | None = None) -> Any:
    """Run a command and return its result, or the status of what is no command.

    Examples
    --------
    >>> main(["--version"])
    snn_ext 0.1.0
    """
    parser = _parser()
    words = list(sys.argv[1:] if argv is None else argv)
    start = next((i for i, word in enumerate(words) if not word.startswith("-")), len(words))
    given, rest = parser.parse_args(words[:start]), words[start:]
    if given.version:
        print(json.dumps(versions()) if given.json else f"snn_ext {__version__}")
        return None
    if not rest:
        parser.print_help(sys.stderr)
        raise SystemExit(2)
    name, options = _command(parser, rest)
    PROGRAM.set(f"snn-ext {name}")
    try:
        module = import_module(f"snn_ext.{COMMANDS[name].module}")
    except ImportError as error:
        if (sentence := missing(error)) is None:
            raise
        raise SystemExit(f"snn-ext {name}: {sentence}") from error
    return module.main([*options, "--json"] if given.json else options)


def versions() -> dict[str, str | None]:
    """Return the versions of this package and of what it runs on, without importing any of it."""
    found: dict[str, str | None] = {"snn_ext": __version__, "python": platform.python_version()}
    for name in ("torch", "spikingjelly", "snntorch"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def _parser() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS)) + 2
    parser = argparse.ArgumentParser(
        prog="snn-ext", usage="%(prog)s [-h] [--version] [--json] COMMAND ...", allow_abbrev=False,
        description="Spiking neurons for SpikingJelly and snnTorch, and conversion of trained nets.",
        epilog="commands:\n" + "\n".join(f"  {name:<{width}}{about}" for name, (_, about) in COMMANDS.items())
        + "\n\nsnn-ext COMMAND --help shows the options of a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--version", action="store_true", help="print the version and stop")
    parser.add_argument("--json", action="store_true", help="print the result of any command as JSON")
    return parser


def _command(parser: argparse.ArgumentParser, words: list[str]) -> tuple[str, list[str]]:
    """Return the name of a command of one word or two, and its options."""
    for count in (1, 2):
        if (name := " ".join(words[:count])) in COMMANDS:
            return name, words[count:]
    group = [name for name in COMMANDS if name.startswith(f"{words[0]} ")]
    if group and {"-h", "--help"} & {*words[1:2]}:
        print("\n".join(f"snn-ext {name:<18}{COMMANDS[name].about}" for name in group))
        raise SystemExit(0)
    parser.error(f"got {' '.join(words[:2] if group else words[:1])}, want one of {', '.join(group or COMMANDS)}")
