"""One program for one device or many: the batch is split over a mesh, everything else is on every device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from yolojax.errors import UserError

AXIS = "batch"


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over the given devices, or over all of all processes, with the one axis ``batch``."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), (AXIS,), devices=devices, axis_types=(AxisType.Auto,))


def check_divides(batch_size: int, devices: Sequence[jax.Device]) -> None:
    """Refuse batches that devices cannot share evenly.

    Raises:
      UserError: with what to do.
    """
    if batch_size % len(devices):
        raise UserError(f"--batch-size {batch_size}: must be a multiple of the {len(devices)} devices")
    counts = Counter(device.process_index for device in devices)
    if len(set(counts.values())) > 1:
        each = ", ".join(f"process {index} has {count}" for index, count in sorted(counts.items()))
        raise UserError(f"--device: every process needs as many devices as the others; {each}")


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh) -> NamedSharding:
    """The first axis divided among the devices."""
    return NamedSharding(mesh, PartitionSpec(AXIS))


def place_images(images: np.ndarray, mesh: Mesh) -> jax.Array:
    """Divide the images of a batch among the devices; where there are several processes, each gives its part."""
    if jax.process_count() == 1:
        return jax.device_put(images, split(mesh))
    return jax.make_array_from_process_local_data(split(mesh), images)


def place_everywhere(tree: Any, mesh: Mesh) -> Any:
    """Put arrays that every process has on every device; what is there already stays as it is."""
    if jax.process_count() == 1:
        return jax.device_put(tree, replicated(mesh))

    def place(leaf: Any) -> jax.Array:
        if isinstance(leaf, jax.Array) and leaf.sharding == replicated(mesh):
            return leaf
        # jax.device_put would compare the arrays of all processes first, one by one.
        whole = np.asarray(leaf)
        return jax.make_array_from_callback(whole.shape, replicated(mesh), whole.__getitem__)

    return jax.tree.map(place, tree)


def local_rows(array: Any) -> np.ndarray:
    """The rows that this process has of an array whose first axis is divided among the devices; all of them where it is alone."""
    if not isinstance(array, jax.Array) or array.is_fully_addressable:
        return np.asarray(array)
    return np.concatenate([np.asarray(shard.data) for shard in local_shards(array)])


def local_shards(array: jax.Array) -> list[Any]:
    """The parts of an array, divided by its first axis, that lie on devices of this process, in order."""
    return sorted(array.addressable_shards, key=lambda shard: shard.index[0].start or 0)


def put_batch(batch: dict[str, Any], mesh: Mesh) -> dict[str, Any]:
    """Move a batch to the devices.

    Args:
      batch: this process' slice of the global batch, trees of arrays; its length a multiple of the number of local devices. What is on the devices
        stays as it is.
      mesh: of ``make_mesh``.

    Returns:
      Global arrays, split over the mesh.
    """

    def put(array: Any) -> jax.Array:
        return array if isinstance(array, jax.Array) else jax.make_array_from_process_local_data(split(mesh), array)

    return jax.tree.map(put, batch)
