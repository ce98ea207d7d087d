"""Validation batches with features in place of images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolojax.data.batches import ValidationBatches
from yolojax.features.compute import Front, compute_ahead
from yolojax.features.front import feature_shapes
from yolojax.features.store import Beside, Store
from yolojax.model.spec import ModelSpec


@dataclass(frozen=True, eq=False, kw_only=True)
class FeatureValidation:
    """What ``ValidationBatches`` is for a network that starts with its first layer.

    Attributes:
      spec: the network.
      start: the layer that reads the features.
      images: the batches that they are of.
      front: computes them.
      store: where they are kept.
      dtype: of them.
    """

    spec: ModelSpec
    start: int
    images: ValidationBatches
    front: Front
    store: Store
    dtype: Any

    def iterate(self, threads: int = 1) -> Iterator[dict[str, Any]]:
        """All batches in order: what ``ValidationBatches`` gives, with ``features``, a tuple of arrays; ``images`` have their shape and no content."""
        shapes = [
            (self.images.batch_size, *shape)
            for size in self.images.shapes
            for shape in feature_shapes(self.spec, self.start, size)
        ]
        kept = self.store("val", shapes, self.dtype, lambda arrays: self._compute(threads, arrays))
        assert kept is not None
        note_unreadable(kept.beside, self.images.unreadable)
        width = len(shapes) // len(self.images)
        for number, size in enumerate(self.images.shapes):
            start = f"{number}/"
            beside = {key.removeprefix(start): value for key, value in kept.beside.items() if key.startswith(start)}
            nothing = np.broadcast_to(np.uint8(0), (self.images.batch_size, *size, 3))
            features = tuple(kept.features[number * width : (number + 1) * width])
            yield {**beside, "images": nothing, "features": features}

    def _compute(self, threads: int, arrays: list[NDArray[Any]]) -> Beside:
        """Write the features; all else of the batches, by number and name."""
        beside: Beside = {}

        def images() -> Iterator[NDArray[np.uint8]]:
            for number, batch in enumerate(self.images.iterate(threads=threads)):
                beside.update({f"{number}/{key}": value for key, value in batch.items() if key != "images"})
                yield batch["images"]

        places = iter(arrays)
        for features in compute_ahead(self.front, images()):
            for feature in features:
                next(places)[:] = feature
        return {**beside, "unreadable": np.array(self.images.unreadable, str)}


def note_unreadable(beside: Beside, known: list[str]) -> None:
    """Note images that could not be read when the features were computed."""
    known += [name for name in beside["unreadable"].tolist() if name not in known]
