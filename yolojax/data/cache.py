"""Decoded images kept between epochs, as one array that all worker processes map.

``ram`` keeps them at training size in a file that lives as long as the run; ``disk`` keeps them at their own size in the cache folder
(``$YOLOJAX_CACHE``, else ``~/.cache/yolojax``) for later runs. Nothing is ever written beside the user's files.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import tempfile
import weakref
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import numpy as np
import psutil
from numpy.typing import NDArray

from yolojax.data.geometry import resize_long_side, resized_shape
from yolojax.data.sample import ImageError, Pixels, Sample
from yolojax.files import complete_file
from yolojax.runtime import cache_folder
from yolojax.system import positioned_writer, processors

log = logging.getLogger(__name__)

CacheKind = Literal["ram", "disk"]
_MARGIN = 1.1


@dataclass(frozen=True, eq=False)
class ImageCache:
    """Images in one memory-mapped file; unpickled in a worker it maps the same file.

    Attributes:
      path: the file: the images' bytes, one after another.
      offsets: ``(n,)`` int64, where each image starts.
      shapes: ``(n, 2)`` int32, height and width of each; zeros for one that could not be read.
      size: pixels of the longer side, or None for images at their own size.
    """

    path: Path
    offsets: NDArray[np.int64]
    shapes: NDArray[np.int32]
    size: int | None

    def __getitem__(self, index: int) -> Pixels:
        """The image, uint8 RGB ``(height, width, 3)``; not to be written to.

        Raises:
          ImageError: it could not be read when the cache was filled.
        """
        height, width = self.shapes[index].tolist()
        if not height:
            raise ImageError("cannot be decoded")
        count, start = height * width * 3, int(self.offsets[index])
        return _mapped(self.path)[start : start + count].reshape(height, width, 3)


_maps: dict[Path, NDArray[np.uint8]] = {}


def _mapped(path: Path) -> NDArray[np.uint8]:
    if path not in _maps:
        _maps[path] = np.memmap(path, np.uint8, mode="r").view(np.ndarray)
    return _maps[path]


def make_cache(samples: Sequence[Sample], kind: CacheKind, size: int, *, smooth: bool) -> ImageCache | None:
    """Decode every image once and keep it.

    Args:
      samples: whose images.
      kind: ``ram`` or ``disk``.
      size: pixels of the longer side, for ``ram``.
      smooth: see ``resize_long_side``.

    Returns:
      The filled cache, or None (and a log line) where it does not fit or cannot be written.
    """
    try:
        return _make_cache(samples, kind, size, smooth)
    except OSError as error:
        log.warning("%s cache: cannot be written (%s): reading from the files instead", kind, error.strerror)
        return None


def _make_cache(samples: Sequence[Sample], kind: CacheKind, size: int, smooth: bool) -> ImageCache | None:
    if kind == "ram":
        folder, target, free, place = Path(tempfile.gettempdir()), size, available_memory(), "memory"
    else:
        folder, target = cache_folder() / "images", None
        folder.mkdir(parents=True, exist_ok=True)
        finished = folder / f"{fingerprint(samples)}.npz"
        filled = _open(finished, len(samples))
        if filled is not None:
            log.info("disk cache: %s", finished)
            return filled
        free, place = shutil.disk_usage(folder).free, f"disk space in {folder}"
    shapes = [resized_shape(sample.size, size) if target else sample.size for sample in samples]
    ends = np.cumsum([height * width * 3 for height, width in shapes], dtype=np.int64)
    total = int(ends[-1])
    needed = f"{len(samples)} images need {total / 1e9:.2f} GB, {free / 1e9:.2f} GB of {place} are free"
    if total * _MARGIN > free:
        log.warning("%s cache: %s: reading from the files instead", kind, needed)
        return None
    log.info("%s cache: %s: filling it", kind, needed)
    offsets = np.concatenate([[0], ends[:-1]])
    handle, name = tempfile.mkstemp(
        prefix="yolojax-", suffix=".bin", dir=_roomy(folder, total) if kind == "ram" else folder
    )
    file, path = os.fdopen(handle, "r+b", buffering=0), Path(name)
    try:
        with contextlib.suppress(AttributeError):  # not on every system; without it a full disk is found while writing
            os.posix_fallocate(handle, 0, total)
        filled_shapes = _fill(handle, samples, np.append(offsets, total), target, smooth)
        if kind == "disk":
            file.close()
            return _finish(path, finished, offsets, filled_shapes)
    except BaseException:
        _remove(path, file, os.getpid())
        raise
    open_file = Path(f"/proc/{os.getpid()}/fd/{handle}")
    if open_file.exists():  # the file can lose its name at once: nothing is left behind even by a run that is killed
        path.unlink()
        path = open_file
    cache = ImageCache(path, offsets, filled_shapes, target)
    weakref.finalize(cache, _remove, path, file, os.getpid())
    return cache


def _open(finished: Path, count: int) -> ImageCache | None:
    """The disk cache of ``count`` images with a name; None where it is missing or damaged."""
    images = finished.with_suffix(".bin")
    try:
        with finished.open("rb") as file, np.load(file, allow_pickle=False) as content:
            offsets, shapes = content["offsets"], content["shapes"]
        ends = offsets + shapes.prod(1, dtype=np.int64) * 3
        whole = len(offsets) == count and ends.max(initial=0) <= images.stat().st_size
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return ImageCache(images, offsets, shapes, None) if whole else None


def _finish(path: Path, finished: Path, offsets: NDArray[np.int64], shapes: NDArray[np.int32]) -> ImageCache:
    """Give a disk cache its name; what describes the images comes last and makes it valid."""
    images = finished.with_suffix(".bin")
    path.replace(images)
    with complete_file(finished) as file:
        np.savez(file, offsets=offsets, shapes=shapes)
    return ImageCache(images, offsets, shapes, None)


def _fill(
    handle: int, samples: Sequence[Sample], room: NDArray[np.int64], size: int | None, smooth: bool
) -> NDArray[np.int32]:
    """Write the images into the open file; their (height, width), zeros where one cannot be read."""
    shapes, write_at = np.zeros((len(samples), 2), np.int32), positioned_writer()

    def write(index: int) -> None:
        try:
            image = samples[index].load()
        except ImageError:
            return
        if size:
            image = resize_long_side(image, size, smooth=smooth)
        if image.nbytes <= room[index + 1] - room[index]:  # else the file has changed since it was listed
            write_at(handle, np.ascontiguousarray(image).data, int(room[index]))
            shapes[index] = image.shape[:2]

    with ThreadPoolExecutor(processors()) as pool:
        for _ in pool.map(write, range(len(samples))):
            pass
    return shapes


def _remove(path: Path, file: IO[bytes], owner: int) -> None:
    if os.getpid() == owner:
        _maps.pop(path, None)
        file.close()
        with contextlib.suppress(OSError):  # a path in /proc has gone with the file
            path.unlink()


def _roomy(folder: Path, total: int) -> Path:
    """A file system in memory where it is large enough (containers have tiny ones), else ``folder``."""
    memory = Path("/dev/shm")
    usable = memory.is_dir() and os.access(memory, os.W_OK)
    return memory if usable and shutil.disk_usage(memory).free > total * _MARGIN else folder


def available_memory() -> int:
    """Bytes of memory that this process may still use, the limit of its container included."""
    free = psutil.virtual_memory().available
    with contextlib.suppress(OSError, ValueError):
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii"))
        free = min(free, limit - int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii")))
    return free


def fingerprint(samples: Sequence[Sample]) -> str:
    """Names what the images are: their names, and size and time of their files."""
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(os.fsencode(sample.name) + f"\0{sample.size}\0".encode())
        with contextlib.suppress(OSError):
            status = Path(sample.name).stat()
            digest.update(f"{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]
