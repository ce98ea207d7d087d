"""Everything random of a batch, drawn on the device from keys: nothing but (seed, epoch, place) decides what is drawn."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from yolojax.hyperparameters import Hyperparameters

_ORDER, _ITEM = 0, 1  # what a key is for: no two of them share one
_MIX_CONCENTRATION = 32  # both parameters of the Beta distribution, as in ``data/mosaic.py``


@dataclass(frozen=True, kw_only=True)
class DeviceAugmentation:
    """What a jitted program has to know to make batches; static, and hashable.

    Attributes:
      hyperparameters: gains, ranges and probabilities; ``copy_paste`` is not done.
      count: N, samples of the split.
      image_size: S, pixels of the side of an image.
      batch_size: B, images of a batch over all devices.
      mesh: devices that share a batch; None makes it on the default device.
      divided: whether each of them keeps a part of the images instead of all.
    """

    hyperparameters: Hyperparameters
    count: int
    image_size: int
    batch_size: int
    mesh: Mesh | None = None
    divided: bool = False

    @property
    def batches_per_epoch(self) -> int:
        """Batches of an epoch: every sample comes once, and the last batch is filled from a second permutation."""
        return math.ceil(self.count / self.batch_size)

    @property
    def views(self) -> int:
        """V, how many scenes an image may show: two where there is mixup, else one."""
        return 2 if self.hyperparameters.mosaic > 0 and self.hyperparameters.mixup > 0 else 1

    @property
    def parts(self) -> int:
        """How many samples a view may show."""
        return 4 if self.hyperparameters.mosaic > 0 else 1

    def room_for_boxes(self, most: int) -> int:
        """M, boxes that one image of a batch has room for where a sample has at most ``most``: never one too few."""
        return max(8, math.ceil(most * self.parts * self.views / 8) * 8)


class Draws(NamedTuple):
    """All chance of B images; V is ``DeviceAugmentation.views``.

    Attributes:
      parts: int32 ``(B, V, 4)``, samples of a mosaic: upper left, upper right, lower left, lower right.
      alone: int32 ``(B,)``, the sample that an image without mosaic shows.
      mosaic: bool ``(B,)``, whether an image is a mosaic.
      centre: int32 ``(B, V, 2)``, (y, x) of the point around which a mosaic's parts lie, pixels of its canvas.
      tilt: float32 ``(B, V, 2)``, of the perspective, (x, y), per pixel.
      angle: float32 ``(B, V)``, degrees.
      scale: float32 ``(B, V)``.
      shear: float32 ``(B, V, 2)``, (x, y), degrees.
      move: float32 ``(B, V, 2)``, where the centre of a scene comes to lie, (x, y), pixels.
      mixed: bool ``(B,)``, whether a mosaic is seen through a second one.
      share: float32 ``(B,)``, of the first mosaic.
      gains: float32 ``(B, 3)``, what hue, saturation and value are multiplied by.
      flip_up_down: bool ``(B,)``.
      flip_left_right: bool ``(B,)``.
    """

    parts: Array
    alone: Array
    mosaic: Array
    centre: Array
    tilt: Array
    angle: Array
    scale: Array
    shear: Array
    move: Array
    mixed: Array
    share: Array
    gains: Array
    flip_up_down: Array
    flip_left_right: Array


def epoch_order(settings: DeviceAugmentation, seed_key: Array, epoch: Array | int) -> Array:
    """Which sample is at which place of an epoch: permutations, one after another, as many as its batches need.

    Args:
      settings: of the batches.
      seed_key: of the run.
      epoch: from 0; may be traced.

    Returns:
      int32 ``(batches_per_epoch * batch_size,)``.
    """
    length = settings.batches_per_epoch * settings.batch_size
    key = jax.random.fold_in(jax.random.fold_in(seed_key, _ORDER), epoch)
    keys = jax.random.split(key, math.ceil(length / settings.count))
    permutations = [jax.random.permutation(keys[number], settings.count) for number in range(len(keys))]
    return jnp.concatenate(permutations)[:length].astype(jnp.int32)


def draw(settings: DeviceAugmentation, seed_key: Array, epoch: Array | int, places: Array, samples: Array) -> Draws:
    """Draw what the images at some places of an epoch will be.

    Args:
      settings: distributions, those of ``data/augment.py``.
      seed_key: of the run.
      epoch: from 0; may be traced.
      places: int32 ``(B,)``, in the epoch.
      samples: int32 ``(B,)``, the sample at each of them.
    """
    key = jax.random.fold_in(jax.random.fold_in(seed_key, _ITEM), epoch)
    return jax.vmap(lambda place, sample: _draw_one(settings, jax.random.fold_in(key, place), sample))(places, samples)


def _draw_one(settings: DeviceAugmentation, key: Array, sample: Array) -> Draws:
    hyp, size, views = settings.hyperparameters, settings.image_size, settings.views
    # All from one call, because each is a long program of its own: first words for whole numbers, then for fractions.
    halves = 2 * _MIX_CONCENTRATION - 1
    words = jax.random.bits(key, (4 * views + 1 + 10 * views + 7 + halves * (views - 1),))
    whole, rest = words[: 4 * views + 1], words[4 * views + 1 :]
    fractions = (rest >> 8).astype(jnp.float32) * 2.0**-24
    parts = (whole[:-1] % settings.count).astype(jnp.int32).reshape(views, 4)
    # The sample comes once in the first mosaic, anywhere; the others are drawn with replacement.
    parts = parts.at[0].set(jnp.where(jnp.arange(4) == whole[-1] % 4, sample, parts[0]))
    view, image = fractions[: 10 * views].reshape(views, 10), fractions[10 * views : 10 * views + 7]
    signed = 2 * view - 1
    # The middle one of 63 uniform numbers is Beta(32, 32): no rejection, and so no loop of unknown length.
    share = jnp.sort(fractions[-halves:])[halves // 2] if views == 2 else jnp.float32(1)
    mosaic = image[0] < hyp.mosaic
    return Draws(
        parts=parts,
        alone=sample,
        mosaic=mosaic,
        centre=((0.5 + view[:, 0:2]) * size).astype(jnp.int32),
        tilt=signed[:, 2:4] * hyp.perspective,
        angle=signed[:, 4] * hyp.degrees,
        scale=1 + signed[:, 5] * hyp.scale,
        shear=signed[:, 6:8] * hyp.shear,
        move=(0.5 + signed[:, 8:10] * hyp.translate) * size,
        mixed=mosaic & (image[1] < hyp.mixup),
        share=share,
        gains=1 + (2 * image[2:5] - 1) * jnp.array([hyp.hsv_h, hyp.hsv_s, hyp.hsv_v], jnp.float32),
        flip_up_down=image[5] < hyp.flipud,
        flip_left_right=image[6] < hyp.fliplr,
    )
