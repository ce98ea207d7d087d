"""The boxes of a batch, moved, clipped and dropped by the rules of ``data/geometry.py``."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from yolojax.augmentation.draws import DeviceAugmentation, Draws
from yolojax.augmentation.layout import make_layout, make_motion
from yolojax.data import geometry


def make_boxes(
    draws: Draws, sizes: Array, boxes: Array, counts: Array, settings: DeviceAugmentation
) -> tuple[Array, Array]:
    """The boxes of a batch.

    Args:
      draws: of B images.
      sizes: int32 ``(N, 2)``, (height, width) of the samples.
      boxes: float32 ``(N, M0, 5)``: class, x, y, width, height as fractions of a sample.
      counts: int32 ``(N,)``, how many there are.
      settings: of the batches.

    Returns:
      float32 ``(B, M, 5)``, class, x, y, width, height as fractions of an image, those that are kept first; and bool ``(B, M)``, which exist.
    """
    size = settings.image_size
    views = [_view(draws, sizes, boxes, counts, settings, view) for view in range(settings.views)]
    if len(views) == 2:
        views[1] = views[1][0], views[1][1] & draws.mixed[:, None]
    rows, keep = (jnp.concatenate(parts, 1) for parts in zip(*views, strict=True))
    label, left, top, right, bottom = jnp.moveaxis(rows, -1, 0)
    mirrored, upside_down = draws.flip_left_right[:, None], draws.flip_up_down[:, None]
    left, right = jnp.where(mirrored, size - right, left), jnp.where(mirrored, size - left, right)
    top, bottom = jnp.where(upside_down, size - bottom, top), jnp.where(upside_down, size - top, bottom)
    left, top, right, bottom = (jnp.clip(edge, 0, size - geometry.EDGE) for edge in (left, top, right, bottom))
    rows = jnp.stack(
        [label, (left + right) / 2 / size, (top + bottom) / 2 / size, (right - left) / size, (bottom - top) / size], -1
    )
    order = jnp.argsort(~keep, axis=1, stable=True)
    rows = jnp.take_along_axis(jnp.where(keep[..., None], rows, 0), order[..., None], 1)
    keep = jnp.take_along_axis(keep, order, 1)
    missing = settings.room_for_boxes(boxes.shape[1]) - rows.shape[1]
    return jnp.pad(rows, ((0, 0), (0, missing), (0, 0))), jnp.pad(keep, ((0, 0), (0, missing)))


def _view(
    draws: Draws, sizes: Array, boxes: Array, counts: Array, settings: DeviceAugmentation, view: int
) -> tuple[Array, Array]:
    """Boxes of a view after it is moved: ``(B, parts * M0, 5)`` class, left, top, right, bottom in pixels, and which are kept."""
    size = settings.image_size
    layout = make_layout(draws, sizes, size, view)
    motion = make_motion(draws, size, view)
    chosen = slice(4 - settings.parts, 4)  # without mosaics, the lower right part is all there is
    samples, heights, widths = (
        jnp.stack(values[chosen], 1) for values in (layout.samples, layout.heights, layout.widths)
    )
    right_part, low_part = jnp.arange(4)[chosen] % 2 == 1, jnp.arange(4)[chosen] >= 2
    # Without a mosaic, half of what is free lies left of an image: half a pixel more than where its pixels are, as in ``geometry.letterbox``.
    x = jnp.where(draws.mosaic, layout.x, (size - layout.widths[3]) / 2)[:, None]
    y = jnp.where(draws.mosaic, layout.y, (size - layout.heights[3]) / 2)[:, None]
    x_offset, y_offset = jnp.where(right_part, x, x - widths), jnp.where(low_part, y, y - heights)
    label, x, y, width, height = jnp.moveaxis(boxes[samples], -1, 0)
    limit = jnp.where(draws.mosaic, 2 * size, jnp.inf)[:, None, None]

    def on_canvas(middle: Array, half: Array, length: Array, offset: Array) -> Array:
        edge = (middle + half) * length[..., None] + offset[..., None]
        return jnp.where(jnp.isinf(limit), edge, jnp.clip(edge, 0, limit))

    left, right = (on_canvas(x, half, widths, x_offset) for half in (-width / 2, width / 2))
    top, bottom = (on_canvas(y, half, heights, y_offset) for half in (-height / 2, height / 2))
    corners = [motion.forward(*corner) for corner in ((left, top), (right, bottom), (left, bottom), (right, top))]
    across, down = (jnp.stack(values) for values in zip(*corners, strict=True))
    moved = [jnp.clip(edge, 0, size) for edge in (across.min(0), down.min(0), across.max(0), down.max(0))]
    keep = _worth_keeping(
        (right - left) * draws.scale[:, view, None, None],
        (bottom - top) * draws.scale[:, view, None, None],
        moved[2] - moved[0],
        moved[3] - moved[1],
    )
    exists = jnp.arange(boxes.shape[1]) < counts[samples][..., None]
    exists &= (widths > 0)[..., None]
    flat = (len(samples), -1)
    return jnp.stack([label, *moved], -1).reshape(*flat, 5), (keep & exists).reshape(flat)


def _worth_keeping(width_before: Array, height_before: Array, width: Array, height: Array) -> Array:
    """Which boxes are still worth learning, as ``geometry.random_perspective`` decides."""
    epsilon = geometry.EPSILON
    aspect = jnp.maximum(width / (height + epsilon), height / (width + epsilon))
    area = width * height / (width_before * height_before + epsilon)
    large = (width > geometry.SMALLEST_SIDE) & (height > geometry.SMALLEST_SIDE)
    return large & (area > geometry.LEAST_BOX_AREA) & (aspect < geometry.GREATEST_ASPECT)
