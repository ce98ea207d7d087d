"""What this machine has for yolojax: versions, devices, memory, caches, extras, and what a training would run on."""

from __future__ import annotations

import platform
import shutil
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
from packaging.requirements import Requirement

from yolojax.augmentation.feeding import RESIDENT_SHARE
from yolojax.augmentation.resident import image_bytes
from yolojax.data.cache import available_memory
from yolojax.data.sources import load_data
from yolojax.errors import UserError
from yolojax.runtime import absent_accelerators, cache_folder, computation_dtype, huge_pages_problem, select_devices
from yolojax.system import processors
from yolojax.training.settings import TrainSettings
from yolojax.version import __version__

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "opencv-python-headless")
_SIDE = 640  # pixels, YOLOv5's image size
_FOR_DEVELOPERS = ("dev", "test", "docs")


def examine() -> dict[str, Any]:
    """Look at everything; JAX is started.

    Returns:
      Figures by name, in bytes where they are sizes:
      ``yolojax``, ``python``, ``jax`` and so on (versions, None where a package is missing), ``system``, ``processors``,
      ``memory_bytes``, ``memory_free_bytes``, ``nvidia_driver``, ``absent_accelerators`` (their plugins are installed, they are not
      here), ``devices`` (rows of ``platform kind dtype memory_bytes memory_free_bytes device_cache_images``; the last is how many
      images of 640 px ``--cache device`` has room for), ``device_problem``, ``huge_pages_problem`` (None where large arrays can lie in huge
      pages), ``caches`` (rows of ``name folder bytes``), ``disks`` (rows of ``name folder free_bytes``), ``extras`` (rows of
      ``name installed command``), ``train`` (what ``train --freeze 10`` runs on).
    """
    problem = None
    try:
        devices = [_device(device) for device in select_devices()]
    except UserError as error:
        devices, problem = [], str(error)
    return {
        "yolojax": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        **{package_key(name): _version(name) for name in PACKAGES},
        "processors": processors(),
        "memory_bytes": psutil.virtual_memory().total,
        "memory_free_bytes": available_memory(),
        "nvidia_driver": _nvidia_driver(),
        "absent_accelerators": list(absent_accelerators()),
        "devices": devices,
        "device_problem": problem,
        "huge_pages_problem": huge_pages_problem(),
        "caches": _caches(),
        "disks": _disks(),
        "extras": _extras(),
        "train": _train(devices),
    }


def package_key(name: str) -> str:
    """The name of a package among the figures.

    >>> package_key("orbax-checkpoint")
    'orbax_checkpoint'
    """
    return name.replace("-", "_")


def _device(device: Any) -> dict[str, Any]:
    """Memory as JAX tells it: on a GPU, of what a program may take; a CPU has the memory of the machine."""
    memory = device.memory_stats() or {}
    limit, used = memory.get("bytes_limit"), memory.get("bytes_in_use", 0)
    return {
        "platform": device.platform,
        "kind": device.device_kind,
        "dtype": computation_dtype("auto", [device]),
        "memory_bytes": limit,
        "memory_free_bytes": None if limit is None else limit - used,
        "device_cache_images": None if limit is None else int(RESIDENT_SHARE * (limit - used) // image_bytes(_SIDE)),
    }


def _nvidia_driver() -> str | None:
    """The version of NVIDIA's driver; None without one."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return None
    return lines[0].strip() if lines else None


def _caches() -> list[dict[str, Any]]:
    """The folders of the cache; that of compiled programs where JAX has been told to have it."""
    import jax

    root = cache_folder()
    folders = {folder.name: folder for folder in sorted(root.glob("*")) if folder.is_dir()}
    if compiled := jax.config.values.get("jax_compilation_cache_dir"):
        folders["compiled"] = Path(compiled)
    return [{"name": name, "folder": str(folder), "bytes": _size(folder)} for name, folder in folders.items()]


def _size(folder: Path) -> int:
    return sum(file.lstat().st_size for file in folder.rglob("*") if file.is_file() and not file.is_symlink())


def _disks() -> list[dict[str, Any]]:
    import tempfile

    existing = next(folder for folder in (cache_folder(), *cache_folder().absolute().parents) if folder.is_dir())
    folders = {
        "current folder": Path.cwd(),
        "cache": existing,
        "temporary files": Path(tempfile.gettempdir()),
        "shared memory": Path("/dev/shm"),
    }
    return [
        {"name": name, "folder": str(folder), "free_bytes": shutil.disk_usage(folder).free}
        for name, folder in folders.items()
        if folder.is_dir()
    ]


def _extras() -> list[dict[str, Any]]:
    """Every extra for users, and the command that installs it where something of it is missing."""
    try:
        names = metadata.metadata("yolojax").get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:  # a checkout that is on the path but not installed
        return []
    rows = []
    for name in sorted(set(names) - set(_FOR_DEVELOPERS)):
        installed = _is_installed(Requirement(f"yolojax[{name}]"))
        rows.append(
            {"name": name, "installed": installed, "command": None if installed else f"pip install 'yolojax[{name}]'"}
        )
    return rows


def _is_installed(requirement: Requirement) -> bool:
    """Whether a package is there in a version that serves, with all that its extras ask for."""
    version = _version(requirement.name)
    if version is None or not requirement.specifier.contains(version, prereleases=True):
        return False
    needed = map(Requirement, metadata.requires(requirement.name) or ())
    return all(
        _is_installed(other)
        for other in needed
        for extra in requirement.extras
        if other.marker is not None
        and other.marker.evaluate({"extra": extra})
        and not other.marker.evaluate({"extra": ""})
    )


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _train(devices: Sequence[dict[str, Any]]) -> str | None:
    """What ``train --freeze 10`` would run on, in words; None without a device."""
    if not devices:
        return None
    settings = TrainSettings(freeze=("10",))
    settings = settings.with_defaults(load_data(settings.data))
    device = devices[0]["kind"]
    where = f"{processors()} processors" if device == "cpu" else f"{len(devices)} x {device}"
    workers = min(settings.workers, processors())
    return f"{where}, {devices[0]['dtype']}, {settings.batch_size} images of {settings.imgsz} px per step, {workers} data workers"
