"""A close look at a data set before training: every picture decoded, every label read, splits compared by what is in their pictures."""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np

from yolojax.config import DataConfig
from yolojax.data.sample import ImageError, Problem, Report, Sample
from yolojax.data.sources import SplitName, read_split

TINY_SIDE = 3.0  # pixels of the file; a smaller box is hardly ever meant
_QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


@dataclass(frozen=True)
class SplitCheck:
    """What is in a split.

    Attributes:
      report: what its source said, and pictures that cannot be decoded.
      classes: boxes of each class.
      tiny: boxes with a side under ``TINY_SIDE`` pixels.
      duplicates: groups of names whose pictures are the same.
      image_sides: quantiles (0, 5, 25, 50, 75, 95 and 100 %) of the pictures' longer side in pixels.
      box_sides: the same of the boxes' longer side.
      boxes_per_image: the same of the number of boxes of a picture.
    """

    report: Report
    classes: tuple[int, ...]
    tiny: int
    duplicates: tuple[tuple[str, ...], ...]
    image_sides: tuple[float, ...]
    box_sides: tuple[float, ...]
    boxes_per_image: tuple[float, ...]


@dataclass(frozen=True)
class DataCheck:
    """What is in a data set.

    Attributes:
      names: of the classes.
      splits: by name.
      leaks: pairs of names in different splits whose pictures are the same; splits that are the same on purpose are not compared.
    """

    names: tuple[str, ...]
    splits: dict[str, SplitCheck]
    leaks: tuple[tuple[str, str], ...]

    @property
    def clean(self) -> bool:
        """Whether nothing had to be left out, and no picture is in two splits."""
        left_out = any(problem.left_out for check in self.splits.values() for problem in check.report.problems)
        return not left_out and not self.leaks

    def lines(self, most: int = 20) -> list[str]:
        """The check for a terminal."""
        lines: list[str] = []
        for name, check in self.splits.items():
            lines += check.report.lines(most)
            unseen = [self.names[number] for number, count in enumerate(check.classes) if not count]
            if unseen:
                lines.append(f"  no box of {', '.join(unseen)}")
            if check.tiny:
                lines.append(f"  {check.tiny} boxes have a side under {TINY_SIDE:g} pixels")
            lines += [f"  the same picture: {', '.join(group)}" for group in check.duplicates[:most]]
            if len(check.duplicates) > most:
                lines.append(f"  … {len(check.duplicates) - most} more pictures that are there twice in {name}")
        lines += [f"in two splits: {first} and {second}" for first, second in self.leaks[:most]]
        if len(self.leaks) > most:
            lines.append(f"… {len(self.leaks) - most} more pictures are in two splits")
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
                    "classes": dict(zip(self.names, check.classes, strict=True)),
                    "tiny_boxes": check.tiny,
                    "duplicates": [list(group) for group in check.duplicates],
                    "image_side_px": list(check.image_sides),
                    "box_side_px": list(check.box_sides),
                    "boxes_per_image": list(check.boxes_per_image),
                    "problems": [
                        {"kind": item.kind, "where": item.where, "message": item.message, "left_out": item.left_out}
                        for item in check.report.problems
                    ],
                }
                for name, check in self.splits.items()
            },
        }


def check_data(config: DataConfig, progress: Callable[[str, int, int], None] | None = None) -> DataCheck:
    """Decode every picture and read every label of a data set.

    Args:
      config: the data set.
      progress: called with the split's name, pictures done and pictures in all.

    Raises:
      UserError: a split is missing or empty.
    """
    splits: dict[str, SplitCheck] = {}
    prints: dict[str, dict[str, list[str]]] = {}
    entries: dict[tuple[str, ...], str] = {}
    for name in get_args(SplitName):
        entry = getattr(config, name)
        if not entry or entry in entries:  # a split that is another one under a second name
            continue
        entries[entry] = name
        splits[name], prints[name] = _check_split(config, name, progress or (lambda *_: None))
    leaks = [
        (prints[first][key][0], prints[second][key][0])
        for number, first in enumerate(splits)
        for second in list(splits)[number + 1 :]
        for key in prints[first]
        if key in prints[second]
    ]
    return DataCheck(config.names, splits, tuple(leaks))


def _check_split(
    config: DataConfig, name: SplitName, progress: Callable[[str, int, int], None]
) -> tuple[SplitCheck, dict[str, list[str]]]:
    split = read_split(config, name)
    problems = list(split.report.problems)
    good: list[Sample] = []
    prints: defaultdict[str, list[str]] = defaultdict(list)
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for done, (sample, found) in enumerate(
            zip(split.samples, pool.map(_fingerprint, split.samples), strict=True), start=1
        ):
            if isinstance(found, Problem):
                problems.append(found)
            else:
                good.append(sample)
                prints[found].append(sample.name)
            progress(name, done, len(split.samples))
    sides = [sample.boxes[:, 3:] * sample.size[::-1] for sample in good]
    flat = np.concatenate([np.zeros((0, 2), np.float32), *sides])
    counts = Counter(int(kind) for sample in good for kind in sample.boxes[:, 0])
    per_image = [len(sample.boxes) for sample in good]
    report = Report(
        split=name,
        found=split.report.found,
        images=len(good),
        backgrounds=per_image.count(0),
        boxes=sum(per_image),
        problems=tuple(problems),
    )
    check = SplitCheck(
        report=report,
        classes=tuple(counts[number] for number in range(len(config.names))),
        tiny=int((flat < TINY_SIDE).any(1).sum()),
        duplicates=tuple(tuple(group) for group in prints.values() if len(group) > 1),
        image_sides=_quantiles([max(sample.size) for sample in good]),
        box_sides=_quantiles(flat.max(1).tolist() if len(flat) else []),
        boxes_per_image=_quantiles(per_image),
    )
    return check, dict(prints)


def _fingerprint(sample: Sample) -> str | Problem:
    """What names the picture's pixels, or why they cannot be read."""
    try:
        image = sample.load()
    except ImageError as error:
        return Problem("unreadable image", sample.name, str(error), "image")
    return hashlib.blake2b(image.tobytes(), digest_size=16, salt=repr(image.shape).encode()[:16]).hexdigest()


def _quantiles(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(round(float(value), 2) for value in np.quantile(values, _QUANTILES)) if values else ()
