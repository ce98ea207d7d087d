"""One network run in several ways on one data set: what ``yolojax bench`` measures.

As in the original's benchmarks, all ways see square images of one size, because an exported program takes no other; ``--rect`` gives them the batches of
``yolojax val``, which must then be of one shape.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from yolojax.errors import UserError
from yolojax.evaluation.evaluator import Program
from yolojax.inference.export import Form, check_installed, read_onnx, read_stablehlo, write_onnx, write_stablehlo
from yolojax.inference.fuse import fuse
from yolojax.inference.predictor import choose_classes, make_predict
from yolojax.inference.settings import BenchSettings, ValSettings
from yolojax.inference.validation import Validation, prepare_validation
from yolojax.model.decode import decode
from yolojax.model.images import normalise
from yolojax.model.network import Network
from yolojax.runtime import select_devices
from yolojax.scores import SCORES, known_scores
from yolojax.weights.store import Weights


def prepare_benchmark(settings: BenchSettings) -> Validation:
    """Read and check everything, and start one device.

    Raises:
      UserError: something does not fit.
    """
    validation = prepare_validation(
        ValSettings(
            weights=None if settings.weights is None else (settings.weights,),
            delta=settings.delta,
            data=settings.data,
            data_root=settings.data_root,
            imgsz=settings.imgsz,
            batch_size=settings.batch_size,
            workers=settings.workers,
        ),
        select_devices(settings.device)[:1],
    )
    return dataclasses.replace(validation, rectangular=settings.rect)


def measure(validation: Validation, ways: tuple[str, ...], folder: Path) -> Iterator[dict[str, Any]]:
    """Measure one way after the other.

    Args:
      validation: of ``prepare_benchmark``.
      ways: of ``settings.WAYS``.
      folder: for exported files.

    Yields:
      ``way size_mb precision recall map50 map50_95 inference_ms``; for a way that cannot be run ``way problem``. Scores are None where there is
      no box to find.
    """
    for way in ways:
        try:
            predict, size = _make(way, validation, folder)
        except UserError as error:
            yield {"way": way, "problem": str(error).removeprefix(f"--include {way}: ")}
            continue
        evaluation = validation.run(predict=_of_classes(predict, validation.classes))
        figures = known_scores(evaluation.figures())
        yield {
            "way": way,
            "size_mb": size / 1e6,
            **{name: figures[name] for name in SCORES},
            "inference_ms": evaluation.speed_ms["inference"],
        }


def _make(way: str, validation: Validation, folder: Path) -> tuple[Program, int]:
    """A way of running the network, and the bytes that its arrays or its file take."""
    weights = validation.weights[0]
    if way in ("float32", "bfloat16"):
        values = sum(leaf.size for leaf in jax.tree.leaves(fuse(weights.variables)))
        dtype = jnp.dtype(way)
        return make_predict(validation.weights, dtype=dtype), values * dtype.itemsize
    if way == "unfused":
        return _unfused(weights), sum(leaf.nbytes for leaf in jax.tree.leaves(weights.variables))
    check_installed(way)
    shapes = set(validation.batches().shapes)
    if len(shapes) > 1:
        raise UserError(f"--rect: a file takes images of one size only, and these get {len(shapes)} different ones")
    form = Form(image_size=shapes.pop(), batch_size=validation.batch_size)
    path = folder / f"network.{way}"
    if way == "onnx":
        write_onnx(path, weights, form)
        run = read_onnx(path)
    else:
        write_stablehlo(path, weights, form)
        run = read_stablehlo(path)
    return lambda images: (run(images)[0], ()), path.stat().st_size


def _of_classes(predict: Program, classes: tuple[int, ...] | None) -> Program:
    """A program whose predictions are of the classes that the data set names, which may be some of those of a joined network."""

    def run(images: Any) -> tuple[Any, Any]:
        predictions, heads = predict(images)
        return choose_classes(predictions, classes), heads

    return run


def _unfused(weights: Weights) -> Program:
    network, variables = Network(weights.spec), jax.device_put(weights.variables)

    @jax.jit
    def run(variables: Any, images: Array) -> tuple[Array, tuple[Array, ...]]:
        heads: Any = network.apply(variables, normalise(images))
        return decode(heads, weights.spec), heads

    return lambda images: run(variables, images)
