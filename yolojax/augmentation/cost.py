"""What a batch that is made on a device costs there, from its compiled program and from what it reads; no card is needed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import SingleDeviceSharding

from yolojax.augmentation.batches import make_batch
from yolojax.augmentation.draws import DeviceAugmentation, Draws, draw, epoch_order
from yolojax.augmentation.pixels import neighbours
from yolojax.augmentation.resident import abstract_resident

_SECTOR = 32  # bytes that a GPU reads at once
_WARP = 32  # threads that read together


def compile_batch(settings: DeviceAugmentation, most_boxes: int, device: jax.Device) -> Any:
    """The program that makes a batch, compiled for a device, which may be absent (see ``plan.devices``).

    Args:
      settings: of the batches, without mesh.
      most_boxes: of a sample.
      device: to compile for.
    """
    key = jax.eval_shape(lambda: jax.random.key(0))
    number = jax.ShapeDtypeStruct((), jnp.int32)
    order = jax.eval_shape(partial(epoch_order, settings), key, number)
    arguments = (abstract_resident(settings.count, settings.image_size, most_boxes), key, number, number, order)
    sharding = SingleDeviceSharding(device)
    placed = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), arguments)

    def program(resident: Any, key: Array, epoch: Array, place: Array, order: Array) -> dict[str, Array]:
        return make_batch(resident, settings, key, epoch, place, order)

    return jax.jit(program).lower(*placed).compile()


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Bytes that making the images of a batch moves.

    Attributes:
      together: that its gathers read, in sectors, if what 32 neighbouring threads read at once is read once.
      once: that they read if every sector comes from memory once for each image, and from caches after that.
      streamed: that its programs write and read one after another: places, views, images.
    """

    together: int
    once: int
    streamed: int

    def seconds(self, bandwidth: float) -> tuple[float, float]:
        """The least and the most that moving them takes at so many bytes per second, by what caches hold."""
        return (self.once + self.streamed) / bandwidth, (self.together + self.streamed) / bandwidth


def batch_traffic(settings: DeviceAugmentation, seed: int = 0) -> Traffic:
    """The traffic of the first batch of a seed, of samples that are 3:4; the places that its gathers read are computed, image by image."""
    size, images, views = settings.image_size, settings.batch_size, settings.views
    sizes = jnp.tile(jnp.array([[size * 3 // 4, size]], jnp.int32), (settings.count, 1))
    places = jnp.arange(images, dtype=jnp.int32)
    draws = jax.jit(partial(draw, settings))(jax.random.key(seed), 0, places, places)
    side = size + 1

    @jax.jit
    def read(draws: Draws, sizes: Array) -> list[Array]:
        return neighbours(draws, sizes, settings, side)[0]

    together = once = 0
    for image in range(images):
        corners = jax.device_get(read(jax.tree.map(lambda field, image=image: field[image : image + 1], draws), sizes))
        sectors = [
            (sample.astype(np.int64) * side**2 + place) * 4 // _SECTOR for sample, place in (c.T for c in corners)
        ]
        for corner in sectors:
            warps = np.sort(corner.reshape(-1, _WARP), 1)
            together += _SECTOR * (len(warps) + int((np.diff(warps, axis=1) > 0).sum()))
        once += _SECTOR * len(np.unique(np.concatenate(sectors)))
    pixels = images * size**2
    # x and y written and read, views written and read, images written as words, read, and written as bytes.
    return Traffic(together=together, once=once, streamed=pixels * (views * (8 + 8 + 4 + 4) + 4 + 4 + 3))
