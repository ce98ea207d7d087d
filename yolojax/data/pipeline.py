"""From samples to batches: the input streams of training and validation.

A stream is a list of batches that can be asked for in any order. What is in a batch depends on (seed, epoch, place in the epoch) alone, so it is the
same for any number of workers and processes, and training can start again at any batch. Grain calls the list from threads or worker processes and
keeps finished batches ready.
"""

from __future__ import annotations

import functools
import logging
import math
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing import resource_tracker
from typing import Any

import cv2
import grain
import numpy as np
from absl import flags
from numpy.typing import NDArray

from yolojax.data import colour, geometry, mosaic
from yolojax.data.cache import CacheKind, ImageCache, make_cache
from yolojax.data.geometry import Scene
from yolojax.data.sample import Boxes, ImageError, Pixels, Sample
from yolojax.data.workers import leave_program_out
from yolojax.hyperparameters import Hyperparameters

log = logging.getLogger(__name__)

Batch = dict[str, NDArray[Any]]
Item = tuple[Pixels, Boxes, int]  # a finished picture, its boxes as fractions, and the sample that it began with

# Which operation may run when. The parts of a mosaic are only brought to size: a part that was flipped or recoloured by itself would not be the
# mosaic of YOLOv5. What runs on the finished picture runs on every picture, mosaic or not.
BEFORE_MOSAIC = (geometry.resize_long_side,)
MOSAIC = (mosaic.mosaic4, mosaic.copy_paste, geometry.random_perspective, colour.mix_up)
INSTEAD_OF_MOSAIC = (geometry.letterbox, geometry.random_perspective)
AFTER_MOSAIC = (colour.random_effects, colour.random_hsv, geometry.flip_up_down, geometry.flip_left_right)

_ORDER, _ITEM = 0, 1  # what a generator is for: no two of them share a key


@dataclass(frozen=True, eq=False)
class Pictures:
    """The pictures of a split at training size, from a cache or from their files."""

    samples: Sequence[Sample]
    size: int
    smooth: bool
    cache: ImageCache | None = None

    def load(self, index: int) -> tuple[Pixels, tuple[int, int]]:
        """A picture with its longer side at ``size``, and its own (height, width).

        Raises:
          ImageError: it cannot be read.
        """
        if self.cache is None or self.cache.size is None:
            image = self.samples[index].load() if self.cache is None else self.cache[index]
            return geometry.resize_long_side(image, self.size, smooth=self.smooth), image.shape[:2]
        return self.cache[index], self.samples[index].size


def image_weights(samples: Sequence[Sample], maps: Sequence[float]) -> NDArray[np.float64]:
    """How often each picture is to be drawn: more often where its classes are rare, or found badly so far.

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


@functools.lru_cache(maxsize=4)
def epoch_order(count: int, length: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Which sample is at which place of an epoch: permutations of ``count`` samples, one after another, ``length`` in all."""
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_ORDER, epoch)))
    return np.concatenate([rng.permutation(count) for _ in range(math.ceil(length / count))])[:length]


@dataclass(frozen=True, eq=False, kw_only=True)
class TrainingBatches:
    """Batches for training, by their number since the start of the first epoch.

    A batch has ``images`` uint8 ``(B, H, W, 3)`` RGB, ``boxes`` float32 ``(B, M, 5)`` (class, x, y, width, height as fractions), ``mask`` bool
    ``(B, M)`` (which boxes exist) and ``index`` int32 ``(B,)`` (the sample that each picture began with). B is this process's share.

    Attributes:
      pictures: the samples.
      settings: how to augment.
      batch_size: pictures of a batch, over all processes.
      max_boxes: M. A batch that has more boxes in one picture gets twice that (four times, …), and a log line.
      seed: of everything random.
      epochs: how many.
      augment: whether to augment at all.
      effects: whether ``colour.random_effects`` is part of it.
      rect_shapes: (height, width) of each batch of an epoch, for rectangular training; its pictures are then in order of their shape.
      order: the sample at each place of an epoch, where it is not a new permutation: of rectangular training, or drawn by weight.
      process_index: which share of every batch to make.
      process_count: in how many shares batches are made.
    """

    pictures: Pictures
    settings: Hyperparameters
    batch_size: int
    max_boxes: int
    seed: int
    epochs: int
    augment: bool = True
    effects: bool = False
    rect_shapes: tuple[tuple[int, int], ...] = ()
    order: NDArray[np.int64] | None = None
    process_index: int = 0
    process_count: int = 1

    @property
    def batches_per_epoch(self) -> int:
        """Batches of an epoch: every sample comes once, and the last batch is filled from a second permutation."""
        return math.ceil(len(self.pictures.samples) / self.batch_size)

    def __len__(self) -> int:
        return self.batches_per_epoch * self.epochs

    def __getitem__(self, number: int) -> Batch:
        """The batch with a number, and in it ``unreadable``: the samples that other ones had to replace."""
        epoch, batch = divmod(number, self.batches_per_epoch)
        share = self.batch_size // self.process_count
        first = batch * self.batch_size + self.process_index * share
        shape = self.rect_shapes[batch] if self.rect_shapes else (self.pictures.size,) * 2
        unreadable: list[int] = []

        def items() -> Iterator[Item]:
            for place in range(first, first + share):
                rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(_ITEM, epoch, place)))
                yield _Making(self, rng, shape, unreadable).make(self._sample_at(epoch, place))

        made = _collate(items(), share, shape, self.max_boxes)
        return made | {"unreadable": np.array(unreadable, np.int32)}

    def _sample_at(self, epoch: int, place: int) -> int:
        if self.order is not None:
            return int(self.order[place])
        count, length = len(self.pictures.samples), self.batches_per_epoch * self.batch_size
        return int(epoch_order(count, length, self.seed, epoch)[place])


@dataclass(frozen=True, eq=False)
class _Making:
    """How one picture of a training batch is made."""

    stream: TrainingBatches
    rng: np.random.Generator
    shape: tuple[int, int]
    unreadable: list[int]

    def make(self, index: int) -> Item:
        stream, rng, settings = self.stream, self.rng, self.stream.settings
        if not stream.augment:
            scene = geometry.letterbox(self.alone(index), self.shape, enlarge=False)[0]
        elif not stream.rect_shapes and rng.random() < settings.mosaic:
            scene = self.mosaic(index)
            if rng.random() < settings.mixup:
                scene = colour.mix_up(scene, self.mosaic(self.any_index()), rng)
        else:
            scene = geometry.letterbox(self.alone(index), self.shape, enlarge=True)[0]
            scene = geometry.random_perspective(scene, rng, settings, self.shape)
        if stream.augment:
            image = colour.random_effects(scene.image, rng) if stream.effects else scene.image
            scene = Scene(colour.random_hsv(image, rng, settings), scene.boxes)
            if rng.random() < settings.flipud:
                scene = geometry.flip_up_down(scene)
            if rng.random() < settings.fliplr:
                scene = geometry.flip_left_right(scene)
        return scene.image, geometry.fraction_boxes(scene), index

    def mosaic(self, index: int) -> Scene:
        size = self.stream.pictures.size
        indices = [index, *(self.any_index() for _ in range(3))]
        self.rng.shuffle(indices)
        scene = mosaic.mosaic4([self.scene(part) for part in indices], self.rng, size)
        scene = mosaic.copy_paste(scene, self.rng, self.stream.settings.copy_paste)
        return geometry.random_perspective(scene, self.rng, self.stream.settings, (size, size))

    def alone(self, index: int) -> Scene:
        """A scene that is no part of a mosaic: there the original moves the corners of boxes, even where it knows outlines."""
        scene = self.scene(index)
        return Scene(scene.image, scene.boxes)

    def any_index(self) -> int:
        return int(self.rng.integers(len(self.stream.pictures.samples)))

    def scene(self, index: int) -> Scene:
        """The scene of a sample, or of the next one that can be read: the same one in every worker and every run."""
        samples = self.stream.pictures.samples
        for candidate in (*range(index, len(samples)), *range(index)):
            try:
                image, _ = self.stream.pictures.load(candidate)
            except ImageError:
                self.unreadable.append(candidate)
                continue
            return geometry.make_scene(image, samples[candidate].boxes, samples[candidate].polygons)
        raise RuntimeError("not one picture of the data set can be read")


class TrainingStream:
    """Training batches, made ahead of time, and a record of what could not be read.

    Attributes:
      batches: the batches, to be asked for in any order.
      unreadable: names of the pictures that had to be left out so far.
    """

    def __init__(self, batches: TrainingBatches) -> None:
        self.batches = batches
        self.unreadable: list[str] = []
        self._ahead: _Ahead | None = None

    @property
    def pictures(self) -> Pictures:
        """The samples."""
        return self.batches.pictures

    @property
    def batches_per_epoch(self) -> int:
        """Batches of an epoch."""
        return self.batches.batches_per_epoch

    @property
    def max_boxes(self) -> int:
        """M: boxes that one picture of a batch has room for."""
        return self.batches.max_boxes

    def iterate(self, epoch: int = 0, batch: int = 0, workers: int = 0) -> Generator[Batch]:
        """The batches from a given one to the end of the last epoch.

        Iterating may stop anywhere; workers then keep what they have made ahead, and going on from there (as the next epoch does) costs nothing.

        Args:
          epoch: epoch to start in, from 0.
          batch: batch of that epoch to start with, from 0.
          workers: processes that make batches; 0 makes them in a thread of this one.
        """
        number = epoch * self.batches_per_epoch + batch
        if self._ahead is None or (self._ahead.number, self._ahead.workers) != (number, workers):
            self.close()
            self._ahead = _Ahead(self.batches, number, workers)
        for found in self._ahead:
            self._report(found.pop("unreadable"), found["boxes"].shape[1])
            yield found

    def draw(self, epoch: int, weights: NDArray[np.float64]) -> None:
        """Let an epoch have pictures drawn by weight, with replacement, instead of each one once.

        Call it before every epoch; the workers start anew, as they have made batches ahead without knowing the weights.
        """
        rng = np.random.default_rng(np.random.SeedSequence(self.batches.seed, spawn_key=(_ORDER, epoch)))
        length = self.batches_per_epoch * self.batches.batch_size
        self.close()
        self.batches = replace(self.batches, order=rng.choice(len(weights), length, p=weights))

    def close(self) -> None:
        """Stop the workers."""
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None

    def _report(self, unreadable: NDArray[np.int32], room: int) -> None:
        for index in sorted(set(unreadable.tolist())):
            name = self.pictures.samples[index].name
            if name not in self.unreadable:
                self.unreadable.append(name)
                log.warning("%s: cannot be decoded; it is left out, and the next image is taken instead", name)
        if room > self.max_boxes:
            message = "an image has more than %d boxes: this batch has room for %d, and compiles the step again"
            log.warning(message, self.max_boxes, room)


@dataclass(frozen=True, eq=False, kw_only=True)
class ValidationBatches:
    """Batches for validation; every picture once, unchanged but for size and borders.

    A batch has what a training batch has and, per picture, ``valid`` bool ``(B,)`` (false where the batch is only filled up, or the picture cannot be
    read), ``original_size`` int32 ``(B, 2)`` (height, width of the file), ``gain`` float64 ``(B, 2)`` (y, x: pixels of the batch per pixel
    of the file) and ``padding`` float64 ``(B, 2)`` (x, y: borders in pixels of the batch). All rows of one shape have the same B.

    Attributes:
      pictures: the samples.
      batch_size: pictures of a batch, over all processes.
      max_boxes: M.
      order: the sample at each place.
      shapes: (height, width) of each batch.
      process_index: which share of every batch to make.
      process_count: in how many shares batches are made.
      unreadable: names of the pictures that had to be left out so far.
    """

    pictures: Pictures
    batch_size: int
    max_boxes: int
    order: NDArray[np.int64]
    shapes: tuple[tuple[int, int], ...]
    process_index: int = 0
    process_count: int = 1
    unreadable: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.shapes)

    def iterate(self, workers: int = 0) -> Iterator[Batch]:
        """All batches in order; see ``TrainingStream.iterate``."""
        ahead = _Ahead(self, 0, workers)
        try:
            for batch in ahead:
                for index in batch["index"][~batch["valid"]].tolist():
                    name = self.pictures.samples[index].name
                    if index >= 0 and name not in self.unreadable:
                        self.unreadable.append(name)
                        log.warning("%s: cannot be decoded; it is left out", name)
                yield batch
        finally:
            ahead.close()

    def __getitem__(self, number: int) -> Batch:
        """The batch with a number."""
        share = self.batch_size // self.process_count
        first = number * self.batch_size + self.process_index * share
        shape = self.shapes[number]
        items, facts = [], []
        for place in range(first, first + share):
            index = int(self.order[place]) if place < len(self.order) else -1
            try:
                if index < 0:
                    raise ImageError("nothing left")
                image, original = self.pictures.load(index)
            except ImageError:
                items.append((np.full((*shape, 3), geometry.GREY, np.uint8), np.zeros((0, 5), np.float32), index))
                facts.append((False, (1, 1), (1.0, 1.0), (0.0, 0.0)))
                continue
            gain = image.shape[0] / original[0], image.shape[1] / original[1]
            scene = geometry.make_scene(image, self.pictures.samples[index].boxes)
            scene, _, padding = geometry.letterbox(scene, shape, enlarge=False)
            items.append((scene.image, geometry.fraction_boxes(scene), index))
            facts.append((True, original, gain, padding))
        valid, sizes, gains, paddings = zip(*facts, strict=True)
        return _collate(items, share, shape, self.max_boxes) | {
            "valid": np.array(valid),
            "original_size": np.array(sizes, np.int32),
            "gain": np.array(gains),
            "padding": np.array(paddings),
        }


def training_stream(
    samples: Sequence[Sample],
    settings: Hyperparameters,
    *,
    image_size: int,
    batch_size: int,
    epochs: int,
    seed: int = 0,
    augment: bool = True,
    effects: bool = False,
    rectangular: bool = False,
    stride: int = 32,
    cache: CacheKind | None = None,
    max_boxes: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> TrainingStream:
    """The input of a training run.

    Args:
      samples: of the training split.
      settings: how to augment.
      image_size: pixels of the longer side; a multiple of ``stride``.
      batch_size: pictures of a batch over all processes; a multiple of ``process_count``.
      epochs: how many.
      seed: of everything random.
      augment: whether to augment at all.
      effects: also blur, grey and equalise a few pictures, which needs Albumentations.
      rectangular: batches of pictures of like shape, without mosaic and in a fixed order.
      stride: of the coarsest level.
      cache: keep decoded pictures in ``ram`` or on ``disk``.
      max_boxes: boxes per picture that a batch has room for; from the data unless given.
      process_index: which share of every batch to make.
      process_count: in how many shares batches are made.
    """
    _check_share(batch_size, process_count)
    pictures = Pictures(
        samples, image_size, False, make_cache(samples, cache, image_size, smooth=False) if cache else None
    )
    shapes: tuple[tuple[int, int], ...] = ()
    order = None
    if rectangular:
        order, shapes = rectangles(samples, image_size, batch_size, stride, pad=0.0)
        count = len(samples)
        whole = len(shapes) * batch_size - count
        # A rectangular epoch ends in a full batch too: its pictures are those of the greatest height to width, some of them twice.
        order = np.concatenate([order, np.resize(order[::-1], whole)])
    batches = TrainingBatches(
        pictures=pictures,
        settings=settings,
        batch_size=batch_size,
        max_boxes=max_boxes or room_for_boxes(samples, settings if augment and not rectangular else None),
        seed=seed,
        epochs=epochs,
        augment=augment,
        effects=effects,
        rect_shapes=shapes,
        order=order,
        process_index=process_index,
        process_count=process_count,
    )
    return TrainingStream(batches)


def validation_batches(
    samples: Sequence[Sample],
    *,
    image_size: int,
    batch_size: int,
    rectangular: bool = True,
    stride: int = 32,
    pad: float = 0.5,
    cache: CacheKind | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> ValidationBatches:
    """The input of a validation; arguments as in ``training_stream``.

    Args:
      samples: of the split.
      image_size: pixels of the longer side.
      batch_size: pictures of a batch over all processes.
      rectangular: whether batches have the shape of their pictures, or all are square.
      stride: of the coarsest level.
      pad: strides added to each side of a rectangle.
      cache: keep decoded pictures in ``ram`` or on ``disk``.
      process_index: which share of every batch to make.
      process_count: in how many shares batches are made.
    """
    _check_share(batch_size, process_count)
    order = np.arange(len(samples))
    shapes: tuple[tuple[int, int], ...] = ((image_size, image_size),) * math.ceil(len(samples) / batch_size)
    if rectangular:
        order, shapes = rectangles(samples, image_size, batch_size, stride, pad)
    return ValidationBatches(
        pictures=Pictures(
            samples, image_size, True, make_cache(samples, cache, image_size, smooth=True) if cache else None
        ),
        batch_size=batch_size,
        max_boxes=room_for_boxes(samples),
        order=order,
        shapes=shapes,
        process_index=process_index,
        process_count=process_count,
    )


def room_for_boxes(samples: Sequence[Sample], settings: Hyperparameters | None = None) -> int:
    """M: boxes that one picture of a batch may have, a multiple of 8.

    The most boxes of a sample, or with augmentation of the four samples of a mosaic, the eight of two mosaics laid over each other, and what
    copy-paste adds.
    """
    counts = sorted((len(sample.boxes) for sample in samples), reverse=True)
    parts, pasted = 1, 0.0
    if settings is not None and settings.mosaic > 0:
        parts = 8 if settings.mixup > 0 else 4
        pasted = settings.copy_paste if any(sample.polygons for sample in samples) else 0.0
    most = sum((counts + counts[:1] * parts)[:parts]) * (1 + pasted)
    return max(8, math.ceil(most / 8) * 8)


def rectangles(
    samples: Sequence[Sample], image_size: int, batch_size: int, stride: int, pad: float
) -> tuple[NDArray[np.int64], tuple[tuple[int, int], ...]]:
    """Samples in order of height to width, and the smallest (height, width) that holds each batch.

    Source: ``docs/yolov5.md`` §1.9, rect.
    """
    aspect = np.array([sample.size[0] / sample.size[1] for sample in samples])
    order = np.argsort(aspect, kind="stable")
    shapes = []
    for start in range(0, len(order), batch_size):
        ratios = aspect[order[start : start + batch_size]]
        height, width = 1.0, 1.0
        if ratios.max() < 1:
            height = float(ratios.max())
        elif ratios.min() > 1:
            width = 1 / float(ratios.min())
        height, width = (math.ceil(side * image_size / stride + pad) * stride for side in (height, width))
        shapes.append((int(height), int(width)))
    return order, tuple(shapes)


def _collate(items: Iterable[Item], count: int, shape: tuple[int, int], max_boxes: int) -> Batch:
    """Put ``count`` items together; boxes get ``max_boxes`` rows, or as many doublings of that as they need.

    Each picture goes to its place as soon as it is made: a batch of pictures kept apart is so large that its memory would be asked for anew every time.
    """
    images = np.empty((count, *shape, 3), np.uint8)
    boxes, indices = [], []
    for place, (image, found, index) in enumerate(items):
        images[place] = image
        boxes.append(found)
        indices.append(index)
    room = max_boxes
    while room < max(map(len, boxes)):
        room *= 2
    padded = np.zeros((count, room, 5), np.float32)
    for row, found in zip(padded, boxes, strict=True):
        row[: len(found)] = found
    mask = np.arange(room) < np.array([len(found) for found in boxes])[:, None]
    return {"images": images, "boxes": padded, "mask": mask, "index": np.array(indices, np.int32)}


class _Ahead:
    """Batches from a number on, made ahead of time by a thread or by worker processes.

    Attributes:
      number: of the next batch.
      workers: processes that make batches; 0 for a thread of this one.
    """

    def __init__(self, batches: TrainingBatches | ValidationBatches, number: int, workers: int) -> None:
        self.number, self.workers = number, workers
        cv2.setNumThreads(1)  # workers are the parallelism; OpenCV's own threads would fight them
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain reads its own flags, and the command line is not absl's
        source: Any = grain.MapDataset.source(batches).slice(slice(number, len(batches)))
        if workers == 0:
            self._iterator = iter(source.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)))
        else:
            one_by_one = source.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
            leave_program_out()
            _start_quiet_tracker()
            options = grain.MultiprocessingOptions(min(workers, max(len(source), 1)), per_worker_buffer_size=2)
            self._iterator = iter(one_by_one.mp_prefetch(options, worker_init_fn=_start_worker))

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        batch = next(self._iterator)
        self.number += 1
        return batch

    def close(self) -> None:
        self._iterator.close()


def _start_quiet_tracker() -> None:
    """Start the process that frees shared memory at the end, without its warning.

    Grain gives the last few arrays back in a thread that the end of the program does not wait for, so there is always something left to free.
    """
    sys.warnoptions.append("ignore:resource_tracker:UserWarning")
    resource_tracker.ensure_running()
    sys.warnoptions.pop()


def _start_worker(_index: int, _count: int) -> None:
    # A terminal or a scheduler sends these to all processes; what to do is decided by the one that trains.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    cv2.setNumThreads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for ever: nobody takes its batches."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _check_share(batch_size: int, process_count: int) -> None:
    if batch_size < 1 or batch_size % process_count:
        raise ValueError(f"a batch of {batch_size} cannot be shared by {process_count} processes")
