"""The input stream of a training run: batches made ahead of time, from any point on."""

from __future__ import annotations

import logging
from collections.abc import Generator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from yolojax.data.augment import Augmentation, Images
from yolojax.data.batches import (
    ORDER,
    StreamSettings,
    TrainingBatch,
    TrainingBatches,
    rectangles,
    room_for_boxes,
)
from yolojax.data.cache import make_cache
from yolojax.data.prefetch import Prefetch
from yolojax.data.sample import Sample
from yolojax.hyperparameters import Hyperparameters

log = logging.getLogger(__name__)


class TrainingStream:
    """Training batches, made ahead of time, and a record of what could not be read.

    Attributes:
      batches: the batches, to be asked for in any order.
      unreadable: names of the images that had to be left out so far.
    """

    def __init__(self, batches: TrainingBatches) -> None:
        self.batches = batches
        self.unreadable: list[str] = []
        self._ahead: Prefetch[TrainingBatch] | None = None

    @property
    def images(self) -> Images:
        """The samples."""
        return self.batches.images

    @property
    def batches_per_epoch(self) -> int:
        """Batches of an epoch."""
        return self.batches.batches_per_epoch

    @property
    def max_boxes(self) -> int:
        """How many boxes one image of a batch has room for."""
        return self.batches.max_boxes

    def name(self, index: int) -> str:
        """What a report calls a sample; those of a second data set are numbered on from the first."""
        own, replay = self.images.samples, self.batches.settings.replay
        return own[index].name if index < len(own) else replay.samples[index - len(own)].name

    def iterate(self, epoch: int = 0, batch: int = 0, workers: int = 0) -> Generator[TrainingBatch]:
        """The batches from a given one to the end of the last epoch.

        Iterating may stop anywhere; workers then keep what they have made ahead, and going on from there
        (as the next epoch does) costs nothing.

        Args:
          epoch: epoch to start in, from 0.
          batch: batch of that epoch to start with, from 0.
          workers: processes that make batches; 0 makes them in a thread of this one.
        """
        for made in self._from(epoch, batch, workers):
            self._report(made)
            yield made

    def start(self, epoch: int = 0, batch: int = 0, workers: int = 0) -> None:
        """Let the batches be made that ``iterate`` of the same arguments gives, before it is called."""
        self._from(epoch, batch, workers).start()

    def _from(self, epoch: int, batch: int, workers: int) -> Prefetch[TrainingBatch]:
        number = epoch * self.batches_per_epoch + batch
        if self._ahead is None or (self._ahead.number, self._ahead.workers) != (number, workers):
            self.close()
            self._ahead = Prefetch(self.batches, number, workers)
        return self._ahead

    def draw(self, epoch: int, weights: NDArray[np.float64]) -> None:
        """Let an epoch have images drawn by weight, with replacement, instead of each one once; not those that are replayed.

        Call it before every epoch; the workers start anew, as they have made batches ahead without knowing
        the weights.
        """
        settings = self.batches.settings
        length = self.batches_per_epoch * (settings.batch_size - settings.replay.images)
        self.close()
        self.batches = replace(self.batches, order=order_by_weight(settings.seed, epoch, length, weights))

    def close(self) -> None:
        """Stop the workers."""
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None

    def _report(self, made: TrainingBatch) -> None:
        for index in sorted(set(made.unreadable.tolist())):
            name = self.name(index)
            if name not in self.unreadable:
                self.unreadable.append(name)
                message = "%s: cannot be decoded; it is left out, and the next image is taken instead"
                log.warning(message, name)
        room = made.batch.boxes.shape[1]
        if room > self.max_boxes:
            message = "an image has more than %d boxes: this batch has room for %d, and compiles the step again"
            log.warning(message, self.max_boxes, room)


def training_stream(
    samples: Sequence[Sample], hyperparameters: Hyperparameters, settings: StreamSettings
) -> TrainingStream:
    """The input of a training run.

    Args:
      samples: of the training split.
      hyperparameters: how to augment.
      settings: everything else.
    """

    def images(of: Sequence[Sample]) -> Images:
        cache = make_cache(of, settings.cache, settings.image_size, smooth=False) if settings.cache and of else None
        return Images(of, settings.image_size, False, cache)

    shapes: tuple[tuple[int, int], ...] = ()
    order = None
    if settings.rectangular:
        order, shapes = rectangles(samples, settings.image_size, settings.batch_size, settings.stride, pad=0.0)
        missing = len(shapes) * settings.batch_size - len(samples)
        # A rectangular epoch ends in a full batch too: its images are those of the greatest height to
        # width, some of them twice.
        order = np.concatenate([order, np.resize(order[::-1], missing)])
    augmentation = Augmentation(
        hyperparameters=hyperparameters,
        enabled=settings.augment,
        mosaics=not settings.rectangular,
        effects=settings.effects,
    )
    mosaics = hyperparameters if settings.augment and not settings.rectangular else None
    batches = TrainingBatches(
        images=images(samples),
        replayed=images(settings.replay.samples),
        augmentation=augmentation,
        settings=settings,
        max_boxes=settings.max_boxes or max(room_for_boxes(of, mosaics) for of in (samples, settings.replay.samples)),
        rect_shapes=shapes,
        order=order,
    )
    return TrainingStream(batches)


def order_by_weight(seed: int, epoch: int, length: int, weights: NDArray[np.float64]) -> NDArray[np.int64]:
    """The sample at each of ``length`` places of an epoch, drawn by weight, with replacement."""
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(ORDER, epoch)))
    return rng.choice(len(weights), length, p=weights)


def image_weights(samples: Sequence[Sample], maps: Sequence[float]) -> NDArray[np.float64]:
    """How often each image is to be drawn: more often where its classes are rare, or found badly so far.

    Args:
      samples: of the training split.
      maps: mAP50-95 of every class, 0 to 1, at the last validation.

    Returns:
      ``(n,)``, of sum 1; all equal where no class is left to be learned.

    Source: ``docs/yolov5.md`` §1.7, image_weights: a box counts ``(1 - mAP)²`` over the number of boxes of its class.
    """
    counts = np.array([np.bincount(sample.boxes[:, 0].astype(int), minlength=len(maps)) for sample in samples])
    weights = counts @ ((1 - np.array(maps)) ** 2 / np.maximum(counts.sum(0), 1))
    return weights / weights.sum() if weights.sum() > 0 else np.full(len(samples), 1 / len(samples))
