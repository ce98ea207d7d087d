"""One picture with its boxes, and how pictures are read.

Every source (YOLO folders, VOC, COCO, TensorFlow Datasets, the embedded shapes) becomes a sequence of ``Sample``; nothing behind this module knows
where a sample came from. Pictures are read upright (their EXIF orientation applied), as 8-bit RGB: grey and palette pictures get three channels,
alpha is dropped, CMYK is converted, 16 bits are divided by 256.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

Boxes = NDArray[np.float32]
Pixels = NDArray[np.uint8]
Polygons = tuple[NDArray[np.float32] | None, ...]

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".mpo", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
SMALLEST_SIDE = 10
_FORMATS = {
    "BMP": (".bmp",),
    "JPEG": (".jpg", ".jpeg"),
    "MPO": (".mpo", ".jpg", ".jpeg"),
    "PNG": (".png",),
    "PPM": (".ppm", ".pgm"),
}
_FORMATS |= {"TIFF": (".tif", ".tiff"), "WEBP": (".webp",)}
_EXIF_ORIENTATION = 274
_TURNED = (5, 6, 7, 8)


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
        return f"{self.where}: {self.message}" + (f"; the {self.left_out} is left out" if self.left_out else "")


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


def make_split(name: str, found: int, samples: Sequence[Sample], problems: Sequence[Problem]) -> Split:
    """A split whose report counts the given samples."""
    counts = [len(sample.boxes) for sample in samples]
    return Split(tuple(samples), Report(name, found, len(samples), counts.count(0), sum(counts), tuple(problems)))


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
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB) if data else None
    except cv2.error as error:
        raise ImageError(f"cannot be decoded ({error.err})") from error
    if image is None:
        raise ImageError("cannot be decoded" if data else "is empty")
    return np.asarray(image, np.uint8)


def probe_image(path: Path) -> tuple[tuple[int, int], list[Problem]]:
    """Size of the picture in a file, from its header alone.

    Returns:
      (height, width) upright, and what looks wrong though the picture can be used.

    Raises:
      ImageError: the file is no picture of a known kind, or too small.
    """
    try:
        with Image.open(path) as image:
            kind, (width, height) = image.format or "", image.size
            if image.getexif().get(_EXIF_ORIENTATION) in _TURNED:
                width, height = height, width
    except OSError as error:
        raise ImageError(f"is no readable image ({error.strerror or 'unknown format'})") from error
    except (Image.DecompressionBombError, SyntaxError, ValueError, TypeError, OverflowError) as error:
        raise ImageError(f"is no readable image ({error})") from error
    if kind not in _FORMATS:
        raise ImageError(f"is a {kind} file; known are {', '.join(_FORMATS)}")
    if min(height, width) < SMALLEST_SIDE:
        raise ImageError(f"is only {width}x{height} pixels; {SMALLEST_SIDE} are needed")
    problems = []
    if path.suffix.lower() not in _FORMATS[kind]:
        problems.append(Problem("wrong extension", str(path), f"is a {kind} file, and read as one"))
    if kind in ("JPEG", "MPO") and not _ends_whole(path):
        problems.append(
            Problem("truncated image", str(path), "has no end marker; it is used as far as it can be decoded")
        )
    return (height, width), problems


def _ends_whole(path: Path) -> bool:
    """Whether a JPEG has its end marker; some cameras write a few bytes behind it."""
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - 256, 0))
        return b"\xff\xd9" in file.read()
