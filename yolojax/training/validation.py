"""Validation of a network on batches: predict, suppress, match, and the loss beside it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias, cast

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from yolojax.data.pipeline import ValidationBatches
from yolojax.evaluation.evaluator import Evaluation, evaluate
from yolojax.evaluation.nms import NmsSettings
from yolojax.model.decode import decode
from yolojax.model.network import Network, Variables
from yolojax.model.spec import ModelSpec
from yolojax.training.loss import LossSettings, compute_loss

Heads: TypeAlias = tuple[Array, ...]


def make_predict(spec: ModelSpec, dtype: DTypeLike | None = None) -> Callable[[Variables, Array], tuple[Array, Heads]]:
    """A jitted function ``(variables, images) -> (predictions, heads)``.

    ``images`` is uint8 ``(B, H, W, 3)`` RGB; predictions are ``(B, N, 5 + classes)`` as in ``model.decode``, heads as the network gives them.
    """
    network = Network(spec, dtype=dtype)

    @jax.jit
    def predict(variables: Variables, images: Array) -> tuple[Array, Heads]:
        heads = cast(Heads, network.apply(variables, images.astype(jnp.float32) / 255))
        return decode(heads, spec), heads

    return predict


class Validator:
    """Validates variables of one architecture; its two programs are compiled once per shape of batch."""

    def __init__(
        self,
        spec: ModelSpec,
        loss: LossSettings | None,
        names: tuple[str, ...],
        settings: NmsSettings | None = None,
        dtype: DTypeLike | None = None,
    ) -> None:
        """Prepare; nothing is compiled yet."""
        self._predict = make_predict(spec, dtype)
        self._loss = (
            None
            if loss is None
            else jax.jit(lambda heads, boxes, mask: compute_loss(heads, boxes, mask, spec, loss)[1])
        )
        self._names = names
        self._settings = settings

    def __call__(
        self, variables: Variables, batches: ValidationBatches, workers: int = 0, observe: Any = None
    ) -> Evaluation:
        """Evaluate ``{"params": ..., "batch_stats": ...}`` on all batches; see ``evaluation.evaluator.evaluate``."""
        return evaluate(
            partial(self._predict, variables),
            batches.iterate(workers),
            self._names,
            self._settings,
            loss=self._loss,
            observe=observe,
        )
