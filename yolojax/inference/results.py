"""Detections: what a network finds in images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageShow

from yolojax.data.sample import Pixels
from yolojax.drawing import class_colour, draw_boxes
from yolojax.errors import UserError
from yolojax.files import new_run_folder
from yolojax.inference.window import has_display
from yolojax.inference.writing import class_folder, crop_box, unique_stems, write_image

# Names that other libraries have for what is here under another one.
_OF_DETECTIONS = {
    "xyxy": "boxes",
    "conf": "scores",
    "confidence": "scores",
    "cls": "classes",
    "class_id": "classes",
    "render": "plot()",
    "pandas": "to_pandas()",
    "print": "print() with this object as the argument",
    "crop": "crops()",
}
_OF_RESULTS = {
    "xyxy": "[0].boxes, [0].scores and [0].classes",
    "xyxyn": "[0].boxes, divided by the width and height of [0].image",
    "xywh": "[0].boxes, which are x1 y1 x2 y2 in pixels",
    "xywhn": "[0].boxes, which are x1 y1 x2 y2 in pixels",
    "render": "[0].plot()",
    "tolist": "the object itself: it is a list",
    "ims": "[0].image",
    "imgs": "[0].image",
    "files": "[0].path",
    "pred": "[0].boxes, [0].scores and [0].classes",
    "s": "[0].image.shape",
    "n": "len()",
    "t": "the detector's stopwatch.per_image()",
    "times": "the detector's stopwatch.per_image()",
}
_FOLDER = "runs/detect/exp"
_SHOWN = 3  # images that a short representation names


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

    >>> detections = Detections(
    ...     image=np.zeros((40, 60, 3), np.uint8), boxes=np.array([[5, 5, 25, 30], [30, 8, 50, 28]], np.float32),
    ...     scores=np.array([0.9, 0.6], np.float32), classes=np.array([1, 1]), names=("gear", "drop"), path="a.png",
    ... )
    >>> len(detections), detections.labels
    (2, ['drop', 'drop'])
    >>> detections
    <Detections in a.png: 60x40 px, 2× drop>
    >>> detections.plot().shape
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

    def __repr__(self) -> str:
        return f"<Detections in {self}>"

    def __getattr__(self, name: str) -> Any:
        """Say what a name of another library is called here."""
        raise AttributeError(unknown_name(self, name, _OF_DETECTIONS.get(name)))

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

    def to_supervision(self) -> Any:
        """The same as ``supervision.Detections``, with the class names under ``data["class_name"]``.

        Raises:
          UserError: the package is not installed.
        """
        try:
            import supervision
        except ImportError as error:
            raise UserError("to_supervision needs supervision: pip install supervision") from error
        return supervision.Detections(
            xyxy=self.boxes.astype(np.float32),
            confidence=self.scores.astype(np.float32),
            class_id=self.classes.astype(int),
            data={"class_name": np.array(self.labels, dtype=str)},
        )

    def to_fiftyone(self) -> Any:
        """The same as ``fiftyone.Detections``, the value of a field of a FiftyOne sample.

        Raises:
          UserError: the package is not installed.
        """
        try:
            import fiftyone
        except ImportError as error:
            raise UserError("to_fiftyone needs fiftyone: pip install fiftyone") from error
        height, width = self.image.shape[:2]
        corners = self.boxes.astype(float) / [width, height, width, height]
        boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1)  # left, top, width, height
        return fiftyone.Detections(
            detections=[
                fiftyone.Detection(label=label, bounding_box=box, confidence=float(score))
                for label, box, score in zip(self.labels, boxes.tolist(), self.scores, strict=True)
            ]
        )

    def crops(self) -> list[Pixels]:
        """What is in each box, with a margin of some pixels; uint8 RGB."""
        return [crop_box(self.image, box) for box in self.boxes]

    def save(self, path: str | Path, *, labels: bool = True) -> None:
        """Write the annotated image; the ending of ``path`` chooses the format, ``labels=False`` draws boxes only.

        Raises:
          UserError: it cannot be written.
        """
        write_image(Path(path), self.plot(hide_labels=not labels))

    def show(self, *, labels: bool = True) -> None:
        """Open the annotated image in the viewer of the system; ``labels=False`` draws boxes only.

        Raises:
          UserError: there is no display, or no viewer.
        """
        if not has_display() or not ImageShow.show(Image.fromarray(self.plot(hide_labels=not labels))):
            raise UserError("show: there is no display or no viewer here; save(FILE) writes the image, plot() gives it")


@dataclass(frozen=True)
class Tables:
    """Data frames as torch.hub's YOLOv5 gives them: ``xyxy`` has one per image."""

    xyxy: list[Any]

    def __getattr__(self, name: str) -> Any:
        """Say what there is."""
        raise AttributeError(unknown_name(self, name, "xyxy"))


class Results(list[Detections]):
    """What a detector found in images: a list with one ``Detections`` per image, in their order.

    It has the methods that torch.hub's YOLOv5 has; whoever needs one image's takes ``results[0]``.
    """

    def __repr__(self) -> str:
        more = f", … {len(self) - _SHOWN} more" if len(self) > _SHOWN else ""
        return f"[{', '.join(map(repr, self[:_SHOWN]))}{more}]"

    def __str__(self) -> str:
        return "\n".join(map(str, self))

    def __getattr__(self, name: str) -> Any:
        """Say what a name of another library is called here."""
        of_one = f"[0].{name}" if name in Detections.__dict__ or name in Detections.__dataclass_fields__ else None
        raise AttributeError(unknown_name(self, name, _OF_RESULTS.get(name, of_one)))

    def print(self) -> None:
        """Print a line per image."""
        print(self)

    def pandas(self) -> Tables:
        """Tables with YOLOv5's columns: ``results.pandas().xyxy[0]``.

        Raises:
          UserError: pandas is not installed.
        """
        return Tables([detections.to_pandas() for detections in self])

    def show(self, *, labels: bool = True) -> None:
        """Open every annotated image in the viewer of the system; ``labels=False`` draws boxes only.

        Raises:
          UserError: there is no display, or no viewer.
        """
        for detections in self:
            detections.show(labels=labels)

    def save(self, save_dir: str | Path = _FOLDER, exist_ok: bool = False, *, labels: bool = True) -> Path:
        """Write the annotated images as JPEG files.

        Args:
          save_dir: folder to make; ``exp2``, ``exp3``, … where it is taken.
          exist_ok: use the folder even if it exists.
          labels: with the names and scores; else boxes only.

        Returns:
          The folder.

        Raises:
          UserError: something cannot be written.
        """
        folder = new_run_folder(Path(save_dir).parent, Path(save_dir).name, exist_ok)
        for stem, detections in self._named():
            detections.save(folder / f"{stem}.jpg", labels=labels)
        return folder

    def crop(self, save_dir: str | Path = _FOLDER, exist_ok: bool = False, *, save: bool = True) -> Path:
        """Write what is in each box as ``crops/CLASS/NAME_NUMBER.jpg``; ``results[0].crops()`` gives it as arrays.

        Arguments, result and errors are those of ``save``; with ``save=False``, which torch.hub's has, nothing would be written: an error.
        """
        if not save:
            raise UserError("crop(save=False): [0].crops() gives what is in each box of an image as arrays")
        folder = new_run_folder(Path(save_dir).parent, Path(save_dir).name, exist_ok)
        for stem, detections in self._named():
            for number, (label, pixels) in enumerate(zip(detections.labels, detections.crops(), strict=True), 1):
                write_image(folder / "crops" / class_folder(label) / f"{stem}_{number}.jpg", pixels)
        return folder

    def _named(self) -> Iterator[tuple[str, Detections]]:
        """Every image with a file name of its own, without the ending."""
        stems = unique_stems([Path(item.path).stem or f"image{index}" for index, item in enumerate(self)])
        return zip(stems, self, strict=True)


def unknown_name(thing: Any, name: str, instead: str | None) -> str:
    """What to tell who asks a thing for a name that it does not have; ``instead`` is what has it here."""
    hint = f"; here it is {instead}" if instead else ""
    return f"'{type(thing).__name__}' has no attribute '{name}'{hint}"
