"""The figure of the README: detections before and after a frozen fine-tune, beside what freezing saves.

    python train.py --freeze 10 --name readme          # the run that "after" shows; a few minutes
    python docs/figures/readme.py runs/train/readme

The bars are the H100's figures of the first table in ``docs/freezing-cost.md``, read from that page.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from common import DOCS, write_png

import yolojax
from yolojax.data.sources import load_data, open_split
from yolojax.figures import COLOURS, INK, MUTED, new_figure

IMAGES = (21, 28, 30)  # of the validation split, chosen for being easy to take in
CONFIDENCE = 0.4


def table() -> list[tuple[str, float, float]]:
    """Freeze depth, GFLOP per step and peak gigabytes on an H100, from the page that proves them."""
    text = (DOCS / "freezing-cost.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| [\d,]+ \| ([\d,]+) \| \d+ \| [^|]+ \| ([\d.]+) GB, ", text, re.MULTILINE)
    return [(freeze, float(flops.replace(",", "")), float(memory)) for freeze, flops, memory in rows]


def draw_detections(axes: Any, weights: str, title: str) -> None:
    """One row: the images with what a network finds in them."""
    samples = open_split(load_data("shapes"), "val").samples
    detector = yolojax.load(weights, image_size=192, confidence=CONFIDENCE, device="cpu")
    for axis, detections in zip(axes, detector([samples[index].load() for index in IMAGES]), strict=True):
        axis.imshow(detections.plot(line_thickness=2, hide_conf=True), interpolation="antialiased")
        axis.set_xticks([])
        axis.set_yticks([])
        axis.spines[:].set_visible(False)
    axes[0].set_title(title, loc="left", fontsize=11, color=INK, weight="bold")


def draw_bars(axis: Any, names: list[str], values: list[float], unit: str, title: str) -> None:
    """Horizontal bars with their values."""
    axis.barh(names, values, color=COLOURS[0], height=0.62)
    for row, value in enumerate(values):
        axis.text(value + max(values) * 0.02, row, f"{value:,.2f} {unit}", va="center", fontsize=9.5, color=INK)
    axis.set_xlim(0, max(values) * 1.32)
    axis.invert_yaxis()
    axis.set_xticks([])
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0, labelsize=9.5, labelcolor=INK)
    axis.set_title(title, loc="left", fontsize=11, color=INK, weight="bold")


def main() -> None:
    """Draw it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="run folder of 'python train.py --freeze 10'")
    parser.add_argument("--out", type=Path, default=DOCS / "images" / "readme.png")
    arguments = parser.parse_args()

    figure = new_figure(11, 5.1)
    halves: Any = figure.subfigures(1, 2, width_ratios=(6.3, 4.7))
    left, right = halves
    rows = left.subplots(2, len(IMAGES))
    draw_detections(rows[0], "yolov5n-shapes", "before: shapes it has never seen")
    draw_detections(rows[1], arguments.run, "after: python train.py --freeze 10")
    freezes = table()
    names = [f"freeze {freeze}" for freeze, _, _ in freezes]
    bars = right.subplots(2, 1)
    draw_bars(bars[0], names, [memory for _, _, memory in freezes], "GB", "memory of a training step")
    draw_bars(bars[1], names, [flops / 1000 for _, flops, _ in freezes], "TFLOP", "operations of a training step")
    what = "YOLOv5m, 20 classes, 512 px, batch 48, bfloat16,\ncompiled for an H100"
    bars[1].set_xlabel(what, fontsize=9, color=MUTED, loc="left")
    write_png(figure, arguments.out)


if __name__ == "__main__":
    main()
