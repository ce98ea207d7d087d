"""The figures of docs/study.md: for how long to train, how deep to freeze, by which strategy, and what is forgotten.

yolojax study depth-length; yolojax study depth-far; yolojax study depth-near       # hours on two cores
python docs/figures/depth.py docs/data/depth         # of their runs.csv and epochs.csv, in folders of these names
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

from common import DOCS, reach, read_rows, write_png

from yolojax.figures import COLOURS, INK, MUTED, new_figure, quiet_axes
from yolojax.study.comparison import interval

SPLITS = {"far": "far: blood cells", "near": "near: traffic lights"}
DEPTHS = (0, 4, 10, 17, 24)
SCORE = "test_map50_95"
Rows = list[dict[str, str]]


def scores(rows: Rows, scenario: str, column: str = SCORE) -> list[float]:
    """A figure of all finished runs of a scenario that have it."""
    return [float(row[column]) for row in rows if row["scenario"] == scenario and row.get(column)]


def draw_length(axes: Any, epochs: Rows) -> None:
    """mAP50-95 of the validation images, epoch by epoch, of trainings of several lengths."""
    quiet_axes(axes)
    for scenario in dict.fromkeys(row["scenario"] for row in epochs):
        own = [row for row in epochs if row["scenario"] == scenario]
        split, length = scenario.split()[:2]
        colour, line = COLOURS[0 if split == "far" else 1], {"30": ":", "50": "--"}.get(length, "-")
        places = [int(row["epoch"]) + 1 for row in own]
        axes.plot(places, [float(row["map50_95"]) for row in own], line, color=colour, linewidth=1.6, label=scenario)
    axes.set_xlabel("epoch")
    axes.set_ylabel("mAP50-95, validation")
    axes.legend(frameon=False, fontsize=8.5, labelcolor=INK)


def draw_depths(axes: Any, rows: Rows, title: str) -> None:
    """A figure over the depth that is frozen: each seed, means and their intervals, for both kinds of BatchNorm."""
    quiet_axes(axes)
    for colour, (mode, suffix) in zip(COLOURS, {"fixed": "", "track": " (track)"}.items(), strict=False):
        measured = {depth: scores(rows, f"freeze {depth}{suffix if depth else ''}") for depth in DEPTHS}
        places = [depth for depth, values in measured.items() if values]
        means = [statistics.fmean(measured[depth]) for depth in places]
        errors = [reach(measured[depth]) for depth in places]
        axes.errorbar(places, means, errors, color=colour, linewidth=1.8, capsize=3, label=f"BatchNorm {mode}")
        for depth in places:
            values = measured[depth]
            axes.plot(
                [depth + 0.4] * len(values), values, "o", color=colour, alpha=0.5, markersize=4, markeredgewidth=0
            )
    axes.set_xticks(DEPTHS)
    axes.set_ylim(0)
    axes.set_xlabel("layers frozen")
    axes.set_ylabel("mAP50-95, test")
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    axes.legend(frameon=False, fontsize=8.5, labelcolor=INK)


def draw_strategies(axes: Any, rows: Rows, title: str) -> None:
    """The difference of every scenario from freezing nothing, with its 90 % interval."""
    quiet_axes(axes)
    whole = scores(rows, "freeze 0")
    names = [name for name in dict.fromkeys(row["scenario"] for row in rows) if name != "freeze 0"]
    several = [name for name in names if min(len(scores(rows, name)), len(whole)) > 1]
    several.sort(key=lambda name: statistics.fmean(scores(rows, name)))
    for place, name in enumerate(several):
        difference, low, high = interval(scores(rows, name), whole)
        axes.plot([low, high], [place, place], color=COLOURS[0], linewidth=1.8)
        axes.plot([difference], [place], "o", color=COLOURS[0], markersize=5)
    axes.axvline(0, color=MUTED, linewidth=1)
    axes.set_yticks(range(len(several)), several)
    axes.set_xlabel("test mAP50-95, less that of freeze 0")
    axes.set_title(title, loc="left", fontsize=10, color=INK)


def draw_forgetting(axes: Any, rows: Rows, title: str) -> None:
    """What a training gained over what it forgot."""
    quiet_axes(axes)
    for number, name in enumerate(dict.fromkeys(row["scenario"] for row in rows)):
        kept, gained = scores(rows, name, "old_map50_95_after"), scores(rows, name)
        if kept and gained:
            place = statistics.fmean(kept), statistics.fmean(gained)
            axes.plot(*place, "o", color=COLOURS[number % len(COLOURS)], markersize=6, label=name)
    axes.legend(frameon=False, fontsize=8, labelcolor=INK, loc="upper right")
    axes.set_xlabel("mAP50-95 of the old head on coco128, afterwards")
    axes.set_ylabel("mAP50-95, test")
    axes.set_title(title, loc="left", fontsize=10, color=INK)


def print_table(rows: Rows, title: str) -> None:
    """The figures of docs/study.md in Markdown: means with half of their 90 % interval, and the difference from freezing nothing."""
    whole = scores(rows, "freeze 0")
    print(f"\n| {title} | runs | test mAP50 | test mAP50-95 | less freeze 0 | old classes |\n|-|-|-|-|-|-|")
    for name in dict.fromkeys(row["scenario"] for row in rows):
        values, kept = scores(rows, name), scores(rows, name, "old_map50_95_after")
        cells = [str(len(values)), mean_cell(scores(rows, name, "test_map50")), mean_cell(values)]
        apart = ""
        if name != "freeze 0" and min(len(values), len(whole)) > 1:
            difference, low, high = interval(values, whole)
            apart = f"{difference:+.3f} ({low:+.3f} to {high:+.3f})"
        print(f"| {' | '.join([name, *cells, apart, mean_cell(kept)])} |")


def mean_cell(values: list[float]) -> str:
    """A mean, and where there are several values half of its interval."""
    if not values:
        return ""
    return f"{statistics.fmean(values):.3f}" + (f" ± {reach(values):.3f}" if len(values) > 1 else "")


def write_panels(draw: Any, tables: dict[str, Rows], size: tuple[float, float], file: Path) -> None:
    """One panel for each data set, side by side."""
    figure = new_figure(*size)
    for axes, (split, rows) in zip(figure.subplots(1, len(tables), squeeze=False)[0], tables.items(), strict=True):
        draw(axes, rows, SPLITS[split])
    write_png(figure, file, 128)


def main() -> None:
    """Draw those for which there are figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, help="of the folders length, far and near")
    parser.add_argument("--out", type=Path, default=DOCS / "images")
    options = parser.parse_args()
    length = options.folder / "length" / "epochs.csv"
    if length.is_file():
        figure = new_figure(6, 3.4)
        draw_length(figure.subplots(), read_rows(length))
        write_png(figure, options.out / "study-length.png", 128)
    tables = {split: options.folder / split / "runs.csv" for split in SPLITS}
    rows = {split: read_rows(file) for split, file in tables.items() if file.is_file()}
    for split, own in rows.items():
        print_table(own, SPLITS[split])
    if rows:
        write_panels(draw_depths, rows, (10, 3.6), options.out / "study-depth.png")
        write_panels(draw_strategies, rows, (10, 3.8), options.out / "study-strategies.png")
        write_panels(draw_forgetting, rows, (10, 3.8), options.out / "study-forgetting.png")


if __name__ == "__main__":
    main()
