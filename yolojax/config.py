"""Settings: every YAML file becomes a frozen dataclass, checked once.

The files that ship with the package lie in ``configs/``; a user names one by path, by its plain name (``finetune``) or by the name that YOLOv5
gives it (``hyp.finetune.yaml``, ``VOC.yaml``).
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import sys
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import yaml

from yolojax.errors import UserError
from yolojax.text import has_misplaced_space, read_text, visible

Folder = Literal["models", "data", "hyps", "freezing", "studies", "weights"]
T = TypeVar("T")
_NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?")
_MOST_VALUES = 1_000_000  # of a YAML file, aliases written out


def configs_root() -> Path:
    """The folder of the shipped configurations: inside the installed package, or beside it in a checkout."""
    package = Path(str(resources.files("yolojax")))
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def find_config(folder: Folder, name: str | Path) -> Path:
    """The file that a user means by ``name``.

    Args:
      folder: of ``configs/``, to look in when ``name`` is not a path.
      name: a path, a plain name (``finetune``) or YOLOv5's name (``hyp.finetune.yaml``, ``VOC.yaml``).

    Returns:
      Path of an existing file.

    Raises:
      UserError: there is no such file; the message lists the names that exist.
    """
    path = Path(name)
    if path.is_file():
        return path
    available = {file.stem.lower(): file for file in sorted((configs_root() / folder).glob("*.yaml"))}
    stem = path.name.removesuffix(".yaml").removesuffix(".yml").lower()
    shipped = available.get(stem) or available.get(stem.removeprefix("hyp."))
    if shipped is not None and path.parent.name in ("", "data", "hyps", "models", "configs", folder):
        return shipped
    what = "is a folder, not a YAML file" if path.is_dir() else "no such file"
    hint = difflib.get_close_matches(stem, available, n=1)
    suggestion = f"did you mean '{hint[0]}'? Shipped" if hint else "shipped"
    raise UserError(f"{name}: {what}; {suggestion} {folder}: {', '.join(available)}")


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
      UserError: the file is missing, is no YAML, or holds no mapping; the message names file and line.
    """
    return _mapping(path, yaml.SafeLoader)


def read_yaml_words(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, every value as the text that stands there.

    YAML takes ``no`` for false, ``1e3`` for text and ``007`` for seven; a class name is none of these.

    Raises:
      UserError: see ``read_yaml``.
    """
    return _mapping(path, yaml.BaseLoader)


def _mapping(path: Path, loader: type[yaml.SafeLoader] | type[yaml.BaseLoader]) -> dict[str, Any]:
    try:
        text = read_text(path)
        if has_misplaced_space(text):  # copied from a web page: YAML takes it for a part of the word
            text = visible(text)
        content = yaml.load(text, loader)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = " ".join(str(getattr(error, "problem", None) or error).split())  # some have lines of their own
        raise UserError(f"{path}{line}: is not valid YAML ({problem})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected 'key: value' lines, found {type(content).__name__}")
    _refuse_endless(path, content)
    return {str(key): value for key, value in content.items()}


def _refuse_endless(path: Path, content: Any) -> None:
    """Aliases let a few lines of YAML stand for more values than any memory holds, or contain themselves."""
    pending, values = [content], 0
    while pending:
        value = pending.pop()
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple | set) else ()
        values += len(inner)
        if values > _MOST_VALUES:
            raise UserError(f"{path}: its aliases stand for more than {_MOST_VALUES} values; write out what is meant")
        pending.extend(inner)


def check_keys(where: str | Path, content: Mapping[str, Any], known: Sequence[str]) -> None:
    """Raise a UserError that names the first unknown key of ``content`` and the nearest known one."""
    for key in content:
        if key not in known:
            nearest = nearest_key(key, known)
            suggestion = f"did you mean '{nearest}'?" if nearest else f"known keys: {', '.join(known)}"
            raise UserError(f"{where}: key '{key}' is unknown; {suggestion}")


def nearest_key(key: str, known: Sequence[str]) -> str | None:
    """The known key that a misspelt one probably means, or None where none is near."""
    return next(iter(difflib.get_close_matches(key, known, n=1, cutoff=0.65)), None)


def from_mapping(settings: type[T], content: Mapping[str, Any], where: str | Path) -> T:
    """Build a settings dataclass from a mapping, with every key and type checked.

    Args:
      settings: a dataclass of numbers, booleans, strings, and tuples of one of them.
      content: values by field name; fields that are left out keep their defaults.
      where: file (or flag) that errors name.

    Raises:
      UserError: an unknown key, a missing one or a value of the wrong type.
    """
    fields = {item.name: item for item in dataclasses.fields(settings)}  # type: ignore[arg-type]
    check_keys(where, content, list(fields))
    types = get_type_hints(settings)
    values = {key: typed(types[key], value, f"{where}: key '{key}'") for key, value in content.items()}
    for name, item in fields.items():
        if name not in values and item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
            raise UserError(f"{where}: key '{name}' is missing")
    try:
        return settings(**values)
    except UserError as error:  # what a dataclass says of its own values knows no file
        raise UserError(f"{where}: {error}") from error


def typed(wanted: Any, value: Any, where: str) -> Any:
    """``value`` as ``wanted``; numbers are never taken for booleans nor the other way round."""
    if wanted is Any:
        return value
    if get_origin(wanted) is Literal:
        if value in get_args(wanted):
            return value
        raise UserError(f"{where}: {value!r} is none of {', '.join(map(repr, get_args(wanted)))}")
    if get_origin(wanted) is tuple and isinstance(value, list | tuple):
        return tuple(typed(get_args(wanted)[0], item, where) for item in value)
    options = get_args(wanted) or (wanted,)
    if (
        {int, float} & set(options)
        and str not in options
        and isinstance(value, str)
        and _NUMBER.fullmatch(value.strip())
    ):
        value = float(value)  # YAML takes 1e-3 for text: it wants 1.0e-3
    if type(None) in options:
        return None if value is None else typed(options[0], value, where)
    is_number = (
        isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    )  # neither NaN nor infinite, and no integer too large for a float
    if float in options and is_number:
        return float(value)
    if int in options and is_number and value == int(value):
        return int(value)
    if (bool in options and isinstance(value, bool)) or (str in options and isinstance(value, str)):
        return value
    expected = " or ".join(
        "true or false" if option is bool else getattr(option, "__name__", str(option)) for option in options
    )
    raise UserError(f"{where}: expected {expected}, found {value!r}")
