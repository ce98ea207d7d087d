"""Batches of a split that is on the device: a pure function of (seed, epoch, place), which may stand inside ``lax.scan``.

``make_batch`` draws (``draws.py``) and applies (``apply``). The draws are other ones than the host's, from the same distributions; given the host's,
``apply`` gives what ``data/augment.py`` gives.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec

from yolojax.augmentation.boxes import make_boxes
from yolojax.augmentation.division import bring_shown
from yolojax.augmentation.draws import DeviceAugmentation, Draws, draw, epoch_order
from yolojax.augmentation.pixels import make_pixels
from yolojax.augmentation.resident import Resident
from yolojax.mesh import AXIS


def make_batch(
    resident: Resident,
    settings: DeviceAugmentation,
    seed_key: Array,
    epoch: Array | int,
    first_place: Array | int,
    order: Array | None = None,
) -> dict[str, Array]:
    """A batch for training; call it in a jitted program with ``settings`` static.

    Args:
      resident: the split.
      settings: of the batches.
      seed_key: ``jax.random.key(seed)`` of the run.
      epoch: from 0; may be traced.
      first_place: of the batch in the epoch, ``number * batch_size``; may be traced.
      order: int32, the sample at each place of the epoch: ``epoch_order``, or samples drawn by weight. Where one program makes several batches,
        give it, so that the permutation is computed once; None computes it here.

    Returns:
      ``images`` uint8 RGB ``(B, S, S, 3)``, ``boxes`` float32 ``(B, M, 5)`` (class, x, y, width, height as fractions) and ``mask`` bool ``(B, M)``, those
      that exist first; with a mesh, split over it. The same bits for any number of devices.
    """
    if order is None:
        order = epoch_order(settings, seed_key, epoch)
    places = jnp.asarray(first_place, jnp.int32) + jnp.arange(settings.batch_size, dtype=jnp.int32)
    arguments = resident, seed_key, jnp.asarray(epoch, jnp.int32), places, order[places]

    def share(resident: Resident, seed_key: Array, epoch: Array, places: Array, samples: Array) -> dict[str, Array]:
        return apply(draw(settings, seed_key, epoch, places, samples), resident, settings)

    if settings.mesh is None:
        return share(*arguments)
    everywhere, here = PartitionSpec(), PartitionSpec(AXIS)
    split = Resident(here if settings.divided else everywhere, everywhere, everywhere, everywhere)  # type: ignore[arg-type]
    # Each device makes its own images. Where it has all that it needs for them, there is nothing to be told between devices.
    return jax.shard_map(
        share,
        mesh=settings.mesh,
        in_specs=(split, everywhere, everywhere, here, here),
        out_specs=here,
        check_vma=not settings.divided,
    )(*arguments)


def apply(draws: Draws, resident: Resident, settings: DeviceAugmentation) -> dict[str, Array]:
    """The images that are drawn, as ``make_batch`` gives them; on one device, which is sent what it does not keep."""
    images, sizes = resident.images, resident.sizes
    boxes, mask = make_boxes(draws, sizes, resident.boxes, resident.counts, settings)
    if settings.divided:
        draws, images, sizes = bring_shown(draws, images, sizes, settings, AXIS)
    return {"images": make_pixels(draws, images, sizes, settings), "boxes": boxes, "mask": mask}
