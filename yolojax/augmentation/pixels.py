"""The pixels of a batch: read through the inverse of all that moves them, in one pass, then recoloured.

No canvas is made: for each pixel of the result, its four neighbours are read from the samples that would lie there. OpenCV 5 blends them in float32, and
so is done here. A pixel is one word, and all its channels are one thread's work, so that its place is computed once and not once for each channel.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from yolojax.augmentation.draws import DeviceAugmentation, Draws
from yolojax.augmentation.layout import FAR, Layout, Parts, make_layout, make_motion

Planes = tuple[Array, Array, Array]  # red, green, blue


def make_pixels(draws: Draws, images: Array, sizes: Array, settings: DeviceAugmentation) -> Array:
    """The images of a batch.

    Args:
      draws: of B images.
      images: uint32 ``(N, L, L)``; see ``Resident``.
      sizes: int32 ``(N, 2)``, their (height, width).
      settings: of the batches.

    Returns:
      uint8 RGB ``(B, S, S, 3)``.
    """
    hyp = settings.hyperparameters
    # The compiler would compute each word three times, or keep parts of it in memory, were it free to take the two programs for one.
    words = jax.lax.optimization_barrier(_warp(draws, images, sizes, settings))
    planes = _unpack(words[:, 0])
    if settings.views == 2:
        share, mixed = draws.share[:, None, None], draws.mixed[:, None, None]

        def mix(plane: Array, other: Array) -> Array:
            return jnp.where(mixed, jnp.floor(plane * share + other * (1 - share)), plane)

        planes = _each(mix, planes, _unpack(words[:, 1]))
    if hyp.hsv_h or hyp.hsv_s or hyp.hsv_v:
        planes = change_colours(planes, draws.gains[:, :, None, None])
    return jax.lax.bitcast_convert_type(_pack(planes), jnp.uint8)[..., :3]


def _pack(planes: Planes) -> Array:
    """A word for each pixel, so that one program makes all of it."""
    red, green, blue = (plane.astype(jnp.uint32) for plane in planes)
    return red | green << 8 | blue << 16


def _unpack(words: Array) -> Planes:
    red, green, blue = ((words >> shift & 255).astype(jnp.float32) for shift in (0, 8, 16))
    return red, green, blue


def _each(function: Callable[..., Array], *planes: Planes) -> Planes:
    red, green, blue = (function(*same) for same in zip(*planes, strict=True))
    return red, green, blue


def _warp(draws: Draws, images: Array, sizes: Array, settings: DeviceAugmentation) -> Array:
    """Every view of every image, flipped where the image is: words ``(B, V, S, S)``."""
    places, x_share, y_share = neighbours(draws, sizes, settings, images.shape[1])
    flat = images.reshape(len(images), -1)

    def read(place: Array) -> Planes:
        dimensions = jax.lax.GatherDimensionNumbers(offset_dims=(1, 2), collapsed_slice_dims=(), start_index_map=(0, 1))
        in_bounds = jax.lax.GatherScatterMode.PROMISE_IN_BOUNDS
        return _unpack(jax.lax.gather(flat, place, dimensions, (1, 1), mode=in_bounds))

    def blend(upper_left: Array, upper_right: Array, lower_left: Array, lower_right: Array) -> Array:
        upper = upper_left + x_share * (upper_right - upper_left)
        lower = lower_left + x_share * (lower_right - lower_left)
        return jnp.round(upper + y_share * (lower - upper))

    return _pack(_each(blend, *map(read, places))).reshape(-1, settings.views, *(settings.image_size,) * 2)


def neighbours(draws: Draws, sizes: Array, settings: DeviceAugmentation, side: int) -> tuple[list[Array], Array, Array]:
    """Where the pixels of a batch come from.

    Args:
      draws: of B images.
      sizes: int32 ``(N, 2)``, (height, width) of the samples.
      settings: of the batches.
      side: L, of the images that are read.

    Returns:
      For each of the ``P = B * V * S * S`` pixels of all views its upper left, upper right, lower left and lower right neighbour, int32 ``(P, 2)``:
      sample and place among its ``L * L`` pixels; and where it lies between them in x and y, float32 ``(P, 1, 1)``, 0 to 1. These shapes are those
      of the gather, so that the compiler for GPUs makes one program of all that is done for a pixel.
    """
    size = settings.image_size
    shape = (len(draws.mosaic) * settings.views, size, size)

    def every(*views: Array) -> Array:
        """Of every view a number, for each of its pixels."""
        return jnp.broadcast_to(jnp.stack(views, 1).reshape(-1, 1, 1), shape)

    views = []
    for view in range(settings.views):
        motion = make_motion(draws, size, view)
        planes = [plane.flip(draws.flip_left_right, draws.flip_up_down, size) for plane in motion.backward()]
        views.append((make_layout(draws, sizes, size, view), planes, motion.centre))
    layout, (x_plane, y_plane, depth_plane), centre = jax.tree.map(every, *views)
    row, column = (jax.lax.broadcasted_iota(jnp.float32, shape, axis) for axis in (1, 2))
    x, y, depth = (plane.column * column + plane.row * row + plane.start for plane in (x_plane, y_plane, depth_plane))
    if settings.hyperparameters.perspective:
        x, y = x / depth, y / depth
    # Made once for every pixel; all that follows from them is cheaper to compute anew for each of four neighbours than to keep.
    x, y = jax.lax.optimization_barrier((x + centre, y + centre))
    layout, x, y = jax.tree.map(lambda values: values.reshape(-1, 1), (layout, x, y))
    left, top = jnp.floor(x), jnp.floor(y)
    x_share, y_share = (x - left)[..., None], (y - top)[..., None]
    # A tilted plane reaches far beyond what integers hold.
    left, top = (jnp.clip(value, -2, 2 * size + 1).astype(jnp.int32) for value in (left, top))
    columns = [_on_canvas(left + step, layout.x, layout.side) for step in (0, 1)]
    rows = [_on_canvas(top + step, layout.y, layout.side) for step in (0, 1)]
    return [_in_part(layout, side, *place) for place in itertools.product(rows, columns)], x_share, y_share


def _on_canvas(place: Array, point: Array, side: Array) -> tuple[Array, Array]:
    """Rows or columns of the canvas, far away where it has ended, and whether (0 or 1) they lie behind the point of the mosaic.

    Comparisons would be simpler to read. The compiler for GPUs keeps their results in memory; this arithmetic it does anew where it needs it.
    """
    place = jnp.minimum(place.astype(jnp.uint32), side.astype(jnp.uint32)).astype(jnp.int32)  # negative is huge
    place = place + jnp.maximum(place - side + 1, 0) * FAR
    return place, jnp.clip(place - point + 1, 0, 1)


def _in_part(layout: Layout, side: int, row: tuple[Array, Array], column: tuple[Array, Array]) -> Array:
    """Where the part that lies at some places of the canvas is read; where none is, its grey border."""
    (y, low), (x, right) = row, column
    both = low * right

    def of_part(parts: Parts) -> Array:
        first, second, third, fourth = parts
        return first + right * (second - first) + low * (third - first) + both * (fourth - third - second + first)

    last = jnp.uint32(side - 1)  # row and column are grey, and so is all between them and the image
    y, x = (
        jnp.minimum((place + of_part(offsets)).astype(jnp.uint32), last).astype(jnp.int32)
        for place, offsets in ((y, layout.y_offsets), (x, layout.x_offsets))
    )
    return jnp.concatenate(
        [of_part(layout.samples), y * side + x], -1
    )  # one number would not hold all of a large split


def change_colours(planes: Planes, gains: Array) -> Planes:
    """Hue, saturation and value, each times a gain, with the rounding of ``colour.random_hsv``.

    Args:
      planes: red, green, blue ``(B, ...)``; whole numbers from 0 to 255 as float32.
      gains: ``(B, 3, ...)``, of hue, saturation and value.

    Returns:
      Planes as those that were given.

    Between the steps all is rounded to bytes, as OpenCV does it: with fractions kept, colours would differ by up to 26.
    """
    red, green, blue = planes
    value = jnp.maximum(jnp.maximum(red, green), blue)
    span = value - jnp.minimum(jnp.minimum(red, green), blue)
    # OpenCV's tables of reciprocals, in 4096ths; whole numbers below 2**24, so that float32 holds them.
    of_value = jnp.round(255 * 4096 / jnp.maximum(value, 1))
    of_span = jnp.round(30 * 4096 / jnp.maximum(span, 1))
    saturation = jnp.floor((span * of_value + 2048) / 4096)
    sector = jnp.where(
        value == red, green - blue, jnp.where(value == green, blue - red + 2 * span, red - green + 4 * span)
    )
    hue = jnp.floor((sector * of_span + 2048) / 4096)
    hue = jnp.where(hue < 0, hue + 180, hue)
    hue = hue * gains[:, 0]
    hue = hue - 180 * jnp.floor(hue / 180)
    hue = jnp.floor(jnp.where(hue < 0, hue + 180, jnp.where(hue >= 180, hue - 180, hue)))  # a quotient that was rounded
    saturation = jnp.floor(jnp.clip(saturation * gains[:, 1], 0, 255))
    value = jnp.floor(jnp.clip(value * gains[:, 2], 0, 255))
    sixth, strength = hue / 30, saturation / 255

    def channel(start: int) -> Array:
        """A channel is full over two sixths of the circle, and rises and falls over one on either side."""
        place = sixth + start
        place = jnp.where(place >= 6, place - 6, place)
        missing = jnp.clip(jnp.minimum(place, 4 - place), 0, 1)
        return jnp.floor(value * (1 - strength * missing))  # OpenCV cuts off here, but for the last pixels of a row

    return channel(5), channel(3), channel(1)
