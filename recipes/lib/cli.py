"""The command line of a recipe, made from a dataclass: an option for each field.

The annotation of a field says what the option takes, its default is the option's default. A field of
``Annotated[type, ...]`` adds, in any order:

* a range or another callable from text to value, such as those of :mod:`recipes.lib.ranges`;
* a ``str``, the help;
* a collection of names: the choices;
* an ``argparse.Action``, such as :class:`~recipes.lib.ranges.Different`;
* :class:`Argument`: other names, or keywords of ``add_argument``.

A ``bool`` is a switch, with ``--no-NAME`` unless it is False by default; a list takes several values. Each class gives
its fields a group in ``--help``, titled by the first sentence of its docstring. What depends on several options is
checked in ``__post_init__``: a ``ValueError`` that begins with the name of an option is printed like
argparse's own errors. Every command has two more options: ``--config`` takes options from the ``settings.json`` of a
run, and ``--json`` prints its result as JSON. No library was found that keeps the messages of our ranges, and argparse
starts faster than any.

Examples
--------
>>> from dataclasses import dataclass, field
>>> @dataclass(kw_only=True)
... class Options:
...     '''Training.'''
...
...     model: Literal["small", "large"] = "small"
...     epochs: Annotated[Count, "passes over the data"] = 8
...     seeds: list[Seed] = field(default_factory=lambda: [0])
>>> parse(Options, ["--epochs", "3", "--seeds", "1", "2"])
Options(model='small', epochs=3, seeds=[1, 2])
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Collection, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import MISSING, Field, fields
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from . import ranges

__all__ = [
    "PRESET", "PROGRAM", "Argument", "Count", "Fraction", "NewFile", "NewFolder", "OldFile", "Percent", "Positive",
    "Rate", "Seed", "Whole", "defaults", "fill", "parse", "parse_command", "parse_known", "parser_of",
]  # fmt: skip

O = TypeVar("O")  # noqa: E741

Count = Annotated[int, ranges.integer()]
Whole = Annotated[int, ranges.integer(0)]
Seed = Annotated[int, ranges.SEED]
Positive = Annotated[float, ranges.number(above=0.0)]
Rate = Annotated[float, ranges.number(0.0)]
Fraction = Annotated[float, ranges.FRACTION]
Percent = Annotated[float, ranges.PERCENT]
NewFolder = Annotated[Path, ranges.new_folder]
NewFile = Annotated[Path, ranges.new_file]
OldFile = Annotated[Path, ranges.old_file]


class _Preset:
    def __repr__(self) -> str:
        return "the preset"


PRESET: Any = _Preset()
"""Default of a field that :func:`fill` sets."""


PROGRAM: ContextVar[str | None] = ContextVar("PROGRAM", default=None)
"""How the command is called, for its usage; by default ``python -m MODULE``."""

RECORDED = ("processes", "sha256", "start_content")
"""Settings that a run writes beside its options."""


class Argument:
    """Names of an option, where they are not that of its field, and keywords of ``add_argument``."""

    def __init__(self, *names: str, **keywords: Any) -> None:
        self.names, self.keywords = names, keywords


def parse(kind: type[O], argv: Sequence[str] | None = None) -> O:
    """Return the options of a command line, of ``sys.argv`` by default; exit with a sentence if one is wrong."""
    return parse_command(kind, argv)[0]


def parse_command(kind: type[O], argv: Sequence[str] | None = None) -> tuple[O, bool]:
    """Return the options of a command line, and whether the result is to be printed as JSON."""
    argv = sys.argv[1:] if argv is None else argv
    parser = parser_of(kind)
    every = parser.add_argument_group("every command")
    every.add_argument(
        "--config", type=ranges.old_file, metavar="FILE",
        help="options from a JSON file, such as the settings.json of a run; those of the command line win",
    )  # fmt: skip
    every.add_argument("--json", action="store_true", help="print the result alone, as JSON")
    _take_config(parser, argv)
    given = vars(parser.parse_args(argv))
    del given["config"]
    as_json = given.pop("json")
    return _made(kind, parser, argparse.Namespace(**given)), as_json


def parse_known(kind: type[O], argv: Sequence[str] | None = None) -> tuple[O, list[str]]:
    """Return the options of a command line, and the arguments that are options of another command."""
    parser = parser_of(kind)
    known, others = parser.parse_known_args(argv)
    return _made(kind, parser, known), others


def fill(options: Any, preset: Mapping[str, Any]) -> None:
    """Set the options that are left to a preset."""
    for name, value in preset.items():
        if getattr(options, name) is PRESET:
            setattr(options, name, value)


def defaults(kind: type) -> dict[str, Any]:
    """Return what the options are where none is given: ``None`` for required ones and for those of a preset."""
    values = {f.name: _default(f) for f in fields(kind) if f.init}
    return {name: None if value in (MISSING, PRESET) else value for name, value in values.items()}


def parser_of(kind: type) -> argparse.ArgumentParser:
    """Return the parser; the module that defines the dataclass gives it its name and its description."""
    module = sys.modules[kind.__module__]
    name = (module.__spec__.name if module.__spec__ else kind.__module__).removesuffix(".__main__")
    description = (module.__doc__ or "").split("\n\n")[0].split(": ``")[0]
    program = PROGRAM.get() or f"python -m {name}"
    parser = argparse.ArgumentParser(prog=program, description=description, allow_abbrev=False)
    hints = get_type_hints(kind, include_extras=True)
    for each in kind.__mro__:
        own = [f for f in fields(kind) if f.init and _owner(kind, f.name) is each]
        title = (each.__doc__ or "").splitlines()[0].rstrip(".") if own else ""
        group = parser.add_argument_group(title[:1].lower() + title[1:]) if own else parser
        for f in own:
            names, keywords = _argument(f, hints[f.name])
            group.add_argument(*names, **keywords)
    return parser


def _owner(kind: type, name: str) -> type:
    """Return the class that has introduced a field."""
    return next(each for each in reversed(kind.__mro__) if name in vars(each).get("__annotations__", {}))


def _take_config(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    """Put what the file of ``--config`` says in the place of the defaults, checked as if it had been typed."""
    paths = [word.removeprefix("--config=") for word in argv if word.startswith("--config=")]
    paths += [value for word, value in zip(argv, argv[1:], strict=False) if word == "--config"]
    if not paths:
        return
    try:
        content = json.loads(ranges.old_file(paths[-1]).read_text(encoding="utf-8"))
    except argparse.ArgumentTypeError:
        return  # argparse tells
    except (OSError, ValueError) as error:
        parser.error(f"argument --config: got {paths[-1]}, want a JSON file ({error})")
    if not isinstance(content, dict):
        parser.error(f"argument --config: got {paths[-1]} without options, want a JSON object of them")
    actions = {action.dest: action for action in parser._actions if action.dest not in ("help", "config", "json")}
    for name, value in content.items():
        action = actions.get(name.replace("-", "_"))
        if action is None and name in RECORDED:
            continue
        if action is None:
            known = ", ".join(actions)
            parser.error(f"argument --config: got {name!r} in {paths[-1]}, want options of this command: {known}")
        typed = any(word.split("=")[0] in action.option_strings for word in argv)
        if not typed:
            action.default, action.required = _from_config(parser, action, value, paths[-1]), False
            action.nargs = "?" if not action.option_strings and action.nargs is None else action.nargs


def _from_config(parser: argparse.ArgumentParser, action: argparse.Action, value: Any, path: str) -> Any:
    """Return a value of the file as its option would have it."""
    switch = action.nargs == 0 or isinstance(action, argparse.BooleanOptionalAction)
    several = action.nargs in ("+", "*")
    try:
        if value is None or switch:
            if not isinstance(value, bool) and value is not None:
                raise argparse.ArgumentTypeError(f"got {value}, want true or false")
            return value
        if several is not isinstance(value, list) or isinstance(value, dict):
            raise argparse.ArgumentTypeError(f"got {json.dumps(value)}, want {'a list' if several else 'one value'}")
        values = [action.type(str(v)) if callable(action.type) else v for v in (value if several else [value])]
        if wrong := [v for v in values if action.choices is not None and v not in action.choices]:
            raise argparse.ArgumentTypeError(f"got {wrong[0]}, want one of {', '.join(map(str, action.choices))}")
        if isinstance(action, ranges.Different) and not action.good(values):
            raise argparse.ArgumentTypeError(f"got {value}, want {action.want}")
    except (argparse.ArgumentTypeError, ValueError) as error:
        parser.error(f"argument {'/'.join(action.option_strings) or action.dest}: {error} (in {path})")
    return values if several else values[0]


def _made(kind: type[O], parser: argparse.ArgumentParser, given: argparse.Namespace) -> O:
    try:
        return kind(**vars(given))
    except ValueError as error:
        parser.error(f"argument {error}")


def _argument(f: Field[Any], hint: Any) -> tuple[Sequence[str], dict[str, Any]]:
    """Return what ``add_argument`` gets for a field."""
    kind, extras = _plain(hint)
    default = _default(f)
    names: Sequence[str] = (f"--{f.name.replace('_', '-')}",)
    keywords: dict[str, Any] = {} if default is MISSING else {"default": default}
    if get_origin(kind) is list:
        keywords["nargs"] = "+"
        kind, inner = _plain(get_args(kind)[0])
        extras += inner
    if get_origin(kind) is Literal:
        extras.append(get_args(kind))
        kind = type(get_args(kind)[0])
    if kind is bool:
        keywords["action"] = "store_true" if default is False else argparse.BooleanOptionalAction
    elif kind is not str:
        keywords["type"] = kind
    for extra in extras:
        if isinstance(extra, str):
            keywords["help"] = extra.replace("%", "%%")
        elif isinstance(extra, Argument):
            names, keywords = extra.names or names, keywords | extra.keywords
        elif isinstance(extra, type) and issubclass(extra, argparse.Action):
            keywords["action"] = extra
        elif isinstance(extra, Collection):
            keywords["choices"] = list(extra)
        else:
            keywords["type"] = extra
    if keywords.get("type") in (int, float) and "choices" not in keywords:
        raise TypeError(f"{f.name}: got a bare {keywords['type'].__name__}, want a range of recipes.lib.ranges")
    if names[0].startswith("-"):
        keywords |= {"dest": f.name} | ({"required": True} if default is MISSING else {})
    if not any(default is none for none in (MISSING, None, False)) and "(default" not in keywords.get("help", ""):
        shown = " ".join(map(str, default)) if isinstance(default, list) else f"{default}"
        shown = shown.replace("%", "%%")
        keywords["help"] = f"{keywords.get('help', '')} (default: {shown})".strip()
    return names, keywords


def _plain(hint: Any) -> tuple[Any, list[Any]]:
    """Take ``None`` and ``Annotated`` off a type hint, and return what it is annotated with."""
    extras: list[Any] = []
    while True:
        if get_origin(hint) is Annotated:
            hint, *more = get_args(hint)
            extras += more
        elif NoneType in get_args(hint):
            (hint,) = set(get_args(hint)) - {NoneType}
        else:
            return hint, extras


def _default(f: Field[Any]) -> Any:
    return f.default if f.default_factory is MISSING else f.default_factory()
