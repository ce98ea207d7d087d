"""Where the parts of a view lie on a canvas that is never made, and how the canvas is moved into the image."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array

from yolojax.augmentation.draws import Draws

Parts: TypeAlias = tuple[Array, Array, Array, Array]
FAR = 2**24  # pixels; added to a place, it lies in no image


class Layout(NamedTuple):
    """Four parts of one view around a point of its canvas; an image without mosaic is the lower right part alone.

    Attributes:
      samples: of the upper left, upper right, lower left and lower right part; each int32 ``(B,)``, as all that follow.
      heights: pixels; 0 where there is no part.
      widths: see ``heights``.
      y_offsets: what a row of the canvas needs to become one of the part; where there is no part, far too much.
      x_offsets: the same for columns.
      y: of the point.
      x: see ``y``.
      side: pixels of the canvas' side.
    """

    samples: Parts
    heights: Parts
    widths: Parts
    y_offsets: Parts
    x_offsets: Parts
    y: Array
    x: Array
    side: Array


class Plane(NamedTuple):
    """A number that depends on the place in an image: ``column * x + row * y + start``; every field ``(B,)`` float32."""

    column: Array
    row: Array
    start: Array

    def shift(self, x: Array, y: Array) -> Plane:
        """The plane moved by so many pixels."""
        return self._replace(start=self.start - self.column * x - self.row * y)

    def flip(self, left_right: Array, up_down: Array, size: int) -> Plane:
        """The plane mirrored in an image of ``size`` pixels, where two ``(B,)`` say so."""
        last = size - 1
        start = self.start + jnp.where(left_right, self.column * last, 0) + jnp.where(up_down, self.row * last, 0)
        return Plane(jnp.where(left_right, -self.column, self.column), jnp.where(up_down, -self.row, self.row), start)


class Motion(NamedTuple):
    """A projective map from a canvas to an image, about the canvas' centre; every field ``(B,)`` float32.

    A point ``p`` goes to ``A (p - centre) / (1 + tilt · (p - centre)) + move``.

    Attributes:
      xx: of the matrix A, and so on.
      xy: see ``xx``.
      yx: see ``xx``.
      yy: see ``xx``.
      tilt_x: of the perspective.
      tilt_y: see ``tilt_x``.
      move_x: where the centre goes.
      move_y: see ``move_x``.
      centre: of the canvas, x and y alike.
    """

    xx: Array
    xy: Array
    yx: Array
    yy: Array
    tilt_x: Array
    tilt_y: Array
    move_x: Array
    move_y: Array
    centre: Array

    def forward(self, x: Array, y: Array) -> tuple[Array, Array]:
        """Where points of the canvas go, ``(B, ...)``."""
        moved = jax.tree.map(lambda values: jnp.expand_dims(values, tuple(range(1, x.ndim))), self)
        return moved._forward(x - moved.centre, y - moved.centre)

    def _forward(self, x: Array, y: Array) -> tuple[Array, Array]:
        depth = 1 + self.tilt_x * x + self.tilt_y * y
        return (
            (self.xx * x + self.xy * y) / depth + self.move_x,
            (self.yx * x + self.yy * y) / depth + self.move_y,
        )

    def backward(self) -> tuple[Plane, Plane, Plane]:
        """Where the pixels of the image come from: x and y of the canvas, each less its centre, times what they are to be divided by."""
        determinant = self.xx * self.yy - self.xy * self.yx
        x = Plane(self.yy / determinant, -self.xy / determinant, jnp.zeros_like(determinant))
        y = Plane(-self.yx / determinant, self.xx / determinant, jnp.zeros_like(determinant))
        depth = Plane(
            -self.tilt_x * x.column - self.tilt_y * y.column,
            -self.tilt_x * x.row - self.tilt_y * y.row,
            jnp.ones_like(determinant),
        )
        return (
            x.shift(self.move_x, self.move_y),
            y.shift(self.move_x, self.move_y),
            depth.shift(self.move_x, self.move_y),
        )


def make_layout(draws: Draws, sizes: Array, size: int, view: int) -> Layout:
    """The layout of a view.

    Args:
      draws: of B images.
      sizes: int32 ``(N, 2)``, (height, width) of the samples.
      size: S, pixels.
      view: 0, or 1 for the scene that mixup lays over the first.
    """
    mosaic = draws.mosaic[:, None]
    lower_right = jnp.arange(4) == 3
    samples = jnp.where(mosaic, draws.parts[:, view], draws.alone[:, None])
    shapes = sizes[samples]
    # Rounding up leaves some images one pixel longer than S; only a mosaic has room for it.
    shapes = jnp.where(mosaic[..., None], shapes, jnp.where(lower_right[:, None], jnp.minimum(shapes, size), 0))
    heights, widths = shapes[..., 0], shapes[..., 1]
    y = jnp.where(draws.mosaic, draws.centre[:, view, 0], (size - heights[:, 3]) // 2)
    x = jnp.where(draws.mosaic, draws.centre[:, view, 1], (size - widths[:, 3]) // 2)
    right, low = jnp.arange(4) % 2 == 1, jnp.arange(4) >= 2
    absent = widths == 0
    y_offsets = jnp.where(absent, FAR, jnp.where(low, 0, heights) - y[:, None])
    x_offsets = jnp.where(absent, FAR, jnp.where(right, 0, widths) - x[:, None])
    return Layout(
        samples=_columns(samples),
        heights=_columns(heights),
        widths=_columns(widths),
        y_offsets=_columns(y_offsets),
        x_offsets=_columns(x_offsets),
        y=y,
        x=x,
        side=jnp.where(draws.mosaic, 2 * size, size),
    )


def _columns(parts: Array) -> Parts:
    first, second, third, fourth = parts.T
    return first, second, third, fourth


def make_motion(draws: Draws, size: int, view: int) -> Motion:
    """How the canvas of a view is moved: the map of ``geometry.perspective_matrix``, M = T·S·R·P·C."""
    angle, scale = jnp.radians(draws.angle[:, view]), draws.scale[:, view]
    cosine, sine = scale * jnp.cos(angle), scale * jnp.sin(angle)
    shear = jnp.tan(jnp.radians(draws.shear[:, view]))
    shear_x, shear_y = shear[:, 0], shear[:, 1]
    return Motion(
        xx=cosine - shear_x * sine,
        xy=sine + shear_x * cosine,
        yx=shear_y * cosine - sine,
        yy=shear_y * sine + cosine,
        tilt_x=draws.tilt[:, view, 0],
        tilt_y=draws.tilt[:, view, 1],
        move_x=draws.move[:, view, 0],
        move_y=draws.move[:, view, 1],
        centre=jnp.where(draws.mosaic, jnp.float32(size), jnp.float32(size) / 2),
    )
