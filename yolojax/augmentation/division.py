"""A split that is divided: every device keeps a part of the images and is sent those of the others that its share of a batch shows."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import Array

from yolojax.augmentation.draws import DeviceAugmentation, Draws
from yolojax.augmentation.resident import image_bytes

# Images that one device sends to another at a time, of what it would send were all drawn evenly: chance rarely asks for more, and then goes twice.
_ROOM = 1.5


def shown_images(settings: DeviceAugmentation) -> int:
    """R, images of the split that one device reads for its share of a batch."""
    devices = 1 if settings.mesh is None else settings.mesh.size
    return settings.batch_size // devices * settings.views * settings.parts


def exchange_bytes(settings: DeviceAugmentation) -> int:
    """Bytes that a device needs while images go from one to another: what it sends, what it is sent, and what it keeps of that."""
    assert settings.mesh is not None
    sent = settings.mesh.size * _room(shown_images(settings), settings.mesh.size)
    return (2 * sent + shown_images(settings)) * image_bytes(settings.image_size)


def bring_shown(
    draws: Draws, images: Array, sizes: Array, settings: DeviceAugmentation, axis: str
) -> tuple[Draws, Array, Array]:
    """Bring what a share of a batch shows to the device that makes it; inside of ``jax.shard_map``.

    Args:
      draws: of the share.
      images: uint32 ``(N / D, L, L)``, those that this device keeps; see ``Resident``.
      sizes: int32 ``(N, 2)``, of all.
      settings: of the batches.
      axis: name of the devices.

    Returns:
      The draws with samples numbered anew, images ``(R, L, L)`` and sizes ``(R, 2)`` of these.
    """
    if settings.parts == 1:
        samples = draws.alone
        numbers = jnp.arange(samples.size, dtype=jnp.int32)
        draws = draws._replace(alone=numbers, parts=jnp.zeros_like(draws.parts))
    else:
        samples = jnp.where(draws.mosaic[:, None, None], draws.parts, draws.alone[:, None, None])
        numbers = jnp.arange(samples.size, dtype=jnp.int32).reshape(samples.shape)
        draws = draws._replace(alone=numbers[:, 0, 0], parts=numbers)
    shown = samples.reshape(-1)
    return draws, bring(images, shown, axis), sizes[shown]


def bring(images: Array, wanted: Array, axis: str) -> Array:
    """Rows of an array of which every device keeps a part; inside of ``jax.shard_map``.

    Args:
      images: ``(N / D, ...)``; of D devices, the first has the first rows, and so on.
      wanted: int32 ``(R,)``, rows of the whole that this device asks for; R is the same on all.
      axis: name of the devices.

    Returns:
      ``(R, ...)``. Between two devices so many rows go at a time as there is room for, until all have what they asked for.
    """
    devices, own = jax.lax.axis_size(axis), len(images)
    room = _room(len(wanted), devices)
    asked = jax.lax.all_gather(wanted, axis)  # (D, R), of every device
    own_number, keeper = jax.lax.axis_index(axis), asked // own
    # Of every device, the places of what it asks of this one; then those of the rest.
    mine = jnp.pad(jnp.argsort(keeper != own_number, axis=1, stable=True), ((0, 0), (0, room)))
    of_keeper = keeper[..., None] == jnp.arange(devices)
    # Which one it is of all that this device asks of the same other.
    place = jnp.take_along_axis(of_keeper[own_number].cumsum(0) - 1, keeper[own_number][:, None], 1)[:, 0]
    most = of_keeper.sum(1).max()

    def turn(number: Array, brought: Array) -> Array:
        chosen = jax.lax.dynamic_slice_in_dim(mine, number * room, room, 1)
        rows = jnp.clip(jnp.take_along_axis(asked, chosen, 1) - own_number * own, 0, own - 1)
        received = jax.lax.all_to_all(images[rows], axis, 0, 0)  # (D, room, ...), from every device
        row = place - number * room
        here = ((row >= 0) & (row < room)).reshape(-1, *[1] * (images.ndim - 1))
        return jnp.where(here, received[keeper[own_number], jnp.clip(row, 0, room - 1)], brought)

    nothing = jnp.zeros((len(wanted), *images.shape[1:]), images.dtype)
    return jax.lax.fori_loop(0, (most + room - 1) // room, turn, nothing)


def _room(rows: int, devices: int) -> int:
    """Rows that a device has room to send to each other one at a time."""
    return min(rows, math.ceil(_ROOM * rows / devices))
