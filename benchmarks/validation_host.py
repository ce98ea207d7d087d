"""Seconds that the host's part of a validation takes: matching, confusion matrix and average precision over a data set of the size of VOC's.

    python benchmarks/validation_host.py

Labels and detections are drawn: 4,952 photos, 20 classes, 1 to 8 labels each as often as in VOC, and 300 detections, most of them of low score and about a
third of them near a label. Batches of 96 are counted as ``yolojax.evaluation.evaluator`` does it, in one thread; nothing is predicted.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
from turns import cell, spread

from yolojax.evaluation.tally import Batch, Tally

SIDE = 512  # pixels of the network's input; the photos are as large
LABELS = (0.41, 0.25, 0.13, 0.08, 0.05, 0.04, 0.02, 0.02)  # part of the photos that have 1, 2, ... labels


def draw_batch(rng: np.random.Generator, images: int, classes: int, detections: int) -> tuple[Batch, list[np.ndarray]]:
    """A batch without pixels, and what was found in each of its images."""
    counts = rng.choice(np.arange(1, 1 + len(LABELS)), images, p=LABELS)
    mask = np.arange(len(LABELS)) < counts[:, None]
    boxes = np.zeros((*mask.shape, 5), np.float32)
    boxes[..., 0] = rng.integers(0, classes, mask.shape)
    boxes[..., 1:3] = rng.uniform(0.2, 0.8, (*mask.shape, 2))
    boxes[..., 3:] = rng.uniform(0.1, 0.4, (*mask.shape, 2))
    batch = {
        "images": np.broadcast_to(np.uint8(0), (images, SIDE, SIDE, 3)),
        "boxes": boxes * mask[..., None],
        "mask": mask,
        "valid": np.ones(images, bool),
        "original_size": np.full((images, 2), SIDE),
        "gain": np.ones((images, 2)),
        "padding": np.zeros((images, 2)),
    }
    return batch, [_detect(rng, rows[:count], classes, detections) for rows, count in zip(boxes, counts, strict=True)]


def _detect(rng: np.random.Generator, labels: np.ndarray, classes: int, count: int) -> np.ndarray:
    """Detections ``x1 y1 x2 y2 score class`` of one image, best first."""
    near = rng.random(count) < 1 / 3
    centre, side = rng.uniform(0, SIDE, (count, 2)), rng.uniform(10, SIDE / 2, (count, 2))
    label = rng.integers(0, classes, count)
    chosen = labels[rng.integers(0, len(labels), count)]
    noise = rng.normal(0, 0.05, (count, 4))
    centre[near], side[near] = ((chosen[:, 1:] + noise) * SIDE)[near].reshape(-1, 2, 2).swapaxes(0, 1)
    label[near] = chosen[near, 0]
    half = np.maximum(side, 1) / 2
    score = np.sort(rng.random(count) ** 12)[::-1, None]  # few are sure
    return np.concatenate([centre - half, centre + half, score, label[:, None]], 1).astype(np.float32)


def measure(batches: list[tuple[Batch, list[np.ndarray]]], classes: int) -> tuple[float, float, float, float]:
    """Seconds of counting all batches and of the curves, seconds of processor time of both, and mAP50."""
    start, used = time.perf_counter(), time.process_time()
    tally = Tally(classes)
    for batch, found in batches:
        tally.add(batch, range(len(found)), found)
    counted = time.perf_counter()
    curves = tally.curves()
    return counted - start, time.perf_counter() - counted, time.process_time() - used, curves.map50


def main() -> None:
    """Print the seconds of each part."""
    parser = argparse.ArgumentParser(description="Time the host's part of a validation.")
    parser.add_argument("--images", type=int, default=4952, help="photos (default: %(default)s)")
    parser.add_argument("--classes", type=int, default=20, help="classes (default: %(default)s)")
    parser.add_argument("--detections", type=int, default=300, help="of each photo (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=96, help="images of a batch (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="runs that are counted (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    batches = [
        draw_batch(rng, min(options.batch, options.images - start), options.classes, options.detections)
        for start in range(0, options.images, options.batch)
    ]
    figures = np.array([measure(batches, options.classes) for _ in range(1 + options.rounds)])[1:]
    parts = {
        "matching and confusion": figures[:, 0],
        "curves and AP": figures[:, 1],
        "together": figures[:, :2].sum(1),
        "together, processor time": figures[:, 2],
    }
    rows = {part: spread(seconds) for part, seconds in parts.items()}
    print("| | seconds (quartiles) |\n|-|-|")
    for part, row in rows.items():
        print(f"| {part} | {cell(row, '.3f')} |")
    print(f"mAP50 {figures[0, 3]:.4f}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
