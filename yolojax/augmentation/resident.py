"""The images and boxes of a split, kept on every device, or divided among them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, PartitionSpec
from numpy.typing import NDArray

from yolojax.data.augment import Images
from yolojax.data.geometry import GREY, resized_shape
from yolojax.data.sample import ImageError, Pixels, Sample
from yolojax.mesh import AXIS, replicated, split
from yolojax.system import processors

log = logging.getLogger(__name__)

_PIECE = 64 * 2**20  # bytes that go to a device at a time


@flax.struct.dataclass
class Resident:
    """A split on a device.

    Attributes:
      images: uint32 ``(N, L, L)``, a word for each pixel (red + 256 green + 65536 blue, so that one read gives all of it) at training size; each image
        in the upper left corner, grey elsewhere. L is one more than the longest side that there is (the image size, or a pixel more, because sizes are
        rounded up), so that the last row and column are grey: what lies in no image is read there. Divided among devices, black ones may follow.
      sizes: int32 ``(N, 2)``, (height, width).
      boxes: float32 ``(N, M0, 5)``: class, x, y, width, height as fractions of the image.
      counts: int32 ``(N,)``, boxes that an image has.
    """

    images: Array
    sizes: Array
    boxes: Array
    counts: Array


def _layout(samples: Sequence[Sample], image_size: int) -> tuple[int, int]:
    """L and M0; see ``Resident``."""
    side = max(max(resized_shape(sample.size, image_size)) for sample in samples) + 1
    return side, max(1, max(len(sample.boxes) for sample in samples))


def resident_bytes(samples: Sequence[Sample], image_size: int, parts: int = 1) -> int:
    """Bytes that ``place_resident`` takes on every device; of ``parts`` devices, if the images are divided among so many."""
    side, most = _layout(samples, image_size)
    return _rows(len(samples), parts) // parts * 4 * side**2 + len(samples) * (20 * most + 12)


def _rows(count: int, parts: int) -> int:
    """Images that there is room for, so that all parts are of one size."""
    return -(-count // parts) * parts


def image_bytes(image_size: int) -> int:
    """Bytes that the pixels of one image take on every device."""
    return 4 * (image_size + 1) ** 2


def abstract_resident(count: int, image_size: int, most_boxes: int) -> Resident:
    """Shapes and dtypes of a split of ``count`` samples that are not read; for who compiles alone."""
    side = image_size + 1
    shapes: dict[str, Any] = {
        "images": jax.ShapeDtypeStruct((count, side, side), jnp.uint32),
        "sizes": jax.ShapeDtypeStruct((count, 2), jnp.int32),
        "boxes": jax.ShapeDtypeStruct((count, most_boxes, 5), jnp.float32),
        "counts": jax.ShapeDtypeStruct((count,), jnp.int32),
    }
    return Resident(**shapes)


def place_resident(images: Images, mesh: Mesh | None = None, divided: bool = False) -> tuple[Resident, list[str]]:
    """Decode every image and put it on every device, a piece at a time, so that the host never holds them all.

    Args:
      images: the split at training size.
      mesh: the devices; None is the default device.
      divided: put the first images on the first device alone, the next on the next; black ones follow where they do not come out even.

    Returns:
      The split, and the names of the images that cannot be read: the next one that can stands in the place of each, as in ``data/augment.py``.
    """
    side, most = _layout(images.samples, images.size)
    count = len(images.samples)
    piece = max(1, min(count, _PIECE // (4 * side**2)))
    placed, write = _writer(count, side, mesh, divided)
    sizes = np.zeros((count, 2), np.int32)
    boxes, counts = np.zeros((count, most, 5), np.float32), np.zeros(count, np.int32)
    faulty: set[int] = set()
    with ThreadPoolExecutor(processors()) as pool:
        for first in range(0, count, piece):
            start = min(first, count - piece)  # all pieces are of one length, so that one program writes them
            part = np.full((piece, side, side, 4), (GREY, GREY, GREY, 0), np.uint8)
            readable = pool.map(partial(_readable, images, unreadable=faulty), range(start, start + piece))
            for index, (image, source) in enumerate(readable, start):
                height, width = sizes[index] = image.shape[:2]
                part[index - start, :height, :width, :3] = image
                of_source = images.samples[source].boxes
                counts[index] = len(of_source)
                boxes[index, : len(of_source)] = of_source
            placed = write(placed, _put(part.view("<u4")[..., 0], mesh), _put(np.int32(start), mesh))
    unreadable = [images.samples[index].name for index in sorted(faulty)]
    for name in unreadable:
        log.warning("%s: cannot be decoded; it is left out, and the next image is taken instead", name)
    return Resident(placed, _put(sizes, mesh), _put(boxes, mesh), _put(counts, mesh)), unreadable


def _writer(count: int, side: int, mesh: Mesh | None, divided: bool) -> tuple[Array, Any]:
    """Black images on the devices, and what writes a piece of them: ``write(images, piece, start)``, which consumes the images."""
    placing = None if mesh is None else split(mesh) if divided else replicated(mesh)
    rows = _rows(count, mesh.size) if divided and mesh is not None else count
    placed = jax.jit(lambda: jnp.zeros((rows, side, side), jnp.uint32), out_shardings=placing)()

    def write(target: Array, piece: Array, start: Array) -> Array:
        return jax.lax.dynamic_update_slice(target, piece, (start, 0, 0))

    def write_part(target: Array, piece: Array, start: Array) -> Array:
        places = start + jnp.arange(len(piece)) - jax.lax.axis_index(AXIS) * len(target)
        places = jnp.where(places < 0, len(target), places)  # of other devices: what lies behind the end is dropped
        return target.at[places].set(piece, mode="drop")

    if divided and mesh is not None:
        here, everywhere = PartitionSpec(AXIS), PartitionSpec()
        write = jax.shard_map(write_part, mesh=mesh, in_specs=(here, everywhere, everywhere), out_specs=here)
    return placed, jax.jit(write, donate_argnums=0, out_shardings=placing)


def _put(array: NDArray[np.generic] | np.int32, mesh: Mesh | None) -> Array:
    """An array that every process has, on every device."""
    if mesh is None:
        return jax.device_put(array)
    return jax.make_array_from_process_local_data(replicated(mesh), np.asarray(array))


def _readable(images: Images, index: int, unreadable: set[int]) -> tuple[Pixels, int]:
    """The image of a sample and its index, or those of the next one that can be read."""
    samples = images.samples
    for candidate in (*range(index, len(samples)), *range(index)):
        try:
            return images.load(candidate)[0], candidate
        except ImageError:
            unreadable.add(candidate)
    raise RuntimeError("not one image of the data set can be read")
