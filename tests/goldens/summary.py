"""A tree of arrays as a small golden: per array its shape, largest absolute value, norm, three seeded projections and 64 entries.

The projections see every entry, the entries say where to look. ``error`` measures a whole array against its summary by
the rule of the parity ladder: the largest difference over the largest value.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from seeding import generator

PROJECTIONS = 3
ENTRIES = 64


def summarise(path: str, values: np.ndarray) -> np.ndarray:
    """One array in ``2 + PROJECTIONS + ENTRIES`` float64 numbers; the path seeds projections and places."""
    flat = np.asarray(values, np.float64).ravel()
    rng = generator("summary", path, flat.size)
    signs = np.where(rng.random((PROJECTIONS, flat.size)) < 0.5, -1.0, 1.0)
    places = (rng.random(ENTRIES) * flat.size).astype(int)
    return np.concatenate([[np.abs(flat).max(), np.sqrt(flat @ flat)], signs @ flat, flat[places]])


@dataclass(frozen=True)
class Summary:
    """Summaries of a tree: ``paths`` ``(n,)``, ``shapes`` ``(n,)`` as text, ``values`` ``(n, 69)``."""

    paths: tuple[str, ...]
    shapes: tuple[str, ...]
    values: np.ndarray

    @classmethod
    def of(cls, tree: Mapping[str, np.ndarray]) -> "Summary":
        """Summaries of arrays by path, in the order of the paths."""
        paths = tuple(sorted(tree))
        shapes = tuple("x".join(map(str, np.shape(tree[path]))) for path in paths)
        return cls(paths, shapes, np.stack([summarise(path, tree[path]) for path in paths]))

    def store(self, prefix: str, dtype: type = np.float64) -> dict[str, np.ndarray]:
        """Arrays for ``np.savez``; ``load`` reads them back."""
        names = {f"{prefix}.paths": np.array(self.paths), f"{prefix}.shapes": np.array(self.shapes)}
        return names | {f"{prefix}.values": self.values.astype(dtype)}

    @classmethod
    def load(cls, golden: Mapping[str, np.ndarray], prefix: str) -> "Summary":
        """The summary that ``store`` wrote under a prefix."""
        paths, shapes, values = (golden[f"{prefix}.{part}"] for part in ("paths", "shapes", "values"))
        return cls(tuple(paths.tolist()), tuple(shapes.tolist()), values.astype(np.float64))

    def only(self, paths: Iterable[str]) -> "Summary":
        """The summaries of some of the paths."""
        keep = [self.paths.index(path) for path in sorted(paths)]
        paths, shapes = ([part[place] for place in keep] for part in (self.paths, self.shapes))
        return Summary(tuple(paths), tuple(shapes), self.values[keep])

    def errors(self, tree: Mapping[str, np.ndarray]) -> dict[str, float]:
        """How far a tree is from the golden one.

        Args:
          tree: arrays by path, exactly the paths and shapes of the golden.

        Returns:
          Per path the largest of: difference of an entry over the largest absolute value, difference of the norm and
          of a projection over the norm. An array that is zero in the golden counts absolutely.

        Raises:
          AssertionError: paths or shapes differ.
        """
        assert sorted(tree) == list(self.paths), sorted(set(tree) ^ set(self.paths))
        result = {}
        for path, shape, golden in zip(self.paths, self.shapes, self.values, strict=True):
            assert "x".join(map(str, np.shape(tree[path]))) == shape, path
            largest, norm = (value or 1.0 for value in golden[:2])
            scale = np.concatenate([[largest], np.full(1 + PROJECTIONS, norm), np.full(ENTRIES, largest)])
            result[path] = float(np.max(np.abs(summarise(path, tree[path]) - golden) / scale))
        return result
