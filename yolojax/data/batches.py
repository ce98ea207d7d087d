"""What a batch is: which images, in which order and shape, with how much room for boxes.

A stream is a list of batches that can be asked for in any order. What is in a batch depends on (seed,
epoch, place in the epoch) alone, so it is the same for any number of workers and processes, and training
can start again at any batch.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from yolojax.data import geometry
from yolojax.data.augment import Augmentation, Images, Made, make_image
from yolojax.data.cache import CacheKind, make_cache
from yolojax.data.prefetch import Prefetch
from yolojax.data.rectangles import merge_shapes, rectangles
from yolojax.data.replay import NO_REPLAY, Replay
from yolojax.data.sample import Boxes, ImageError, Pixels, Sample, no_boxes
from yolojax.hyperparameters import Hyperparameters

log = logging.getLogger(__name__)

ORDER, _ITEM = 0, 1  # what a generator is for: no two of them share a key; 2 is replay's


class Batch(NamedTuple):
    """What the device gets of a batch; B is this process's share.

    Attributes:
      images: uint8 RGB ``(B, H, W, 3)``.
      boxes: float32 ``(B, M, 5)``: class, x, y, width, height as fractions.
      mask: bool ``(B, M)``: which boxes exist.
    """

    images: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    mask: NDArray[np.bool_]


class TrainingBatch(NamedTuple):
    """A batch for training, and what is known of it.

    Attributes:
      batch: for the device.
      indices: int32 ``(B,)``, the sample that each image began with.
      unreadable: int32 ``(k,)``, samples that other ones had to replace.
    """

    batch: Batch
    indices: NDArray[np.int32]
    unreadable: NDArray[np.int32]


ValidationBatch = dict[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class StreamSettings:
    """The input of a training run.

    Attributes:
      image_size: pixels of the longer side; a multiple of ``stride``.
      batch_size: images of a batch over all processes; a multiple of ``process_count``.
      epochs: number of epochs in the run.
      seed: of everything random.
      augment: whether to augment at all.
      effects: also blur, grey and equalise a few images, which needs Albumentations.
      rectangular: batches of images of like shape, without mosaic and in a fixed order.
      stride: of the coarsest level.
      cache: keep decoded images in ``ram`` or on ``disk``.
      max_boxes: boxes per image that a batch has room for; from the data unless given.
      replay: images of a second data set that a batch has beside those of the first.
      process_index: which share of every batch to make.
      process_count: in how many shares batches are made.
    """

    image_size: int
    batch_size: int
    epochs: int = 1
    seed: int = 0
    augment: bool = True
    effects: bool = False
    rectangular: bool = False
    stride: int = 32
    cache: CacheKind | None = None
    max_boxes: int | None = None
    replay: Replay = NO_REPLAY
    process_index: int = 0
    process_count: int = 1

    def __post_init__(self) -> None:
        _check_share(self.batch_size, self.process_count)


@functools.lru_cache(maxsize=4)
def epoch_order(count: int, length: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Which sample is at which place of an epoch.

    Permutations of ``count`` samples, one after another, ``length`` in all.
    """
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(ORDER, epoch)))
    return np.concatenate([rng.permutation(count) for _ in range(math.ceil(length / count))])[:length]


@dataclass(frozen=True, eq=False, kw_only=True)
class TrainingBatches:
    """Batches for training, by their number since the start of the first epoch.

    Attributes:
      images: the samples.
      replayed: those of the second data set; they are numbered on from the first.
      augmentation: what is done to them.
      settings: sizes, seed and share.
      max_boxes: M. A batch that has more boxes in one image gets twice that (four times, …), and a log line.
      rect_shapes: (height, width) of each batch of an epoch, for rectangular training; its images are then
        in order of their shape.
      order: the sample at each place of an epoch, where it is not a new permutation: of rectangular
        training, or drawn by weight.
    """

    images: Images
    replayed: Images
    augmentation: Augmentation
    settings: StreamSettings
    max_boxes: int
    rect_shapes: tuple[tuple[int, int], ...] = ()
    order: NDArray[np.int64] | None = None

    @property
    def batches_per_epoch(self) -> int:
        """Batches of an epoch: every sample of the first data set comes once, and the last batch is filled from a second permutation."""
        return math.ceil(len(self.images.samples) / (self.settings.batch_size - self.settings.replay.images))

    def __len__(self) -> int:
        return self.batches_per_epoch * self.settings.epochs

    def __getitem__(self, number: int) -> TrainingBatch:
        """The batch with a number."""
        epoch, batch = divmod(number, self.batches_per_epoch)
        settings = self.settings
        share = settings.batch_size // settings.process_count
        first = batch * settings.batch_size + settings.process_index * share
        shape = self.rect_shapes[batch] if self.rect_shapes else (self.images.size,) * 2
        indices: list[int] = []
        unreadable: list[int] = []

        def contents() -> Iterator[tuple[Pixels, Boxes]]:
            for place in range(first, first + share):
                made = self._make(epoch, place, shape)
                indices.append(made.sample_index)
                unreadable.extend(made.unreadable)
                yield made.image, made.boxes

        collated = _collate(contents(), share, shape, self.max_boxes)
        return TrainingBatch(collated, np.array(indices, np.int32), np.array(unreadable, np.int32))

    def _make(self, epoch: int, place: int, shape: tuple[int, int]) -> Made:
        key = np.random.SeedSequence(self.settings.seed, spawn_key=(_ITEM, epoch, place))
        rng, index, first = np.random.default_rng(key), self._sample_at(epoch, place), len(self.images.samples)
        if index < first:
            return make_image(self.images, index, shape, self.augmentation, rng)
        made = make_image(self.replayed, index - first, shape, self.augmentation, rng)
        return made._replace(sample_index=index, unreadable=tuple(first + number for number in made.unreadable))

    def _sample_at(self, epoch: int, place: int) -> int:
        size, seed, replay = self.settings.batch_size, self.settings.seed, self.settings.replay
        batch, row = divmod(place, size)
        again = replay.sample_at(epoch * self.batches_per_epoch + batch, row, size, seed)
        if again is not None:
            return len(self.images.samples) + again
        place -= batch * replay.images + replay.before(row, size)
        if self.order is not None:
            return int(self.order[place])
        length = self.batches_per_epoch * (size - replay.images)
        return int(epoch_order(len(self.images.samples), length, seed, epoch)[place])


@dataclass(frozen=True, eq=False, kw_only=True)
class ValidationBatches:
    """Batches for validation; every image once, unchanged but for size and borders.

    A batch has ``images``, ``boxes`` and ``mask`` as in ``Batch``, and, per image, ``index`` int32 ``(B,)``
    (the sample, -1 where the batch is only filled up), ``valid`` bool ``(B,)`` (false where it is filled up,
    or the image cannot be read), ``original_size`` int32 ``(B, 2)`` (height, width of the file), ``gain``
    float64 ``(B, 2)`` (y, x: pixels of the batch per pixel of the file) and ``padding`` float64 ``(B, 2)``
    (x, y: borders in pixels of the batch). All rows of one shape have the same B.

    Attributes:
      images: the samples.
      batch_size: images of a batch, over all processes.
      max_boxes: M.
      order: the sample at each place.
      shapes: (height, width) of each batch.
      process_index: which share of every batch to make.
      process_count: in how many shares batches are made.
      unreadable: names of the images that had to be left out so far.
    """

    images: Images
    batch_size: int
    max_boxes: int
    order: NDArray[np.int64]
    shapes: tuple[tuple[int, int], ...]
    process_index: int = 0
    process_count: int = 1
    unreadable: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.shapes)

    def iterate(self, workers: int = 0, threads: int = 1) -> Iterator[ValidationBatch]:
        """All batches in order; see ``TrainingStream.iterate``.

        Threads are as quick as processes here: without augmentation nearly all of the work is done outside of Python. They need no time to start and no
        shared memory.
        """
        ahead = Prefetch(self, 0, workers, threads)
        try:
            for batch in ahead:
                for index in batch["index"][~batch["valid"]].tolist():
                    name = self.images.samples[index].name
                    if index >= 0 and name not in self.unreadable:
                        self.unreadable.append(name)
                        log.warning("%s: cannot be decoded; it is left out", name)
                yield batch
        finally:
            ahead.close()

    def __getitem__(self, number: int) -> ValidationBatch:
        """The batch with a number."""
        share = self.batch_size // self.process_count
        first = number * self.batch_size + self.process_index * share
        shape = self.shapes[number]
        contents, facts = [], []
        for place in range(first, first + share):
            index = int(self.order[place]) if place < len(self.order) else -1
            try:
                if index < 0:
                    raise ImageError("nothing left")
                image, original = self.images.load(index)
            except ImageError:
                contents.append((np.full((*shape, 3), geometry.GREY, np.uint8), no_boxes()))
                facts.append((index, False, (1, 1), (1.0, 1.0), (0.0, 0.0)))
                continue
            gain = image.shape[0] / original[0], image.shape[1] / original[1]
            scene = geometry.make_scene(image, self.images.samples[index].boxes)
            scene, _, padding = geometry.letterbox(scene, shape, enlarge=False)
            contents.append((scene.image, geometry.fraction_boxes(scene)))
            facts.append((index, True, original, gain, padding))
        indices, valid, sizes, gains, paddings = zip(*facts, strict=True)
        return _collate(contents, share, shape, self.max_boxes)._asdict() | {
            "index": np.array(indices, np.int32),
            "valid": np.array(valid),
            "original_size": np.array(sizes, np.int32),
            "gain": np.array(gains),
            "padding": np.array(paddings),
        }


def validation_batches(
    samples: Sequence[Sample],
    *,
    image_size: int,
    batch_size: int,
    rectangular: bool = True,
    stride: int = 32,
    pad: float = 0.5,
    cache: CacheKind | None = None,
    most_shapes: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> ValidationBatches:
    """The input of a validation.

    Args:
      samples: of the split.
      image_size: pixels of the longer side.
      batch_size: images of a batch over all processes.
      rectangular: whether batches have the shape of their images, or all are square.
      stride: of the coarsest level.
      pad: strides added to each side of a rectangle.
      cache: keep decoded images in ``ram`` or on ``disk``.
      most_shapes: rectangles get wider borders until there are no more different ones; see ``merge_shapes``.
      process_index: which share of every batch to make.
      process_count: in how many shares batches are made.
    """
    _check_share(batch_size, process_count)
    order = np.arange(len(samples))
    shapes: tuple[tuple[int, int], ...] = ((image_size, image_size),) * math.ceil(len(samples) / batch_size)
    if rectangular:
        order, shapes = rectangles(samples, image_size, batch_size, stride, pad)
        shapes = shapes if most_shapes is None else merge_shapes(shapes, most_shapes)
    decoded = make_cache(samples, cache, image_size, smooth=True) if cache else None
    return ValidationBatches(
        images=Images(samples, image_size, True, decoded),
        batch_size=batch_size,
        max_boxes=room_for_boxes(samples),
        order=order,
        shapes=shapes,
        process_index=process_index,
        process_count=process_count,
    )


def room_for_boxes(samples: Sequence[Sample], settings: Hyperparameters | None = None, repeated: bool = False) -> int:
    """M: boxes that one image of a batch may have, a multiple of 8.

    The most boxes of a sample, or with augmentation of the four samples of a mosaic, the eight of two
    mosaics laid over each other, and what copy-paste adds. One sample may come several times into an image, which is rare; with ``repeated`` there is room
    for that too: where several processes share a batch, none of them can enlarge it alone.
    """
    counts = sorted((len(sample.boxes) for sample in samples), reverse=True)
    parts, pasted = 1, 0.0
    if settings is not None and settings.mosaic > 0:
        parts = 8 if settings.mixup > 0 else 4
        pasted = settings.copy_paste if any(sample.polygons for sample in samples) else 0.0
    used = counts[:1] * parts if repeated else counts + counts[:1] * parts
    most = sum(used[:parts]) * (1 + pasted)
    return max(8, math.ceil(most / 8) * 8)


def _collate(contents: Iterable[tuple[Pixels, Boxes]], count: int, shape: tuple[int, int], max_boxes: int) -> Batch:
    """Put ``count`` images together; boxes get ``max_boxes`` rows, or as many doublings of that as they need.

    Each image goes to its place as soon as it is made: a batch of images kept apart is so large that its
    memory would be asked for anew every time.
    """
    images = np.empty((count, *shape, 3), np.uint8)
    boxes = []
    for place, (image, image_boxes) in enumerate(contents):
        images[place] = image
        boxes.append(image_boxes)
    room = max_boxes
    while room < max(map(len, boxes)):
        room *= 2
    padded = np.zeros((count, room, 5), np.float32)
    for row, image_boxes in zip(padded, boxes, strict=True):
        row[: len(image_boxes)] = image_boxes
    mask = np.arange(room) < np.array([len(image_boxes) for image_boxes in boxes])[:, None]
    return Batch(images, padded, mask)


def _check_share(batch_size: int, process_count: int) -> None:
    if batch_size < 1 or batch_size % process_count:
        raise ValueError(f"a batch of {batch_size} cannot be shared by {process_count} processes")
