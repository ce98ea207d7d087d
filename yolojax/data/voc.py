"""Data sets in Pascal VOC layout: ``ImageSets/Main/<set>.txt``, ``Annotations/<name>.xml``, ``JPEGImages/<name>.jpg``.

An entry is the name of a set (``train``), with its folder before it where there are several
(``VOC2007/train``), or a folder of XML files (``Annotations``), as Label Studio and labelImg write them
without sets. Boxes marked ``difficult`` are left out, corners are clipped to the image. Options of the data
set's YAML:

  centre_offset: pixels added to the centre of every box, -1 in YOLOv5's VOC.yaml (``docs/yolov5.md`` §1.16); 0
    unless given.
  difficult: whether to keep boxes marked so; false unless given.
  images: folder of the images beside ``Annotations``; ``JPEGImages`` or ``images`` unless given, and for a
    folder of XML files also that folder itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from yolojax.config import check_keys
from yolojax.data.config import DataConfig, system_path
from yolojax.data.images import IMAGE_SUFFIXES, UNREAD_SUFFIXES, probe_image, read_image
from yolojax.data.sample import (
    ImageError,
    Objects,
    Problem,
    Sample,
    Split,
    make_split,
    no_boxes,
    other_size,
    read_samples,
)
from yolojax.errors import UserError
from yolojax.text import read_text, trimmed

_OPTIONS = ("centre_offset", "difficult", "images")
_IMAGE_FOLDERS = ("JPEGImages", "images")


@dataclass(frozen=True)
class _Entry:
    """An image and where its annotation is, if it has one."""

    image: Path
    annotation: Path


def open_voc(config: DataConfig, split: str, entries: Sequence[str]) -> Split:
    """The samples of a split in VOC layout.

    Raises:
      UserError: a set or the images are missing, or not one object has a class that the data set names.
    """
    check_keys(f"{config.file}: options", config.options, _OPTIONS)
    problems: list[Problem] = []
    rows: list[_Entry] = []
    for entry in entries:
        rows += _rows(config, split, system_path(entry), problems)
    missing = len(problems)
    if not rows:
        first = f"; {problems[0].where}: {problems[0].message}" if problems else ""
        raise UserError(f"{config.file}: key '{split}': {', '.join(entries)} name no image that exists{first}")
    samples, faults = read_samples(partial(_read_sample, config), rows)
    problems += faults
    unknown = sum(problem.kind == "unknown class" for problem in problems)
    if unknown and not any(len(sample.boxes) for sample in samples):
        raise UserError(f"{config.file}: key 'names': no object has one of these classes; {problems[-1]}")
    used = {sample.name for sample in samples}
    unlabelled = sum(str(row.image) in used and not row.annotation.is_file() for row in rows)
    return make_split(split, len(rows) + missing, samples, problems, unlabelled)


def _rows(config: DataConfig, split: str, entry: str, problems: list[Problem]) -> list[_Entry]:
    """The images of an entry; what it names and nobody can find is added to the problems."""
    where = f"{config.file}: key '{split}'"
    folder, _, name = entry.rpartition("/")
    root = config.root / folder
    listing = root / "ImageSets" / "Main" / f"{name}.txt"
    if listing.is_file():
        return _listed(where, listing, root, _images(config, where, root, ()), problems)
    annotations = config.root / entry
    if any(annotations.glob("*.xml")):
        files = _images(config, where, annotations.parent, (annotations,))
        return _annotated(annotations, files, problems)
    raise UserError(f"{where}: {listing} does not exist; set 'path' in that file to the folder of the data set")


def _images(config: DataConfig, where: str, root: Path, also: Sequence[Path]) -> dict[str, Path]:
    """Image files by name, without suffix, below the folder of images of ``root`` or one of the others."""
    chosen = config.options.get("images")
    folders = [root / str(chosen)] if chosen else [*(root / name for name in _IMAGE_FOLDERS), *also]
    for folder in folders:
        files = {
            path.relative_to(folder).with_suffix("").as_posix(): path
            for path in sorted(folder.rglob("*"))
            if path.suffix.lower() in IMAGE_SUFFIXES + UNREAD_SUFFIXES
        }
        if files:
            return files
    nowhere = f"{folders[0]} holds no image" + (f", nor {', '.join(map(str, folders[1:]))}" if folders[1:] else "")
    raise UserError(f"{where}: {nowhere}")


def _listed(where: str, listing: Path, root: Path, files: Mapping[str, Path], problems: list[Problem]) -> list[_Entry]:
    try:
        lines = read_text(listing).splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: {listing} is no list of images: it is not text") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        # A set of one class has a second column; a name may hold spaces.
        names = [trimmed(line), *line.split()[:1]]
        identifier = next((name for name in names if name in files), names[-1])
        if identifier in files:
            rows.append(_Entry(files[identifier], root / "Annotations" / f"{identifier}.xml"))
        elif identifier:
            message = f"no image is called {identifier}"
            problems.append(Problem("missing image", f"{listing}, line {number}", message, "image"))
    return rows


def _annotated(annotations: Path, files: Mapping[str, Path], problems: list[Problem]) -> list[_Entry]:
    """The images of a folder of XML files: those without one are backgrounds, as everywhere."""
    for file in sorted(annotations.glob("*.xml")):
        if file.stem not in files:
            problems.append(Problem("missing image", str(file), f"no image is called {file.stem}", "image"))
    return [_Entry(image, annotations / f"{name}.xml") for name, image in files.items()]


def _read_sample(config: DataConfig, entry: _Entry) -> tuple[Sample | None, list[Problem]]:
    try:
        size, problems = probe_image(entry.image)
    except ImageError as error:
        return None, [Problem("unreadable image", str(entry.image), str(error), "image")]
    boxes = no_boxes()
    if entry.annotation.is_file():
        boxes, faults = read_annotation(entry.annotation, size, config)
        problems += faults
        if any(problem.left_out == "image" for problem in faults):
            return None, problems
    reader = partial(read_image, entry.image)
    return Sample(name=str(entry.image), size=size, boxes=boxes, reader=reader), problems


def read_annotation(path: Path, size: tuple[int, int], config: DataConfig) -> tuple[NDArray[np.float32], list[Problem]]:
    """The boxes of an XML file.

    Args:
      path: the file.
      size: (height, width) of the image, used where the file gives none.
      config: class names and options.

    Returns:
      Boxes ``(n, 5)`` and what is wrong.
    """
    try:
        data = path.read_bytes()
        if b"<!ENTITY" in data.replace(b"\0", b""):  # in UTF-16 every other byte is zero
            raise ElementTree.ParseError("it defines entities")
        tree = ElementTree.fromstring(data)
    except (OSError, ElementTree.ParseError, ValueError, LookupError) as error:
        return no_boxes(), [Problem("bad annotation", str(path), f"cannot be read as XML ({error})", "image")]
    objects = Objects()
    height, width = _number(tree, "size/height"), _number(tree, "size/width")
    if not (0 < height < np.inf and 0 < width < np.inf):
        objects.problems.append(Problem("no size", str(path), "gives no size; that of the image is used"))
        height, width = size
    elif (height, width) != size:
        objects.problems.append(other_size(str(path), (width, height), size))
    offset = float(config.options.get("centre_offset", 0))
    index = {name: number for number, name in enumerate(config.names)}
    limit = np.array([width, height])
    for number, item in enumerate(tree.iter("object"), start=1):
        where = f"{path}, object {number}"
        name = (item.findtext("name") or "").strip()
        corners = np.array([_number(item, f"bndbox/{key}") for key in ("xmin", "ymin", "xmax", "ymax")])
        if _number(item, "difficult") == 1 and not config.options.get("difficult", False):
            objects.problems.append(Problem("difficult box", where, "is marked difficult, and not used"))
            continue
        if name not in index:
            objects.problems.append(
                Problem("unknown class", where, f"class '{name}' is not in {config.file.name}", "box")
            )
            continue
        if not np.isfinite(corners).all():
            objects.problems.append(Problem("bad annotation", where, "has no four numbers in bndbox", "image"))
            continue
        low, high = corners.reshape(2, 2).clip(0, limit) / limit
        objects.add_corners(where, index[name], low + offset / limit, high + offset / limit)
    return objects.boxes, objects.problems


def _number(tree: ElementTree.Element, tag: str) -> float:
    try:
        return float(tree.findtext(tag) or "nan")
    except ValueError:
        return float("nan")
