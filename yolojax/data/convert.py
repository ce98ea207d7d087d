"""A data set in another layout: what any source gives, written so that the source of the new layout gives it again.

Boxes come back as the same float32 numbers. VOC and COCO keep corners inside the image, and no source gives a box twice, so that two boxes which
differ by less than a float32 can hold become one: what that changes is counted and said.
"""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args
from xml.etree import ElementTree

import cv2
import numpy as np
import yaml
from numpy.typing import NDArray

from yolojax.data.config import DataConfig
from yolojax.data.images import IMAGE_SUFFIXES
from yolojax.data.sample import Boxes, ImageError, Polygons, Sample
from yolojax.data.sources import SplitName, open_split
from yolojax.errors import UserError
from yolojax.files import complete_folder

Layout = Literal["yolo", "voc", "coco"]
Corners = NDArray[np.float64]

CONFIG_NAME = "data.yaml"
_DECIMALS = 8  # of a pixel; corners that need more are written with all their digits
_WITHIN = 1 - 1e-6  # share of a rounding interval that is surely inside it
_OUTLINE_OFF = 1.0  # pixels between an outline and its box, at most, for a YOLO row to stand for both
_LONGEST_NAME = 60  # characters; file systems take 255 bytes
_CUT = "boxes reached over the border of their image and are cut at it"
_REPEATED = "boxes were exactly another one of their image and are written once"
_NO_OUTLINE = "outlines are not written: a YOLO row holds a box or an outline, and these do not belong to their boxes"
_UNREADABLE = "images could not be decoded and are left out"


@dataclass(frozen=True)
class Conversion:
    """What was written.

    Attributes:
      file: the data YAML of the new layout.
      images: images per split.
      boxes: boxes per split.
      changes: how often something could not be kept as it was, by what it is.
    """

    file: Path
    images: dict[str, int]
    boxes: dict[str, int]
    changes: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, eq=False)
class _Labels:
    """A written image: its path below the new folder, its (height, width), and what is in it."""

    image: Path
    size: tuple[int, int]
    boxes: Boxes
    polygons: Polygons


def convert_data(
    config: DataConfig,
    out: Path,
    layout: Layout,
    splits: Sequence[SplitName] = (),
    progress: Callable[[str, int, int], None] | None = None,
) -> Conversion:
    """Write a data set in another layout.

    Files of images are copied as they are; what has no file becomes a PNG. The folder appears complete or not at all.

    Args:
      config: the data set.
      out: folder to write; it must not exist, or be empty.
      layout: ``yolo``, ``voc`` or ``coco``.
      splits: which ones; all that the data set has unless given. Splits of the same entries are written once.
      progress: called with the split, the images done and all images.

    Raises:
      UserError: the data set cannot be read, ``out`` is in use or cannot be written, or a class name cannot stand in the layout.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out}: exists and is not an empty folder; it is left as it is, name another place")
    _check_names(config)
    wanted = splits or tuple(split for split in get_args(SplitName) if getattr(config, split))
    result = Conversion(out / CONFIG_NAME, {}, {})
    entries: dict[str, str] = {}
    try:
        with complete_folder(out) as unfinished:
            taken: set[str] = set()
            for split in wanted:
                same = next((done for done in entries if getattr(config, done) == getattr(config, split)), None)
                if same is not None:
                    entries[split] = entries[same]
                    continue
                samples = open_split(config, split).samples
                folder = Path("JPEGImages") if layout == "voc" else Path("images", split)
                labels = []
                for number, sample in enumerate(samples, start=1):
                    written = _write_image(unfinished, folder, f"{split}-{number:06d}", sample, taken)
                    if written is None:
                        result.changes[_UNREADABLE] += 1
                    else:
                        boxes, polygons = _unique(sample, result.changes)
                        labels.append(_Labels(written, sample.size, boxes, polygons))
                    if progress:
                        progress(split, number, len(samples))
                entries[split] = _WRITERS[layout](unfinished, split, labels, config.names, result.changes)
                result.images[split], result.boxes[split] = len(labels), sum(len(item.boxes) for item in labels)
            _write_config(unfinished / CONFIG_NAME, out, config, layout, entries)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror or error})") from error
    return result


def _check_names(config: DataConfig) -> None:
    """Class names must be unique and survive XML, in every layout: the next conversion may go there."""
    for name in config.names:
        if not name.strip() or name != name.strip() or not name.isprintable():
            raise UserError(
                f"{config.file}: key 'names': {name!r} is empty, or has space or control characters around it"
            )
    twice = [name for name, count in Counter(config.names).items() if count > 1]
    if twice:
        raise UserError(f"{config.file}: key 'names': '{twice[0]}' stands there twice")


def _write_image(root: Path, folder: Path, number: str, sample: Sample, taken: set[str]) -> Path | None:
    """Copy or encode the image of a sample below ``root``; nothing where it cannot be decoded."""
    source = Path(sample.name)
    is_file = source.suffix.lower() in IMAGE_SUFFIXES and source.is_file()
    # VOC's lists end a name at a space, and a name is an image's whatever its suffix, on some machines whatever its case.
    stem = re.sub(r"[^\w.-]", "_", source.stem if is_file else number).lstrip(".")[:_LONGEST_NAME] or number
    unique, copies = stem, 1
    while unique.casefold() in taken:
        copies += 1
        unique = f"{stem}-{copies}"
    path = folder / (unique + (source.suffix if is_file else ".png"))
    (root / folder).mkdir(parents=True, exist_ok=True)
    if is_file:
        shutil.copyfile(source, root / path)
    else:
        try:
            image = sample.load()
        except ImageError:
            return None
        _, png = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        (root / path).write_bytes(png.tobytes())
    taken.add(unique.casefold())
    return path


def _unique(sample: Sample, changes: Counter[str]) -> tuple[Boxes, Polygons]:
    """Boxes and outlines of a sample, each box once."""
    first: dict[tuple[float, ...], int] = {}
    for number, row in enumerate(sample.boxes.tolist()):
        first.setdefault(tuple(row), number)
    rows = list(first.values())
    changes[_REPEATED] += len(sample.boxes) - len(rows)
    return sample.boxes[rows], tuple(sample.polygons[row] for row in rows) if sample.polygons else ()


def inner_corners(boxes: Boxes, size: tuple[int, int]) -> tuple[Corners, NDArray[np.bool_]]:
    """Corners in pixels inside the image that make the same boxes, with as few decimals as that takes.

    Args:
      boxes: ``(n, 5)``: class, x, y, width, height as fractions.
      size: (height, width) of the image.

    Returns:
      ``(n, 4)`` x1, y1, x2, y2, and ``(n,)`` which boxes reach over the border so far that they had to be cut.
    """
    limit = np.array([size[1], size[0]] * 2, np.float64)
    # A box that touched the border before it was rounded may reach over it now: of all numbers that round to its own, take those that do not.
    room = (boxes[:, 1:] - np.nextafter(boxes[:, 1:], np.float32(0))).astype(np.float64) / 2 * _WITHIN
    centre, side = boxes[:, 1:3].astype(np.float64), boxes[:, 3:].astype(np.float64)
    narrow = side - room[:, 2:]
    centre = np.clip(np.clip(centre, narrow / 2, 1 - narrow / 2), centre - room[:, :2], centre + room[:, :2])
    side = np.clip(2 * np.minimum(centre, 1 - centre), narrow, side)
    exact = (np.concatenate([centre - side / 2, centre + side / 2], 1) * limit).clip(0, limit)
    cut = np.logical_not(_makes(exact, boxes, limit))
    corners, open_rows = exact.copy(), ~cut
    for decimals in range(_DECIMALS + 1):
        rounded = exact.round(decimals).clip(0, limit)
        fits = open_rows & _makes(rounded, boxes, limit)
        corners[fits] = rounded[fits]
        open_rows &= ~fits
    return corners, cut


def _makes(corners: Corners, boxes: Boxes, limit: Corners) -> NDArray[np.bool_]:
    """Which corners are read as exactly these boxes."""
    low, high = corners[:, :2] / limit[:2], corners[:, 2:] / limit[:2]
    made = np.concatenate([(low + high) / 2, high - low], 1).astype(np.float32)
    return np.asarray((made == boxes[:, 1:]).all(1))


def _text(value: float) -> str:
    """A number with all its digits, and no more."""
    return repr(float(value)).removesuffix(".0")


def _write_yolo(root: Path, split: str, labels: Sequence[_Labels], _names: Sequence[str], changes: Counter[str]) -> str:
    folder = root / "labels" / split
    folder.mkdir(parents=True)
    for item in labels:
        corners, cut = inner_corners(item.boxes, item.size)
        outside = np.asarray(((item.boxes[:, 1:] < 0) | (item.boxes[:, 1:] > 1)).any(1))
        rows = []
        for number, (label, *box) in enumerate(item.boxes.tolist()):
            outline = _fitted(item.polygons[number] if item.polygons else None, corners[number], item.size, changes)
            if outside[number] or (outline is not None and cut[number]):
                changes[_CUT] += 1
                low, high = corners[number].reshape(2, 2) / item.size[::-1]
                box = [*((low + high) / 2).astype(np.float32).tolist(), *(high - low).astype(np.float32).tolist()]
            values = [f"{value:.9g}" for value in box] if outline is None else map(_text, outline.ravel().tolist())
            rows.append(" ".join([f"{label:.0f}", *values]))
        if rows:
            (folder / f"{item.image.stem}.txt").write_text("\n".join(rows) + "\n", encoding="ascii")
    return f"images/{split}"


def _fitted(
    polygon: NDArray[np.float32] | None, corners: Corners, size: tuple[int, int], changes: Counter[str]
) -> Corners | None:
    """An outline ``(k, 2)`` whose extent is exactly the box: a YOLO row that holds an outline has no other box."""
    if polygon is None:
        return None
    limit = np.array(size[::-1], np.float64)
    points = polygon.astype(np.float64)
    low, high = corners.reshape(2, 2) / limit
    least, most = points.min(0), points.max(0)
    if (np.abs(np.stack([least - low, most - high])) * limit > _OUTLINE_OFF).any() or (least >= most).any():
        changes[_NO_OUTLINE] += 1
        return None
    return np.where(points == least, low, np.where(points == most, high, points.clip(low, high)))


def _write_voc(root: Path, split: str, labels: Sequence[_Labels], names: Sequence[str], changes: Counter[str]) -> str:
    for folder in ("Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for item in labels:
        tree = ElementTree.Element("annotation")
        ElementTree.SubElement(tree, "folder").text = item.image.parent.name
        ElementTree.SubElement(tree, "filename").text = item.image.name
        size = ElementTree.SubElement(tree, "size")
        for key, value in (("width", item.size[1]), ("height", item.size[0]), ("depth", 3)):
            ElementTree.SubElement(size, key).text = str(value)
        corners, cut = inner_corners(item.boxes, item.size)
        changes[_CUT] += int(cut.sum())
        for label, row in zip(item.boxes[:, 0].tolist(), corners.tolist(), strict=True):
            entry = ElementTree.SubElement(tree, "object")
            ElementTree.SubElement(entry, "name").text = names[int(label)]
            ElementTree.SubElement(entry, "difficult").text = "0"
            box = ElementTree.SubElement(entry, "bndbox")
            for key, number in zip(("xmin", "ymin", "xmax", "ymax"), row, strict=True):
                ElementTree.SubElement(box, key).text = _text(number)
        ElementTree.indent(tree)
        path = root / "Annotations" / f"{item.image.stem}.xml"
        path.write_bytes(ElementTree.tostring(tree, encoding="utf-8") + b"\n")
    listing = "".join(f"{item.image.stem}\n" for item in labels)
    (root / "ImageSets" / "Main" / f"{split}.txt").write_text(listing, encoding="utf-8")
    return split


def _write_coco(root: Path, split: str, labels: Sequence[_Labels], names: Sequence[str], changes: Counter[str]) -> str:
    annotations: list[dict[str, Any]] = []
    for image_id, item in enumerate(labels, start=1):
        corners, cut = inner_corners(item.boxes, item.size)
        changes[_CUT] += int(cut.sum())
        for number, (label, (left, top, right, bottom)) in enumerate(
            zip(item.boxes[:, 0], corners.tolist(), strict=True)
        ):
            polygon = item.polygons[number] if item.polygons else None
            width, height = round(right - left, 12), round(bottom - top, 12)
            outline = [] if polygon is None else [(polygon.astype(np.float64) * item.size[::-1]).ravel().tolist()]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": int(label) + 1,
                    "bbox": [left, top, width, height],
                    "area": width * height,
                    "iscrowd": 0,
                    "segmentation": outline,
                }
            )
    content = {
        "images": [
            {"id": number, "file_name": item.image.name, "width": item.size[1], "height": item.size[0]}
            for number, item in enumerate(labels, start=1)
        ],
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for number, name in enumerate(names, start=1)],
    }
    (root / "annotations").mkdir(exist_ok=True)
    entry = f"annotations/instances_{split}.json"
    (root / entry).write_text(json.dumps(content), encoding="utf-8")
    return entry


_WRITERS: dict[Layout, Callable[[Path, str, Sequence[_Labels], Sequence[str], Counter[str]], str]] = {
    "yolo": _write_yolo,
    "voc": _write_voc,
    "coco": _write_coco,
}


def _write_config(path: Path, out: Path, config: DataConfig, layout: Layout, entries: dict[str, str]) -> None:
    """The data YAML; without a split to train or validate on, the one there is stands for it."""
    first = next(iter(entries.values()))
    # The original takes a relative path for one of its own package; here a folder that has moved is found again.
    root = str(out.absolute()) if layout == "yolo" else "."
    content: dict[str, Any] = {"path": root, "format": layout, "train": first, "val": first} | entries
    content["names"] = list(config.names)
    if config.defaults:
        content["defaults"] = dict(config.defaults)
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120)
    path.write_text(f"# Written by yolojax data convert from {config.file.name}.\n{text}", encoding="utf-8")
