"""The figure of docs/freezing.md on kept features: how accuracy hangs on the number of views of an image.

yolojax study views                                             # 45 minutes on two cores
python docs/figures/views.py runs/study/views/runs.csv          # or docs/data/views/runs.csv, which is that file without times
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from common import DOCS, read_rows, write_png

from yolojax.figures import COLOURS, INK, MUTED, new_figure, quiet_axes

VIEWS = ("1 view", "4 views", "16 views", "fresh")
PANELS = (("freeze 24", "--freeze 24: Detect alone trains"), ("freeze 10", "--freeze 10: neck and Detect train"))


def main() -> None:
    """Draw it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("runs", type=Path, help="runs.csv of the study 'views'")
    parser.add_argument("--out", type=Path, default=DOCS / "images" / "views.png")
    arguments = parser.parse_args()
    rows = read_rows(arguments.runs)
    figure = new_figure(9, 3.1)
    for axes, (freeze, title), colour in zip(figure.subplots(1, 2), PANELS, COLOURS, strict=False):
        quiet_axes(axes)
        for place, views in enumerate(VIEWS):
            scores = [float(row["map50_95"]) for row in rows if row["scenario"] == f"{freeze} {views}"]
            axes.plot([place] * len(scores), scores, "o", color=colour, alpha=0.55, markersize=6, markeredgewidth=0)
            mean = statistics.fmean(scores)
            axes.plot([place - 0.2, place + 0.2], [mean, mean], color=colour, linewidth=2.4)
            label = f"{mean:.3f}".removeprefix("0")
            axes.annotate(label, (place + 0.24, mean), color=MUTED, fontsize=8.5, va="center")
        axes.set_xticks(range(len(VIEWS)), VIEWS)
        axes.set_xlim(-0.5, len(VIEWS) - 0.3)
        axes.set_ylim(0, 0.5 if freeze == "freeze 10" else 0.16)
        axes.set_ylabel("mAP50-95")
        axes.set_title(title, loc="left", fontsize=10, color=INK)
    write_png(figure, arguments.out, 64)


if __name__ == "__main__":
    main()
