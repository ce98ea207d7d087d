"""The embedded data set as files: drawn into the cache folder on first use."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import astuple
from pathlib import Path

import cv2

from yolojax.config import from_mapping
from yolojax.data.config import DataConfig
from yolojax.data.shapes.scene import VARIANTS, ShapesSettings, ShapesSplit, draw_scene
from yolojax.errors import UserError
from yolojax.files import complete_folder
from yolojax.runtime import cache_folder

log = logging.getLogger(__name__)

VERSION = 2  # raise it whenever a pixel or a label changes: caches made before are then left alone


def prepare_shapes(config: DataConfig, cache: Path | None = None) -> Path:
    """The folder of the data set that a YAML of format ``shapes`` describes, drawn now if it is not there yet.

    Raises:
      UserError: unknown options, class names other than the variant's, or a cache folder that cannot be written.
    """
    settings = from_mapping(ShapesSettings, config.options, f"{config.file}: options")
    _check(settings)
    if config.names != VARIANTS[settings.variant].classes:
        classes = ", ".join(VARIANTS[settings.variant].classes)
        raise UserError(f"{config.file}: key 'names': '{settings.variant}' has {classes}, in this order")
    return ensure_shapes(settings, cache)


def ensure_shapes(settings: ShapesSettings, cache: Path | None = None) -> Path:
    """Draw the data set into the cache folder unless it is there.

    Args:
      settings: what to draw.
      cache: where to keep it; ``$YOLOJAX_CACHE`` or ``~/.cache/yolojax`` when None.

    Returns:
      A folder in YOLO layout: ``images/train``, ``images/val`` (PNG), ``labels/train``, ``labels/val`` (``class x y w h`` lines). Its name carries
      a fingerprint of the settings. It appears complete or not at all, also when several processes ask at once.

    Raises:
      UserError: impossible settings, or a folder that cannot be written.
    """
    _check(settings)
    cache = cache or cache_folder()
    fingerprint = hashlib.sha256(repr((VERSION, astuple(settings))).encode()).hexdigest()[:10]
    folder = cache / f"{settings.variant}-{fingerprint}"
    if folder.is_dir():
        return folder
    log.info("drawing %d images of %s into %s", settings.train + settings.val, settings.variant, folder)
    try:
        with complete_folder(folder) as unfinished:
            _write_split(unfinished, settings, "train", settings.train)
            _write_split(unfinished, settings, "val", settings.val)
    except OSError as error:
        if not folder.is_dir():  # otherwise another process was faster, and drew the same
            reason = f"'{settings.variant}' cannot be drawn here ({error.strerror})"
            raise UserError(f"{cache}: {reason}; set YOLOJAX_CACHE to a folder with space") from error
    return folder


def _check(settings: ShapesSettings) -> None:
    if settings.variant not in VARIANTS:
        raise UserError(f"shapes: variant '{settings.variant}' is unknown; there are {', '.join(VARIANTS)}")
    if min(settings.train, settings.val) < 1:
        raise UserError(f"shapes: at least one image in each split, not train: {settings.train}, val: {settings.val}")
    if not 64 <= settings.size <= 4096:
        raise UserError(f"shapes: size must be 64 to 4096 pixels, not {settings.size}")
    if not 0 <= settings.seed < 2**32:
        raise UserError(f"shapes: seed must be 0 to 4294967295, not {settings.seed}")


def _write_split(root: Path, settings: ShapesSettings, split: ShapesSplit, count: int) -> None:
    images, labels = root / "images" / split, root / "labels" / split
    images.mkdir(parents=True)
    labels.mkdir(parents=True)
    for index in range(count):
        scene = draw_scene(settings, split, index)
        name = f"{index:05d}"
        _, png = cv2.imencode(".png", scene.image[..., ::-1])
        (images / f"{name}.png").write_bytes(png.tobytes())
        rows = [f"{int(label)} " + " ".join(f"{value:.9g}" for value in box) for label, *box in scene.boxes.tolist()]
        (labels / f"{name}.txt").write_text("\n".join(rows) + "\n", encoding="ascii")
