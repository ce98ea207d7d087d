"""What kept features depend on. Where one part is another, they are those of something else."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from yolojax.data.batches import TrainingBatches, ValidationBatches
from yolojax.data.cache import fingerprint
from yolojax.data.sample import Sample, samples_record
from yolojax.hyperparameters import AUGMENTATION
from yolojax.model.network import Variables
from yolojax.model.spec import ModelSpec
from yolojax.tree import flatten


@dataclass(frozen=True)
class Key:
    """Everything that features depend on, by the word for it."""

    parts: Mapping[str, str]

    @cached_property
    def digest(self) -> str:
        """Names the features."""
        return _digest(json.dumps(self.parts, sort_keys=True).encode())

    def changed(self, others: Iterable[Mapping[str, str]]) -> list[str]:
        """The parts in which the nearest of other keys differs; nothing where there is none."""
        differences = ([name for name in self.parts if self.parts[name] != other.get(name)] for other in others)
        return min(differences, key=len, default=[])


def training_key(facts: Mapping[str, str], batches: TrainingBatches) -> Key:
    """The key of views of training images; ``facts`` are what does not depend on them."""
    settings, hyperparameters = batches.settings, dataclasses.asdict(batches.augmentation.hyperparameters)
    drawn = {name: hyperparameters[name] for name in AUGMENTATION} | {"effects": settings.effects}
    return Key(
        {
            **facts,
            **_images(batches.images.samples, settings.image_size),
            "hyperparameters": json.dumps(drawn),
            "seed": str(settings.seed),
        }
    )


def validation_key(facts: Mapping[str, str], batches: ValidationBatches) -> Key:
    """The key of validation images, which are kept batch by batch."""
    order = _digest(batches.order.astype("<i8").tobytes(), repr((batches.batch_size, batches.shapes)).encode())
    return Key({**facts, **_images(batches.images.samples, batches.images.size), "batches": order})


def _images(samples: Sequence[Sample], size: int) -> dict[str, str]:
    return {
        "images": fingerprint(samples),
        "boxes": str(samples_record(samples)["sha256"]),
        "image size": str(size),
    }


def front_digest(spec: ModelSpec, start: int, variables: Variables) -> str:
    """Names the layers before ``start``: what they are, what is read of them, and every bit of their parameters and statistics, all of which are given."""
    layers = repr((spec.resolved[:start], spec.crossing(start))).encode()
    leaves = [
        part
        for collection in ("params", "batch_stats")
        for path, leaf in sorted(flatten(variables[collection]).items())
        for part in (path.encode(), str(leaf.dtype).encode(), np.asarray(leaf).tobytes())
    ]
    return _digest(layers, *leaves)


def _digest(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{len(part)}\0".encode())
        digest.update(part)
    return digest.hexdigest()[:16]
