"""Many small arrays carried as few: handing one to a program and taking it back costs Python a microsecond, however small it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from yolojax.mesh import place_everywhere


@dataclass(frozen=True)
class Packing:
    """How a list of arrays is carried: first those of two axes and more as they are, then for each dtype one vector, all others of it end to end.

    Attributes:
      shapes: of the arrays.
      dtypes: of the arrays.
      least_axes: arrays of so many and more are carried as they are; 0 for all of them.
    """

    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[np.dtype, ...]
    least_axes: int = 2

    @classmethod
    def of(cls, arrays: Sequence[Array], least_axes: int = 2) -> Packing:
        """That of such arrays."""
        shapes, dtypes = (tuple(array.shape for array in arrays), tuple(np.dtype(array.dtype) for array in arrays))
        return cls(shapes, dtypes, least_axes)

    @property
    def _alone(self) -> list[int]:
        return [place for place, shape in enumerate(self.shapes) if len(shape) >= self.least_axes]

    @property
    def _together(self) -> list[list[int]]:
        places: dict[np.dtype, list[int]] = {}
        for place, (shape, dtype) in enumerate(zip(self.shapes, self.dtypes, strict=True)):
            if len(shape) < self.least_axes:
                places.setdefault(dtype, []).append(place)
        return list(places.values())

    def pack(self, arrays: Sequence[Array]) -> tuple[Array, ...]:
        """What is carried, in a program."""
        vectors = (jnp.concatenate([arrays[place].reshape(-1) for place in places]) for places in self._together)
        return *(arrays[place] for place in self._alone), *vectors

    def unpack(self, carried: Sequence[Array]) -> list[Array]:
        """The arrays again, in a program."""
        return self._unpack(carried, jnp.split)

    def put(self, arrays: Sequence[Array], mesh: Mesh | None) -> tuple[Array, ...]:
        """What is carried, made on the host: to compile a program for it would take longer."""
        small = jax.device_get([[arrays[place] for place in places] for places in self._together])
        vectors = [np.concatenate([array.reshape(-1) for array in own]) for own in small]
        return *(arrays[place] for place in self._alone), *_place(vectors, mesh)

    def take(self, carried: Sequence[Array], mesh: Mesh | None) -> list[Array]:
        """The arrays again, made on the host; those of two axes and more are the ones that are carried."""
        alone = len(self._alone)
        arrays = self._unpack([*carried[:alone], *jax.device_get(list(carried[alone:]))], np.split)
        small = [place for places in self._together for place in places]
        for place, array in zip(small, _place([arrays[place] for place in small], mesh), strict=True):
            arrays[place] = array
        return arrays

    def _unpack(self, carried: Sequence[Any], divide: Any) -> list[Any]:
        arrays: list[Any] = [None] * len(self.shapes)
        for place, array in zip(self._alone, carried, strict=False):
            arrays[place] = array
        for places, vector in zip(self._together, carried[len(self._alone) :], strict=True):
            ends = np.cumsum([np.prod(self.shapes[place], dtype=int) for place in places])
            for place, array in zip(places, divide(vector, ends[:-1]), strict=True):
                arrays[place] = array.reshape(self.shapes[place])
        return arrays


def _place(arrays: list[np.ndarray], mesh: Mesh | None) -> list[Array]:
    placed: list[Array] = jax.device_put(arrays) if mesh is None else place_everywhere(arrays, mesh)
    return placed
