"""What was found in an image."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolojax.data.sample import Pixels
from yolojax.drawing import class_colour, draw_boxes
from yolojax.errors import UserError


@dataclass(frozen=True, eq=False, kw_only=True)
class Detections:
    """What was found in one image, best first.

    Attributes:
      image: ``(H, W, 3)`` uint8 RGB, as it was given.
      boxes: ``(n, 4)`` float32 x1 y1 x2 y2 in pixels of the image.
      scores: ``(n,)`` float32, 0 to 1.
      classes: ``(n,)`` int64, indices into ``names``.
      names: of all classes that the network knows.
      path: where the image is from; empty for an array.

    >>> found = Detections(
    ...     image=np.zeros((40, 60, 3), np.uint8), boxes=np.array([[5, 5, 25, 30], [30, 8, 50, 28]], np.float32),
    ...     scores=np.array([0.9, 0.6], np.float32), classes=np.array([1, 1]), names=("gear", "drop"), path="a.png",
    ... )
    >>> len(found), found.labels
    (2, ['drop', 'drop'])
    >>> print(found)
    a.png: 60x40 px, 2× drop
    >>> found.plot().shape
    (40, 60, 3)
    """

    image: Pixels
    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    classes: NDArray[np.int64]
    names: tuple[str, ...]
    path: str = ""

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def labels(self) -> list[str]:
        """The class name of each detection."""
        return [self.names[label] for label in self.classes]

    @property
    def summary(self) -> str:
        """The classes that were found and how many of each, as in ``4× person, 1× bus``, or ``nothing``."""
        counts = Counter(sorted(self.classes.tolist()))
        return ", ".join(f"{count}× {self.names[label]}" for label, count in counts.items()) or "nothing"

    def __str__(self) -> str:
        height, width = self.image.shape[:2]
        return f"{self.path or 'image'}: {width}x{height} px, {self.summary}"

    def plot(self, *, line_thickness: int | None = None, hide_labels: bool = False, hide_conf: bool = False) -> Pixels:
        """A copy of the image with the boxes drawn into it.

        Args:
          line_thickness: in pixels; by default what suits the size of the image.
          hide_labels: boxes only.
          hide_conf: class names without scores.
        """
        texts = [
            "" if hide_labels else name if hide_conf else f"{name} {score:.2f}"
            for name, score in zip(self.labels, self.scores, strict=True)
        ]
        image = self.image.copy()
        draw_boxes(image, self.boxes, texts, [class_colour(label) for label in self.classes], line_thickness)
        return image

    def to_pandas(self) -> Any:
        """A data frame with YOLOv5's columns: ``xmin ymin xmax ymax confidence class name``.

        Raises:
          UserError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise UserError("to_pandas needs pandas: pip install pandas") from error
        frame = pandas.DataFrame(self.boxes, columns=["xmin", "ymin", "xmax", "ymax"])
        return frame.assign(confidence=self.scores, name=self.labels, **{"class": self.classes})[
            [*frame.columns, "confidence", "class", "name"]
        ]
