"""The figure of docs/parity.md on twenty seeds of two frameworks, and the differences of their means.

yolojax study frameworks                             # four to five hours on two cores
python docs/figures/frameworks.py FOLDER             # of its runs.csv and epochs.csv, or docs/data/frameworks, which has them without times
"""

from __future__ import annotations

import argparse
import csv
import io
import statistics
from pathlib import Path
from typing import Any

from PIL import Image
from scipy.special import stdtrit

from yolojax.figures import COLOURS, INK, new_figure, quiet_axes
from yolojax.study.comparison import CONFIDENCE, FIGURES, difference_table, differences
from yolojax.study.scenarios import load_study

DOCS = Path(__file__).resolve().parents[1]
LINES = {"freeze 0": (0, "-"), "freeze 10": (1, "-"), "original freeze 0": (0, ":"), "original freeze 10": (1, ":")}


def read(file: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with file.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


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
        reach = [_reach(by_epoch[epoch]) for epoch in at]
        axes.plot(at, means, color=COLOURS[colour], linestyle=line, linewidth=1.8, label=name)
        low, high = ([m + sign * r for m, r in zip(means, reach, strict=True)] for sign in (-1, 1))
        axes.fill_between(at, low, high, color=COLOURS[colour], alpha=0.14, linewidth=0)
    axes.set_xlabel("epoch")
    axes.set_title(title, loc="left", fontsize=10, color=INK)


def _reach(values: list[float]) -> float:
    """Half of the interval of a mean, by Student's t."""
    if len(values) < 2:
        return 0.0
    quantile = float(stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2))
    return quantile * statistics.stdev(values) / len(values) ** 0.5


def main() -> None:
    """Draw it and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, help="of runs.csv and epochs.csv")
    parser.add_argument("--out", type=Path, default=DOCS / "images" / "frameworks.png")
    arguments = parser.parse_args()
    figures: dict[str, list[dict[str, float | None]]] = {}
    for row in read(arguments.folder / "runs.csv"):
        if row["status"] == "finished":
            own = {name: float(row[name]) if row.get(name) else None for name in FIGURES}
            figures.setdefault(row["scenario"], []).append(own)
    for name, runs in figures.items():
        scores = [run["map50"] or 0.0 for run in runs]
        print(f"{name}: {len(runs)} runs, mAP50 {statistics.fmean(scores):.3f} ± {statistics.stdev(scores):.3f}")
    head, rows = difference_table(differences(load_study("frameworks").comparisons, figures))
    for line in (head, ["-"] * len(head), *rows):
        print(f"| {' | '.join(line)} |")
    epochs = read(arguments.folder / "epochs.csv")
    figure = new_figure(10, 3.6)
    left, right = figure.subplots(1, 2)
    draw(left, epochs, "training loss", ("box", "obj", "cls"))
    draw(right, epochs, "mAP50 on the validation images", ("map50",))
    right.legend(frameon=False, fontsize=8.5, loc="upper left", labelcolor=INK)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=110)
    Image.open(drawn).convert("RGB").quantize(128).save(arguments.out, optimize=True)


if __name__ == "__main__":
    main()
