"""Learning rate, momentum and accumulation at every iteration, as YOLOv5 sets them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from yolojax.hyperparameters import Hyperparameters

NOMINAL_BATCH = 64


class Rates(NamedTuple):
    """What the optimizer needs to know at one iteration: scalars, the first three float, ``accumulate`` an integer number of batches per update."""

    learning_rate: Array
    bias_learning_rate: Array
    momentum: Array
    accumulate: Array


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How a run warms up and cools down; an iteration is one batch, counted from 0 over the whole run.

    Attributes:
      epochs: length of the run.
      batches_per_epoch: iterations per epoch.
      batch_size: images per (global) batch.
      initial: learning rate after the warm-up (YOLOv5's ``lr0``).
      final_fraction: last learning rate divided by the first (``lrf``).
      shape: how it falls.
      momentum: after the warm-up.
      warmup_epochs: length of the warm-up, which takes at least 100 iterations.
      warmup_momentum: momentum at its start.
      warmup_bias_rate: learning rate of biases at its start; that of all else is 0.
    """

    epochs: int
    batches_per_epoch: int
    batch_size: int
    initial: float = 0.01
    final_fraction: float = 0.01
    shape: str = "linear"
    momentum: float = 0.937
    warmup_epochs: float = 3.0
    warmup_momentum: float = 0.8
    warmup_bias_rate: float = 0.1

    @classmethod
    def from_hyperparameters(
        cls, hyp: Hyperparameters, *, epochs: int, batches_per_epoch: int, batch_size: int, cosine: bool = False
    ) -> Schedule:
        """The schedule that a hyperparameter file asks for."""
        return cls(
            epochs=epochs,
            batches_per_epoch=batches_per_epoch,
            batch_size=batch_size,
            initial=hyp.lr0,
            final_fraction=hyp.lrf,
            shape="cosine" if cosine else "linear",
            momentum=hyp.momentum,
            warmup_epochs=hyp.warmup_epochs,
            warmup_momentum=hyp.warmup_momentum,
            warmup_bias_rate=hyp.warmup_bias_lr,
        )

    @property
    def warmup(self) -> int:
        """The last iteration of the warm-up."""
        return max(round(self.warmup_epochs * self.batches_per_epoch), 100)

    @property
    def accumulate(self) -> int:
        """Batches per update after the warm-up, which makes updates of about the nominal batch of 64."""
        return max(round(NOMINAL_BATCH / self.batch_size), 1)

    def rates(self, step: Array | int, dtype: DTypeLike = float) -> Rates:
        """The rates at an iteration.

        Args:
          step: int32 scalar, may be traced.
          dtype: of the three float rates.

        Source: ``docs/yolov5.md`` §1.5, §0.3 and §0.4.
        """
        step = jnp.asarray(step)
        epoch = step // self.batches_per_epoch
        warming = step <= self.warmup
        # The original's scheduler runs one epoch late; the warm-up does not, and what it set last holds until its epoch ends.
        lagging = (step > self.warmup) & (epoch > self.warmup // self.batches_per_epoch)
        target = self.initial * self._factor((epoch - lagging).astype(dtype))
        progress = jnp.minimum(step, self.warmup).astype(dtype) / self.warmup
        bias_rate = self.warmup_bias_rate + progress * (target - self.warmup_bias_rate)
        return Rates(
            learning_rate=jnp.where(warming, progress * target, target),
            bias_learning_rate=jnp.where(warming, bias_rate, target),
            momentum=self.warmup_momentum + progress * (self.momentum - self.warmup_momentum),
            accumulate=1 + jnp.searchsorted(self._accumulation_steps(), step, side="right", method="compare_all"),
        )

    def _factor(self, epoch: Array) -> Array:
        if self.shape == "cosine":
            return (1 - jnp.cos(epoch * (math.pi / self.epochs))) / 2 * (self.final_fraction - 1) + 1
        return (1 - epoch / self.epochs) * (1 - self.final_fraction) + self.final_fraction

    def _accumulation_steps(self) -> np.ndarray:
        """The iterations at which one more batch enters an update. Found here in double precision, because rounding decides them."""
        steps = np.arange(self.warmup + 1)
        counts = np.interp(steps, [0, self.warmup], [1, NOMINAL_BATCH / self.batch_size]).round()
        return np.searchsorted(counts, np.arange(2, self.accumulate + 1)).astype(np.int32)
