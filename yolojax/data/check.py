"""A close look at a data set before training: every image decoded, every label read, splits compared by what is in their images.

What an image decodes to is remembered by the content of its file, in ``checks`` of the cache folder: a second check decodes only what is new.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from yolojax.data.config import DataConfig
from yolojax.data.sample import Boxes, ImageError, Problem, Report, Sample
from yolojax.data.sources import SplitName, read_split
from yolojax.errors import UserError
from yolojax.files import complete_file
from yolojax.runtime import cache_folder
from yolojax.system import processors

log = logging.getLogger(__name__)

SplitProgress = Callable[[str, int, int], None]
Fingerprints = Mapping[str, str]

TINY_SIDE = 3.0  # pixels of the file; a smaller box is hardly ever meant
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


@dataclass(frozen=True, eq=False, kw_only=True)
class SplitCheck:
    """What is in a split.

    Attributes:
      report: what its source said, and images that cannot be decoded.
      boxes: ``(n, 5)`` class, x, y, width, height as fractions, of all images.
      sides: ``(n, 2)`` float32, width and height of the boxes in pixels of their file.
      sizes: ``(k, 2)`` int64, height and width of the images in pixels.
      counts: ``(k,)`` int64, boxes of each image.
      duplicates: groups of names whose images are the same.
    """

    report: Report
    boxes: Boxes
    sides: NDArray[np.float32]
    sizes: NDArray[np.int64]
    counts: NDArray[np.int64]
    duplicates: tuple[tuple[str, ...], ...]

    @property
    def tiny(self) -> int:
        """Boxes with a side under ``TINY_SIDE`` pixels."""
        return int(_tiny(self.sides).sum())

    def classes(self, count: int) -> list[int]:
        """Boxes of each of ``count`` classes."""
        return np.bincount(self.boxes[:, 0].astype(int), minlength=count).tolist()

    @property
    def distributions(self) -> dict[str, list[float]]:
        """Quantiles (0, 5, 25, 50, 75, 95 and 100 %) of the longer side of images and of boxes in pixels, and of the boxes of an image."""
        return {
            "image_side_px": _quantiles(self.sizes.max(1)) if len(self.sizes) else [],
            "box_side_px": _quantiles(self.sides.max(1)) if len(self.sides) else [],
            "boxes_per_image": _quantiles(self.counts) if len(self.counts) else [],
        }


@dataclass(frozen=True)
class DataCheck:
    """What is in a data set.

    Attributes:
      names: class names, by index.
      splits: by name.
      leaks: pairs of names in different splits whose images are the same; splits that are the same on purpose are not compared.
    """

    names: tuple[str, ...]
    splits: dict[str, SplitCheck]
    leaks: tuple[tuple[str, str], ...]

    @property
    def clean(self) -> bool:
        """Whether nothing had to be left out, and no image is in two splits."""
        left_out = any(problem.left_out for check in self.splits.values() for problem in check.report.problems)
        return not left_out and not self.leaks

    def lines(self, most: int = 20) -> list[str]:
        """The check for a terminal."""
        lines: list[str] = []
        for name, check in self.splits.items():
            lines += check.report.lines(most)
            unseen = [self.names[number] for number, count in enumerate(check.classes(len(self.names))) if not count]
            if unseen:
                lines.append(f"  no box of {', '.join(unseen)}")
            lines += [f"  the same image: {', '.join(group)}" for group in check.duplicates[:most]]
            if len(check.duplicates) > most:
                lines.append(f"  … {len(check.duplicates) - most} more images that are there twice in {name}")
        lines += [f"in two splits: {first} and {second}" for first, second in self.leaks[:most]]
        if len(self.leaks) > most:
            lines.append(f"… {len(self.leaks) - most} more images are in two splits")
        return lines

    def figures(self) -> dict[str, Any]:
        """The check as plain values for a JSON file."""
        return {
            "clean": self.clean,
            "leaks": [list(pair) for pair in self.leaks],
            "splits": {
                name: {
                    "found": check.report.found,
                    "images": check.report.images,
                    "backgrounds": check.report.backgrounds,
                    "boxes": check.report.boxes,
                    "classes": dict(zip(self.names, check.classes(len(self.names)), strict=True)),
                    "tiny_boxes": check.tiny,
                    "duplicates": [list(group) for group in check.duplicates],
                    **check.distributions,
                    "problems": [
                        {"kind": item.kind, "where": item.where, "message": item.message, "left_out": item.left_out}
                        for item in check.report.problems
                    ],
                }
                for name, check in self.splits.items()
            },
        }


def check_data(
    config: DataConfig, splits: Sequence[SplitName] = (), progress: SplitProgress = lambda *_: None
) -> DataCheck:
    """Decode every image and read every label of a data set.

    Args:
      config: the data set.
      splits: which ones; all that the data set has unless given, and a test split that is not there is only told. A split that is another
        one under a second name is left out.
      progress: called with the split's name, images done and images in all.

    Raises:
      UserError: a split is missing or empty.
    """
    entries: dict[tuple[str, ...], SplitName] = {}
    for name in splits or get_args(SplitName):
        if getattr(config, name):
            entries.setdefault(getattr(config, name), name)
    memory = cache_folder() / "checks" / f"{hashlib.sha256(str(config.root.absolute()).encode()).hexdigest()[:16]}.json"
    remembered = _recall(memory)
    checks: dict[str, SplitCheck] = {}
    images: dict[str, dict[str, list[str]]] = {}
    seen: dict[str, str] = {}
    for name in entries.values():
        try:
            checks[name], images[name] = _check_split(config, name, remembered, seen, progress)
        except UserError as error:
            if splits or name != "test":
                raise
            log.warning(
                "%s; the others are checked without it", error
            )  # exports often name a test split that they lack
    if not seen.keys() <= remembered.keys():
        _remember(memory, remembered | seen)
    leaks = [
        (images[first][key][0], images[second][key][0])
        for number, first in enumerate(checks)
        for second in list(checks)[number + 1 :]
        for key in images[first]
        if key in images[second]
    ]
    return DataCheck(config.names, checks, tuple(leaks))


def require_clean(config: DataConfig, splits: Sequence[SplitName]) -> None:
    """Refuse splits of which anything has to be left out, or that share an image.

    Raises:
      UserError: names the first of what the check found.
    """
    check = check_data(config, splits)
    faults = [str(problem) for split in check.splits.values() for problem in split.report.problems if problem.left_out]
    faults += [f"{first} and {second} are the same image, in two splits" for first, second in check.leaks]
    if faults:
        raise UserError(
            f"{config.file}: {len(faults)} problems; the first: {faults[0]}; 'yolojax data check {config.file}' lists them all"
        )


def _check_split(
    config: DataConfig, name: SplitName, remembered: Fingerprints, seen: dict[str, str], progress: SplitProgress
) -> tuple[SplitCheck, dict[str, list[str]]]:
    """Check a split; also gives the names of its images by their fingerprint, and adds to ``seen`` what there is to remember."""
    split = read_split(config, name)
    problems = list(split.report.problems)
    good: list[Sample] = []
    images: defaultdict[str, list[str]] = defaultdict(list)
    with ThreadPoolExecutor(processors()) as pool:
        fingerprints = pool.map(partial(_fingerprint, remembered), split.samples)
        for done, (sample, (content, fingerprint)) in enumerate(zip(split.samples, fingerprints, strict=True), start=1):
            if isinstance(fingerprint, Problem):
                problems.append(fingerprint)
            else:
                good.append(sample)
                images[fingerprint].append(sample.name)
                tiny = int(_tiny(sample.boxes[:, 3:] * sample.size[::-1]).sum())
                if tiny:
                    message = f"boxes with a side under {TINY_SIDE:g} pixels: {tiny}"
                    problems.append(Problem("tiny box", sample.name, message))
                if content:
                    seen[content] = fingerprint
            progress(name, done, len(split.samples))
    counts = np.array([len(sample.boxes) for sample in good], np.int64)
    boxes = np.concatenate([np.zeros((0, 5), np.float32), *(sample.boxes for sample in good)])
    sizes = np.array([sample.size for sample in good], np.int64).reshape(-1, 2)
    report = Report(
        split=name,
        found=split.report.found,
        images=len(good),
        backgrounds=int((counts == 0).sum()),
        boxes=len(boxes),
        problems=tuple(problems),
        unlabelled=split.report.unlabelled,
    )
    check = SplitCheck(
        report=report,
        boxes=boxes,
        sides=(boxes[:, 3:] * np.repeat(sizes[:, ::-1], counts, 0)).astype(np.float32),
        sizes=sizes,
        counts=counts,
        duplicates=tuple(tuple(group) for group in images.values() if len(group) > 1),
    )
    return check, dict(images)


def _tiny(sides: NDArray[Any]) -> NDArray[np.bool_]:
    return np.asarray((sides < TINY_SIDE).any(1))


def _fingerprint(remembered: Fingerprints, sample: Sample) -> tuple[str, str | Problem]:
    """What names the content of the image's file (nothing where it has none), and what names its pixels, or why they cannot be read."""
    try:
        content = _digest(Path(sample.name).read_bytes())
    except (OSError, ValueError):  # it is no file: an image of a prepared data set
        content = ""
    if content in remembered:
        return content, remembered[content]
    try:
        image = sample.load()
    except ImageError as error:
        return content, Problem("unreadable image", sample.name, str(error), "image")
    return content, _digest(image.tobytes(), repr(image.shape))


def _digest(data: bytes, salt: str = "") -> str:
    return hashlib.blake2b(data, digest_size=16, salt=salt.encode()[:16]).hexdigest()


def _recall(memory: Path) -> dict[str, str]:
    """What images decoded to, by the content of their files; nothing where it is missing, damaged or of another decoder."""
    try:
        stored = json.loads(memory.read_bytes())
        fingerprints = stored["images"] if stored["decoder"] == cv2.__version__ else {}
        return {content: pixels for content, pixels in fingerprints.items() if isinstance(pixels, str)}
    except (OSError, ValueError, RecursionError, TypeError, KeyError, AttributeError):
        return {}


def _remember(memory: Path, images: Fingerprints) -> None:
    try:
        with complete_file(memory) as unfinished:
            unfinished.write_text(json.dumps({"decoder": cv2.__version__, "images": images}), encoding="utf-8")
    except OSError as error:
        log.warning("%s: cannot be written (%s): the next check decodes every image again", memory, error.strerror)


def _quantiles(values: NDArray[Any]) -> list[float]:
    return np.quantile(values, QUANTILES).round(2).tolist()
