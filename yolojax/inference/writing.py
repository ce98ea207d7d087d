"""What is written about detections: names of files, labels, images, crops."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from yolojax.data.sample import Pixels
from yolojax.errors import UserError
from yolojax.files import write_file

_FRAME = re.compile(r"(.*)_[1-9]\d*")  # the name of a frame: the video's, and the number
_CROP_SCALE, _CROP_MARGIN = 1.02, 10  # of a box, and pixels added to each side length


def write_labels(path: Path, rows: NDArray[Any], shape: Sequence[int], with_scores: bool) -> None:
    """Write detections as lines ``class x y w h [score]``, centre based, as fractions of the image; none, an empty file.

    Args:
      path: of the file; its folder is made.
      rows: ``(n, 6)`` x1 y1 x2 y2 score class, in pixels.
      shape: height and width of the image, and whatever follows.
      with_scores: whether lines end in the score.
    """
    path.parent.mkdir(exist_ok=True)
    whole = np.array([shape[1], shape[0]] * 2)
    lines = []
    for *corners, score, label in rows.tolist():
        x1, y1, x2, y2 = np.array(corners) / whole
        values = [(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1, *([score] if with_scores else [])]
        lines.append(" ".join([f"{int(label)}", *(f"{value:g}" for value in values)]) + "\n")
    write_file(path, "".join(lines))


def write_image(path: Path, image: Pixels) -> None:
    """Write uint8 RGB in the format of the suffix.

    Raises:
      UserError: it cannot be written.
    """
    good, data = cv2.imencode(path.suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    if not good:
        raise UserError(f"{path}: an image of this size cannot be written as {path.suffix}")
    write_file(path, data.tobytes())


def crop_box(image: Pixels, box: NDArray[np.float32]) -> Pixels:
    """What is in a box (x1 y1 x2 y2 in pixels), with a margin."""
    centre, size = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) * _CROP_SCALE + _CROP_MARGIN
    whole = np.array([image.shape[1], image.shape[0]])
    x1, y1 = np.floor(centre - size / 2).clip(0, whole - 1).astype(int)
    x2, y2 = np.ceil(centre + size / 2).clip(1, whole).astype(int)
    return image[y1:y2, x1:x2]


def unique_stems(stems: Sequence[str], videos: Collection[int] = ()) -> list[str]:
    """A name for each source, so that none of the files that are written of it has the name of another's.

    The second ``1`` is ``1_2``. A frame of a video is written as ``STEM_NUMBER``; an image that has such a name gets one that no frame can have. Case is
    ignored, as some file systems do.

    Args:
      stems: the names that the sources have.
      videos: positions of those that have frames.

    >>> unique_stems(["1", "1", "clip", "clip_3"], videos={2})
    ['1', '1_2', 'clip', 'clip_3_2']
    >>> unique_stems(["clip", "clip", "clip_3"], videos={0})
    ['clip', 'clip-2', 'clip_3_2']
    >>> unique_stems(["clip_3", "clip"], videos={1})
    ['clip_3', 'clip_2']
    """
    names: list[str] = []
    taken: set[str] = set()  # what a file may not be called
    with_frames: set[str] = set()  # stems of videos
    frames_of: set[str] = set()  # what no video may be called, because an image has the name of one of its frames
    for index, stem in enumerate(stems):
        others = (f"{stem}{joint}{number}" for number in itertools.count(2) for joint in "_-")
        for name in itertools.chain([stem], others):
            key = name.casefold()
            head = _FRAME.fullmatch(key)
            blocked = key in frames_of if index in videos else head is not None and head[1] in with_frames
            if key not in taken and not blocked:
                break
        names.append(name)
        taken.add(key)
        if index in videos:
            with_frames.add(key)
        elif head is not None:
            frames_of.add(head[1])
    return names


def class_folder(name: str) -> str:
    """The name of a class as the name of a folder."""
    return name.replace("/", "_").replace("\\", "_").strip(". ") or "_"
