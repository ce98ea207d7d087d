"""Training batches of a split that is on the devices, as a program takes them that trains on several in one call (``training.step.BatchMaker``)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from yolojax.augmentation.batches import make_batch
from yolojax.augmentation.draws import DeviceAugmentation, epoch_order
from yolojax.augmentation.resident import Resident
from yolojax.mesh import replicated


class Maker:
    """Makes the batches of a run; what is in one depends on (seed, epoch, place) alone."""

    def __init__(self, resident: Resident, settings: DeviceAugmentation, seed: int) -> None:
        """Take a split that was placed on the devices of ``settings.mesh``."""
        self._resident, self._settings, self._seed = resident, settings, seed
        self._drawn: dict[int, np.ndarray] = {}
        everywhere = None if settings.mesh is None else replicated(settings.mesh)
        self._place = lambda order: jax.device_put(order, everywhere)

        def order_of(epoch: Array) -> Array:
            return epoch_order(settings, jax.random.key(seed), epoch)

        self._order_of = jax.jit(order_of, out_shardings=everywhere)

    def draw(self, epoch: int, order: np.ndarray) -> None:
        """Let an epoch have these samples, int32, one for each place, instead of each one once."""
        self._drawn = {epoch: np.asarray(order, np.int32)}

    def source(self, epoch: int) -> Any:
        """What batches of an epoch are made from: the split, and the order of the epoch."""
        return self._resident, self._place(self._drawn[epoch]) if epoch in self._drawn else self._order(epoch)

    def samples(self, epoch: int, number: int) -> np.ndarray:
        """The sample that each image of a batch begins with, ``(B,)``."""
        order = self._drawn[epoch] if epoch in self._drawn else np.asarray(self._order(epoch))
        size = self._settings.batch_size
        return order[number * size : (number + 1) * size]

    def make(self, source: Any, epoch: Array, number: Array) -> dict[str, Array]:
        """A batch, inside a jitted program; see ``make_batch``."""
        resident, order = source
        first = number * self._settings.batch_size
        return make_batch(resident, self._settings, jax.random.key(self._seed), epoch, first, order)

    def _order(self, epoch: int) -> Array:
        return self._order_of(jnp.int32(epoch))
