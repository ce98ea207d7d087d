"""One program for one device or many: the batch is split over a mesh, everything else is on every device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXIS = "batch"


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over the given devices, or over all of all processes, with the one axis ``batch``."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), (AXIS,), devices=devices, axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh) -> NamedSharding:
    """The first axis divided among the devices."""
    return NamedSharding(mesh, PartitionSpec(AXIS))


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
