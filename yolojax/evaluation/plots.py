"""The figures of an evaluation: curves, confusion matrix, accuracy over image size."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from yolojax.evaluation.evaluator import Evaluation
from yolojax.evaluation.metrics import CONFIDENCES
from yolojax.figures import COLOURS, INK, new_figure

_LEGEND_CLASSES = 20  # more lines than this nobody tells apart: they are grey, and only their mean has a name
_CELL_CLASSES = 30  # up to this many classes the numbers of the confusion matrix are written into it


def plot_evaluation(evaluation: Evaluation, folder: Path) -> None:
    """Write ``PR_curve.png``, ``P_curve.png``, ``R_curve.png``, ``F1_curve.png`` and ``confusion_matrix.png``.

    Args:
      evaluation: what to show.
      folder: exists; files of these names are replaced.
    """
    curves, names = evaluation.curves, evaluation.names
    labels = [names[label] for label in curves.classes]
    recalls = np.linspace(0, 1, curves.interpolated.shape[1])
    at_50 = [f"{name}  {ap:.3f}" for name, ap in zip(labels, curves.ap[:, 0], strict=True)]
    mean = f"all classes  {curves.map50:.3f} mAP50"
    _plot_curves(folder / "PR_curve.png", "Precision and recall", recalls, curves.interpolated, at_50, mean)
    best = CONFIDENCES[curves.best]
    for name, title, values in (
        ("F1", "F1 score", curves.f1),
        ("P", "Precision", curves.precision),
        ("R", "Recall", curves.recall),
    ):
        at_best = values[:, curves.best].mean() if len(values) else 0
        mean = f"all classes  {at_best:.2f} at {best:.3f}"
        _plot_curves(folder / f"{name}_curve.png", title, CONFIDENCES, values, labels, mean, mark=best)
    plot_confusion(evaluation.confusion, names, folder / "confusion_matrix.png")


def _plot_curves(
    path: Path,
    title: str,
    x: np.ndarray,
    values: np.ndarray,
    labels: Sequence[str],
    mean_label: str,
    mark: float | None = None,
) -> None:
    """One line per class and their mean; ``mark`` is a confidence to point out."""
    figure = new_figure(9, 6)
    axes = figure.add_subplot()
    named = 1 < len(values) <= _LEGEND_CLASSES
    for index, line in enumerate(values):
        style: dict[str, Any] = {"color": COLOURS[index], "label": labels[index]} if named else {"color": "0.75"}
        axes.plot(x, line, linewidth=1.2 if named else 0.6, **style)
    if len(values):
        label = mean_label if len(values) > 1 else f"{labels[0].split('  ')[0]}  {mean_label.split('  ', 1)[1]}"
        axes.plot(x, values.mean(0), linewidth=3, color=INK, label=label)
    else:
        axes.text(0.5, 0.5, "no labels", ha="center", va="center", color="0.4")
    if mark is not None and len(values):
        axes.axvline(mark, color="0.3", linewidth=1, linestyle=":")
    axes.set(xlim=(0, 1), ylim=(0, 1.02), title=title)
    axes.set_xlabel("recall" if mark is None else "confidence")
    axes.set_ylabel("precision" if mark is None else title.lower().replace("f1", "F1"))
    axes.grid(alpha=0.25)
    if len(values):
        if named:
            figure.legend(loc="outside right upper", fontsize=9, frameon=False)
        else:
            axes.legend(loc="upper right" if mark is None else "best", fontsize=10)
    figure.savefig(path, dpi=150)


def plot_confusion(matrix: np.ndarray, names: Sequence[str], path: Path) -> None:
    """Draw a confusion matrix, each column as fractions of the labels of that class.

    Args:
      matrix: ``(nc + 1, nc + 1)`` counts, as ``confusion.confusion`` gives them.
      names: class names.
      path: PNG file to write.
    """
    labels = [*names, "background"]
    size = len(labels)
    fractions = matrix / np.maximum(matrix.sum(0), 1)
    inches = min(max(5.5, 3 + 0.42 * size), 18)
    figure = new_figure(inches + 1, inches)
    axes = figure.add_subplot()
    image = axes.imshow(np.where(matrix > 0, fractions, np.nan), cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02, label="fraction of the column")
    font = min(0.55 * 72 * 0.8 * inches / size, 10)  # points: a little over half of the height of a row
    upright = size <= 4 and max(map(len, labels)) <= 12
    axes.set_xticks(range(size), labels, rotation=0 if upright else 90, fontsize=font)
    axes.set_yticks(range(size), labels, fontsize=font)
    axes.set_xticks(np.arange(size + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(size + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="0.9", linewidth=0.5)
    axes.tick_params(which="minor", length=0)
    axes.set(xlabel="true", ylabel="predicted", title="Confusion matrix")
    if size <= _CELL_CLASSES + 1:
        for row, column in zip(*np.nonzero(matrix), strict=True):
            fraction = fractions[row, column]
            text = f"{fraction:.2f}\n{matrix[row, column]}" if size <= 12 else f"{fraction:.2f}".removeprefix("0")
            ink = "white" if fraction > 0.5 else "black"
            axes.text(column, row, text, ha="center", va="center", color=ink, fontsize=min(font, 8))
    figure.savefig(path, dpi=150, bbox_inches="tight")


def plot_study(rows: Sequence[Mapping[str, float]], title: str, path: Path) -> None:
    """Draw accuracy and time over the image size.

    Args:
      rows: one per size: ``image_size map50 map50_95 inference_ms`` and whatever else.
      title: line above the panels.
      path: PNG file to write.
    """
    figure = new_figure(11, 4.5)
    sizes = [row["image_size"] for row in rows]
    accuracy, duration = figure.subplots(1, 2)
    for (column, name), colour in zip((("map50", "mAP50"), ("map50_95", "mAP50-95")), COLOURS, strict=False):
        accuracy.plot(sizes, [row[column] for row in rows], marker="o", color=colour, label=name)
    duration.plot(sizes, [row["inference_ms"] for row in rows], marker="o", color=COLOURS[0])
    accuracy.legend(frameon=False)
    for axes, label in ((accuracy, "mAP"), (duration, "inference, ms per image")):
        axes.set(xlabel="image size in pixels", ylabel=label, ylim=(0, None))
        axes.grid(alpha=0.25)
    figure.suptitle(textwrap.fill(title, 140), fontsize=9)
    figure.savefig(path, dpi=150)
