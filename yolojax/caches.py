"""The cache folder: what is in it, for what, and how to empty it without touching what is not ours.

Whatever lies there can be made or fetched again. Files of ours are told by where they lie and by their names; all others are left alone, and so are links.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from yolojax.errors import UserError

# Names of folders, paths in them that are ours, and what follows when they are gone.
_OURS = {
    r"compiled": (
        r"[^/]*-(cache|atime)|\.lockfile|xla_gpu_kernel_cache_file|xla_gpu_per_fusion_autotune_cache_dir/.*",
        "compiled programs: compiled again",
    ),
    r"images": (
        r"[0-9a-f]+\.(bin|npz)|yolojax-[^/]*\.bin|\.[0-9a-f]+\.npz-[^/]*",
        "decoded images of '--cache disk': decoded again",
    ),
    r"features": (
        r"[0-9a-f]+(-[a-z0-9-]+)?\.(bin|npz|json)|yolojax-[^/]*\.bin|\.[0-9a-f]+[^/]*\.(npz|json)(-[^/]*)?",
        "features of '--cache features' that memory had no room for: computed again",
    ),
    r"checks": (r"\.?[0-9a-f]+\.json[^/]*", "what 'data check' remembers: images are decoded again"),
    r"weights": (
        r"\.?[0-9a-f]{64}-[^/]*\.npz[^/]*",
        "converted '.pt' checkpoints: converted again",
    ),
    r"downloads": (r"[^/]+", "fetched archives: fetched again"),
    r"\.?shapes[a-z-]*-[0-9a-f]{10}(-\w+)?": (
        r"(images|labels)/(train|val)/\d{5}\.(png|txt)",
        "the embedded data set: drawn again",
    ),
}


@dataclass(frozen=True)
class Cache:
    """One folder of the cache.

    Attributes:
      name: of the folder.
      folder: where it is.
      purpose: what is in it, and what follows when it is gone.
      files: those that are ours.
      bytes: their size.
      foreign: files in it that are not ours, and links.
    """

    name: str
    folder: Path
    purpose: str
    files: tuple[Path, ...]
    bytes: int
    foreign: tuple[Path, ...]


def read_caches(root: Path) -> tuple[list[Cache], list[Path]]:
    """What a cache folder holds.

    Args:
      root: of ``runtime.cache_folder``; it need not exist.

    Returns:
      A row per folder of ours, by name, and everything else that lies beside them. Where there is something else, the folder may be one
      of the user's, and the files in ``downloads`` count as theirs.
    """
    caches: list[tuple[Path, str, str]] = []
    foreign: list[Path] = []
    for place in sorted(root.glob("*")):
        row = next((row for name, row in _OURS.items() if re.fullmatch(name, place.name)), None)
        if row is None or place.is_symlink() or not place.is_dir():
            foreign.append(place)
        else:
            caches.append((place, *row))
    return [_read_cache(folder, ours, purpose, bool(foreign)) for folder, ours, purpose in caches], foreign


def _read_cache(folder: Path, ours: str, purpose: str, shared: bool) -> Cache:
    files: list[Path] = []
    foreign: list[Path] = []
    size = 0
    for file in _files(folder):
        path = file.relative_to(folder).as_posix()
        theirs = file.is_symlink() or not re.fullmatch(ours, path) or (shared and folder.name == "downloads")
        (foreign if theirs else files).append(file)
        if not theirs:
            with suppress(FileNotFoundError):  # another process is done with it
                size += file.lstat().st_size
    return Cache(folder.name, folder, purpose, tuple(files), size, tuple(foreign))


def _files(folder: Path) -> Iterator[Path]:
    """Everything below a folder that is no folder; links are not followed."""
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.is_dir(follow_symlinks=False):
                yield from _files(Path(entry.path))
            else:
                yield Path(entry.path)


def clear(cache: Cache) -> None:
    """Delete the files of a cache that are ours, and the folders that are empty then.

    Raises:
      UserError: a file cannot be deleted.
    """
    try:
        for file in cache.files:
            file.unlink(missing_ok=True)
        for folder, _, _ in os.walk(cache.folder, topdown=False):
            with suppress(OSError):  # not empty
                os.rmdir(folder)
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be deleted ({error.strerror})") from error
