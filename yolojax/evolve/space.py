"""What an evolution tries: the hyperparameters that may change, how far, and the first generations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from yolojax.hyperparameters import Hyperparameters

FREEZE = "freeze"
BEGINNING = 10  # generations before the estimator decides
_SHARE, _SPREAD = 0.8, 0.2  # share of the keys that a change concerns, and its standard deviation
# Where YOLOv5 looks for each key, smallest and largest value; those that it does not evolve either (iou_t, fl_gamma, perspective, fliplr) stay as they are.
RANGES = {
    "lr0": (1e-5, 0.1),
    "lrf": (0.01, 1.0),
    "momentum": (0.6, 0.98),
    "weight_decay": (0.0, 0.001),
    "warmup_epochs": (0.0, 5.0),
    "warmup_momentum": (0.0, 0.95),
    "warmup_bias_lr": (0.0, 0.2),
    "box": (0.02, 0.2),
    "cls": (0.2, 4.0),
    "cls_pw": (0.5, 2.0),
    "obj": (0.2, 4.0),
    "obj_pw": (0.5, 2.0),
    "anchor_t": (2.0, 8.0),
    "hsv_h": (0.0, 0.1),
    "hsv_s": (0.0, 0.9),
    "hsv_v": (0.0, 0.9),
    "degrees": (0.0, 45.0),
    "translate": (0.0, 0.9),
    "scale": (0.0, 0.9),
    "shear": (0.0, 10.0),
    "flipud": (0.0, 1.0),
    "mosaic": (0.0, 1.0),
    "mixup": (0.0, 1.0),
    "copy_paste": (0.0, 1.0),
}


def first_generations(base: dict[str, Any], freezes: Sequence[str], seed: int) -> Iterator[dict[str, Any]]:
    """The first generations: the given hyperparameters, then changes of them as YOLOv5 makes them."""
    rng = np.random.default_rng(seed)
    for number in range(BEGINNING):
        changed = (rng.random(len(RANGES)) < _SHARE) & (number > 0)
        gains = np.where(changed, (1 + _SPREAD * rng.standard_normal(len(RANGES))).clip(0.3, 3), 1.0)
        values = {
            key: float(np.clip(base[key] * gain, min(low, base[key]), max(high, base[key])))
            for (key, (low, high)), gain in zip(RANGES.items(), gains, strict=True)
        }
        yield values | ({FREEZE: freezes[number % len(freezes)]} if freezes else {})


def search_space(base: Hyperparameters, freezes: Sequence[str]) -> dict[str, Any]:
    """Distributions by key: YOLOv5's ranges, widened where the first value lies outside."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    space: dict[str, Any] = {
        key: FloatDistribution(min(low, value), max(high, value), log=key == "lr0" and value > 0)
        for key, (low, high) in RANGES.items()
        for value in [getattr(base, key)]
    }
    return space | ({FREEZE: CategoricalDistribution(freezes)} if freezes else {})
