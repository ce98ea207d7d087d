"""The files of a validation: labels, sheets of images, COCO's results, the table over image sizes."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from yolojax.drawing import draw_sheet, pixel_boxes
from yolojax.errors import UserError
from yolojax.evaluation.coco import (
    EvaluatedImage,
    against,
    coco_average_precision,
    coco_files,
    numbered,
    official_figures,
)
from yolojax.evaluation.tally import true_boxes
from yolojax.files import write_file
from yolojax.hosts.agreement import gathered_arrays, is_first
from yolojax.inference.validation import Validation
from yolojax.inference.writing import unique_stems, write_labels

SHEETS = 3  # batches that are drawn
SHOWN = 0.25  # score above which a detection is drawn


class Recorder:
    """Writes what ``--save-txt`` and the plots ask for while images go by, and keeps what COCO's files need."""

    def __init__(self, validation: Validation, folder: Path) -> None:
        """Nothing is written yet; ``folder`` exists."""
        settings = validation.settings
        self.samples, self.names, self.folder = validation.samples, validation.names, folder
        self.txt, self.scores = settings.save_txt, settings.save_conf
        self.keep, self.draw = settings.save_json, not settings.noplots and is_first()
        self.stems = unique_stems([Path(sample.name).stem for sample in self.samples]) if self.txt else []
        self.kept: list[list[EvaluatedImage]] = []  # of each batch
        self.batches = 0

    def __call__(self, batch: Any, detections: list[np.ndarray]) -> None:
        """See one batch and its detections."""
        self.kept.append([])
        for image in np.flatnonzero(batch["valid"]).tolist():
            index = int(batch["index"][image])
            if self.txt:
                path = self.folder / "labels" / f"{self.stems[index]}.txt"
                write_labels(path, detections[image], batch["original_size"][image], self.scores)
            if self.keep:
                height, width = (int(side) for side in batch["original_size"][image])
                true = true_boxes(batch, image)
                self.kept[-1].append(EvaluatedImage(self.samples[index].name, (height, width), detections[image], true))
        if self.draw and self.batches < SHEETS:
            self._draw(batch, detections)
        self.batches += 1

    @property
    def images(self) -> list[EvaluatedImage]:
        """All images in order, with those that other processes have seen; all of them have to ask."""
        told = gathered_arrays(_arrays(self.kept))
        return [image for batch in zip(*map(_batches, told), strict=True) for part in batch for image in part]

    def _draw(self, batch: Any, detections: list[np.ndarray]) -> None:
        height, width = batch["images"].shape[1:3]
        valid = np.flatnonzero(batch["valid"]).tolist()
        true, true_texts, shown, texts = [], [], [], []
        for image in valid:
            boxes = batch["boxes"][image][batch["mask"][image]]
            true.append(pixel_boxes(boxes, width, height))
            true_texts.append([self.names[int(label)] for label in boxes[:, 0]])
            sure = detections[image][detections[image][:, 4] > SHOWN]
            corners = sure[:, :4] * batch["gain"][image][0] + np.tile(batch["padding"][image], 2)
            shown.append(np.concatenate([corners, sure[:, 5:]], 1))
            texts.append([f"{self.names[int(label)]} {score:.2f}" for score, label in sure[:, 4:]])
        captions = [Path(self.samples[int(batch["index"][image])].name).name for image in valid]
        images = batch["images"][valid]
        stem = f"val_batch{self.batches}"
        draw_sheet(images, true, true_texts, self.folder / f"{stem}_labels.jpg", captions=captions)
        draw_sheet(images, shown, texts, self.folder / f"{stem}_pred.jpg", captions=captions)


def _arrays(kept: Sequence[Sequence[EvaluatedImage]]) -> dict[str, np.ndarray]:
    """Images of batches as plain arrays; ``_batches`` reads them."""
    images = [image for batch in kept for image in batch]
    return {
        "in_batch": np.array([len(batch) for batch in kept], int),
        "names": np.array([image.name for image in images], str),
        "sizes": np.array([image.size for image in images], int).reshape(-1, 2),
        "detected": np.array([len(image.detections) for image in images], int),
        "detections": np.concatenate([np.zeros((0, 6), np.float32), *(image.detections for image in images)]),
        "labelled": np.array([len(image.labels) for image in images], int),
        "labels": np.concatenate([np.zeros((0, 5), np.float32), *(image.labels for image in images)]),
    }


def _batches(arrays: Mapping[str, np.ndarray]) -> list[list[EvaluatedImage]]:
    detections = np.split(arrays["detections"], arrays["detected"].cumsum()[:-1])
    labels = np.split(arrays["labels"], arrays["labelled"].cumsum()[:-1])
    rows = zip(arrays["names"].tolist(), map(tuple, arrays["sizes"].tolist()), detections, labels, strict=True)
    images = iter([EvaluatedImage(*row) for row in rows] if len(arrays["names"]) else [])
    return [list(islice(images, count)) for count in arrays["in_batch"].tolist()]


def read_annotations(path: str) -> dict[str, Any]:
    """The content of a COCO annotations file.

    Raises:
      UserError: it is none.
    """
    try:
        content = json.loads(Path(path).read_bytes())  # with or without a byte order mark
    except OSError as error:
        raise UserError(f"--annotations {path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise UserError(f"--annotations {path}: cannot be read as JSON ({error})") from error
    if not isinstance(content, dict) or not {"images", "annotations", "categories"} <= content.keys():
        raise UserError(f"--annotations {path}: no COCO file: images, annotations or categories are missing")
    return dict(content)


def write_coco(
    images: Sequence[EvaluatedImage], names: Sequence[str], annotations: Mapping[str, Any] | None, path: Path
) -> dict[str, Any]:
    """Write COCO results, and measure AP as COCO defines it.

    Args:
      images: of the validation, from ``Recorder.images``.
      names: class names, by index.
      annotations: content of a COCO file to measure against, instead of the labels.
      path: JSON file to write.

    Returns:
      ``coco_map50 coco_map50_95 numbered``; where COCO's own code is installed also ``official_tool official_map50 official_map50_95``. AP is
      None where there is no box to find.

    Raises:
      UserError: the annotations lack an image or a class, or the file cannot be written.
    """
    truth, results = coco_files(images, names)
    if annotations is not None:
        truth, results = against(annotations, truth, results)
    rounded = [
        {**result, "bbox": [round(side, 3) for side in result["bbox"]], "score": round(result["score"], 5)}
        for result in results
    ]
    write_file(path, json.dumps(rounded))
    ap = coco_average_precision(images, len(names))
    measured = ~np.isnan(ap[:, 0])
    figures = {
        "coco_map50": float(ap[measured, 0].mean()) if measured.any() else None,
        "coco_map50_95": float(ap[measured].mean()) if measured.any() else None,
        "numbered": annotations is not None or numbered([image.name for image in images]),
    }
    official = (official_figures(truth, results) or {}) if measured.any() else {}
    return figures | {f"official_{name}": value for name, value in official.items()}


def write_table(path: Path, rows: Sequence[Mapping[str, float]]) -> None:
    """Write rows of the same keys as CSV.

    Raises:
      UserError: the file cannot be written.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_file(path, text.getvalue())
