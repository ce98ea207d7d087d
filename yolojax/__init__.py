"""YOLOv5 in JAX and Flax, for transfer learning by freezing layers and for research on freezing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from yolojax.runtime import leave_out_absent_accelerators
from yolojax.version import __version__ as __version__

if TYPE_CHECKING:
    from pathlib import Path

    from yolojax.inference.detector import Detector

leave_out_absent_accelerators()  # commands, programs that use yolojax, and data workers pass here before JAX starts


def load(
    weights: str | Path | Sequence[str | Path] | None = None,
    *,
    image_size: int | tuple[int, int] | None = None,
    confidence: float = 0.25,
    iou: float = 0.45,
    max_detections: int = 1000,
    classes: Sequence[int | str] | None = None,
    agnostic: bool = False,
    augment: bool = False,
    dtype: str = "float32",
    batch_size: int = 1,
    device: str = "",
) -> Detector:
    """Load a network to detect with.

    JAX and a device are started here, not when the package is imported.

    Args:
      weights: a ``.pt``, a weights directory, a run folder or a name; several make an ensemble; by default the embedded yolov5n.
      image_size: pixels, or (height, width), that images are scaled into; by default what the weights were trained at where they tell, else 640.
      confidence: a score must exceed it.
      iou: a detection is dropped if its IoU with a better one exceeds this.
      max_detections: of an image.
      classes: indices or names; by default all.
      agnostic: boxes of different classes suppress each other.
      augment: test-time augmentation: predict at three sizes, once mirrored.
      dtype: of the computation, ``float32`` or ``bfloat16``.
      batch_size: images that are computed at once; more than one pays on GPU and TPU.
      device: ``cpu``, ``gpu``, ``tpu`` or a number.

    Returns:
      A function from an image, or a list of them, to what is in them; see ``Detector.__call__`` and ``Detections``.

    Raises:
      UserError: there are no such weights, classes or devices.

    >>> import yolojax
    >>> from yolojax.data.examples import example_images
    >>> detector = yolojax.load(confidence=0.1)
    >>> detector.names[:3]
    ('gear', 'trapezoid', 'drop')
    >>> image = example_images(detector.names)[0]
    >>> image.shape, image.dtype
    ((640, 640, 3), dtype('uint8'))
    >>> [found] = detector(image)
    >>> found.boxes.shape == (len(found), 4) and set(found.labels) <= set(found.names)
    True
    >>> found.plot().shape
    (640, 640, 3)
    >>> [len(found.scores) for found in detector([image, image])] == [len(found), len(found)]
    True
    """
    from pathlib import Path

    from yolojax.inference.detector import make_detector
    from yolojax.inference.settings import InferenceSettings

    sources = None if weights is None else [weights] if isinstance(weights, str | Path) else weights
    sides = (image_size,) if isinstance(image_size, int) else image_size
    return make_detector(
        InferenceSettings(
            weights=None if sources is None else tuple(map(str, sources)),
            imgsz=sides,
            conf_thres=confidence,
            iou_thres=iou,
            max_det=max_detections,
            classes=None if classes is None else tuple(map(str, classes)),
            agnostic_nms=agnostic,
            augment=augment,
            dtype=dtype,  # type: ignore[arg-type]
            batch_size=batch_size,
            device=device,
        )
    )
