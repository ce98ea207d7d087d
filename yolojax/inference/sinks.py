"""What a detection run writes: annotated images and videos, labels, crops and a table."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from yolojax.data.sample import Pixels
from yolojax.errors import UserError
from yolojax.inference.results import Detections
from yolojax.inference.settings import DetectSettings
from yolojax.inference.sources import Source
from yolojax.inference.window import Window
from yolojax.inference.writing import class_folder, crop_box, unique_stems, write_image, write_labels

CSV_COLUMNS = ("Image Name", "Frame", "Prediction", "Confidence", "xmin", "ymin", "xmax", "ymax")
_COLOUR_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")  # that OpenCV writes in colour


class Sink:
    """Writes what a user asked for into a run folder, frame by frame; ``close`` finishes it."""

    def __init__(
        self, settings: DetectSettings, sources: Sequence[Source], folder: Path, window: Window | None = None
    ) -> None:
        """Nothing is written yet; ``folder`` exists. A window also shows what is annotated."""
        self.settings, self.folder, self.window = settings, folder, window
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
        if settings.nosave and self.window is None:
            return
        annotated = detections.plot(
            line_thickness=settings.line_thickness, hide_labels=settings.hide_labels, hide_conf=settings.hide_conf
        )
        if self.window is not None:
            self.window.show(annotated, source.name)
        if settings.nosave:
            return
        if number is None:
            suffix = Path(source.name).suffix.lower()
            write_image(self.folder / f"{stem}{suffix if suffix in _COLOUR_SUFFIXES else '.jpg'}", annotated)
        else:
            self._write_frame(source, annotated, rate)

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
            folder = self.folder / "crops" / class_folder(name)
            folder.mkdir(parents=True, exist_ok=True)
            write_image(folder / f"{stem}_{number}.jpg", crop_box(detections.image, box))
