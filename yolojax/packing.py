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
    def alone(self) -> list[int]:
        """Places of the arrays that are carried as they are."""
        return [place for place, shape in enumerate(self.shapes) if len(shape) >= self.least_axes]

    @property
    def together(self) -> list[list[int]]:
        """Of each vector the places of its arrays."""
        places: dict[np.dtype, list[int]] = {}
        for place, (shape, dtype) in enumerate(zip(self.shapes, self.dtypes, strict=True)):
            if len(shape) < self.least_axes:
                places.setdefault(dtype, []).append(place)
        return list(places.values())

    def pack(self, arrays: Sequence[Array]) -> tuple[Array, ...]:
        """What is carried, in a program."""
        vectors = (jnp.concatenate([arrays[place].reshape(-1) for place in places]) for places in self.together)
        return *(arrays[place] for place in self.alone), *vectors

    def unpack(self, carried: Sequence[Array]) -> list[Array]:
        """The arrays again, in a program."""
        return self._unpack(carried, jnp.split)

    def put(self, arrays: Sequence[Array], mesh: Mesh | None) -> tuple[Array, ...]:
        """What is carried, made on the host: to compile a program for it would take longer."""
        carried = self.join(arrays)
        alone = len(self.alone)
        return *carried[:alone], *_place(carried[alone:], mesh)

    def join(self, arrays: Sequence[Any]) -> list[Any]:
        """What is carried, its vectors on the host."""
        small = jax.device_get([[arrays[place] for place in places] for places in self.together])
        vectors = [np.concatenate([array.reshape(-1) for array in own]) for own in small]
        return [*(arrays[place] for place in self.alone), *vectors]

    def divide(self, carried: Sequence[Any]) -> list[Any]:
        """The arrays again, where the vectors are on the host."""
        return self._unpack(carried, np.split)

    def take(self, carried: Sequence[Array], mesh: Mesh | None) -> list[Array]:
        """The arrays again, made on the host; those of two axes and more are the ones that are carried."""
        alone = len(self.alone)
        arrays = self.divide([*carried[:alone], *jax.device_get(list(carried[alone:]))])
        small = [place for places in self.together for place in places]
        for place, array in zip(small, _place([arrays[place] for place in small], mesh), strict=True):
            arrays[place] = array
        return arrays

    def _unpack(self, carried: Sequence[Any], divide: Any) -> list[Any]:
        arrays: list[Any] = [None] * len(self.shapes)
        for place, array in zip(self.alone, carried, strict=False):
            arrays[place] = array
        for places, vector in zip(self.together, carried[len(self.alone) :], strict=True):
            ends = np.cumsum([np.prod(self.shapes[place], dtype=int) for place in places])
            for place, array in zip(places, divide(vector, ends[:-1]), strict=True):
                arrays[place] = array.reshape(self.shapes[place])
        return arrays


def _place(arrays: list[np.ndarray], mesh: Mesh | None) -> list[Array]:
    placed: list[Array] = jax.device_put(arrays) if mesh is None else place_everywhere(arrays, mesh)
    return placed
