"""The figures of a run: losses and metrics over epochs, the labels of the data set, the first training batches."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolojax.drawing import draw_sheet, pixel_boxes
from yolojax.figures import COLOURS, new_figure

_PANELS = (
    ("Box loss", ("train/box_loss", "val/box_loss")),
    ("Objectness loss", ("train/obj_loss", "val/obj_loss")),
    ("Class loss", ("train/cls_loss", "val/cls_loss")),
    ("Precision and recall", ("metrics/precision", "metrics/recall")),
    ("mAP50", ("metrics/mAP_0.5",)),
    ("mAP50-95", ("metrics/mAP_0.5:0.95",)),
    ("Learning rate of weights", ("x/lr1",)),
    ("Learning rate of biases", ("x/lr0",)),
)


def plot_results(rows: Sequence[Mapping[str, float]], path: Path, title: str = "") -> None:
    """Draw losses, metrics and learning rates over the epochs.

    Args:
      rows: rows of ``results.csv``, one per epoch.
      path: PNG file to write.
      title: line above the panels.
    """
    figure = new_figure(16, 7.5)
    epochs = [row["epoch"] + 1 for row in rows]
    for index, (name, columns) in enumerate(_PANELS):
        axes = figure.add_subplot(2, 4, index + 1)
        for column, colour in zip(columns, COLOURS, strict=False):
            values = [row.get(column, float("nan")) for row in rows]
            axes.plot(
                epochs,
                values,
                marker="o" if len(rows) < 30 else None,
                markersize=3,
                color=colour,
                label=column.split("/")[0 if "loss" in column else 1],
            )
        axes.set_title(name, fontsize=11)
        axes.set_xlabel("epoch")
        axes.locator_params(axis="x", integer=True)
        axes.grid(alpha=0.3)
        if len(columns) > 1:
            axes.legend(fontsize=9, frameon=False)
        if "mAP" in name or "Precision" in name:
            axes.set_ylim(bottom=0)
    figure.suptitle(title)
    figure.savefig(path, dpi=120)


def plot_labels(boxes: NDArray[np.floating[Any]], names: Sequence[str], path: Path) -> None:
    """Draw how many boxes each class has, where boxes lie and how large they are.

    Args:
      boxes: ``(n, 5)`` class, x, y, width, height, normalised to the image.
      names: class names.
      path: JPEG or PNG file to write.
    """
    figure = new_figure(12, 10)
    counts = np.bincount(boxes[:, 0].astype(int), minlength=len(names))
    bars = figure.add_subplot(2, 2, 1)
    bars.bar(range(len(names)), counts, color=[COLOURS[label % len(COLOURS)] for label in range(len(names))])
    bars.set_title(f"{len(boxes):,} boxes of {len(names)} classes")
    bars.set_ylabel("boxes")
    if len(names) <= 30:
        bars.set_xticks(range(len(names)), names, rotation=90 if len(names) > 6 else 0, fontsize=9)
    else:
        bars.set_xlabel("class index")
    outlines = figure.add_subplot(2, 2, 2)
    outlines.set_title(f"boxes, laid over each other{' (a sample)' if len(boxes) > 1000 else ''}")
    for index, width, height in boxes[:: max(math.ceil(len(boxes) / 1000), 1), [0, 3, 4]]:
        colour = COLOURS[int(index) % len(COLOURS)]
        outlines.add_patch(_rectangle((-width / 2, -height / 2), width, height, edgecolor=colour))
    outlines.set(xlim=(-0.5, 0.5), ylim=(-0.5, 0.5), aspect="equal")
    outlines.set(xlabel="width (fraction of the image)", ylabel="height (fraction of the image)")
    for position, (first, second, labels) in enumerate(((1, 2, ("x", "y")), (3, 4, ("width", "height"))), start=3):
        axes = figure.add_subplot(2, 2, position)
        image = axes.hist2d(boxes[:, first], boxes[:, second], bins=50, range=[[0, 1], [0, 1]], cmap="Blues", cmin=1)
        figure.colorbar(image[3], ax=axes, label="boxes")
        axes.set(
            xlabel=f"{labels[0]} (fraction of the image)", ylabel=f"{labels[1]} (fraction of the image)", aspect="equal"
        )
        if position == 3:
            axes.invert_yaxis()  # as in the image, y grows downwards
    figure.savefig(path, dpi=110)


def _rectangle(corner: tuple[float, float], width: float, height: float, edgecolor: str) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle(corner, width, height, fill=False, linewidth=0.5, alpha=0.4, edgecolor=edgecolor)


def draw_batch(batch: Mapping[str, NDArray[Any]], names: Sequence[str], path: Path) -> None:
    """Draw the images of a batch with their boxes into one sheet.

    Args:
      batch: ``images`` uint8 ``(B, H, W, 3)`` RGB, ``boxes`` ``(B, M, 5)`` normalised, ``mask`` ``(B, M)``.
      names: class names.
      path: JPEG file to write.
    """
    images, mask = np.asarray(batch["images"]), np.asarray(batch["mask"], bool)
    height, width = images.shape[1:3]
    boxes = [
        pixel_boxes(rows[used], width, height) for rows, used in zip(np.asarray(batch["boxes"]), mask, strict=True)
    ]
    draw_sheet(images, boxes, [[names[int(label)] for label in rows[:, 4]] for rows in boxes], path)
