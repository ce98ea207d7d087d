"""The figures of a data set: what is in its splits, and how training sees its images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolojax.data.batches import StreamSettings
from yolojax.data.check import DataCheck
from yolojax.data.sample import Sample
from yolojax.data.stream import training_stream
from yolojax.drawing import draw_sheet, pixel_boxes
from yolojax.figures import COLOURS, new_figure
from yolojax.hyperparameters import Hyperparameters

_BINS = 40
_NAMED_CLASSES = 100  # more names than this stand too close to be read
_GAP = 6  # pixels between an image and what training makes of it
_MOST_POINTS = 5000  # images of a split that are drawn, evenly chosen


def plot_check(check: DataCheck, path: Path) -> None:
    """Draw classes, sizes and places of boxes and the sizes of images, with a colour for each split.

    Args:
      check: of the data set.
      path: file to write; its ending (``.png``, ``.svg``, …) chooses the kind.
    """
    from matplotlib.ticker import LogLocator, NullFormatter

    figure = new_figure(15, 9)
    grid = figure.add_gridspec(2, 4)
    _draw_classes(figure.add_subplot(grid[0, :]), check)
    splits = list(check.splits.values())
    labels = list(check.splits)

    axes = figure.add_subplot(grid[1, 0])
    for split, label, colour in zip(splits, labels, COLOURS, strict=False):
        chosen = split.sizes[:: max(len(split.sizes) // _MOST_POINTS, 1)]
        axes.scatter(chosen[:, 1], chosen[:, 0], s=12, alpha=0.35, linewidths=0, color=colour, label=label)
    axes.set(title="sizes of images", xlabel="width, pixels", ylabel="height, pixels")
    axes.set(xlim=(0, axes.get_xlim()[1] * 1.05), ylim=(0, axes.get_ylim()[1] * 1.05))

    longer = [split.sides.max(1) for split in splits]
    axes = figure.add_subplot(grid[1, 1])
    _draw_shares(axes, longer, labels, _log_bins(longer))
    axes.set(title="longer sides of boxes", xlabel="pixels", ylabel="share of the boxes, %", xscale="log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))  # of a narrow range there is no power of ten but one
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())

    counts = [split.counts for split in splits]
    most = max((int(values.max()) for values in counts if len(values)), default=0)
    axes = figure.add_subplot(grid[1, 2])
    _draw_shares(axes, counts, labels, np.arange(0, most + 2, max(1, -(-(most + 1) // _BINS))) - 0.5)
    axes.set(title="boxes of an image", xlabel="boxes", ylabel="share of the images, %")

    axes = figure.add_subplot(grid[1, 3])
    centres = np.concatenate([split.boxes[:, 1:3] for split in splits])
    *_, image = axes.hist2d(centres[:, 0], centres[:, 1], bins=_BINS, range=[[0, 1], [0, 1]], cmap="Blues")
    figure.colorbar(image, ax=axes, label="boxes", shrink=0.7)
    axes.set(title="centres of boxes", xlabel="x / width", ylabel="y / height", aspect="equal", ylim=(1, 0))
    figure.savefig(path, dpi=110)


def _draw_classes(axes: Any, check: DataCheck) -> None:
    """Bars for the boxes of each class, one beside the other for the splits; names of classes without a box are red."""
    classes, width = np.arange(len(check.names)), 0.8 / max(len(check.splits), 1)
    total = np.zeros(len(classes), int)
    for place, ((label, split), colour) in enumerate(zip(check.splits.items(), COLOURS, strict=False)):
        counts = np.array(split.classes(len(classes)))
        total += counts
        title = f"{label}: {split.report.images:,} images, {split.report.boxes:,} boxes"
        axes.bar(classes + (place + 0.5) * width - 0.4, counts, width, color=colour, label=title)
    axes.set(title="boxes of each class", ylabel="boxes", xlim=(-0.6, len(classes) - 0.4))
    axes.legend(frameon=False)
    if len(classes) > _NAMED_CLASSES:
        axes.set_xlabel("class index")
        return
    upright = len(classes) <= 10
    axes.set_xticks(classes, check.names, rotation=0 if upright else 90, fontsize=10 if len(classes) <= 40 else 8)
    for tick, count in zip(axes.get_xticklabels(), total, strict=True):
        tick.set_color("black" if count else "red")


def _draw_shares(axes: Any, values: Sequence[NDArray[Any]], labels: Sequence[str], bins: NDArray[Any]) -> None:
    for of_split, label, colour in zip(values, labels, COLOURS, strict=False):
        if len(of_split):
            weights = np.full(len(of_split), 100 / len(of_split))
            axes.hist(of_split, bins, weights=weights, histtype="step", linewidth=1.6, color=colour, label=label)
    if len(values) > 1:
        axes.legend(frameon=False)


def _log_bins(values: Sequence[NDArray[Any]]) -> NDArray[np.float64]:
    positive = np.concatenate([of_split[of_split > 0] for of_split in values])
    low, high = (positive.min(), positive.max()) if len(positive) else (1, 10)
    return np.geomspace(low * 0.98, high * 1.02, _BINS)


def draw_examples(
    samples: Sequence[Sample],
    names: Sequence[str],
    settings: Hyperparameters,
    path: Path,
    *,
    size: int,
    count: int,
    seed: int = 0,
) -> None:
    """Draw images with their boxes, each as it is (left) and as training sees it (right).

    Args:
      samples: of a split.
      names: class names.
      settings: of the augmentation.
      path: JPEG file to write; its folder is made.
      size: side of the images in pixels.
      count: images, at most as many as there are samples.
      seed: of the choice of images and of the augmentation.
    """
    stream = StreamSettings(image_size=size, batch_size=count, seed=seed)
    plain, augmented = (
        training_stream(samples, settings, replace(stream, augment=augment)).batches[0] for augment in (False, True)
    )
    boxes = [
        np.concatenate(
            [
                pixel_boxes(made.batch.boxes[row][made.batch.mask[row]], size, size, place * (size + _GAP))
                for place, made in enumerate((plain, augmented))
            ]
        )
        for row in range(count)
    ]
    border = np.full((count, size, _GAP, 3), 255, np.uint8)
    margin = np.repeat(border, 3, 2)  # keeps the two of an image closer together than to the next one
    path.parent.mkdir(parents=True, exist_ok=True)
    draw_sheet(
        np.concatenate([plain.batch.images, border, augmented.batch.images, margin], 2),
        boxes,
        [[names[int(label)] for label in rows[:, 4]] for rows in boxes],
        path,
        captions=[f"{Path(samples[index].name).name}: as it is | as training sees it" for index in plain.indices],
        most=count,
    )
