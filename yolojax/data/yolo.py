"""Data sets in YOLO layout: folders or lists of images, one ``.txt`` of rows beside each.

A row is ``class x y width height`` (centre based, as fractions of the image) or ``class x1 y1 x2 y2 x3 y3 …`` (an outline); both kinds may stand in one
file. The labels of ``…/images/a.jpg`` are in ``…/labels/a.txt``; an image without that file is a background.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from yolojax.data.config import DataConfig
from yolojax.data.images import probe_image, read_image
from yolojax.data.listing import check_label_files, label_path, list_images
from yolojax.data.sample import (
    NO_SUCH_CLASS,
    ImageError,
    Objects,
    Outline,
    Polygons,
    Problem,
    Sample,
    Split,
    make_split,
    no_boxes,
    read_samples,
)
from yolojax.text import read_text, visible

_ROUNDING = 1e-6  # what writing a coordinate of 1 with six digits may add


class _RowError(Exception):
    """A label row that means nothing; the message says why."""


def open_yolo(config: DataConfig, split: str, entries: Sequence[str]) -> Split:
    """The samples of a split in YOLO layout.

    Args:
      config: the data set.
      split: name of the split, for messages.
      entries: folders (searched recursively) or ``.txt`` lists, relative to ``config.root``.

    Raises:
      UserError: an entry is missing or empty.
    """
    problems: list[Problem] = []
    images = sorted((path for entry in entries for path in list_images(config, split, entry, problems)), key=str)
    missing = len(problems)
    samples, faults = read_samples(partial(_read_sample, config), images)
    unlabelled, label_problems = check_label_files(config.root, images, [Path(sample.name) for sample in samples])
    problems += faults + label_problems
    return make_split(split, len(images) + missing, samples, problems, unlabelled)


def _read_sample(config: DataConfig, image: Path) -> tuple[Sample | None, list[Problem]]:
    try:
        size, problems = probe_image(image)
    except ImageError as error:
        return None, [Problem("unreadable image", str(image), str(error), "image")]
    labels = label_path(image)
    if not labels.is_file():
        return Sample(name=str(image), size=size, boxes=no_boxes(), reader=partial(read_image, image)), problems
    boxes, polygons, faults = read_labels(labels, config)
    problems += faults
    if any(problem.left_out == "image" for problem in faults):
        return None, problems
    reader = partial(read_image, image)
    return Sample(name=str(image), size=size, boxes=boxes, polygons=polygons, reader=reader), problems


def read_labels(path: Path, config: DataConfig) -> tuple[NDArray[np.float32], Polygons, list[Problem]]:
    """The rows of a label file.

    Returns:
      Boxes ``(n, 5)``, their outlines (nothing where no row has one), and what is wrong. A row that means nothing makes the whole image
      useless (training would learn its object as background): its problem says ``left_out == "image"``.
    """
    try:
        lines = visible(read_text(path)).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        return no_boxes(), (), [Problem("bad label", str(path), f"cannot be read as text ({error})", "image")]
    objects = Objects()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row, polygon = _parse_row(line)
        except _RowError as error:
            objects.problems.append(Problem("bad label", where, str(error), "image"))
            continue
        classes = len(config.names)
        if row[0] >= classes:
            message = f"class {row[0]:.0f}, but {config.file.name} names {classes} classes (0 to {classes - 1})"
            objects.problems.append(Problem(NO_SUCH_CLASS, where, message, "image"))
        else:
            objects.add(where, row, polygon)
    return objects.boxes, objects.polygons, objects.problems


def _parse_row(line: str) -> tuple[tuple[float, ...], Outline]:
    fields = line.split()
    values = []
    for field in fields:
        try:
            values.append(float(field))
        except ValueError as error:
            raise _RowError(f"'{field}' is no number") from error
    if len(values) != 5 and (len(values) < 7 or len(values) % 2 == 0):
        raise _RowError(f"{len(values)} numbers; a box has 5, an outline 7 or more, always odd")
    if values[0] < 0 or not values[0].is_integer():
        raise _RowError(f"class {fields[0]} is no whole number from 0")
    for field, value in zip(fields[1:], values[1:], strict=True):
        if not 0 <= value <= 1 + _ROUNDING:  # true for NaN as well
            raise _RowError(f"coordinate {field} is outside 0 to 1 (fractions of the image, not pixels)")
    if len(values) == 5:
        return tuple(values), None
    polygon = np.array(values[1:]).reshape(-1, 2)
    low, high = polygon.min(0), polygon.max(0)
    return (values[0], *((low + high) / 2).tolist(), *(high - low).tolist()), polygon.astype(np.float32)
