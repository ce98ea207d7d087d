"""Networks as files that run without this package: StableHLO by ``jax.export``, ONNX by ``jax2onnx``.

Both hold the network with BatchNorm folded in, decoding, and if wanted NMS. Beside the arrays they carry what a program needs that reads them: class names,
stride, sizes (a StableHLO file in a ``.json`` beside it, ONNX in its metadata, under the keys of YOLOv5's exports). The third way out, ``.pt``, is in
``convert.writer``.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from yolojax.errors import UserError
from yolojax.evaluation.nms import NmsSettings, suppress_batch
from yolojax.files import write_file, write_json
from yolojax.inference.fuse import apply_fused, fuse
from yolojax.model.convolution import for_any_platform
from yolojax.model.decode import decode
from yolojax.model.images import normalise
from yolojax.model.network import Network
from yolojax.version import __version__
from yolojax.weights.store import Weights

PLATFORMS = ("cpu", "cuda", "tpu")
ONNX_OPSET = 18
NEEDS = {"stablehlo": (), "onnx": ("jax2onnx", "onnx", "onnxruntime"), "torch": ("torch",)}  # packages of each way out

Outputs = tuple[np.ndarray, ...]
ExportedProgram = Callable[[np.ndarray], Outputs]


@dataclass(frozen=True, kw_only=True)
class Form:
    """What an exported network takes and gives.

    Attributes:
      image_size: (height, width) in pixels.
      batch_size: images of a batch; ``None`` is any number.
      dtype: of the computation.
      nms: settings of the NMS that ends it; ``None`` ends with the predictions.
    """

    image_size: tuple[int, int]
    batch_size: int | None = 1
    dtype: Literal["float32", "bfloat16"] = "float32"
    nms: NmsSettings | None = None


def check_installed(form: str) -> None:
    """Raise a UserError if a way out needs a package that is not there."""
    missing = [name for name in NEEDS[form] if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"--include {form}: needs {' and '.join(missing)}: pip install 'yolojax[{form}]'")


def write_stablehlo(path: Path, weights: Weights, form: Form) -> None:
    """Write a serialised ``jax.export`` program for CPU, CUDA and TPU, and what is known about it in ``PATH.json``.

    ``jax.export.deserialize(path.read_bytes()).call(images)`` runs it, with JAX alone: images ``(B, H, W, 3)`` uint8 RGB to predictions
    ``(B, N, 5 + classes)`` as in ``model.decode``, or with NMS to detections and their counts as in ``suppress_batch``.

    Args:
      path: of the file.
      weights: the network.
      form: what it takes and gives.

    Raises:
      UserError: the file cannot be written.
    """
    from jax import export

    run = _program(weights, form)

    def program(images: Array) -> Any:
        return run(normalise(images))

    batch = form.batch_size or export.symbolic_shape("batch")[0]
    argument = jax.ShapeDtypeStruct((batch, *form.image_size, 3), jnp.uint8)
    exported = export.export(jax.jit(program), platforms=PLATFORMS)(argument)
    write_file(path, bytes(exported.serialize()))
    takes = "uint8 RGB (batch, height, width, 3)"
    write_json(path.with_name(f"{path.name}.json"), {**_facts(weights, form), "input": takes, "platforms": PLATFORMS})


def write_onnx(path: Path, weights: Weights, form: Form, opset: int = ONNX_OPSET) -> None:
    """Write an ONNX model with the input, output and metadata of YOLOv5's own exports, so that its readers read it.

    ``images`` ``(B, 3, H, W)`` float32 RGB from 0 to 1 to ``output0`` ``(B, N, 5 + classes)`` as in ``model.decode``.

    Args:
      path: of the file.
      weights: the network.
      form: what it takes and gives; float32, without NMS.
      opset: version of ONNX's operators.

    Raises:
      UserError: a package is missing, the form cannot be had, or the file cannot be written.
    """
    check_onnx_form(form)
    check_installed("onnx")
    import jax2onnx
    import onnx

    run = _program(weights, form)

    def program(images: Array) -> Array:
        return run(images.transpose(0, 2, 3, 1))

    shape: tuple[int | str, ...] = (form.batch_size or "batch", 3, *form.image_size)
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)  # warns of shapes that depend on the batch
    with for_any_platform(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: Any = jax2onnx.to_onnx(
            program,
            [shape],
            model_name=weights.spec.name,
            opset=opset,
            input_names=["images"],
            output_names=["output0"],
        )
    facts = _facts(weights, form)
    facts["names"] = dict(enumerate(weights.names))
    onnx.helper.set_model_props(model, {key: str(value) for key, value in facts.items()})
    write_file(path, model.SerializeToString())


def check_onnx_form(form: Form) -> None:
    """Raise a UserError if ONNX cannot hold this form."""
    if form.nms is not None:
        raise UserError(
            "--nms: ONNX gets none, because jax2onnx has no form for its loop; put ONNX's NonMaxSuppression after it, or export StableHLO"
        )
    if form.dtype != "float32":
        raise UserError(f"--dtype {form.dtype}: ONNX Runtime has no {form.dtype} convolution on a CPU; export float32")


def read_stablehlo(path: Path) -> ExportedProgram:
    """A StableHLO file as a function of images ``(B, H, W, 3)`` uint8 RGB; compiled once per batch size."""
    from jax import export

    call = jax.jit(export.deserialize(bytearray(path.read_bytes())).call)
    return lambda images: tuple(map(np.asarray, jax.tree.leaves(call(images))))


def read_onnx(path: Path) -> ExportedProgram:
    """An ONNX file in ONNX Runtime, on the CPU, as a function of images ``(B, H, W, 3)`` uint8 RGB."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(images: np.ndarray) -> Outputs:
        planes = np.ascontiguousarray(np.asarray(images).transpose(0, 3, 1, 2), np.float32) / np.float32(255)
        return tuple(session.run(None, {"images": planes}))

    return run


def largest_differences(outputs: Outputs, expected: Outputs) -> tuple[float, float]:
    """The largest difference of any box coordinate, in pixels, and of any score.

    Args:
      outputs: predictions, or detections and their counts.
      expected: the same, of the network that was exported.

    Returns:
      Infinity where the shapes or counts differ.
    """
    same_counts = all(np.array_equal(a, b) for a, b in zip(outputs[1:], expected[1:], strict=True))
    if outputs[0].shape != expected[0].shape or not same_counts:
        return float("inf"), float("inf")
    difference = np.abs(outputs[0].astype(np.float64) - expected[0])
    return float(difference[..., :4].max()), float(difference[..., 4:].max())


def _program(weights: Weights, form: Form) -> Callable[[Array], Any]:
    """From images ``(B, H, W, 3)`` float, 0 to 1, to what the form wants; the arrays are part of the program."""
    dtype = jnp.dtype(form.dtype)
    network = Network(weights.spec, dtype=dtype)
    # Kernels are cast where they are used: as constants they may as well be stored in that dtype.
    variables = jax.tree.map(lambda leaf: leaf.astype(dtype) if leaf.ndim == 4 else leaf, fuse(weights.variables))

    def run(images: Array) -> Any:
        predictions = decode(apply_fused(network, variables, images), weights.spec)
        return predictions if form.nms is None else suppress_batch(predictions, form.nms)

    return run


def _facts(weights: Weights, form: Form) -> dict[str, Any]:
    """What a program must know that reads the file."""
    facts: dict[str, Any] = {
        "names": list(weights.names),
        "stride": max(weights.spec.strides),
        "image_size": list(form.image_size),
        "batch": form.batch_size or "any",
        "dtype": form.dtype,
        "output": "predictions (batch, n, 5 + classes): x y width height in pixels, objectness, class probabilities",
        "architecture": weights.spec.name,
        "source": json.dumps(dict(weights.source)),
        "licence": weights.source.get("licence", "unknown"),
        "made_by": f"yolojax {__version__}, jax {jax.__version__}",
    }
    if form.nms is not None:
        facts["output"] = (
            "detections (batch, m, 6): x1 y1 x2 y2 in pixels, score, class; and how many of them count (batch,)"
        )
        facts |= {"confidence": form.nms.confidence, "iou": form.nms.iou, "agnostic": form.nms.agnostic}
    return facts
