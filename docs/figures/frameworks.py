"""The figure of docs/parity.md on twenty seeds of two frameworks, and the differences of their means.

yolojax study frameworks                             # four to five hours on two cores
python docs/figures/frameworks.py FOLDER             # of its runs.csv and epochs.csv, or docs/data/frameworks, which has them without times
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

from common import DOCS, reach, read_rows, write_png

from yolojax.figures import COLOURS, INK, new_figure, quiet_axes
from yolojax.study.comparison import FIGURES, difference_table, differences
from yolojax.study.scenarios import load_study

LINES = {"freeze 0": (0, "-"), "freeze 10": (1, "-"), "original freeze 0": (0, ":"), "original freeze 10": (1, ":")}


def draw(axes: Any, epochs: list[dict[str, str]], title: str, columns: tuple[str, ...]) -> None:
    """Means over the seeds and their intervals, epoch by epoch; of several columns their sum."""
    quiet_axes(axes)
    for name, (colour, line) in LINES.items():
        by_epoch: dict[int, list[float]] = {}
        for row in epochs:
            if row["scenario"] == name:
                value = sum(float(row[column]) for column in columns)
                by_epoch.setdefault(int(row["epoch"]) + 1, []).append(value)
        at = sorted(by_epoch)
        means = [statistics.fmean(by_epoch[epoch]) for epoch in at]
        halves = [reach(by_epoch[epoch]) for epoch in at]
        axes.plot(at, means, color=COLOURS[colour], linestyle=line, linewidth=1.8, label=name)
        low, high = ([m + sign * r for m, r in zip(means, halves, strict=True)] for sign in (-1, 1))
        axes.fill_between(at, low, high, color=COLOURS[colour], alpha=0.14, linewidth=0)
    axes.set_xlabel("epoch")
    axes.set_title(title, loc="left", fontsize=10, color=INK)


def main() -> None:
    """Draw it and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, help="of runs.csv and epochs.csv")
    parser.add_argument("--out", type=Path, default=DOCS / "images" / "frameworks.png")
    arguments = parser.parse_args()
    figures: dict[str, list[dict[str, float | None]]] = {}
    for row in read_rows(arguments.folder / "runs.csv"):
        if row["status"] == "finished":
            own = {name: float(row[name]) if row.get(name) else None for name in FIGURES}
            figures.setdefault(row["scenario"], []).append(own)
    for name, runs in figures.items():
        scores = [run["map50"] or 0.0 for run in runs]
        print(f"{name}: {len(runs)} runs, mAP50 {statistics.fmean(scores):.3f} ± {statistics.stdev(scores):.3f}")
    head, rows = difference_table(differences(load_study("frameworks").comparisons, figures))
    for line in (head, ["-"] * len(head), *rows):
        print(f"| {' | '.join(line)} |")
    epochs = read_rows(arguments.folder / "epochs.csv")
    figure = new_figure(10, 3.6)
    left, right = figure.subplots(1, 2)
    draw(left, epochs, "training loss", ("box", "obj", "cls"))
    draw(right, epochs, "mAP50 on the validation images", ("map50",))
    right.legend(frameon=False, fontsize=8.5, loc="upper left", labelcolor=INK)
    write_png(figure, arguments.out, 128)


if __name__ == "__main__":
    main()
