"""How one image of a training batch is made: loaded, laid into a mosaic or alone, moved, recoloured, flipped.

The parts of a mosaic are only brought to size: a part that was flipped or recoloured by itself would
not be the mosaic of YOLOv5. What follows the mosaic is done to every image, mosaic or not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from yolojax.data import colour, geometry, mosaic
from yolojax.data.cache import ImageCache
from yolojax.data.geometry import Scene
from yolojax.data.sample import Boxes, ImageError, Pixels, Sample
from yolojax.hyperparameters import Hyperparameters


@dataclass(frozen=True, eq=False)
class Images:
    """The images of a split at training size, from a cache or from their files.

    Attributes:
      samples: of the split.
      size: pixels of the longer side.
      smooth: see ``geometry.resize_long_side``.
      cache: where decoded images are kept, if they are.
    """

    samples: Sequence[Sample]
    size: int
    smooth: bool
    cache: ImageCache | None = None

    def load(self, index: int) -> tuple[Pixels, tuple[int, int]]:
        """An image with its longer side at ``size``, and its own (height, width).

        Raises:
          ImageError: it cannot be read.
        """
        if self.cache is None or self.cache.size is None:
            image = self.samples[index].load() if self.cache is None else self.cache[index]
            return geometry.resize_long_side(image, self.size, smooth=self.smooth), image.shape[:2]
        return self.cache[index], self.samples[index].size


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What is done to training images.

    Attributes:
      hyperparameters: gains, ranges and probabilities.
      enabled: whether to augment at all.
      mosaics: whether mosaics may be made; rectangular training has none.
      effects: whether ``colour.random_effects`` is part of it.
    """

    hyperparameters: Hyperparameters
    enabled: bool = True
    mosaics: bool = True
    effects: bool = False


class Made(NamedTuple):
    """A finished image of a training batch.

    Attributes:
      image: uint8 RGB ``(height, width, 3)``.
      boxes: ``(n, 5)`` float32 class, x, y, width, height as fractions of it.
      sample_index: of the sample that it began with.
      unreadable: samples that other ones had to replace.
    """

    image: Pixels
    boxes: Boxes
    sample_index: int
    unreadable: tuple[int, ...] = ()


def make_image(
    images: Images,
    index: int,
    shape: tuple[int, int],
    augmentation: Augmentation,
    rng: np.random.Generator,
) -> Made:
    """Make one image of a training batch.

    Args:
      images: the split.
      index: the sample to begin with.
      shape: (height, width) of the result.
      augmentation: what to do.
      rng: source of chance.
    """
    making = _Making(images, augmentation, rng)
    scene = making.augmented(index, shape) if augmentation.enabled else making.plain(index, shape)
    return Made(scene.image, geometry.fraction_boxes(scene), index, tuple(making.unreadable))


@dataclass(frozen=True, eq=False)
class _Making:
    """What the steps of making one image share."""

    images: Images
    augmentation: Augmentation
    rng: np.random.Generator
    unreadable: list[int] = field(default_factory=list)

    def plain(self, index: int, shape: tuple[int, int]) -> Scene:
        return geometry.letterbox(self.alone(index), shape, enlarge=False)[0]

    def augmented(self, index: int, shape: tuple[int, int]) -> Scene:
        rng, settings = self.rng, self.augmentation.hyperparameters
        if self.augmentation.mosaics and rng.random() < settings.mosaic:
            scene = self.mosaic(index)
            if rng.random() < settings.mixup:
                scene = mosaic.mix_up(scene, self.mosaic(self.any_index()), rng)
        else:
            scene = geometry.letterbox(self.alone(index), shape, enlarge=True)[0]
            scene = geometry.random_perspective(scene, rng, settings, shape)
        image = scene.image
        if self.augmentation.effects:
            image = colour.random_effects(image, rng)
        scene = Scene(colour.random_hsv(image, rng, settings), scene.boxes)
        if rng.random() < settings.flipud:
            scene = geometry.flip_up_down(scene)
        if rng.random() < settings.fliplr:
            scene = geometry.flip_left_right(scene)
        return scene

    def mosaic(self, index: int) -> Scene:
        size, settings = self.images.size, self.augmentation.hyperparameters
        indices = [index, *(self.any_index() for _ in range(3))]
        self.rng.shuffle(indices)
        scene = mosaic.mosaic4([self.scene(part) for part in indices], self.rng, size)
        scene = mosaic.copy_paste(scene, self.rng, settings.copy_paste)
        return geometry.random_perspective(scene, self.rng, settings, (size, size))

    def alone(self, index: int) -> Scene:
        """A scene that is no part of a mosaic.

        There the original moves the corners of boxes, even where it knows outlines.
        """
        scene = self.scene(index)
        return Scene(scene.image, scene.boxes)

    def any_index(self) -> int:
        return int(self.rng.integers(len(self.images.samples)))

    def scene(self, index: int) -> Scene:
        """The scene of a sample, or of the next one that can be read: the same in every worker and run."""
        samples = self.images.samples
        for candidate in (*range(index, len(samples)), *range(index)):
            try:
                image, _ = self.images.load(candidate)
            except ImageError:
                self.unreadable.append(candidate)
                continue
            return geometry.make_scene(image, samples[candidate].boxes, samples[candidate].polygons)
        raise RuntimeError("not one image of the data set can be read")
