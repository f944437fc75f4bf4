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
argparse's own errors. No library was found that keeps the messages of our ranges.

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
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from . import ranges

__all__ = [
    "PRESET", "Argument", "Count", "Fraction", "NewFile", "NewFolder", "OldFile", "Percent", "Positive", "Rate", "Seed",
    "Whole", "defaults", "fill", "parse", "parse_known", "parser_of",
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


class Argument:
    """Names of an option, where they are not that of its field, and keywords of ``add_argument``."""

    def __init__(self, *names: str, **keywords: Any) -> None:
        self.names, self.keywords = names, keywords


def parse(kind: type[O], argv: Sequence[str] | None = None) -> O:
    """Return the options of a command line, of ``sys.argv`` by default; exit with a sentence if one is wrong."""
    parser = parser_of(kind)
    return _made(kind, parser, parser.parse_args(argv))


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
    description = (module.__doc__ or "").split("\n\n")[0]
    parser = argparse.ArgumentParser(prog=f"python -m {name}", description=description, allow_abbrev=False)
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
        shown = " ".join(map(str, default)) if isinstance(default, list) else f"{default}".replace("%", "%%")
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
