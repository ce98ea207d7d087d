"""Validation of a network on batches while it trains: predict, suppress, match, and the loss beside it."""

from __future__ import annotations

from functools import partial
from typing import TypeAlias, cast

import jax
from jax import Array
from jax.sharding import Mesh
from jax.stages import Wrapped
from jax.typing import DTypeLike

from yolojax.data.batches import ValidationBatches
from yolojax.evaluation.evaluator import Evaluation, evaluate
from yolojax.evaluation.nms import NmsSettings
from yolojax.mesh import replicated, split
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


def make_predict(spec: ModelSpec, mesh: Mesh, dtype: DTypeLike | None = None) -> Wrapped:
    """The jitted function from variables and images to predictions and heads, as ``evaluation.evaluator.evaluate`` takes it."""
    network = Network(spec, dtype=dtype)

    def predict(variables: Variables, images: Array) -> tuple[Array, Heads]:
        heads = cast(Heads, network.apply(variables, normalise(images)))
        return decode(heads, spec), heads

    # What comes out is whole on every device, so that every host can read it.
    return jax.jit(predict, out_shardings=replicated(mesh))


class Validator:
    """Validates variables of one architecture; its two programs are compiled once per shape of batch."""

    def __init__(
        self,
        spec: ModelSpec,
        loss: LossSettings,
        names: tuple[str, ...],
        mesh: Mesh,
        dtype: DTypeLike | None = None,
    ) -> None:
        """Prepare; nothing is compiled yet. The devices of the mesh share every batch."""
        self._predict = make_predict(spec, mesh, dtype)
        self._loss = jax.jit(lambda heads, boxes, mask, valid: compute_loss(heads, boxes, mask, spec, loss, valid)[1])
        self._names = names
        self._nms = NmsSettings(parts=spec.prediction_parts)
        self._mesh = mesh

    def __call__(self, variables: Variables, batches: ValidationBatches, threads: int = 1) -> Evaluation:
        """Evaluate ``{"params": ..., "batch_stats": ...}`` on all batches, which so many threads make; see ``evaluation.evaluator.evaluate``."""
        return evaluate(
            partial(self._predict, jax.device_put(variables, replicated(self._mesh))),
            batches.iterate(threads=threads),
            self._names,
            self._nms,
            loss=self._loss,
            place=partial(jax.device_put, device=split(self._mesh)),
        )
