"""The input stream of a training run whose images are on the devices."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from numpy.typing import NDArray

from yolojax.augmentation.batches import make_batch
from yolojax.augmentation.draws import DeviceAugmentation, epoch_order
from yolojax.augmentation.resident import place_resident
from yolojax.data.augment import Images
from yolojax.data.batches import Batch, StreamSettings, TrainingBatch
from yolojax.data.sample import Sample
from yolojax.data.stream import order_by_weight
from yolojax.hyperparameters import Hyperparameters
from yolojax.mesh import place_everywhere, replicated

Source = dict[str, Any]


def device_augmentation(
    samples: Sequence[Sample], hyperparameters: Hyperparameters, stream: StreamSettings, mesh: Mesh, divided: bool
) -> DeviceAugmentation:
    """What a run asks of batches that devices make."""
    return DeviceAugmentation(
        hyperparameters=hyperparameters,
        count=len(samples),
        image_size=stream.image_size,
        batch_size=stream.batch_size,
        mesh=mesh,
        divided=divided,
    )


class DeviceStream:
    """Training batches that the devices make: what ``data.stream.TrainingStream`` is for those of the host.

    ``source``, ``make`` and ``samples`` are for a program that makes batches where it trains on them; ``iterate`` gives them one by one.

    Attributes:
      images: the samples.
      settings: of the batches.
      unreadable: names of the images that had to be left out.
    """

    def __init__(
        self,
        images: Images,
        hyperparameters: Hyperparameters,
        stream: StreamSettings,
        mesh: Mesh,
        divided: bool = False,
    ) -> None:
        """Put the images on every device of a mesh, or ``divided``, a part of them on each."""
        self.images = images
        self.settings = device_augmentation(images.samples, hyperparameters, stream, mesh, divided)
        self._resident, self.unreadable = place_resident(images, mesh, divided)
        self._seed, self._epochs, self._mesh = stream.seed, stream.epochs, mesh
        self._everywhere = replicated(mesh)
        self._key = jax.jit(partial(jax.random.key, stream.seed), out_shardings=self._everywhere)()
        self._order = jax.jit(partial(epoch_order, self.settings), out_shardings=self._everywhere)
        self._make = jax.jit(self._make_next)
        self._drawn: dict[int, Array] = {}

    @property
    def batches_per_epoch(self) -> int:
        """Batches of an epoch."""
        return self.settings.batches_per_epoch

    @property
    def max_boxes(self) -> int:
        """How many boxes one image of a batch has room for."""
        return self.settings.room_for_boxes(self._resident.boxes.shape[1])

    def name(self, index: int) -> str:
        """What a report calls a sample."""
        return self.images.samples[index].name

    def source(self, epoch: int) -> Source:
        """What batches of an epoch are made from: arrays on the devices."""
        order = self._drawn.get(epoch)
        if order is None:
            order = self._order(self._key, self._put(np.int32(epoch)))
        return {"resident": self._resident, "key": self._key, "order": order}

    def make(self, source: Source, epoch: Array, number: Array) -> dict[str, Array]:
        """The batch with a number in an epoch, both int32 scalars that may be traced; see ``make_batch``."""
        place = number * self.settings.batch_size
        return make_batch(source["resident"], self.settings, source["key"], epoch, place, source["order"])

    def samples(self, epoch: int, number: int) -> NDArray[np.int32]:
        """The sample that each image of a batch begins with, ``(B,)``, for who has to name it."""
        return self._samples(np.asarray(self.source(epoch)["order"]), number)

    def iterate(self, epoch: int = 0, batch: int = 0, workers: int = 0) -> Generator[TrainingBatch]:
        """The batches from a given one to the end of the last epoch; nothing goes to the devices but at the start of an epoch.

        Args:
          epoch: epoch to start in, from 0.
          batch: batch of that epoch to start with, from 0.
          workers: of no use here.
        """
        del workers
        for current in range(epoch, self._epochs):
            source, on_device = self.source(current), self._put(np.int32(current))
            order = np.asarray(source["order"])
            first = batch if current == epoch else 0
            number = self._put(np.int32(first))
            for host_number in range(first, self.batches_per_epoch):
                made, number = self._make(source, on_device, number)
                yield TrainingBatch(Batch(**made), self._samples(order, host_number), np.zeros(0, np.int32))

    def start(self, epoch: int = 0, batch: int = 0, workers: int = 0) -> None:
        """Nothing: the devices make a batch when it is its turn."""

    def draw(self, epoch: int, weights: NDArray[np.float64]) -> None:
        """Let an epoch have images drawn by weight, with replacement, instead of each one once; call it before every epoch."""
        length = self.batches_per_epoch * self.settings.batch_size
        order = order_by_weight(self._seed, epoch, length, weights)
        self._drawn = {epoch: self._put(order.astype(np.int32))}

    def close(self) -> None:
        """Nothing runs ahead here."""

    def _samples(self, order: NDArray[np.int32], number: int) -> NDArray[np.int32]:
        return order[number * self.settings.batch_size :][: self.settings.batch_size]

    def _make_next(self, source: Source, epoch: Array, number: Array) -> tuple[dict[str, Any], Array]:
        return self.make(source, epoch, number), number + jnp.int32(1)

    def _put(self, value: Any) -> Array:
        return place_everywhere(value, self._mesh)
