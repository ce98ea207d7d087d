"""Where the images for detection come from: files, folders, globs, lists, videos, cameras and streams."""

from __future__ import annotations

import glob
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from urllib.parse import unquote, urlsplit
from urllib.request import urlopen

import cv2
import numpy as np

from yolojax.data.config import system_path
from yolojax.data.examples import example_images
from yolojax.data.images import IMAGE_SUFFIXES, UNREAD_SUFFIXES, decode_image, probe_image, read_image
from yolojax.data.sample import ImageError, Pixels
from yolojax.errors import UserError
from yolojax.text import read_text, trimmed

VIDEO_SUFFIXES = (".asf", ".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv")
WEB_STARTS = ("http://", "https://")
STREAM_STARTS = ("rtsp://", "rtmp://", "tcp://", "udp://", *WEB_STARTS)
_USUAL_RATE = 30.0  # frames per second, where a video or a camera does not tell
_PATIENCE = 30.0  # seconds without an answer, after which an address is given up
_LENIENT = 0.02  # share of the frames by which a file's own count may be off: some kinds only estimate it


@dataclass(frozen=True)
class Source:
    """One image, video, camera or stream.

    Attributes:
      name: what a report calls it; the path or address, where there is one.
      kind: ``image`` or ``video``; ``live`` for a camera or a stream, which never ends by itself.
      pixels: the image itself, where it is not read.
    """

    name: str
    kind: str
    pixels: Pixels | None = field(default=None, compare=False)

    @property
    def stem(self) -> str:
        """A name for what is written about it."""
        if self.kind == "live":
            return "stream_" + "".join(c if c.isalnum() else "_" for c in self.name)
        return _path_of(self.name).stem

    def read(self) -> Pixels:
        """The image.

        Raises:
          ImageError: it cannot be read, or not to its end.
        """
        return read_image_from(self.name) if self.pixels is None else self.pixels

    def size(self) -> tuple[int, int]:
        """(height, width) of the image, from the start of its file alone.

        Raises:
          ImageError: that cannot be read, or the image has to be fetched to know.
        """
        if self.pixels is not None:
            return self.pixels.shape[0], self.pixels.shape[1]
        if _is_web(self.name):
            raise ImageError("its size is known when it has been fetched")
        return probe_image(Path(self.name).expanduser())[0]


def read_image_from(name: str) -> Pixels:
    """The image in a file or at a web address, uint8 RGB ``(height, width, 3)``.

    Raises:
      ImageError: it cannot be read, or not to its end.
    """
    if not _is_web(name):
        path = Path(name).expanduser()
        probe_image(path)  # tells an image that breaks off, of which decoding alone makes one with a grey rest
        return read_image(path)
    try:
        with urlopen(name, timeout=_PATIENCE) as answer:
            return decode_image(answer.read())
    except (OSError, HTTPException, ValueError) as error:
        raise ImageError(f"cannot be fetched ({error})") from error


def _is_web(name: str) -> bool:
    return name.lower().startswith(WEB_STARTS)


def _path_of(name: str) -> Path:
    """The path of a file, also where it is part of a web address."""
    return Path(unquote(urlsplit(name).path) if _is_web(name) else name)


def find_sources(text: str) -> tuple[list[Source], list[str]]:
    """What a user means by ``--source``.

    Args:
      text: an image, a video, a folder (not searched below), a glob (``**`` searches below), a ``.txt`` list with one of those per line, the number of a
        camera, or an address: of an image or a video if its path ends so, else of a stream.

    Returns:
      Sources in order of their names (a list: in its order), each once; and a sentence for each line of a list that means nothing, and for each
      file of a kind of image that is not read.

    Raises:
      UserError: nothing to look at.
    """
    problems: list[str] = []
    if not text.lower().endswith(".txt"):
        return _expand(text, problems), problems
    path = Path(text).expanduser()
    try:
        lines = [trimmed(line) for line in read_text(path).splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"--source {text}: the list cannot be read ({getattr(error, 'strerror', None) or error})"
        ) from error
    sources: dict[str, Source] = {}
    for number, line in enumerate(lines, 1):
        if line and not line.startswith("#"):
            try:
                sources |= {source.name: source for source in _expand(_line_place(path, line), problems)}
            except UserError as error:
                problems.append(f"{path}, line {number}: {str(error).removeprefix('--source ')}")
    if not sources:
        raise UserError(f"--source {text}: names nothing that exists" + (f"; {problems[0]}" if problems else ""))
    return list(sources.values()), problems


def _line_place(path: Path, line: str) -> str:
    """What a line of a list means: as it stands, relative to the list, or either with the separators of Windows."""
    if line.isdigit() or line.lower().startswith(STREAM_STARTS):
        return line
    written = (line, str(path.parent / line), system_path(line), str(path.parent / system_path(line)))
    return next((place for place in written if os.path.exists(Path(place).expanduser())), system_path(line))


def _expand(text: str, problems: list[str]) -> list[Source]:
    """The sources of one name; ``problems`` gets a sentence for each file of a folder or a glob that is an image of a kind that is not read."""
    if text.isdigit() or text.lower().startswith(STREAM_STARTS):
        return [Source(text, (_is_web(text) and _kind(_path_of(text))) or "live")]
    path = Path(text).expanduser()
    if path.is_file():
        kind = _kind(path)
        if kind is None:
            suffixes = ", ".join((*IMAGE_SUFFIXES, *VIDEO_SUFFIXES))
            raise UserError(f"--source {text}: is neither an image nor a video; known are {suffixes}")
        return [Source(str(path), kind)]
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if not file.name.startswith("."))
    else:
        files = [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]
        if not files:
            raise UserError(f"--source {text}: no such file or folder")
    files = [file for file in files if file.is_file()]
    sources = [Source(str(file), kind) for file in files if (kind := _kind(file)) is not None]
    unread = [file for file in files if _kind(file) is None and file.suffix.lower() in UNREAD_SUFFIXES]
    if not sources:
        also = f", but {len(unread)} files of kinds that are not read, as {unread[0].name}" if unread else ""
        raise UserError(f"--source {text}: holds no image and no video{also}")
    problems += [f"{file}: is a {file.suffix} file, which is not read; save it as JPEG or PNG" for file in unread]
    return sources


def _kind(path: Path) -> str | None:
    suffix = path.suffix.lower()
    return "image" if suffix in IMAGE_SUFFIXES else "video" if suffix in VIDEO_SUFFIXES else None


def example_sources(names: Sequence[str]) -> list[Source]:
    """Images of what a network knows, painted on the spot.

    Raises:
      UserError: it knows none of the embedded shapes.
    """
    images = example_images(names)
    if not images:
        raise UserError(
            "--source: name an image, a folder, a video … (only weights of the embedded shapes have a default)"
        )
    return [Source(f"drawn{number}.png", "image", image) for number, image in enumerate(images)]


class Video:
    """An open video, camera or stream: an iterator over its frames, each with its number, from 1."""

    def __init__(self, source: Source, stride: int = 1) -> None:
        """Open it.

        Args:
          source: what to open.
          stride: give every so many-th frame.

        Raises:
          ImageError: it cannot be opened.
        """
        self.source, self.stride = source, stride
        self.capture = cv2.VideoCapture(int(source.name) if source.name.isdigit() else source.name)
        if not self.capture.isOpened():
            camera = source.kind == "live" and source.name.isdigit()
            raise ImageError("there is no such camera" if camera else "cannot be opened as a video")
        rate = self.capture.get(cv2.CAP_PROP_FPS)
        self.rate = (rate if math.isfinite(rate) and rate > 0 else _USUAL_RATE) / stride
        count = self.capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.expected = int(count) if 0 < count < 2**31 else 0  # a camera knows none

    def __iter__(self) -> Iterator[tuple[int, Pixels]]:
        """The frames, uint8 RGB.

        Raises:
          ImageError: it ends before the frame that its own header promises.
        """
        number = 0
        while self.capture.grab():
            number += 1
            if (number - 1) % self.stride == 0:
                good, frame = self.capture.retrieve()
                if not good:
                    break
                yield number, np.asarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), np.uint8)
        if number == 0:
            raise ImageError("has no frame that can be read")
        if self.expected - number > max(1, _LENIENT * self.expected):
            raise ImageError(f"breaks off after frame {number} of {self.expected}")
        if not self.expected:
            raise ImageError(f"ended after frame {number}")

    def close(self) -> None:
        """Let the file or the camera go."""
        self.capture.release()
