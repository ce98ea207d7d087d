"""Validation of a network on batches while it trains: predict, suppress, match, and the loss beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from jax.stages import Wrapped
from jax.typing import DTypeLike

from yolojax.data.batches import ValidationBatches
from yolojax.evaluation.evaluator import Evaluation, evaluate
from yolojax.evaluation.nms import NmsSettings
from yolojax.features.shared import Shared
from yolojax.features.validation import FeatureValidation
from yolojax.hosts.agreement import gathered
from yolojax.mesh import place_everywhere, place_images, put_batch, split
from yolojax.model.decode import decode
from yolojax.model.images import normalise
from yolojax.model.network import Network, Variables
from yolojax.model.spec import ModelSpec
from yolojax.training.loss import LossSettings, compute_loss

Heads: TypeAlias = tuple[Array, ...]


def validation_batch(batch_size: int, image_size: int, devices: int = 1, on_cpu: bool = False) -> int:
    """Images of a validation batch over all devices: twice those of a training batch, as the original has it.

    On an accelerator no more per device than have the pixels of 128 images of 640 px: with most layers frozen, training batches may be so large that twice
    as many images do not fit, and larger ones are no quicker.
    """
    most = 2 * batch_size if on_cpu else max(128 * 640**2 // image_size**2, 1) * devices
    return min(2 * batch_size, most)


def fitting_validation_batch(spec: ModelSpec, batch_size: int, image_size: int, devices: Sequence[jax.Device]) -> int:
    """Images of a validation batch: ``validation_batch``, or what half of the memory of the devices holds.

    An image is counted with the outputs of all layers at once in float32, which is more than prediction and suppression need.
    """
    on_cpu = devices[0].platform == "cpu"
    wanted = validation_batch(batch_size, image_size, len(devices), on_cpu=on_cpu)
    local = next(device for device in devices if device.process_index == jax.process_index())
    limit = min(map(float, gathered("memory", str((local.memory_stats() or {}).get("bytes_limit", 0)))))
    if limit == 0:
        return wanted
    values = sum(layer.channels / layer.reduction**2 for layer in spec.resolved)
    image_bytes = (image_size + spec.stride) ** 2 * values * 4
    return min(wanted, max(int(limit / 2 / image_bytes), 1) * len(devices))


def make_predict(spec: ModelSpec, mesh: Mesh, dtype: DTypeLike | None = None, start: int = 0) -> Wrapped:
    """The jitted function from variables and images to predictions and heads, as ``evaluation.evaluator.evaluate`` takes it; from a layer on, of features."""
    network = Network(spec, dtype=dtype, start=start)

    def predict(variables: Variables, inputs: Any) -> tuple[Array, Heads]:
        heads = cast(Heads, network.apply(variables, inputs if start else normalise(inputs)))
        return decode(heads, spec), heads

    # What comes out stays where it is made: each process suppresses and matches its own images.
    return jax.jit(predict, out_shardings=split(mesh))


_any = jax.jit(jnp.any)


class Validator:
    """Validates variables of one architecture; its two programs are compiled once per shape of batch."""

    def __init__(
        self,
        spec: ModelSpec,
        loss: LossSettings,
        names: tuple[str, ...],
        mesh: Mesh,
        dtype: DTypeLike | None = None,
        shared: Shared | None = None,
    ) -> None:
        """Prepare; nothing is compiled yet. The devices of the mesh share every batch, and ``shared`` has programs of runs before this one."""
        shared = shared or Shared()
        self._predict = lambda start: shared.program(
            ("predict", spec, mesh, dtype, start), lambda: make_predict(spec, mesh, dtype, start)
        )
        self._loss = shared.program(
            ("loss", spec, loss),
            lambda: jax.jit(lambda heads, boxes, mask, valid: compute_loss(heads, boxes, mask, spec, loss, valid)[1]),
        )
        self._shares = jax.process_count() > 1
        self._names = names
        self._nms = NmsSettings(parts=spec.prediction_parts)
        self._mesh = mesh

    def __call__(
        self, variables: Variables, batches: ValidationBatches | FeatureValidation, threads: int = 1
    ) -> Evaluation:
        """Evaluate ``{"params": ..., "batch_stats": ...}`` on all batches, which so many threads make; see ``evaluation.evaluator.evaluate``."""
        predict = self._predict(batches.start if isinstance(batches, FeatureValidation) else 0)
        return evaluate(
            partial(predict, place_everywhere(variables, self._mesh)),
            batches.iterate(threads=threads),
            self._names,
            self._nms,
            loss=self._common_loss if self._shares else self._loss,
            place=partial(place_images, mesh=self._mesh),
            shares=self._shares,
        )

    def _common_loss(self, heads: Heads, boxes: np.ndarray, mask: np.ndarray, valid: np.ndarray) -> Mapping[str, Any]:
        """The parts of the loss over what all processes have of a batch; nothing where no image of it is valid."""
        placed = put_batch({"boxes": boxes, "mask": mask, "valid": valid}, self._mesh)
        parts = self._loss(heads, **placed)
        return parts if _any(placed["valid"]) else {}
