"""Where training batches are made: on the host, or by the devices from images that stay there."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from typing import Literal, TypeAlias

import jax
from jax.sharding import Mesh

from yolojax.augmentation.division import exchange_bytes
from yolojax.augmentation.resident import resident_bytes
from yolojax.augmentation.stream import DeviceStream, device_augmentation
from yolojax.data.augment import Images
from yolojax.data.batches import StreamSettings, room_for_boxes
from yolojax.data.cache import available_memory
from yolojax.data.sample import Sample
from yolojax.data.stream import TrainingStream, training_stream
from yolojax.hosts.agreement import gathered
from yolojax.hyperparameters import Hyperparameters

log = logging.getLogger(__name__)

Stream: TypeAlias = TrainingStream | DeviceStream

# Of the memory of a device that is free before training: images may take so much, the step needs the rest.
RESIDENT_SHARE = 0.5


def open_stream(
    samples: Sequence[Sample],
    hyperparameters: Hyperparameters,
    stream: StreamSettings,
    cache: str | None,
    mesh: Mesh,
) -> Stream:
    """The training batches of a run, made where ``--cache`` says.

    Args:
      samples: of the training split.
      hyperparameters: how to augment.
      stream: sizes, seed and share; its cache is decided here.
      cache: the value of ``--cache``.
      mesh: the devices.

    Where the devices cannot make them, the host does, and a warning says why.
    """
    asked = cache == "device" or (cache == "auto" and mesh.devices.flat[0].platform == "gpu")
    reason = _host_alone(samples, hyperparameters, stream) if asked else None
    divided = asked and reason is None and not _fits(samples, hyperparameters, stream, mesh, divided=False)
    if divided and (mesh.size == 1 or not _fits(samples, hyperparameters, stream, mesh, divided=True)):
        reason = _too_much(samples, stream, mesh)
    # All devices make batches, or none; all keep all images, or a part.
    reason = next(filter(None, gathered("device cache", reason or "")), None)
    divided = any(gathered("divided device cache", "yes" if divided else ""))
    if asked and reason is None:
        needed = resident_bytes(samples, stream.image_size, mesh.size if divided else 1)
        told = f"{len(samples)} images, divided among the devices," if divided else f"{len(samples)} images"
        log.info("device cache: %s take %.2f GB of every device: filling it", told, needed / 1e9)
        return DeviceStream(Images(samples, stream.image_size, False), hyperparameters, stream, mesh, divided)
    if reason:
        log.warning("device cache: %s: making batches on the host, as with --cache ram", reason)
    on_host: Literal["ram", "disk"] | None = None if cache in ("val", None) else "disk" if cache == "disk" else "ram"
    room = stream.max_boxes
    if stream.process_count > 1:
        mosaics = None if stream.rectangular else hyperparameters
        room = max(room_for_boxes(of, mosaics, repeated=True) for of in (samples, stream.replay.samples))
    return training_stream(samples, hyperparameters, dataclasses.replace(stream, cache=on_host, max_boxes=room))


def cache_in_use(cache: str | None, stream: Stream) -> str | None:
    """The value of ``--cache`` that means what a run does, so that it goes on with the same batches where it is resumed."""
    if isinstance(stream, DeviceStream):
        return "device"
    return "ram" if cache in ("auto", "device") else cache


def _host_alone(samples: Sequence[Sample], hyperparameters: Hyperparameters, stream: StreamSettings) -> str | None:
    """Why the devices cannot make the batches of a split; None where they can."""
    alone = {"--rect": stream.rectangular, "--albumentations": stream.effects, "--replay": stream.replay.images}
    for name in filter(alone.get, alone):
        return f"{name} is done on the host alone"
    if hyperparameters.mosaic > 0 and any(sample.polygons for sample in samples):
        return "boxes of this data set follow outlines in mosaics, which is done on the host alone"
    return None


def _fits(
    samples: Sequence[Sample], hyperparameters: Hyperparameters, stream: StreamSettings, mesh: Mesh, *, divided: bool
) -> bool:
    """Whether a device has room for its images: all of them, or its part and those that it is sent for a batch."""
    needed = resident_bytes(samples, stream.image_size, mesh.size if divided else 1)
    if divided:
        needed += exchange_bytes(device_augmentation(samples, hyperparameters, stream, mesh, divided))
    return needed <= RESIDENT_SHARE * free_bytes(mesh.local_devices[0])


def _too_much(samples: Sequence[Sample], stream: StreamSettings, mesh: Mesh) -> str:
    needed, free = resident_bytes(samples, stream.image_size), free_bytes(mesh.local_devices[0])
    part = (
        f", or {resident_bytes(samples, stream.image_size, mesh.size) / 1e9:.2f} GB and room to send some where each keeps a part,"
        if mesh.size > 1
        else ""
    )
    return (
        f"{len(samples)} images need {needed / 1e9:.2f} GB of every device{part} and of {free / 1e9:.2f} GB that are free "
        f"the step needs {100 * (1 - RESIDENT_SHARE):.0f} %"
    )


def free_bytes(device: jax.Device) -> int:
    """Memory of a device that nothing holds yet; for a CPU, that of the machine."""
    memory = device.memory_stats() or {}
    limit = memory.get("bytes_limit")
    return available_memory() if limit is None else limit - memory.get("bytes_in_use", 0)
