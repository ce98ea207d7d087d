"""Settings: every YAML file becomes a frozen dataclass, checked once.

The files that ship with the package lie in ``configs/``; a user names one by path, by its plain name (``finetune``) or by the name that YOLOv5
gives it (``hyp.finetune.yaml``, ``VOC.yaml``).
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import yaml

from yolojax.errors import UserError

Kind = Literal["models", "data", "hyps", "freezing", "studies", "weights"]
T = TypeVar("T")
_MOST_VALUES = 1_000_000  # of a YAML file, aliases written out


def configs_root() -> Path:
    """The folder of the shipped configurations: inside the installed package, or beside it in a checkout."""
    package = Path(str(resources.files("yolojax")))
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def find_config(kind: Kind, name: str | Path) -> Path:
    """The file that a user means by ``name``.

    Args:
      kind: folder of ``configs/`` to look in when ``name`` is not a path.
      name: a path, a plain name (``finetune``) or YOLOv5's name (``hyp.finetune.yaml``, ``VOC.yaml``).

    Returns:
      Path of an existing file.

    Raises:
      UserError: there is no such file; the message lists the names that exist.
    """
    path = Path(name)
    if path.is_file():
        return path
    folder = configs_root() / kind
    available = {file.stem.lower(): file for file in sorted(folder.glob("*.yaml"))}
    stem = path.name.removesuffix(".yaml").removesuffix(".yml").lower()
    known = available.get(stem) or available.get(stem.removeprefix("hyp."))
    if known is not None and path.parent.name in ("", "data", "hyps", "models", "configs", kind):
        return known
    hint = difflib.get_close_matches(stem, available, n=1)
    suggestion = f"; did you mean '{hint[0]}'?" if hint else ""
    raise UserError(f"{name}: no such file{suggestion} Shipped {kind}: {', '.join(available)}")


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
      UserError: the file is missing, is no YAML, or holds no mapping; the message names file and line.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{line}: is not valid YAML ({getattr(error, 'problem', None) or error})") from error
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
            hint = difflib.get_close_matches(key, known, n=1)
            suggestion = f"did you mean '{hint[0]}'?" if hint else f"known keys: {', '.join(known)}"
            raise UserError(f"{where}: key '{key}' is unknown; {suggestion}")


def from_mapping(settings: type[T], content: Mapping[str, Any], where: str | Path) -> T:
    """Build a settings dataclass from a mapping, with every key and type checked.

    Args:
      settings: a dataclass of numbers, booleans and strings.
      content: values by field name; fields that are left out keep their defaults.
      where: file (or flag) that errors name.

    Raises:
      UserError: an unknown key, a missing one or a value of the wrong type.
    """
    fields = {item.name: item for item in dataclasses.fields(settings)}  # type: ignore[arg-type]
    check_keys(where, content, list(fields))
    types = get_type_hints(settings)
    values = {key: _typed(types[key], value, f"{where}: key '{key}'") for key, value in content.items()}
    for name, item in fields.items():
        if name not in values and item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
            raise UserError(f"{where}: key '{name}' is missing")
    return settings(**values)


def _typed(kind: Any, value: Any, where: str) -> Any:
    """``value`` as ``kind``; numbers are never taken for booleans nor the other way round."""
    if get_origin(kind) is Literal:
        if value in get_args(kind):
            return value
        raise UserError(f"{where}: {value!r} is none of {', '.join(map(repr, get_args(kind)))}")
    options = get_args(kind) or (kind,)
    if type(None) in options:
        return None if value is None else _typed(options[0], value, where)
    is_number = (
        isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    )  # neither NaN nor infinite, and no integer too large for a float
    if float in options and is_number:
        return float(value)
    if int in options and is_number and value == int(value):
        return int(value)
    if (bool in options and isinstance(value, bool)) or (str in options and isinstance(value, str)):
        return value
    expected = " or ".join(getattr(option, "__name__", str(option)) for option in options)
    raise UserError(f"{where}: expected {expected}, found {value!r}")


@dataclass(frozen=True, kw_only=True)
class Hyperparameters:
    """The keys of YOLOv5's hyperparameter files, under YOLOv5's names (contract §1.15); ``scratch-low`` is the default.

    Learning rates are per update; ``weight_decay`` is at the nominal batch of 64; loss gains are those for 80 classes, three levels and 640 px.
    Augmentation values are fractions, degrees (``degrees``, ``shear``) or probabilities (the last five).
    """

    lr0: float = 0.01
    lrf: float = 0.01
    momentum: float = 0.937
    weight_decay: float = 0.0005
    warmup_epochs: float = 3.0
    warmup_momentum: float = 0.8
    warmup_bias_lr: float = 0.1
    box: float = 0.05
    cls: float = 0.5
    cls_pw: float = 1.0
    obj: float = 1.0
    obj_pw: float = 1.0
    iou_t: float = 0.2
    anchor_t: float = 4.0
    anchors: float | None = None
    fl_gamma: float = 0.0
    hsv_h: float = 0.015
    hsv_s: float = 0.7
    hsv_v: float = 0.4
    degrees: float = 0.0
    translate: float = 0.1
    scale: float = 0.5
    shear: float = 0.0
    perspective: float = 0.0
    flipud: float = 0.0
    fliplr: float = 0.5
    mosaic: float = 1.0
    mixup: float = 0.0
    copy_paste: float = 0.0


def load_hyperparameters(name: str | Path) -> Hyperparameters:
    """Hyperparameters from a file or a shipped name.

    >>> load_hyperparameters("hyp.finetune.yaml").lr0
    0.0032

    Raises:
      UserError: no such file, an unknown key, a value that is no number or out of its range.
    """
    path = find_config("hyps", name)
    values = from_mapping(Hyperparameters, read_yaml(path), path)
    for key, value in dataclasses.asdict(values).items():
        if value is not None and value < 0:
            raise UserError(f"{path}: key '{key}': {value} is negative")
    for key in ("flipud", "fliplr", "mosaic", "mixup", "copy_paste"):
        if getattr(values, key) > 1:
            raise UserError(f"{path}: key '{key}': {getattr(values, key)} is no probability (0 to 1)")
    if values.anchor_t <= 1:
        raise UserError(f"{path}: key 'anchor_t': {values.anchor_t} must be above 1")
    return values


Format = Literal["yolo", "voc", "coco", "tfds", "shapes"]
_DATA_KEYS = ("path", "format", "train", "val", "test", "names", "nc", "options", "defaults", "download")
_DEFAULT_KEYS: Mapping[str, type] = {"img": int, "epochs": int, "batch": int, "hyp": str, "optimizer": str}


@dataclass(frozen=True, kw_only=True)
class Download:
    """One file of a data set that can be fetched.

    Attributes:
      url: http or https address of a zip or tar file.
      size: bytes, where known.
      sha256: checksum in hexadecimal digits, where known.
      strip: leading folders of the archive's names to leave out.
      into: folder of the data set to unpack into; its own one unless given.
    """

    url: str
    size: int | None = None
    sha256: str | None = None
    strip: int = 0
    into: str = ""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What a data set YAML says.

    Attributes:
      file: the YAML file, for messages.
      root: folder of the data set; it need not exist yet (``shapes`` makes its own).
      format: how annotations are stored.
      train: where a split's images are, relative to ``root``: folders or ``.txt`` lists (``yolo``), image sets (``voc``), annotation files
        (``coco``), split expressions (``tfds``).
      val: the same for validation.
      test: the same for testing; may be empty.
      names: class names, in the order of the class indices.
      options: whatever the format needs beyond that.
      defaults: ``img`` (pixels), ``epochs``, ``batch``, ``hyp`` and ``optimizer`` that hold where the flag is not given.
      download: what to fetch when asked to; empty where the YAML has nothing, or a script as YOLOv5 has it (which is never run).
    """

    file: Path
    root: Path
    format: Format = "yolo"
    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...] = ()
    names: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    download: tuple[Download, ...] = ()


def load_data_config(name: str | Path, root: str | Path | None = None) -> DataConfig:
    """A data set's settings from a YAML file or a shipped name.

    Args:
      name: path or shipped name (``shapes``, ``coco128``, ``VOC.yaml``).
      root: folder of the data set, instead of the YAML's ``path``.

    Returns:
      Checked settings. A relative ``path`` is looked for in ``$YOLOJAX_DATA`` (by its last component), the working folder and the
      YAML's folder, in this order.

    Raises:
      UserError: unknown keys, wrong types, no classes, or ``nc`` that disagrees with ``names``.
    """
    path = find_config("data", name)
    content = read_yaml(path)
    check_keys(path, content, _DATA_KEYS)
    kind = _typed(Format, content.get("format", "yolo"), f"{path}: key 'format'")
    splits = {key: _strings(content.get(key), f"{path}: key '{key}'") for key in ("train", "val", "test")}
    for key in ("train", "val"):
        if not splits[key]:
            raise UserError(f"{path}: key '{key}' is missing")
    return DataConfig(
        file=path,
        root=Path(root) if root is not None else _find_root(content.get("path", "."), path),
        format=kind,
        names=_class_names(content, path),
        options=_section(content, "options", path),
        defaults=_data_defaults(content, path),
        download=_downloads(content, path),
        **splits,
    )


def _find_root(written: Any, file: Path) -> Path:
    if not isinstance(written, str):
        raise UserError(f"{file}: key 'path': expected a folder, found {written!r}")
    folder = Path(written).expanduser()
    if folder.is_absolute():
        return folder
    home = os.environ.get("YOLOJAX_DATA")
    candidates = [Path(home) / folder.name] if home and folder.name else []
    candidates += [folder, file.parent / folder] if folder.name else [file.parent]  # '.' is where the YAML is
    return next((candidate for candidate in candidates if candidate.is_dir()), candidates[0])


def _strings(value: Any, where: str) -> tuple[str, ...]:
    if value is None or value == "":
        return ()
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(item, str) for item in values):
        raise UserError(f"{where}: expected a name or a list of names, found {value!r}")
    return tuple(values)


def _class_names(content: Mapping[str, Any], file: Path) -> tuple[str, ...]:
    names, count = content.get("names"), content.get("nc")
    if isinstance(names, dict):
        if sorted(names, key=str) != sorted(range(len(names)), key=str):
            raise UserError(f"{file}: key 'names': indices must run from 0 to {len(names) - 1} without gaps")
        names = [names[index] for index in range(len(names))]
    if names is None and isinstance(count, int) and count > 0:
        names = [f"class{index}" for index in range(count)]
    if not isinstance(names, list) or not names:
        raise UserError(f"{file}: key 'names': expected a list of class names or 'index: name' lines, found {names!r}")
    if count is not None and count != len(names):
        raise UserError(f"{file}: key 'nc' is {count!r}, but 'names' lists {len(names)} classes")
    return tuple(str(name) for name in names)


def _section(content: Mapping[str, Any], key: str, file: Path) -> dict[str, Any]:
    value = content.get(key) or {}
    if not isinstance(value, dict):
        raise UserError(f"{file}: key '{key}': expected 'key: value' lines, found {value!r}")
    return value


def _downloads(content: Mapping[str, Any], file: Path) -> tuple[Download, ...]:
    value = content.get("download")
    if value is None or isinstance(value, str):
        return ()
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise UserError(f"{file}: key 'download': expected a list of 'url: address' entries, found {value!r}")
    items = tuple(from_mapping(Download, item, f"{file}: download") for item in value)
    for item in items:
        if item.strip < 0 or Path(item.into).is_absolute() or ".." in Path(item.into).parts:
            raise UserError(f"{file}: download: 'strip' must not be negative, and 'into' a folder of the data set")
    return items


def _data_defaults(content: Mapping[str, Any], file: Path) -> dict[str, Any]:
    defaults = _section(content, "defaults", file)
    check_keys(f"{file}: defaults", defaults, tuple(_DEFAULT_KEYS))
    return {key: _typed(_DEFAULT_KEYS[key], value, f"{file}: defaults: key '{key}'") for key, value in defaults.items()}
