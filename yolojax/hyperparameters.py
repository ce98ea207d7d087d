"""YOLOv5's hyperparameter files: learning rates, loss gains, augmentation."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path

from yolojax.config import find_config, from_mapping, read_yaml
from yolojax.errors import UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Hyperparameters:
    """The keys of YOLOv5's hyperparameter files, under YOLOv5's names; ``scratch-low`` is the default.

    Learning rates are per update; ``weight_decay`` is at the nominal batch of 64; loss gains are those for 80 classes, three levels and 640 px.
    Augmentation values are fractions, degrees (``degrees``, ``shear``) or probabilities (the last five).

    Source: ``docs/yolov5.md`` §1.15.
    """

    lr0: float = 0.01
    lrf: float = 0.01
    momentum: float = 0.937
    weight_decay: float = 0.0005
    warmup_epochs: float = 3.0
    warmup_momentum: float = 0.8
    warmup_bias_lr: float = 0.1
    box: float = 0.05
    cls: float = 0.5
    cls_pw: float = 1.0
    obj: float = 1.0
    obj_pw: float = 1.0
    iou_t: float = 0.2
    anchor_t: float = 4.0
    anchors: float | None = None
    fl_gamma: float = 0.0
    hsv_h: float = 0.015
    hsv_s: float = 0.7
    hsv_v: float = 0.4
    degrees: float = 0.0
    translate: float = 0.1
    scale: float = 0.5
    shear: float = 0.0
    perspective: float = 0.0
    flipud: float = 0.0
    fliplr: float = 0.5
    mosaic: float = 1.0
    mixup: float = 0.0
    copy_paste: float = 0.0


# What decides how a training image is drawn and made.
AUGMENTATION = (
    *("hsv_h", "hsv_s", "hsv_v", "degrees", "translate", "scale", "shear", "perspective"),
    *("flipud", "fliplr", "mosaic", "mixup", "copy_paste"),
)


def load_hyperparameters(name: str | Path) -> Hyperparameters:
    """Hyperparameters from a file or a shipped name.

    >>> load_hyperparameters("hyp.finetune.yaml").lr0
    0.0032

    Raises:
      UserError: no such file, an unknown key, a value that is no number or out of its range.
    """
    path = find_config("hyps", name)
    content = read_yaml(path)
    values = from_mapping(Hyperparameters, content, path)
    defaults = {
        key: value for key, value in dataclasses.asdict(values).items() if key not in content and value is not None
    }
    if defaults:
        taken = ", ".join(f"{key} {value:g}" for key, value in defaults.items())
        log.info("%s: what it does not say is as in scratch-low: %s", path.name, taken)
    for key, value in dataclasses.asdict(values).items():
        if value is not None and value < 0:
            raise UserError(f"{path}: key '{key}': {value} is negative")
    for key in ("flipud", "fliplr", "mosaic", "mixup", "copy_paste"):
        if getattr(values, key) > 1:
            raise UserError(f"{path}: key '{key}': {getattr(values, key)} is no probability (0 to 1)")
    if values.anchor_t <= 1:
        raise UserError(f"{path}: key 'anchor_t': {values.anchor_t} must be above 1")
    return values
