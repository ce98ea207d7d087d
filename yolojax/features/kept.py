"""The features of a run: computed once for each view of a training image and for each validation image, and given out as batches."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike
from numpy.typing import NDArray

from yolojax.data.batches import ValidationBatches, epoch_order
from yolojax.data.cache import available_memory
from yolojax.data.stream import TrainingStream
from yolojax.errors import UserError
from yolojax.features.compute import Front, Labels, compute_ahead, front_variables, join_labels, make_front
from yolojax.features.front import feature_bytes, feature_shapes, first_that_moves, front_end
from yolojax.features.key import Key, front_digest, training_key, validation_key
from yolojax.features.shared import Shared
from yolojax.features.store import Beside, Store, keys_on_disk
from yolojax.features.validation import FeatureValidation, note_unreadable
from yolojax.files import readable_size
from yolojax.freezing.phases import Phase
from yolojax.model.network import Variables
from yolojax.model.spec import ModelSpec
from yolojax.runtime import cache_folder

log = logging.getLogger(__name__)

# Of the memory that is free before training: features may take so much, all else needs the rest.
MEMORY_SHARE = 0.5
_MARGIN = 1.1


@dataclass(frozen=True)
class FeatureBatch:
    """A batch for a network that starts behind the front part.

    Attributes:
      batch: ``features``, a tuple of arrays ``(B, h, w, channels)``, and ``boxes`` and ``mask`` as in ``data.batches.Batch``.
      indices: int32 ``(B,)``, the sample that each view began with.
    """

    batch: dict[str, Any]
    indices: NDArray[np.int32]


class KeptFeatures:
    """Features of a run, of one front part at a time.

    Attributes:
      views: how many of each training image there are; epoch ``e`` reads view ``e % views``, which is the one that the input stream draws for the
        epoch of that number.
      start: the layer behind the front part; 0 while there is none.
      validation: batches of the validation images; None while there is no front part.
    """

    def __init__(
        self,
        spec: ModelSpec,
        dtype: DTypeLike | None,
        mesh: Mesh,
        stream: TrainingStream,
        validation: ValidationBatches,
        views: int,
        shared: Shared | None = None,
    ) -> None:
        """Nothing is computed yet.

        Args:
          spec: the network.
          dtype: of the computation, and so of the features; None is float32.
          mesh: the devices.
          stream: training batches, which are made on the host.
          validation: validation batches.
          views: at least 1.
          shared: what runs of this process share; None where there is one alone.
        """
        self.views, self.start = views, 0
        self.validation: FeatureValidation | None = None
        self._spec, self._dtype, self._mesh = spec, np.dtype(dtype or jnp.float32), mesh
        self._stream, self._images = stream, validation
        self._stores, self._shared = (shared or Shared()).stores, shared is not None
        self._store: Store | None = None
        self._front: Front | None = None

    def enter(
        self, phase: Phase, fixed_bn: Collection[str], variables: Variables, averages: Variables, start: int
    ) -> int:
        """Begin a phase, or go on with one.

        Args:
          phase: its labels.
          fixed_bn: BatchNorm modules that keep their statistics in it.
          variables: parameters and statistics that are trained with.
          averages: those that are validated.
          start: where the network started in the phase before, or before an interruption.

        Returns:
          Where it starts now; 0 where the phase has no front part.

        Raises:
          UserError: there is no room for the features.
        """
        end = front_end(self._spec, phase, fixed_bn)
        if start > end:
            moving, images = first_that_moves(self._spec, phase, fixed_bn), "" if end else " and reads images"
            log.info(
                "kept features: layer %d moves in this phase, which leaves those of layers 0 to %d%s",
                moving,
                start - 1,
                images,
            )
        elif start:
            end = start  # layers that rest once more are computed with the rest
        if end and end == self.start:
            log.info("kept features: this phase goes on with those of layers 0 to %d", end - 1)
            return end
        self._leave()
        if not end:
            return 0
        trained, validated = (front_variables(tree, end) for tree in (variables, averages))
        facts = {"dtype": self._dtype.name, "device": self._mesh.devices.flat[0].device_kind}
        keys = (
            training_key(facts | {"frozen layers": front_digest(self._spec, end, trained)}, self._stream.batches),
            validation_key(facts | {"frozen layers": front_digest(self._spec, end, validated)}, self._images),
        )
        self._store, validation = self._open(keys, end)
        self._front = make_front(self._spec, end, self._dtype, self._mesh, trained)
        self.validation = FeatureValidation(
            spec=self._spec,
            start=end,
            images=self._images,
            front=make_front(self._spec, end, self._dtype, self._mesh, validated),
            store=validation,
            dtype=self._dtype,
        )
        self.start = end
        return end

    def images(self, number: int) -> dict[str, Any]:
        """The images, boxes and mask of a batch of the first epoch, for who wants to see them."""
        return self._stream.batches[number].batch._asdict()

    def batches(
        self, epoch: int, batch: int, workers: int, stop: Callable[[], bool] = lambda: False
    ) -> Iterator[FeatureBatch]:
        """The batches of an epoch from a given one on; the view that they read is computed where it is not there.

        Args:
          epoch: from 0.
          batch: the first, from 0.
          workers: processes that make images meanwhile.
          stop: whether to give up computing; nothing comes then.
        """
        assert self._store is not None
        stream, view = self._stream.batches, epoch % self.views
        count, size = len(stream.images.samples), stream.settings.batch_size
        shapes = [(count, *shape) for shape in feature_shapes(self._spec, self.start, (stream.images.size,) * 2)]
        kept = self._store(f"view-{view}", shapes, self._dtype, partial(self._compute, view, workers, stop))
        if kept is None:
            return
        if all(self._store.has(f"view-{number}") for number in range(self.views)):
            self._stream.close()
        note_unreadable(kept.beside, self._stream.unreadable)
        order, rows = view_rows(count, stream.batches_per_epoch * size, stream.settings.seed, epoch, view)
        for number in range(batch, stream.batches_per_epoch):
            places = slice(number * size, (number + 1) * size)
            yield FeatureBatch(
                {
                    "features": tuple(array[rows[places]] for array in kept.features),
                    "boxes": kept.beside["boxes"][rows[places]],
                    "mask": kept.beside["mask"][rows[places]],
                },
                order[places].astype(np.int32),
            )

    def _compute(self, view: int, workers: int, stop: Callable[[], bool], arrays: list[NDArray[Any]]) -> Beside | None:
        """Write the features of a view, sample after sample in the order of its epoch."""
        assert self._front is not None
        batches, count, started = self._stream.batches, len(arrays[0]), time.perf_counter()
        size, labels = batches.settings.batch_size, list[Labels]()
        made = zip(range(batches.batches_per_epoch), self._stream.iterate(view, 0, workers), strict=False)

        def images() -> Iterator[NDArray[np.uint8]]:
            for _, each in made:
                labels.append((each.batch.boxes, each.batch.mask))
                yield each.batch.images

        for number, features in enumerate(compute_ahead(self._front, images())):
            if stop():
                return None
            rows = slice(number * size, min((number + 1) * size, count))
            for array, feature in zip(arrays, features, strict=True):
                array[rows] = feature[: rows.stop - rows.start]
        log.info("kept features: computed view %d in %.1f s", view + 1, time.perf_counter() - started)
        boxes, mask = join_labels(labels, count)
        return {"boxes": boxes, "mask": mask, "unreadable": np.array(self._stream.unreadable, str)}

    def _leave(self) -> None:
        self.start, self.validation, self._store, self._front = 0, None, None, None
        if not self._shared:
            self._stores.clear()

    def _open(self, keys: tuple[Key, Key], end: int) -> tuple[Store, Store]:
        """The stores of training and validation images, in memory where both fit."""
        stream, images = self._stream.batches, self._images
        views, itemsize = min(self.views, stream.settings.epochs), self._dtype.itemsize
        square = (stream.images.size,) * 2
        view = len(stream.images.samples) * feature_bytes(self._spec, end, square, itemsize)
        needed = views * view
        needed += images.batch_size * sum(feature_bytes(self._spec, end, size, itemsize) for size in images.shapes)
        trained, validated = (self._stores.get(key.digest) for key in keys)
        if trained is not None and validated is not None:
            missing = view * sum(not trained.has(f"view-{number}") for number in range(views))
            if trained.folder is not None or missing <= MEMORY_SHARE * available_memory():
                log.info("kept features: those of a run before this one")
                return trained, validated
        folder, where = _place(needed, keys)
        log.info(
            "kept features: outputs of layers %s, of %s of %d images and of %d validation images, %s: %s, %s",
            ", ".join(map(str, self._spec.crossing(end))),
            f"{views} view" + "s" * (views > 1),
            len(stream.images.samples),
            len(images.images.samples),
            self._dtype.name,
            readable_size(needed),
            where,
        )
        opened = tuple(Store(key, folder) for key in keys)
        if folder is not None:
            self._tell_changes(opened[0], folder)
        elif changed := keys[0].changed(store.key.parts for store in self._stores.values()):
            log.info("kept features: %s changed since a run before this one: filling anew", " and ".join(changed))
        self._stores.update({store.key.digest: store for store in opened})
        return opened[0], opened[1]

    def _tell_changes(self, store: Store, folder: Path) -> None:
        there = sum(store.has(f"view-{number}") for number in range(self.views))
        if there:
            log.info("kept features: there already: %d of %d views", there, self.views)
        elif changed := store.key.changed(parts for parts in keys_on_disk(folder) if "seed" in parts):
            log.info(
                "kept features: none in %s are of this run (%s differ from the nearest): filling anew",
                folder,
                ", ".join(changed),
            )


def _place(needed: int, keys: Iterable[Key]) -> tuple[Path | None, str]:
    """Where so many bytes of features are kept: None for memory, or a folder; and that in words."""
    folder, free = cache_folder() / "features", available_memory()
    if not any(next(folder.glob(f"{key.digest}-*.npz"), None) for key in keys) and needed <= MEMORY_SHARE * free:
        return None, f"in memory ({readable_size(free)} are free)"
    folder.mkdir(parents=True, exist_ok=True)
    there = sum(file.stat().st_size for key in keys for file in folder.glob(f"{key.digest}-*.bin"))
    room = shutil.disk_usage(folder).free
    if (needed - there) * _MARGIN > room:
        raise UserError(
            f"--cache features: {readable_size(needed)} of features have no room in memory ({readable_size(free)} are free, of which they may take "
            f"{MEMORY_SHARE:.0%}) nor in {folder} ({readable_size(room)} are free); take fewer views, as in --cache features:2, or --cache ram"
        )
    return folder, f"in {folder} (memory has {readable_size(free)} free, the disk {readable_size(room)})"


def view_rows(count: int, length: int, seed: int, epoch: int, view: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which sample stands at each place of an epoch, and in which row its view lies; both ``(length,)``.

    The rows of a view are in the order of the epoch of its number, where each sample comes once. So the first ``count`` places of that epoch read one row
    after another, and later epochs read the same views in an order of their own.
    """
    order = epoch_order(count, length, seed, epoch)
    row = np.empty(count, np.int64)
    row[epoch_order(count, count, seed, view)] = np.arange(count)
    return order, row[order]
