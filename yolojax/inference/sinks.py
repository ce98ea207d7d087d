"""What a detection run writes: annotated images and videos, labels, crops and a table."""

from __future__ import annotations

import csv
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
from yolojax.inference.results import Detections
from yolojax.inference.settings import DetectSettings
from yolojax.inference.sources import Source

CSV_COLUMNS = ("Image Name", "Frame", "Prediction", "Confidence", "xmin", "ymin", "xmax", "ymax")
_COLOUR_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")  # that OpenCV writes in colour
_FRAME = re.compile(r"(.*)_[1-9]\d*")  # the name of a frame: the video's, and the number
_CROP_SCALE, _CROP_MARGIN = 1.02, 10  # of a box, and pixels added to each side length


class Sink:
    """Writes what a user asked for into a run folder, frame by frame; ``close`` finishes it."""

    def __init__(self, settings: DetectSettings, sources: Sequence[Source], folder: Path) -> None:
        """Nothing is written yet; ``folder`` exists."""
        self.settings, self.folder = settings, folder
        videos = {index for index, source in enumerate(sources) if source.kind != "image"}
        stems = unique_stems([source.stem for source in sources], videos)
        self.stems = dict(zip(sources, stems, strict=True))
        self.video: tuple[Source, Any, tuple[int, int]] | None = None
        self.table: Any = None

    def write(self, source: Source, detections: Detections, number: int | None = None, rate: float = 0.0) -> None:
        """Write one image, or one frame.

        Args:
          source: where it is from.
          detections: what was found.
          number: of the frame of a video.
          rate: of the video, frames per second.

        Raises:
          UserError: something cannot be written.
        """
        settings, stem = self.settings, self.stems[source]
        stem_of_frame = stem if number is None else f"{stem}_{number}"
        if settings.save_txt:
            rows = np.concatenate([detections.boxes, detections.scores[:, None], detections.classes[:, None]], 1)
            write_labels(
                self.folder / "labels" / f"{stem_of_frame}.txt", rows, detections.image.shape, settings.save_conf
            )
        if settings.save_csv:
            self._write_rows(source, detections, number)
        if settings.save_crop:
            self._write_crops(detections, stem_of_frame)
        if settings.nosave:
            return
        drawn = detections.plot(
            line_thickness=settings.line_thickness, hide_labels=settings.hide_labels, hide_conf=settings.hide_conf
        )
        if number is None:
            suffix = Path(source.name).suffix.lower()
            write_image(self.folder / f"{stem}{suffix if suffix in _COLOUR_SUFFIXES else '.jpg'}", drawn)
        else:
            self._write_frame(source, drawn, rate)

    def end_video(self) -> None:
        """The next frame is of another video."""
        if self.video is not None:
            self.video[1].release()
            self.video = None

    def close(self) -> None:
        """Finish all files."""
        self.end_video()
        if self.table is not None:
            self.table.close()

    def _write_frame(self, source: Source, image: Pixels, rate: float) -> None:
        if self.video is None or self.video[0] != source:
            self.end_video()
            size = (image.shape[1], image.shape[0])
            path = self.folder / f"{self.stems[source]}.mp4"
            writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), rate, size)
            if not writer.isOpened():
                raise UserError(f"{path}: the annotated video cannot be written; --nosave does without it")
            self.video = (source, writer, size)
        _, writer, size = self.video
        if (image.shape[1], image.shape[0]) != size:  # a video has one size, and OpenCV would leave the frame out
            image = np.asarray(cv2.resize(image, size), np.uint8)
        writer.write(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))

    def _write_rows(self, source: Source, detections: Detections, number: int | None) -> None:
        if self.table is None:
            self.table = (self.folder / "predictions.csv").open("w", newline="", encoding="utf-8")
            csv.writer(self.table).writerow(CSV_COLUMNS)
        rows = zip(detections.labels, detections.scores.tolist(), detections.boxes.tolist(), strict=True)
        csv.writer(self.table).writerows(
            [Path(source.name).name, "" if number is None else number, name, f"{score:.4f}", *(f"{v:.1f}" for v in box)]
            for name, score, box in rows
        )

    def _write_crops(self, detections: Detections, stem: str) -> None:
        for number, (name, box) in enumerate(zip(detections.labels, detections.boxes, strict=True), 1):
            folder = self.folder / "crops" / (name.replace("/", "_").replace("\\", "_").strip(". ") or "_")
            folder.mkdir(parents=True, exist_ok=True)
            write_image(folder / f"{stem}_{number}.jpg", _crop(detections.image, box))


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


def _crop(image: Pixels, box: NDArray[np.float32]) -> Pixels:
    """What is in a box, with a margin."""
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
    ['1', '1_2', 'clip', 'clip_3-2']
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
