"""One picture with its boxes, and how pictures are read.

Every source (YOLO folders, VOC, COCO, TensorFlow Datasets, the embedded shapes) becomes a sequence of ``Sample``; nothing behind this module knows
where a sample came from. Pictures are read upright (their EXIF orientation applied), as 8-bit RGB: grey and palette pictures get three channels,
alpha is dropped, CMYK is converted, 16 bits are divided by 256.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

Boxes = NDArray[np.float32]
Pixels = NDArray[np.uint8]
Outline = NDArray[np.float32] | None
Polygons = tuple[Outline, ...]
Item = TypeVar("Item")

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".mpo", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
SMALLEST_SIDE = 10
NO_SUCH_CLASS = "no such class"  # the problem that is an error: labels and names of the data set do not belong together
_FORMATS = {
    "BMP": (".bmp",),
    "JPEG": (".jpg", ".jpeg"),
    "MPO": (".mpo", ".jpg", ".jpeg"),
    "PNG": (".png",),
    "PPM": (".ppm", ".pgm"),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
}
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_TIFF_WIDTH, _TIFF_HEIGHT, _EXIF_ORIENTATION = 256, 257, 274
_JPEG_START, _JPEG_END, _PNG_END = b"\xff\xd8", b"\xff\xd9", b"IEND"
_TAIL = 256  # bytes in which an end marker is looked for: some cameras write a few behind it
_MOST_MISSING = 0.1  # share of the rows of a JPEG that may be missing at its end
_UPRIGHT, _STRAIGHT, _TURNED = 1, (1, 2, 3, 4), (5, 6, 7, 8)


class ImageError(Exception):
    """A picture that cannot be used; the message says why, without the name."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Sample:
    """One picture and what is in it.

    Attributes:
      name: what a report calls it; the path, where there is one.
      size: (height, width) in pixels, upright.
      boxes: ``(n, 5)`` float32: class, x, y, width, height; centre based, as fractions of the picture.
      polygons: nothing, or one outline per box, ``(k, 2)`` float32 fractions; None for a box that has no outline.
      reader: gives the picture, uint8 RGB ``(height, width, 3)``; may raise ``ImageError``.
    """

    name: str
    size: tuple[int, int]
    boxes: Boxes
    polygons: Polygons = ()
    reader: Callable[[], Pixels]

    def load(self) -> Pixels:
        """The picture, uint8 RGB ``(height, width, 3)``, upright.

        Raises:
          ImageError: it cannot be read.
        """
        return self.reader()


@dataclass(frozen=True)
class Problem:
    """Something wrong with a data set that does not stop training.

    Attributes:
      kind: short name of the fault, the same for all cases of it.
      where: file, and line where there is one.
      message: what is wrong there.
      left_out: what is not used because of it; empty where everything is.
    """

    kind: str
    where: str
    message: str
    left_out: Literal["image", "box", ""] = ""

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" + (f"; the {self.left_out} is left out" if self.left_out else "")
        return _CONTROL.sub(lambda found: repr(found[0])[1:-1], text)  # a file must not be able to steer the terminal


@dataclass(frozen=True)
class Report:
    """What was found while a split was opened.

    Attributes:
      split: name of the split.
      found: pictures that the source lists.
      images: pictures that are used.
      backgrounds: pictures in use that have no box.
      boxes: boxes in use.
      problems: everything that was left out or looks wrong, in the order of the files.
    """

    split: str
    found: int
    images: int
    backgrounds: int
    boxes: int
    problems: tuple[Problem, ...] = ()

    def lines(self, most: int = 20) -> list[str]:
        """The report for a terminal: a summary, then the problems by kind, at most ``most`` of each."""
        left_out = self.found - self.images
        lines = [
            f"{self.split}: {self.images} images, {self.boxes} boxes, {self.backgrounds} backgrounds"
            + (f"; {left_out} of {self.found} images left out" if left_out else "")
        ]
        shown: Counter[str] = Counter()
        totals = Counter(problem.kind for problem in self.problems)
        for problem in self.problems:
            shown[problem.kind] += 1
            if shown[problem.kind] <= most:
                lines.append(f"  {problem}")
            elif shown[problem.kind] == totals[problem.kind]:
                lines.append(f"  … {totals[problem.kind] - most} more of the kind '{problem.kind}'")
        return lines


@dataclass(frozen=True)
class Split:
    """The usable samples of one split, and the report of what was not usable."""

    samples: Sequence[Sample]
    report: Report = field(repr=False)


def read_samples(
    read: Callable[[Item], tuple[Sample | None, list[Problem]]], items: Iterable[Item]
) -> tuple[list[Sample], list[Problem]]:
    """Read the samples of many items in threads.

    Args:
      read: gives the sample of an item, or None where it cannot be used, and what is wrong with it.
      items: what to read.

    Returns:
      The usable samples and all problems, both in the order of the items.
    """
    samples: list[Sample] = []
    problems: list[Problem] = []
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for sample, found in pool.map(read, items):
            problems += found
            if sample is not None:
                samples.append(sample)
    return samples, problems


def make_split(name: str, found: int, samples: Sequence[Sample], problems: Sequence[Problem]) -> Split:
    """A split whose report counts the given samples."""
    counts = [len(sample.boxes) for sample in samples]
    return Split(tuple(samples), Report(name, found, len(samples), counts.count(0), sum(counts), tuple(problems)))


def samples_record(samples: Sequence[Sample]) -> dict[str, int | str]:
    """What a run trained or was measured on, for its record.

    Returns:
      ``images``, ``boxes``, and ``sha256`` over the file names, sizes and boxes, in order: it does not depend on where the data set lies.
    """
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(os.fsencode(Path(sample.name).name) + f"\0{sample.size}\0".encode())
        digest.update(sample.boxes.astype("<f4").tobytes())
    return {"images": len(samples), "boxes": sum(len(sample.boxes) for sample in samples), "sha256": digest.hexdigest()}


@dataclass
class Objects:
    """What is in one picture, while its labels are read: boxes that have an area, each once.

    Attributes:
      rows: outlines by (class, x, y, width, height), fractions.
      problems: what was left out.
    """

    rows: dict[tuple[float, ...], Outline] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def add(self, where: str, row: tuple[float, ...], outline: Outline = None) -> None:
        """Take an object that a report calls ``where``; see ``rows``."""
        if row[3] <= 0 or row[4] <= 0:
            self.problems.append(Problem("empty box", where, "has no area inside the image", "box"))
        elif row in self.rows:
            self.problems.append(Problem("duplicate row", where, "repeats an earlier box", "box"))
        else:
            self.rows[row] = outline

    def add_corners(
        self, where: str, kind: int, low: NDArray[np.float64], high: NDArray[np.float64], outline: Outline = None
    ) -> None:
        """Take an object of class ``kind`` between two corners, ``(2,)`` x, y, fractions of the picture."""
        self.add(where, (kind, *((low + high) / 2).tolist(), *(high - low).tolist()), outline)

    @property
    def boxes(self) -> Boxes:
        """``(n, 5)`` float32."""
        return np.array(list(self.rows), np.float32).reshape(-1, 5)

    @property
    def polygons(self) -> Polygons:
        """Their outlines; nothing where no box has one."""
        return tuple(self.rows.values()) if any(outline is not None for outline in self.rows.values()) else ()


def other_size(where: str, written: Sequence[float], size: tuple[int, int]) -> Problem:
    """The problem of annotations that were made for (width, height) ``written``, of a picture of (height, width) ``size``."""
    message = f"is for {written[0]:.0f}x{written[1]:.0f} pixels, the image has {size[1]}x{size[0]}; boxes are scaled"
    return Problem("other size", where, message)


def no_boxes() -> Boxes:
    """The boxes of a background."""
    return np.zeros((0, 5), np.float32)


def read_image(path: Path) -> Pixels:
    """The picture in a file, uint8 RGB ``(height, width, 3)``, upright.

    Raises:
      ImageError: the file is missing, or no picture that can be decoded.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ImageError(f"cannot be read ({error.strerror})") from error
    return decode_image(data)


def decode_image(data: bytes) -> Pixels:
    """The picture in the bytes of a file, uint8 RGB ``(height, width, 3)``, upright.

    Raises:
      ImageError: the bytes are no picture that can be decoded.
    """
    if not data:
        raise ImageError("is empty")
    image = _decode(data)
    if image is None and data.startswith(_JPEG_START):
        # OpenCV refuses a JPEG that breaks off; with an end marker it decodes what there is.
        image = _decode(data + _JPEG_END)
    if image is None:
        raise ImageError("cannot be decoded")
    return image


def _decode(data: bytes) -> Pixels | None:
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    except cv2.error as error:
        raise ImageError(f"cannot be decoded ({error.err})") from error
    return None if image is None else np.asarray(image, np.uint8)


def probe_image(path: Path) -> tuple[tuple[int, int], list[Problem]]:
    """Size of the picture in a file, from its header alone.

    Returns:
      (height, width) upright, and what looks wrong though the picture can be used.

    Raises:
      ImageError: the file is no picture of a known kind, or too small.
    """
    try:
        with path.open("rb") as file:
            size, kind, problems = probe_stream(file, str(path))
    except OSError as error:
        raise ImageError(f"cannot be read ({error.strerror})") from error
    if path.suffix.lower() not in _FORMATS[kind]:
        problems.append(Problem("wrong extension", str(path), f"is a {kind} file, and read as one"))
    return size, problems


def probe_stream(file: BinaryIO, name: str) -> tuple[tuple[int, int], str, list[Problem]]:
    """Size and kind of the picture in an open file that a report calls ``name``; see ``probe_image``."""
    try:
        with Image.open(file) as image:
            kind, (width, height) = image.format or "", image.size
            if isinstance(image, TiffImageFile):  # Pillow has turned this size already, and no other's
                width, height = image.tag_v2[_TIFF_WIDTH], image.tag_v2[_TIFF_HEIGHT]
            # Asked for what it has not met yet, Pillow would decode a whole PNG to look behind its pixels.
            has_exif = kind != "PNG" or "exif" in image.info
            orientation = image.getexif().get(_EXIF_ORIENTATION, _UPRIGHT) if has_exif else _UPRIGHT
            if orientation in _TURNED:
                width, height = height, width
            if kind not in _FORMATS:
                raise ImageError(f"is a {kind} file; known are {', '.join(_FORMATS)}")
            if min(height, width) < SMALLEST_SIDE:
                raise ImageError(f"is only {width}x{height} pixels; {SMALLEST_SIDE} are needed")
            problems = _check_end(file, name, kind, height)
            if orientation not in (*_STRAIGHT, *_TURNED):
                message = f"its EXIF orientation is {orientation!r}, not one of 1 to 8; it is taken as upright"
                problems.append(Problem("bad orientation", name, message))
            return (height, width), kind, problems
    except Image.UnidentifiedImageError as error:
        raise ImageError("is no image of a known kind" if file.seek(0, os.SEEK_END) else "is empty") from error
    except (
        OSError,
        Image.DecompressionBombError,
        SyntaxError,
        ValueError,
        TypeError,
        KeyError,
        OverflowError,
    ) as error:
        raise ImageError(f"is no readable image ({error})") from error


def _check_end(file: BinaryIO, name: str, kind: str, height: int) -> list[Problem]:
    """Look for a JPEG's or PNG's end marker; without it the picture may break off, or something may be appended to it."""
    marker = {"JPEG": _JPEG_END, "MPO": _JPEG_END, "PNG": _PNG_END}.get(kind, b"")
    length = file.seek(0, os.SEEK_END)
    file.seek(max(length - _TAIL, 0))
    if marker in file.read():
        return []
    file.seek(0)
    data = file.read()
    picture = decode_image(data)
    if _decode(data) is not None:
        return []
    missing = _missing_rows(picture)
    if missing > _MOST_MISSING * height:
        raise ImageError(f"breaks off: the lower {missing} of {height} rows are missing")
    return [Problem("truncated image", name, "breaks off at its end; it is used all the same")]


def _missing_rows(image: Pixels) -> int:
    """Rows at the lower end that are all of one colour, as the decoder fills what is missing."""
    written = (image != image[-1, -1]).any((1, 2)).nonzero()[0]
    return len(image) - 1 - int(written[-1]) if len(written) else len(image)
