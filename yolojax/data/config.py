"""What a data set's YAML file says."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from yolojax.config import (
    check_keys,
    find_config,
    from_mapping,
    nearest_key,
    read_yaml,
    read_yaml_words,
    typed,
)
from yolojax.errors import UserError
from yolojax.text import read_text, trimmed

log = logging.getLogger(__name__)

Format = Literal["yolo", "voc", "coco", "tfds", "shapes"]
_KEYPOINT_KEYS = ("kpt_shape", "flip_idx")
_MOST_CLASSES, _LONGEST_INDEX = 100_000, 7
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
      UserError: a folder, a key that looks like one of ours and is not, wrong types, no classes, or ``nc``
        that disagrees with ``names``.
    """
    path = _find_file(name)
    content = read_yaml(path)
    _check_data_keys(path, content)
    annotation_format = typed(Format, content.get("format", "yolo"), f"{path}: key 'format'")
    splits = {key: _strings(content.get(key), f"{path}: key '{key}'") for key in ("train", "val", "test")}
    for key in ("train", "val"):
        if not splits[key]:
            other = next((f"; '{key}: {entry}' validates on what it trains on" for entry in splits["train"]), "")
            raise UserError(f"{path}: key '{key}' is missing{other}")
    found_root = Path(root) if root is not None else _find_root(content, path, splits)
    return DataConfig(
        file=path,
        root=found_root,
        format=annotation_format,
        names=_class_names(content, path, found_root),
        options=_section(content, "options", path),
        defaults=_data_defaults(content, path),
        download=_downloads(content, path),
        **splits,
    )


def _find_file(name: str | Path) -> Path:
    """The YAML that a user means. A folder of that name without one, as photos often lie in, does not hide a shipped data set."""
    folder = Path(name)
    if not folder.is_dir():
        return find_config("data", name)
    files = sorted(file.name for suffix in ("*.yaml", "*.yml") for file in folder.glob(suffix))
    if files:
        raise UserError(f"{folder}: is a folder; give the data YAML in it: {', '.join(files)}")
    try:
        return find_config("data", name)
    except UserError:
        raise UserError(
            f"{folder}: is a folder without a data YAML; write one there with the keys 'train' and 'val' "
            "(folders or lists of images) and 'names' (the classes, or the file that lists them)"
        ) from None


def _check_data_keys(file: Path, content: Mapping[str, Any]) -> None:
    """Refuse keys that look like one of ours, and name those that other tools wrote for themselves."""
    foreign = []
    for key in content:
        if key in _KEYPOINT_KEYS:
            raise UserError(f"{file}: key '{key}': a data set of keypoints; yolojax reads boxes and outlines")
        if key in _DATA_KEYS:
            continue
        if nearest_key(key, _DATA_KEYS):
            check_keys(file, {key: None}, _DATA_KEYS)
        foreign.append(f"'{key}'")
    if foreign:
        word = "key" if len(foreign) == 1 else "keys"
        log.info("%s: %s %s not used here", file, word, ", ".join(foreign))


def _find_root(content: Mapping[str, Any], file: Path, splits: Mapping[str, tuple[str, ...]]) -> Path:
    written = content.get("path")
    if written is None or written == "":
        written = "."
    if not isinstance(written, str):
        raise UserError(f"{file}: key 'path': expected a folder, found {written!r}")
    folder = Path(system_path(written)).expanduser()
    if folder.is_absolute():
        moved = not os.path.isdir(folder) and all(
            os.path.exists(file.parent / entry) for entry in splits["train"] + splits["val"]
        )
        if not moved:
            return folder
        log.info("%s: %s does not exist; what the file lists is beside it, and taken from there", file, folder)
        return file.parent
    home = os.environ.get("YOLOJAX_DATA")
    candidates = [Path(home) / folder.name] if home and folder.name else []
    candidates += [folder, file.parent / folder] if folder.name else [file.parent]  # '.' is where the YAML is
    return next((candidate for candidate in candidates if candidate.is_dir()), candidates[0])


def system_path(written: str) -> str:
    """A path with the separators of this system, where it was written with those of Windows."""
    return written.replace("\\", "/") if os.sep == "/" else written


def _strings(value: Any, where: str) -> tuple[str, ...]:
    if value is None or value == "":
        return ()
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(item, str) for item in values):
        raise UserError(
            f"{where}: expected a name or a list of names, found {value!r}; a name that YAML takes for something else needs quotes"
        )
    return tuple(trimmed(item) for item in values if item)


def _class_names(content: Mapping[str, Any], file: Path, root: Path) -> tuple[str, ...]:
    where, count = f"{file}: key 'names'", content.get("nc")
    if count is not None:
        count = typed(int, count, f"{file}: key 'nc'")
    names = content.get("names")
    if names is None and count is not None and 0 < count <= _MOST_CLASSES:
        return tuple(f"class{index}" for index in range(count))
    if isinstance(names, str):
        listed = _listed_names(names, where, (root, file.parent))
    elif isinstance(names, list | dict) and names:
        # The words as they stand there: YAML would make truth values and numbers of some.
        listed = _ordered_names(read_yaml_words(file)["names"], where)
    else:
        raise UserError(
            f"{where}: expected a list of class names, 'index: name' lines or a file of names, found {names!r}"
        )
    for index, name in enumerate(listed):
        if not isinstance(name, str) or not trimmed(name):
            raise UserError(f"{where}: class {index} has no name that is a word; found {name!r}")
    if count is not None and count != len(listed):
        raise UserError(f"{file}: key 'nc' is {count!r}, but 'names' lists {len(listed)} classes")
    return tuple(trimmed(name) for name in listed)


def _ordered_names(names: Any, where: str) -> list[Any]:
    """Class names by index, from a list or from a mapping of words either way round."""
    if isinstance(names, list):
        return names
    indices = {_index(key): value for key, value in names.items()}
    if None in indices and all(isinstance(value, str) for value in names.values()):
        indices = {_index(value): key for key, value in names.items()}  # 'cat: 0' lines
    if len(indices) != len(names) or set(indices) != set(range(len(names))):
        raise UserError(f"{where}: indices must run from 0 to {len(names) - 1} without gaps")
    return [indices[index] for index in range(len(names))]


def _index(word: Any) -> int | None:
    return int(word) if isinstance(word, str) and word.isdecimal() and len(word) < _LONGEST_INDEX else None


def _listed_names(name: str, where: str, places: tuple[Path, ...]) -> list[Any]:
    """The lines of a file of class names (``classes.txt``, ``obj.names``)."""
    files = [place / name for place in places]
    file = next((place for place in files if os.path.isfile(place)), None)
    if file is None:
        tried = " nor ".join(dict.fromkeys(map(str, files)))
        raise UserError(f"{where}: is {name!r}, which is no list of names, and neither {tried} is a file of names")
    try:
        return [trimmed(line) for line in read_text(file).rstrip().splitlines()]
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: {file} is no list of names: it is not text") from error


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
