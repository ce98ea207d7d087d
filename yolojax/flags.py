"""Command line flags from a settings dataclass, so that each flag is written once."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import re
import types
from collections.abc import Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from yolojax.errors import UserError

T = TypeVar("T")
MOST_PIXELS = 16_384  # of an image's side
MOST_SEED = 2**32 - 1

# What ``--help`` calls the value of a field; the same in every command. Others: N for a whole number, VALUE for another one, TEXT.
_METAVARS = {
    "weights": "WEIGHTS",
    "cfg": "MODEL",
    "data": "DATA",
    "data_root": "DIR",
    "hyp": "HYP",
    "imgsz": "PIXELS",
    "line_thickness": "PIXELS",
    "freeze": "SELECTOR",
    "resume": "RUN",
    "device": "DEVICE",
    "target": "DEVICE",
    "project": "DIR",
    "name": "NAME",
    "source": "SOURCE",
    "annotations": "FILE",
    "delta": "FILE",
    "trunk": "WEIGHTS",
    "head": "WEIGHTS",
    "same_as": "NEW=OLD",
    "replay": "DATA",
    "distil": "WEIGHTS",
    "distil_gain": "GAIN",
    "cache": "KIND",
    "classes": "CLASS",
}
_METAVARS_BY_TYPE = {int: "N", float: "VALUE", str: "TEXT"}


def flag(default: Any, help: str, *names: str, nargs: str | None = None, const: Any = None) -> Any:
    """A dataclass field that is also a command line flag (see ``add_fields``)."""
    metadata = {"help": help, "names": names, "nargs": nargs, "const": const}
    if isinstance(default, list | tuple):
        return field(default_factory=lambda: tuple(default), metadata=metadata)
    return field(default=default, metadata=metadata)


class _Field(argparse.Action):
    """Stores a value, and notes in ``given`` of the parsed arguments that the user gave it."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        setattr(namespace, self.dest, self.const if self.nargs == 0 else values)
        namespace.given = getattr(namespace, "given", frozenset()) | {self.dest}


def given_fields(arguments: argparse.Namespace) -> frozenset[str]:
    """Names of the fields of ``add_fields`` that stood on the command line, be it with their defaults."""
    return getattr(arguments, "given", frozenset())


def add_fields(parser: argparse.ArgumentParser, settings: type[Any]) -> None:
    """Add one flag for every field of ``settings``.

    A field's metadata may hold ``help``, ``names`` (flags; ``--field-name`` by default), ``nargs`` and ``const``.
    """
    hints = get_type_hints(settings)
    for item in dataclasses.fields(settings):
        names = list(dict.fromkeys([*item.metadata.get("names", ()), dashed(item.name)]))
        default = item.default if item.default is not dataclasses.MISSING else item.default_factory()  # type: ignore[operator]
        options: dict[str, Any] = {"dest": item.name, "default": default, "help": item.metadata.get("help")}
        options["action"] = _Field
        value_type = _plain_type(hints[item.name])
        if value_type is bool:
            options |= {"nargs": 0, "const": True}
        else:
            options["type"] = _element_type(value_type)
            options["metavar"] = _METAVARS.get(item.name) or _METAVARS_BY_TYPE[options["type"]]
            if get_origin(value_type) is Literal:
                options["choices"] = get_args(value_type)
                del options["metavar"]
            if item.metadata.get("nargs"):
                options |= {"nargs": item.metadata["nargs"], "const": item.metadata.get("const")}
            if options.get("nargs") == "+":
                del options["const"]
        parser.add_argument(*names, **options)


def add_shared(parser: argparse.ArgumentParser, default: Any = None) -> None:
    """Add the flags that every command has: ``--json`` and ``--debug``.

    Args:
      parser: of a command, or of an action of one.
      default: ``argparse.SUPPRESS`` for an action, so that it does not overwrite what its command was given.
    """
    parser.add_argument("--json", type=Path, default=default, metavar="FILE", help="JSON file to write the figures to")
    parser.add_argument("--debug", action="store_true", default=default or False, help="show the traceback of an error")


def add_foreign(parser: argparse.ArgumentParser, *flags: Mapping[str, str]) -> None:
    """Add flags of YOLOv5 that mean nothing here, so that ``note_foreign`` can say why; ``--help`` leaves them out."""
    for name in itertools.chain(*flags):
        names = dict.fromkeys([dashed(name), f"--{name}"])
        parser.add_argument(*names, dest=name, nargs="?", const=True, help=argparse.SUPPRESS)


def note_foreign(arguments: argparse.Namespace, ignored: Mapping[str, str], refused: Mapping[str, str]) -> None:
    """Refuse a flag of ``refused``, print a note for each of ``ignored``; both map names to reasons.

    Raises:
      UserError: one of ``refused`` is given.
    """
    for name, reason in refused.items():
        if getattr(arguments, name) is not None:
            raise UserError(f"{dashed(name)}: {reason}")
    for name, reason in ignored.items():
        if getattr(arguments, name) is not None:
            print(f"{dashed(name)} has no effect: {reason}")


def read_fields(arguments: argparse.Namespace, settings: type[T]) -> T:
    """The settings that parsed arguments describe."""
    values = {item.name: getattr(arguments, item.name) for item in dataclasses.fields(settings)}  # type: ignore[arg-type]
    return settings(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def dashed(name: str) -> str:
    """The flag of a field.

    >>> dashed("conf_thres")
    '--conf-thres'
    """
    return f"--{name.replace('_', '-')}"


def at_least(settings: Any, **smallest: int) -> None:
    """Raise a UserError that names the flag if a field of ``settings`` is below a limit; ``None`` passes."""
    for name, limit in smallest.items():
        value = getattr(settings, name)
        if value is not None and value < limit:
            raise UserError(f"{dashed(name)} {value}: must be at least {limit}")


def at_most(settings: Any, **largest: int) -> None:
    """Raise a UserError that names the flag if a field of ``settings`` is above a limit; ``None`` passes."""
    for name, limit in largest.items():
        value = getattr(settings, name)
        if value is not None and value > limit:
            raise UserError(f"{dashed(name)} {value}: must be at most {limit}")


def fraction(settings: Any, *names: str, below: bool = False) -> None:
    """Raise a UserError that names the flag if a field of ``settings`` is not from 0 to 1; with ``below`` 1 is too much."""
    for name in names:
        value = getattr(settings, name)
        if not 0 <= value <= 1 or (below and value == 1):
            raise UserError(f"{dashed(name)} {value}: must be {'at least 0 and below 1' if below else 'from 0 to 1'}")


def with_dashes(words: Sequence[str]) -> list[str]:
    """Arguments with every flag spelled with dashes: YOLOv5 has some with underscores, and both spellings are taken.

    >>> with_dashes(["--data_root=my_data", "--save_txt", "a_b"])
    ['--data-root=my_data', '--save-txt', 'a_b']
    """
    flags = (re.match(r"--[\w-]+", word) for word in words)
    return [
        word if flag is None else flag[0].replace("_", "-") + word[flag.end() :]
        for word, flag in zip(words, flags, strict=True)
    ]


def _plain_type(hint: Any) -> Any:
    """The type without ``None``."""
    if get_origin(hint) in (types.UnionType,) or str(get_origin(hint)) == "typing.Union":
        return next(option for option in get_args(hint) if option is not type(None))
    return hint


def _element_type(hint: Any) -> Any:
    if get_origin(hint) is Literal:
        return type(get_args(hint)[0])
    return get_args(hint)[0] if get_origin(hint) is tuple else hint
