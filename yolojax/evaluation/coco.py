"""COCO's own definition of AP, and its files.

YOLOv5's AP (``metrics``) and COCO's differ by some thousandths: COCO lets each detection take the best label that is still free, looks at the 100 best
detections per image and class, and averages precision at 101 recalls where YOLOv5 integrates. ``coco_average_precision`` is COCO's, over all areas and
without crowds; ``official_figures`` asks pycocotools or faster-coco-eval for the same.
"""

from __future__ import annotations

import contextlib
import importlib
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from yolojax.errors import UserError

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
MAX_DETECTIONS = 100  # per image and class


@dataclass(frozen=True, eq=False)
class EvaluatedImage:
    """An image with what was found and what is there.

    Attributes:
      name: file name.
      size: height and width in pixels.
      detections: ``(n, 6)`` ``x1 y1 x2 y2 score class`` in pixels, best first.
      labels: ``(m, 5)`` ``class x1 y1 x2 y2`` in pixels.
    """

    name: str
    size: tuple[int, int]
    detections: np.ndarray
    labels: np.ndarray


def coco_average_precision(images: Sequence[EvaluatedImage], classes: int) -> np.ndarray:
    """COCO's AP.

    Args:
      images: all of them.
      classes: number of classes.

    Returns:
      ``(classes, 10)``, nan for classes without labels: ``nanmean()`` is AP, ``nanmean(0)[0]`` is AP50.

    Source: Lin et al. 2014 (arXiv:1405.0312) and https://cocodataset.org/#detection-eval.
    """
    result = np.full((classes, len(IOU_THRESHOLDS)), np.nan)
    for label in range(classes):
        scores, matches, count = [np.zeros(0)], [np.zeros((0, len(IOU_THRESHOLDS)), bool)], 0
        for image in images:
            detections = image.detections[image.detections[:, 5] == label][:MAX_DETECTIONS].astype(float)
            labels = image.labels[image.labels[:, 0] == label].astype(float)
            count += len(labels)
            scores.append(detections[:, 4])
            matches.append(_match(_iou(detections[:, :4], labels[:, 1:])))
        if not count:
            continue
        right = np.concatenate(matches)[np.argsort(-np.concatenate(scores), kind="stable")].cumsum(0)
        recall = right / count
        precision = right / np.arange(1, len(right) + 1)[:, None]
        # The best precision at a recall or a higher one; 0 where a recall is never reached.
        envelope = np.maximum.accumulate(precision[::-1])[::-1]
        envelope = np.concatenate([envelope, np.zeros((1, envelope.shape[1]))])
        for column in range(len(IOU_THRESHOLDS)):
            reached = np.searchsorted(recall[:, column], RECALLS, side="left")
            result[label, column] = envelope[reached, column].mean()
    return result


def _iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    intersection = np.maximum(high - low, 0).prod(2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (first, second)]
    union = areas[0][:, None] + areas[1] - intersection
    return np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)


def _match(iou: np.ndarray) -> np.ndarray:
    """``(n, 10)`` bool: in order of score, each detection takes the label it overlaps most among those still free."""
    detections, labels = iou.shape
    right = np.zeros((detections, len(IOU_THRESHOLDS)), bool)
    free = np.ones((len(IOU_THRESHOLDS), labels), bool)
    for row in range(detections if labels else 0):
        possible = np.where(free & (iou[row] >= IOU_THRESHOLDS[:, None]), iou[row], -1)
        best = labels - 1 - possible[:, ::-1].argmax(1)  # of equal ones the last, as in the official code
        right[row] = possible.max(1) >= 0
        hit = np.flatnonzero(right[row])
        free[hit, best[hit]] = False
    return right


def coco_files(images: Sequence[EvaluatedImage], names: Sequence[str]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Labels as COCO annotations, and detections as COCO results.

    Image ids are the numbers in COCO's file names where ``numbered`` says so; else positions from 1, and each result tells the ``file_name`` too. Category
    ids are class indices.

    Args:
      images: all of them.
      names: class names, by index.

    Returns:
      The content of an annotations file and of a results file, unrounded.
    """
    by_number = numbered([image.name for image in images])
    file_names = _file_names([image.name for image in images])
    photos: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for position, (image, file_name) in enumerate(zip(images, file_names, strict=True), 1):
        identity = int(Path(image.name).stem) if by_number else position
        height, width = image.size
        photos.append({"id": identity, "file_name": file_name, "height": height, "width": width})
        for label, *corners in image.labels.astype(float).tolist():
            box = _from_corners(corners)
            annotation = {"id": len(annotations) + 1, "image_id": identity, "category_id": int(label), "bbox": box}
            annotations.append(annotation | {"area": box[2] * box[3], "iscrowd": 0})
        image_keys = {"image_id": identity} if by_number else {"image_id": identity, "file_name": file_name}
        for *corners, score, label in image.detections.astype(float).tolist():
            box = _from_corners(corners)
            results.append({**image_keys, "category_id": int(label), "bbox": box, "score": score})
    categories = [{"id": index, "name": name} for index, name in enumerate(names)]
    return {"info": {}, "images": photos, "annotations": annotations, "categories": categories}, results


def numbered(names: Sequence[str]) -> bool:
    """Whether every image's name is a number of its own, as COCO's are; ``007`` and ``7`` are one number.

    >>> numbered(["a/000000000139.jpg", "7.jpg"]), numbered(["007.jpg", "7.jpg"]), numbered(["bus.jpg"])
    (True, False, False)
    """
    stems = [Path(name).stem for name in names]
    return all(stem.isdecimal() for stem in stems) and len({int(stem) for stem in stems}) == len(stems)


def _file_names(paths: Sequence[str]) -> list[str]:
    """The last part of each path, and of paths that share it as many folders before it as tell them apart.

    >>> _file_names(["x/a/1.jpg", "x/b/1.jpg", "x/b/2.jpg"])
    ['a/1.jpg', 'b/1.jpg', '2.jpg']
    """
    parts = [Path(path).parts for path in paths]
    lengths = [1] * len(paths)
    while True:
        tails = ["/".join(part[-length:]) for part, length in zip(parts, lengths, strict=True)]
        counts = Counter(tails)
        longer = [
            min(length + (counts[tail] > 1), len(part))
            for part, tail, length in zip(parts, tails, lengths, strict=True)
        ]
        if longer == lengths:
            return tails
        lengths = longer


def _from_corners(corners: Sequence[float]) -> list[float]:
    x1, y1, x2, y2 = corners
    return [x1, y1, x2 - x1, y2 - y1]


def against(
    annotations: Mapping[str, Any], ground_truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Make results comparable with another annotations file; images and classes are found by their names.

    Args:
      annotations: content of that file.
      ground_truth: what ``coco_files`` made, to which the results belong.
      results: of ``coco_files``.

    Returns:
      The annotations with no other images than ours, and the results with the ids of that file.

    Raises:
      UserError: the file lacks an image or a class.
    """
    identities = {}
    for section, key in (("images", "file_name"), ("categories", "name")):
        theirs = {item[key]: item["id"] for item in annotations[section]}
        missing = [item[key] for item in ground_truth[section] if item[key] not in theirs]
        if missing:
            raise UserError(
                f"--annotations: {len(missing)} of our {section} are not in that file, '{missing[0]}' for one"
            )
        identities[section] = {item["id"]: theirs[item[key]] for item in ground_truth[section]}
    ours = set(identities["images"].values())
    moved = [
        {
            **result,
            "image_id": identities["images"][result["image_id"]],
            "category_id": identities["categories"][result["category_id"]],
        }
        for result in results
    ]
    return {**annotations, "images": [image for image in annotations["images"] if image["id"] in ours]}, moved


def official_figures(
    ground_truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]]
) -> dict[str, float | str] | None:
    """AP by COCO's own code.

    Args:
      ground_truth: content of an annotations file.
      results: content of a results file.

    Returns:
      ``tool map50_95 map50``; ``None`` if neither pycocotools nor faster-coco-eval is installed.
    """
    for package, coco_name, eval_name in (
        ("pycocotools", "pycocotools.coco:COCO", "pycocotools.cocoeval:COCOeval"),
        ("faster_coco_eval", "faster_coco_eval:COCO", "faster_coco_eval:COCOeval_faster"),
    ):
        try:
            coco_type, eval_type = _import(coco_name), _import(eval_name)
        except ImportError:
            continue
        if not results:
            return {"tool": package, "map50_95": 0.0, "map50": 0.0}
        with contextlib.redirect_stdout(io.StringIO()):
            truth = coco_type()
            truth.dataset = dict(ground_truth)
            truth.createIndex()
            evaluation = eval_type(truth, truth.loadRes([dict(result) for result in results]), "bbox")
            evaluation.params.imgIds = sorted({image["id"] for image in ground_truth["images"]})
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        return {"tool": package, "map50_95": float(evaluation.stats[0]), "map50": float(evaluation.stats[1])}
    return None


def _import(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)
