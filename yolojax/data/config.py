"""What a data set's YAML file says."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from yolojax.config import check_keys, find_config, from_mapping, read_yaml, typed
from yolojax.errors import UserError

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
      only: a folder of the archive, named without those, that is taken while the rest is left out.
      into: folder of the data set to unpack into; its own one unless given.
    """

    url: str
    size: int | None = None
    sha256: str | None = None
    strip: int = 0
    only: str = ""
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
    kind = typed(Format, content.get("format", "yolo"), f"{path}: key 'format'")
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
    return {key: typed(_DEFAULT_KEYS[key], value, f"{file}: defaults: key '{key}'") for key, value in defaults.items()}
