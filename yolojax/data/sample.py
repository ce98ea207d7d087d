"""Records of a data set: a sample, a problem, a report, a split.

Every source (YOLO folders, VOC, COCO, TensorFlow Datasets, the embedded shapes) becomes a sequence of
``Sample``; nothing behind this module knows where a sample came from.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from yolojax.system import processors
from yolojax.text import printable

Boxes = NDArray[np.float32]
Pixels = NDArray[np.uint8]
Outline = NDArray[np.float32] | None
Polygons = tuple[Outline, ...]
Item = TypeVar("Item")

NO_SUCH_CLASS = "no such class"  # the problem that is an error: labels and names of the data set do not belong together
UNUSED_LABEL = "unused label file"  # the problem of labels where nobody looks for them
# Boxes that a format marks as not to be learned, and how the summary calls them; a data set with such boxes has no fault.
SET_ASIDE = {"difficult box": "marked difficult", "crowd box": "of crowds"}


class ImageError(Exception):
    """An image that cannot be used; the message says why, without the name."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Sample:
    """One image and what is in it.

    Attributes:
      name: what a report calls it; the path, where there is one.
      size: (height, width) in pixels, upright.
      boxes: ``(n, 5)`` float32: class, x, y, width, height; centre based, as fractions of the image.
      polygons: nothing, or one outline per box, ``(k, 2)`` float32 fractions; None for a box that has no outline.
      reader: gives the image, uint8 RGB ``(height, width, 3)``; may raise ``ImageError``.
    """

    name: str
    size: tuple[int, int]
    boxes: Boxes
    polygons: Polygons = ()
    reader: Callable[[], Pixels]

    def load(self) -> Pixels:
        """The image, uint8 RGB ``(height, width, 3)``, upright.

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
    left_out: Literal["image", "box", "label file", ""] = ""

    def __str__(self) -> str:
        """The problem as a sentence; what does not print in a file's name or words is escaped."""
        if self.kind == NO_SUCH_CLASS:
            consequence = "; add its name there, or correct the row"
        else:
            consequence = f"; the {self.left_out} is left out" if self.left_out else ""
        return printable(f"{self.where}: {self.message}{consequence}").replace("\n", "\\n")


@dataclass(frozen=True)
class Report:
    """What was found while a split was opened.

    Attributes:
      split: name of the split.
      found: images that the source lists.
      images: images that are used.
      backgrounds: images in use that have no box.
      boxes: boxes in use.
      unlabelled: images that have no label file, where each has one of its own.
      problems: everything that was left out or looks wrong, in the order of the files.
    """

    split: str
    found: int
    images: int
    backgrounds: int
    boxes: int
    problems: tuple[Problem, ...] = ()
    unlabelled: int = 0

    def lines(self, most: int = 20) -> list[str]:
        """The report for a terminal: a summary, then the problems by kind, at most ``most`` of each."""
        left_out = self.found - self.images
        totals = Counter(problem.kind for problem in self.problems)
        unused = totals[UNUSED_LABEL]
        lines = [
            f"{self.split}: {self.images} images, {self.boxes} boxes, {self.backgrounds} backgrounds"
            + (f"; {left_out} of {self.found} images left out" if left_out else "")
            + (f"; {unused} label files belong to no image" if unused else "")
            + (f", and {self.unlabelled} images have no label file" if unused and self.unlabelled else "")
            + "".join(f"; {totals[kind]} boxes {what} are left out" for kind, what in SET_ASIDE.items() if totals[kind])
        ]
        shown: Counter[str] = Counter()
        for problem in self.problems:
            if problem.kind in SET_ASIDE:
                continue
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
    with ThreadPoolExecutor(min(8, processors())) as pool:
        for sample, faults in pool.map(read, items):
            problems += faults
            if sample is not None:
                samples.append(sample)
    return samples, problems


def make_split(
    name: str, found: int, samples: Sequence[Sample], problems: Sequence[Problem], unlabelled: int = 0
) -> Split:
    """A split whose report counts the given samples."""
    counts = [len(sample.boxes) for sample in samples]
    report = Report(
        split=name,
        found=found,
        images=len(samples),
        backgrounds=counts.count(0),
        boxes=sum(counts),
        problems=tuple(problems),
        unlabelled=unlabelled,
    )
    return Split(tuple(samples), report)


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
    """What is in one image, while its labels are read: boxes that have an area, each once.

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
        self, where: str, label: int, low: NDArray[np.float64], high: NDArray[np.float64], outline: Outline = None
    ) -> None:
        """Take an object of class ``label`` between two corners, ``(2,)`` x, y, fractions of the image."""
        self.add(where, (label, *((low + high) / 2).tolist(), *(high - low).tolist()), outline)

    @property
    def boxes(self) -> Boxes:
        """``(n, 5)`` float32."""
        return np.array(list(self.rows), np.float32).reshape(-1, 5)

    @property
    def polygons(self) -> Polygons:
        """Their outlines; nothing where no box has one."""
        return tuple(self.rows.values()) if any(outline is not None for outline in self.rows.values()) else ()


def other_size(where: str, written: Sequence[float], size: tuple[int, int]) -> Problem:
    """The problem of annotations that were made for (width, height) ``written``, of an image of (height, width) ``size``."""
    message = f"is for {written[0]:.0f}x{written[1]:.0f} pixels, the image has {size[1]}x{size[0]}; boxes are scaled"
    return Problem("other size", where, message)


def no_boxes() -> Boxes:
    """The boxes of a background."""
    return np.zeros((0, 5), np.float32)
