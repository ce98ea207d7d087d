"""Replay: a share of every batch from a second data set, so that what was learned there is not forgotten.

Source: Rolnick et al. 2019 (arXiv:1811.11682), new and old examples in one batch; for detectors Acharya et al. 2020 (arXiv:2008.06439), whole images.
"""

from __future__ import annotations

import functools
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from yolojax.data.sample import Sample
from yolojax.data.sources import load_data, open_split
from yolojax.errors import UserError
from yolojax.text import numbers_by_name, plain_name

log = logging.getLogger(__name__)

_REPLAY = 2  # what a generator is for; others in ``data.batches``


@dataclass(frozen=True, eq=False)
class Replay:
    """What comes again beside the images of a run.

    Attributes:
      samples: of the second data set, with the class numbers of the run.
      images: how many of them a batch has.
    """

    samples: Sequence[Sample]
    images: int

    def before(self, row: int, batch_size: int) -> int:
        """How many of the first ``row`` images of a batch are replayed: they are spread evenly, so that devices that share a batch have as many."""
        return row * self.images // batch_size

    def sample_at(self, batch: int, row: int, batch_size: int, seed: int) -> int | None:
        """The sample in a row of a batch, counted from the start of the run; None in a row that is not replayed.

        Every sample comes before one comes again, over all epochs: one epoch may be too short for all.
        """
        before = self.before(row, batch_size)
        if self.before(row + 1, batch_size) == before:
            return None
        turn, place = divmod(batch * self.images + before, len(self.samples))
        return int(_permutation(len(self.samples), seed, turn)[place])


NO_REPLAY = Replay((), 0)


@functools.lru_cache(maxsize=4)
def _permutation(count: int, seed: int, turn: int) -> np.ndarray:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_REPLAY, turn))).permutation(count)


def open_replay(
    data: str, share: float, batch_size: int, names: Sequence[str], *, single_class: bool = False
) -> Replay:
    """The training images of a second data set, whose classes are matched to those of a run by name, without case and blanks.

    Args:
      data: YAML file or name of the data set, or ``tfds:…``.
      share: of the images of a batch.
      batch_size: images of a batch over all processes.
      names: classes of the run.
      single_class: whether all boxes are of the one class of the run.

    Boxes of classes that the run does not know are left out, and images that show nothing else; the log counts them by name.

    Raises:
      UserError: the data is missing or wrong, no class is common, or a batch would have images of one data set alone.
    """
    count = int(share * batch_size + 0.5)
    if not 0 < count < batch_size:
        raise UserError(
            f"--replay-share {share:g}: of a batch of {batch_size} images that is {count}; at least one has to be replayed, and one of --data left"
        )
    config = load_data(data)
    numbers_of_run = numbers_by_name(names)
    own = tuple(names) if single_class else config.names
    numbers = np.array([numbers_of_run.get(plain_name(name), -1) for name in own])
    if (numbers < 0).all():
        raise UserError(
            f"--replay {data}: none of its classes ({', '.join(own[:8])}) is one of the run ({', '.join(names[:8])})"
        )
    samples = open_split(config, "train", single_class=single_class, needs_boxes=True).samples
    kept = tuple(filter(None, (_as_of_run(sample, numbers) for sample in samples)))
    if not any(len(sample.boxes) for sample in kept):
        raise UserError(f"--replay {data}: not one box of its training images is of a class of the run")
    left_out = Counter(own[int(row)] for sample in samples for row in sample.boxes[:, 0] if numbers[int(row)] < 0)
    if left_out:
        classes = ", ".join(f"{name} ({boxes:,})" for name, boxes in left_out.most_common())
        images = len(samples) - len(kept)
        log.warning(
            "--replay %s: boxes of classes that the run does not know are left out: %s; and %s images that show nothing else",
            data,
            classes,
            f"{images:,}",
        )
    return Replay(kept, count)


def _as_of_run(sample: Sample, numbers: np.ndarray) -> Sample | None:
    """A sample with the class numbers of the run, -1 for none; None where nothing of what it shows is known there."""
    labels = numbers[sample.boxes[:, 0].astype(int)]
    stay = labels >= 0
    if len(labels) and not stay.any():
        return None
    boxes = sample.boxes[stay]
    boxes[:, 0] = labels[stay]
    polygons = tuple(outline for outline, keep in zip(sample.polygons, stay.tolist(), strict=False) if keep)
    return replace(sample, boxes=boxes, polygons=polygons)
