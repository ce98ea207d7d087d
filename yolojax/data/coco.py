"""Data sets with COCO annotation files.

An entry is an annotation file (``annotations/instances_train2017.json``). Crowd boxes are left out, as the original does it; corners are clipped to the
image; categories are matched by name. Options of the data set's YAML:

  images: folder of the images, relative to the root; ``{set}`` in it is what follows the last ``_`` of the annotation file's name. Unless given,
    the usual places are tried: ``images/{set}``, ``{set}``, ``images``, and the folder of the annotation file.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolojax.config import check_keys
from yolojax.data.config import DataConfig, system_path
from yolojax.data.images import probe_image, read_image
from yolojax.data.sample import (
    ImageError,
    Objects,
    Outline,
    Problem,
    Sample,
    Split,
    make_split,
    other_size,
    read_samples,
)
from yolojax.errors import UserError

_OPTIONS = ("images",)


@dataclass(frozen=True)
class _Entry:
    path: Path
    where: str
    size: tuple[Any, Any]
    annotations: list[tuple[int, Mapping[str, Any]]]


def open_coco(config: DataConfig, split: str, entries: Sequence[str]) -> Split:
    """The samples of a split with COCO annotations.

    Raises:
      UserError: a file is missing or no COCO annotation file, its images are not found, or none of its categories has a name of the data set.
    """
    check_keys(f"{config.file}: options", config.options, _OPTIONS)
    problems: list[Problem] = []
    samples: list[Sample] = []
    listed = 0
    for entry in entries:
        file = config.root / system_path(entry)
        content = _read(config, split, file)
        rows = _entries(config, file, content, problems)
        listed += len(content["images"])
        classes = _classes(config, file, content)
        usable, seen = read_samples(partial(_read_sample, classes), rows)
        samples += usable
        problems += seen
    return make_split(split, listed, samples, problems)


def _read(config: DataConfig, split: str, file: Path) -> dict[str, list[dict[str, Any]]]:
    """The lists ``images``, ``annotations`` and ``categories``, each of mappings that have an id."""
    if not file.is_file():
        raise UserError(
            f"{config.file}: key '{split}': {file} does not exist; set 'path' in that file to the folder of the data set"
        )
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: is no JSON file ({error})") from error
    content = content if isinstance(content, dict) else {}
    content.setdefault("annotations", [])  # files of test sets have none
    for key, needed in (("images", "file_name"), ("annotations", "image_id"), ("categories", "name")):
        rows = content.get(key)
        if not isinstance(rows, list):
            raise UserError(f"{file}: is no COCO annotation file: it has no list '{key}'")
        for number, row in enumerate(rows):
            if not isinstance(row, dict) or needed not in row:
                raise UserError(f"{file}: {key}[{number}] has no '{needed}'")
    return content


def _classes(config: DataConfig, file: Path, content: Mapping[str, list[dict[str, Any]]]) -> dict[Any, int | str]:
    """From category id to class, or to its name where the data set does not have it."""
    index = {name: number for number, name in enumerate(config.names)}
    classes = {_key(row.get("id")): index.get(str(row["name"]), str(row["name"])) for row in content["categories"]}
    if not any(isinstance(value, int) for value in classes.values()):
        raise UserError(
            f"{config.file}: key 'names': {file} has none of these classes, but {', '.join(map(str, classes.values()))}"
        )
    return classes


def _entries(
    config: DataConfig, file: Path, content: Mapping[str, list[dict[str, Any]]], problems: list[Problem]
) -> list[_Entry]:
    rows: defaultdict[Any, list[tuple[int, Mapping[str, Any]]]] = defaultdict(list)
    for number, annotation in enumerate(content["annotations"]):
        rows[_key(annotation["image_id"])].append((number, annotation))
    names = [system_path(str(image["file_name"])) for image in content["images"]]
    identifiers: dict[Any, int] = {}
    for number, image in enumerate(content["images"]):
        first = identifiers.setdefault(identifier := _key(image.get("id")), number)
        if first != number and identifier in rows:
            raise UserError(
                f"{file}: images[{number}] has the id of images[{first}] ({identifier}), so that nobody can tell whose the annotations "
                "are; give every image an id of its own"
            )
    for identifier in rows.keys() - identifiers.keys():
        for number, _ in rows[identifier]:
            message = f"image_id {identifier} is not among the images"
            problems.append(Problem("no such image", f"{file}, annotations[{number}]", message, "box"))
    folder = _image_folder(config, file, names)
    entries = []
    for number, (name, row) in enumerate(zip(names, content["images"], strict=True)):
        where = f"{file}, images[{number}]"
        if os.path.isabs(name) or ".." in Path(name).parts or "\0" in name or not _is_text(name):
            problems.append(Problem("bad path", where, f"{name!r} is no name below the images' folder", "image"))
        else:
            size = row.get("height"), row.get("width")
            entries.append(_Entry(folder / name, str(file), size, rows.get(_key(row.get("id")), [])))
    return sorted(entries, key=lambda entry: str(entry.path))


def _is_text(name: str) -> bool:
    """JSON can hold halves of characters, which no file name has."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _image_folder(config: DataConfig, file: Path, names: Sequence[str]) -> Path:
    set_name = file.stem.rpartition("_")[2]
    if "images" in config.options:
        return config.root / str(config.options["images"]).replace("{set}", set_name)
    places = [config.root / "images" / set_name, config.root / set_name, config.root / "images", file.parent]
    for place in places:
        if any(os.path.isfile(place / name) for name in names[:100]):  # of any text: Path.is_file refuses long ones
            return place
    raise UserError(
        f"{config.file}: the images of {file} are in none of {', '.join(map(str, places))}; set options: images: to their folder"
    )


def _key(value: Any) -> Any:
    """An id as a key; hostile ones (lists, mappings) by their text."""
    return value if isinstance(value, int | str) else repr(value)


def _read_sample(classes: Mapping[Any, int | str], entry: _Entry) -> tuple[Sample | None, list[Problem]]:
    try:
        size, problems = probe_image(entry.path)
    except ImageError as error:
        return None, [Problem("unreadable image", str(entry.path), str(error), "image")]
    limit = np.array(size[::-1], np.float64)
    written = np.array([_number(side) for side in entry.size[::-1]])
    if (written > 0).all() and (written != limit).any():
        problems.append(other_size(f"{entry.where}, {entry.path.name}", written.tolist(), size))
        limit = written
    objects = Objects(problems=problems)
    for number, annotation in entry.annotations:
        where = f"{entry.where}, annotations[{number}]"
        if annotation.get("iscrowd"):
            problems.append(Problem("crowd box", where, "is the box of a crowd, and not used"))
            continue
        label = classes.get(_key(annotation.get("category_id")), f"category_id {annotation.get('category_id')}")
        corners = _corners(annotation.get("bbox"), limit)
        if isinstance(label, str):
            problems.append(Problem("unknown class", where, f"'{label}' is not among the data set's classes", "box"))
        elif corners is None:
            problems.append(Problem("bad annotation", where, "has no four numbers in 'bbox'", "image"))
        else:
            low, high = corners / limit
            objects.add_corners(where, label, low, high, _outline(annotation.get("segmentation"), limit))
    if any(problem.left_out == "image" for problem in problems):
        return None, problems
    name, reader = str(entry.path), partial(read_image, entry.path)
    return Sample(name=name, size=size, boxes=objects.boxes, polygons=objects.polygons, reader=reader), problems


def _number(value: Any) -> float:
    try:
        return float(value) if isinstance(value, int | float) else float("nan")
    except OverflowError:
        return float("nan")


def _corners(box: Any, limit: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Left, top and right, bottom ``(2, 2)`` of a COCO box, clipped to (width, height)."""
    if not isinstance(box, list) or len(box) != 4:
        return None
    left, top, width, height = map(_number, box)
    corners = np.array([[left, top], [left + width, top + height]])
    return corners.clip(0, limit) if np.isfinite(corners).all() else None


def _outline(segmentation: Any, limit: NDArray[np.float64]) -> Outline:
    """The polygon ``(k, 2)`` of an object that is in one piece, as fractions of the image; None for all others."""
    if not isinstance(segmentation, list) or len(segmentation) != 1 or not isinstance(segmentation[0], list):
        return None
    values = np.array([_number(value) for value in segmentation[0]])
    if len(values) < 6 or len(values) % 2 or not np.isfinite(values).all():
        return None
    return (values.reshape(-1, 2) / limit).clip(0, 1).astype(np.float32)
