"""Find objects in images and write annotated copies.

python examples/detect.py                          # drawn images, the embedded network
python examples/detect.py runs/train/exp a.jpg b.jpg
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

import yolojax
from yolojax.data.examples import example_images


def main(weights: str = "yolov5n-shapes", images: Sequence[str] = (), folder: str = "detected") -> None:
    """Detect, print what was found and write it into a folder."""
    detector = yolojax.load(weights, confidence=0.4)
    Path(folder).mkdir(parents=True, exist_ok=True)
    for number, detections in enumerate(detector(list(images) or example_images(detector.names))):
        print(detections)  # image: 640x640 px, 1× gear, 2× clover
        for name, score, (left, top, right, bottom) in zip(
            detections.labels, detections.scores, detections.boxes, strict=True
        ):
            print(f"  {name} {score:.2f} at x {left:.0f} to {right:.0f}, y {top:.0f} to {bottom:.0f}")
        Image.fromarray(detections.plot()).save(Path(folder) / f"{number}.png")


if __name__ == "__main__":
    weights, *images = sys.argv[1:] or ["yolov5n-shapes"]
    main(weights, images)
