"""Data sets in Pascal VOC layout: ``ImageSets/Main/<set>.txt``, ``Annotations/<name>.xml``, ``JPEGImages/<name>.jpg``.

An entry is the name of a set (``train``), with its folder before it where there are several (``VOC2007/train``). Boxes marked ``difficult`` are left
out, corners are clipped to the image. Options of the data set's YAML:

  centre_offset: pixels added to the centre of every box, -1 in YOLOv5's VOC.yaml (``docs/yolov5.md`` §1.16);
    0 unless given.
  difficult: whether to keep boxes marked so; false unless given.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from yolojax.config import check_keys
from yolojax.data.config import DataConfig
from yolojax.data.images import IMAGE_SUFFIXES, probe_image, read_image
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

_OPTIONS = ("centre_offset", "difficult")


def open_voc(config: DataConfig, split: str, entries: Sequence[str]) -> Split:
    """The samples of a split in VOC layout.

    Raises:
      UserError: a set or the images are missing, or not one object has a class that the data set names.
    """
    check_keys(f"{config.file}: options", config.options, _OPTIONS)
    problems: list[Problem] = []
    images: list[Path] = []
    missing = 0
    for entry in entries:
        folder, _, name = entry.rpartition("/")
        root = config.root / folder
        listing = root / "ImageSets" / "Main" / f"{name}.txt"
        if not listing.is_file():
            raise UserError(
                f"{config.file}: key '{split}': {listing} does not exist; set 'path' in that file to the folder of the data set"
            )
        files = {
            path.stem: path for path in sorted((root / "JPEGImages").glob("*")) if path.suffix.lower() in IMAGE_SUFFIXES
        }
        if not files:
            raise UserError(f"{config.file}: key '{split}': {root / 'JPEGImages'} holds no image")
        try:
            lines = listing.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise UserError(f"{config.file}: key '{split}': {listing} is no list of images: it is not text") from error
        for number, line in enumerate(lines, start=1):
            identifier = line.split()[0] if line.split() else ""
            if identifier in files:
                images.append(files[identifier])
            elif identifier:
                missing += 1
                message = f"{root / 'JPEGImages' / identifier} does not exist"
                problems.append(Problem("missing image", f"{listing}, line {number}", message, "image"))
    if not images:
        raise UserError(f"{config.file}: key '{split}': {', '.join(entries)} name no image that exists")
    samples, faults = read_samples(partial(_read_sample, config), images)
    problems += faults
    unknown = sum(problem.kind == "unknown class" for problem in problems)
    if unknown and not any(len(sample.boxes) for sample in samples):
        raise UserError(f"{config.file}: key 'names': no object has one of these classes; {problems[-1]}")
    return make_split(split, len(images) + missing, samples, problems)


def _read_sample(config: DataConfig, image: Path) -> tuple[Sample | None, list[Problem]]:
    try:
        size, problems = probe_image(image)
    except ImageError as error:
        return None, [Problem("unreadable image", str(image), str(error), "image")]
    annotation = image.parents[1] / "Annotations" / f"{image.stem}.xml"
    boxes = no_boxes()
    if annotation.is_file():
        boxes, faults = read_annotation(annotation, size, config)
        problems += faults
        if any(problem.left_out == "image" for problem in faults):
            return None, problems
    return Sample(name=str(image), size=size, boxes=boxes, reader=partial(read_image, image)), problems


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
