"""The figure of docs/joining.md: what two networks find in painted images, and what both find as one.

python train.py --freeze 10 --epochs 10 --img 128 --name new      # the new classes; a few minutes
yolojax join yolov5n-shapes runs/train/new --output both
python docs/figures/joined.py yolov5n-shapes runs/train/new both
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from common import DOCS, write_png
from matplotlib.patches import Rectangle

import yolojax
from yolojax.data.examples import example_images
from yolojax.data.sources import load_data
from yolojax.figures import COLOURS, INK, new_figure

OLD, NEW = (3, 6), (3, 4)  # of the example images of both data sets: one of each makes an image
SIDE = 160  # pixels
CONFIDENCE = 0.5


def painted(index: int) -> np.ndarray:
    """An image with old shapes in its left half and new ones in its right half."""
    halves = []
    for data, chosen in (("shapes-pretraining", OLD), ("shapes", NEW)):
        image = example_images(load_data(data).names)[chosen[index]]
        halves.append(cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA))
    return np.hstack(halves)


def draw(axis: Any, image: np.ndarray, found: Any, old: set[str]) -> None:
    """The boxes of an image, with the colour of the network that knows their class."""
    axis.imshow(image, interpolation="antialiased")
    for (x1, y1, x2, y2), label in zip(found.boxes, found.classes, strict=True):
        name, known = found.names[label], found.names[label] in old
        colour = COLOURS[0] if known else COLOURS[1]
        axis.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, lw=2))
        style = {"facecolor": colour, "edgecolor": "none", "pad": 1}
        # Names of the old network stand at the top of a box, those of the new one at its bottom, so that both can be read.
        place, side = (max(y1, 9), "bottom") if known else (min(y2, SIDE - 9), "top")
        axis.text(max(x1, 1), place, name, fontsize=7, color="white", va=side, bbox=style, clip_on=True)
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[:].set_visible(False)


def main() -> None:
    """Draw it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("networks", nargs=3, metavar="WEIGHTS", help="the old network, the new one, both joined")
    parser.add_argument("--out", type=Path, default=DOCS / "images" / "joined.png")
    arguments = parser.parse_args()
    images = [painted(index) for index in range(len(OLD))]
    figure = new_figure(11, 4.1)
    axes: Any = figure.subplots(len(images), 3)
    old = set(load_data("shapes-pretraining").names)
    titles = ("the old network", "the new one, --freeze 10", "joined: one file, one trunk, two heads")
    for column, (weights, title) in enumerate(zip(arguments.networks, titles, strict=True)):
        detector = yolojax.load(weights, image_size=2 * SIDE, confidence=CONFIDENCE, device="cpu")
        for row, found in enumerate(detector(images)):
            draw(axes[row][column], images[row], found, old)
        axes[0][column].set_title(title, loc="left", fontsize=11, color=INK, weight="bold")
    write_png(figure, arguments.out)


if __name__ == "__main__":
    main()
