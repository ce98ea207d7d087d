"""Geometry and colours of batches that are made on a device, against the original, with the original's own draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from yolojax.augmentation.batches import apply
from yolojax.augmentation.draws import DeviceAugmentation, Draws
from yolojax.augmentation.pixels import change_colours
from yolojax.augmentation.resident import place_resident
from yolojax.data.augment import Images
from yolojax.data.geometry import EDGE
from yolojax.data.sample import Sample
from yolojax.hyperparameters import Hyperparameters

QUADRANTS = ((0, 0), (0, 1), (1, 0), (1, 1))


def samples_of(image: np.ndarray, boxes: np.ndarray, size: int) -> list[Sample]:
    """The image alone, or as the four parts of a mosaic of ``size``; the first one has all boxes, as fractions of itself."""
    parts = [image[size * y :, size * x :][:size, :size] for y, x in QUADRANTS] if len(image) > size else [image]
    low, high = boxes[:, 1:3] / size, boxes[:, 3:5] / size
    rows = np.concatenate([boxes[:, :1], (low + high) / 2, high - low], 1).astype(np.float32)
    return [
        Sample(
            name=f"{number}", size=(size, size), boxes=rows[: len(rows) * (number == 0)], reader=lambda part=part: part
        )
        for number, part in enumerate(parts)
    ]


@pytest.mark.parametrize(("case", "size"), [("translate", 64), ("everything", 64), ("mosaic", 32)])
def test_images_and_boxes_move_as_in_the_original(case, size, golden):
    content = golden("geometry")
    draws = content[f"perspective.{case}.draws"][:, 2].astype(np.float32)
    samples = samples_of(content["perspective.image"], content["perspective.boxes"], size)
    given = Draws(
        parts=np.array([[[0, 1, 2, 3]]], np.int32) % len(samples),
        alone=np.zeros(1, np.int32),
        mosaic=np.array([len(samples) == 4]),
        centre=np.full((1, 1, 2), size, np.int32),
        tilt=draws[None, None, 0:2],
        angle=draws[None, 2:3],
        scale=draws[None, 3:4],
        shear=draws[None, None, 4:6],
        move=draws[None, None, 6:8] * size,
        mixed=np.zeros(1, bool),
        share=np.ones(1, np.float32),
        gains=np.ones((1, 3), np.float32),
        flip_up_down=np.zeros(1, bool),
        flip_left_right=np.zeros(1, bool),
    )
    hyp = Hyperparameters(mosaic=float(len(samples) == 4), perspective=0.001, hsv_h=0, hsv_s=0, hsv_v=0)
    settings = DeviceAugmentation(hyperparameters=hyp, count=len(samples), image_size=size, batch_size=1)
    resident, _ = place_resident(Images(samples, size, False))
    batch = jax.device_get(jax.jit(lambda *arguments: apply(*arguments, settings))(given, resident))
    assert np.abs(batch["images"][0].astype(int) - content[f"perspective.{case}.image"]).max() <= 1
    boxes, expected = batch["boxes"][0][batch["mask"][0]], content[f"perspective.{case}.boxes"]
    assert len(boxes) == len(expected)
    centre, half = boxes[:, 1:3] * size, boxes[:, 3:5] * size / 2
    np.testing.assert_array_equal(boxes[:, 0], expected[:, 0])
    # What the original does next, as ``fraction_boxes`` does it on the host.
    corners = expected[:, 1:].clip(0, size - EDGE)
    np.testing.assert_allclose(np.concatenate([centre - half, centre + half], 1), corners, atol=1e-3)


def test_colours_are_those_of_the_original(golden):
    content = golden("geometry")
    planes = tuple(jnp.asarray(content["perspective.image"][None, ..., channel], jnp.float32) for channel in range(3))
    gains = (1 + content["hsv.draws"] * content["hsv.gains"]).astype(np.float32)[None, :, None, None]
    changed = np.stack(change_colours(planes, jnp.asarray(gains)), -1)[0]
    difference = np.abs(changed.astype(int) - content["hsv.image"])
    assert (difference <= 1).mean() > 0.999
    assert (difference <= 10).mean() > 0.9999
