"""Settings of ``yolojax plan``; light to import."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from yolojax.errors import UserError
from yolojax.flags import MOST_PIXELS, at_least, at_most, flag


@dataclass(frozen=True, kw_only=True)
class PlanSettings:
    """The flags of ``yolojax plan``."""

    weights: str | None = flag(
        None, "weights: a .pt, a weights directory, a run folder or a name; default: the embedded yolov5n"
    )
    cfg: str = flag("", "model YAML (yolov5m, path); default: the architecture of the weights")
    nc: int | None = flag(None, "number of classes; default: that of the weights or YAML")
    freeze: tuple[str, ...] = flag(
        ("0", "10", "24"),
        "layers to freeze, each word a row by itself: 10 = layers 0 to 9; '[0, 2]'; backbone; a strategy's name or file",
        nargs="+",
    )
    target: tuple[str, ...] = flag(
        ("cpu",),
        "devices: cpu, gpu, tpu of this machine; or absent ones: cuda:h100, cuda:a100, cuda:t4, tpu:v4, tpu:v5e",
        nargs="+",
    )
    batch_size: int = flag(16, "images per step over all devices", "--batch-size", "--batch")
    imgsz: int = flag(640, "image side in pixels", "--imgsz", "--img", "--img-size")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = flag(
        "auto", "dtype of the computation; parameters stay float32; auto: what yolojax train takes on the target"
    )
    boxes: int = flag(64, "rows of the box array per image, labelled or not")
    frozen_bn: Literal["fixed", "track"] = flag(
        "fixed",
        "BatchNorm of frozen layers: fixed = running statistics used and kept; track = batch statistics, as YOLOv5 does",
    )
    optimizer: Literal["SGD", "Adam", "AdamW"] = flag("SGD", "optimizer")
    remat: bool = flag(
        False, "as of yolojax train: keep fewer arrays for the backward pass, and compute them again there"
    )
    images: int | None = flag(
        None, "training images, to say what --cache device and --cache features take for them; default: not said"
    )
    epochs: int = flag(100, "epochs of the run, for strategies in phases")
    phases: bool = flag(False, "show a row for every phase of a strategy, not the first one alone")
    quick: bool = flag(False, "do not look for the largest batch that fits, which compiles two or three times more")

    def __post_init__(self) -> None:
        """Refuse values that no step can have."""
        at_least(self, nc=1, batch_size=1, imgsz=32, boxes=1, epochs=1, images=1)
        at_most(self, imgsz=MOST_PIXELS)
        if self.weights == "" and not self.cfg:
            raise UserError("--weights '': names no network; --cfg yolov5m plans one without weights")
