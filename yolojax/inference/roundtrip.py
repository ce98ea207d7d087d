"""An export and its proof: the file is written, read back, run, and compared with the network that it came from."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import cv2
import jax
import numpy as np

from yolojax.data.examples import example_images
from yolojax.data.sample import Pixels
from yolojax.data.shapes.scene import VARIANTS
from yolojax.evaluation.nms import suppress_batch
from yolojax.inference.export import (
    Form,
    Outputs,
    largest_differences,
    read_onnx,
    read_stablehlo,
    write_onnx,
    write_stablehlo,
)
from yolojax.inference.predictor import make_predict
from yolojax.weights.store import Weights

# How far a file may be from its network before the check fails.
MOST_PIXELS, MOST_SCORE = 0.1, 0.001


def export_and_check(name: str, stem: Path, weights: Weights, form: Form, opset: int) -> dict[str, Any]:
    """Write one file, run it on images painted for it, and compare.

    Args:
      name: of the format: ``stablehlo``, ``onnx`` or ``torch``.
      stem: of the file, without its ending.
      weights: the network.
      form: what the file takes and gives.
      opset: version of ONNX's operators.

    Returns:
      ``format file size_mb box_difference_px score_difference compared ok``; a difference is ``None`` where nothing can be compared.

    Raises:
      UserError: the file cannot be written.
    """
    images = _images(form)
    expected = _run(weights, form, images)
    if name == "torch":
        from convert.checkpoint import read_checkpoint
        from convert.writer import write_checkpoint

        path = stem.with_name(f"{stem.name}.pt")
        write_checkpoint(path, weights)
        outputs = _run(read_checkpoint(path), form, images)
    elif name == "onnx":
        path = stem.with_name(f"{stem.name}.onnx")
        write_onnx(path, weights, form, opset)
        outputs = read_onnx(path)(images)
    else:
        path = stem.with_name(f"{stem.name}.stablehlo")
        write_stablehlo(path, weights, form)
        outputs = read_stablehlo(path)(images)
    pixels, score = largest_differences(outputs, expected)
    return {
        "format": name,
        "file": path.name,
        "size_mb": path.stat().st_size / 1e6,
        "box_difference_px": pixels if math.isfinite(pixels) else None,
        "score_difference": score if math.isfinite(score) else None,
        "compared": int(np.sum(expected[1])) if form.nms else expected[0].shape[0] * expected[0].shape[1],
        "ok": pixels <= MOST_PIXELS and score <= MOST_SCORE,
    }


def _images(form: Form) -> Pixels:
    """A batch of images of the size that the network takes."""
    size = form.image_size[::-1]
    examples = [cv2.resize(image, size) for image in example_images(VARIANTS["shapes-pretraining"].classes)]
    return np.stack([examples[index % len(examples)] for index in range(form.batch_size or len(examples))]).astype(
        np.uint8
    )


def _run(weights: Weights, form: Form, images: Pixels) -> Outputs:
    """What the network itself gives, in the form of the export."""
    predictions, _ = make_predict([weights], dtype=jax.numpy.dtype(form.dtype))(images)
    if form.nms is None:
        return (np.asarray(predictions),)
    return tuple(map(np.asarray, jax.jit(suppress_batch, static_argnums=1)(predictions, form.nms)))
