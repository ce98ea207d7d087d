"""Where features lie: in memory for the run, or where that is too small as files in the cache folder, for later runs too.

What has a name (a view of the training images, the validation images) is kept whole or not at all: a run that is broken off leaves no part of it.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from yolojax.errors import UserError
from yolojax.features.key import Key
from yolojax.files import complete_file, disk_trouble, write_json

Shapes = Sequence[tuple[int, ...]]
Beside = dict[str, NDArray[Any]]
Fill = Callable[[list[NDArray[Any]]], Beside | None]


class Kept(NamedTuple):
    """Features, and what a batch needs beside them.

    Attributes:
      features: arrays of the shapes that were asked for.
      beside: small arrays by name.
    """

    features: list[NDArray[Any]]
    beside: Beside


class Store:
    """Features of one key.

    Attributes:
      key: what they depend on.
      folder: where their files are; None keeps them in memory.
    """

    def __init__(self, key: Key, folder: Path | None) -> None:
        """Nothing is read or written yet."""
        self.key, self.folder = key, folder
        self._kept: dict[str, Kept] = {}

    def __call__(self, name: str, shapes: Shapes, dtype: Any, fill: Fill) -> Kept | None:
        """What has a name, filled where it is not there.

        Args:
          name: of it.
          shapes: of the arrays of features.
          dtype: of all of them.
          fill: writes into arrays of these shapes, and returns what is to be kept beside; None where it was broken off, and so is this.

        Raises:
          UserError: the files cannot be written.
        """
        if name not in self._kept:
            kept = self._open(name, shapes, dtype) or self._fill(name, shapes, dtype, fill)
            if kept is None:
                return None
            self._kept[name] = kept
        return self._kept[name]

    def has(self, name: str) -> bool:
        """Whether what has a name is there."""
        return name in self._kept or (self.folder is not None and self._file(self.folder, name, "npz").is_file())

    def _file(self, folder: Path, name: str, kind: str) -> Path:
        return folder / f"{self.key.digest}-{name}.{kind}"

    def _open(self, name: str, shapes: Shapes, dtype: Any) -> Kept | None:
        """What lies on disk; None where it is missing or damaged."""
        if self.folder is None:
            return None
        try:
            with np.load(self._file(self.folder, name, "npz"), allow_pickle=False) as content:
                beside = dict(content)
            buffer = np.memmap(self._file(self.folder, name, "bin"), np.uint8, mode="r")
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):
            return None
        whole = buffer.size == feature_room(shapes, dtype)
        return Kept(list(_arrays(buffer.view(np.ndarray), shapes, dtype)), beside) if whole else None

    def _fill(self, name: str, shapes: Shapes, dtype: Any, fill: Fill) -> Kept | None:
        if self.folder is None:
            arrays = [np.empty(shape, dtype) for shape in shapes]
            beside = fill(arrays)
            return None if beside is None else Kept(arrays, beside)
        try:
            written = self._write(self.folder, name, shapes, dtype, fill)
        except OSError as error:
            raise UserError(f"{self.folder}: features cannot be kept there ({disk_trouble(error)})") from error
        return self._open(name, shapes, dtype) if written else None

    def _write(self, folder: Path, name: str, shapes: Shapes, dtype: Any, fill: Fill) -> bool:
        """Fill a file under another name and give it its own; what stands beside comes last and makes it valid."""
        folder.mkdir(parents=True, exist_ok=True)
        handle, unfinished = tempfile.mkstemp(prefix="yolojax-", suffix=".bin", dir=folder)
        path = Path(unfinished)
        try:
            with os.fdopen(handle, "r+b") as file:
                room = feature_room(shapes, dtype)
                file.truncate(room)
                with contextlib.suppress(
                    AttributeError
                ):  # not on every system; it finds a disk that is too full before writing
                    os.posix_fallocate(handle, 0, room)
                buffer = np.memmap(file, np.uint8, mode="r+")
                beside = fill(list(_arrays(buffer, shapes, dtype)))
                buffer.flush()
                del buffer
            if beside is None:
                return False
            path.replace(self._file(folder, name, "bin"))
            write_json(folder / f"{self.key.digest}.json", self.key.parts)
            with complete_file(self._file(folder, name, "npz")) as place:
                np.savez(place, **beside)  # type: ignore[arg-type]
        finally:
            path.unlink(missing_ok=True)
        return True


def feature_room(shapes: Shapes, dtype: Any) -> int:
    """Bytes of arrays of these shapes."""
    return np.dtype(dtype).itemsize * sum(map(math.prod, shapes))


def _arrays(buffer: NDArray[np.uint8], shapes: Shapes, dtype: Any) -> Iterator[NDArray[Any]]:
    """Arrays that lie one after another in a buffer."""
    start = 0
    for shape in shapes:
        end = start + feature_room([shape], dtype)
        yield buffer[start:end].view(dtype).reshape(shape)
        start = end


def keys_on_disk(folder: Path) -> list[dict[str, str]]:
    """The parts of every key of which features lie in a folder."""
    keys = []
    for file in folder.glob("*.json"):
        with contextlib.suppress(OSError, ValueError):
            keys.append(dict(json.loads(file.read_text(encoding="utf-8"))))
    return keys
