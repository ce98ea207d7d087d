"""What a user can say about a validation: YOLOv5's flags, and ours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from yolojax.errors import UserError
from yolojax.training.settings import flag


@dataclass(frozen=True, kw_only=True)
class ValSettings:
    """The flags of ``yolojax val``, under YOLOv5's names and with its defaults (contract §1.14).

    ``None`` for ``imgsz`` and ``batch_size`` means: the data set's own ``defaults``, else YOLOv5's (640, 32).
    """

    weights: tuple[str, ...] | None = flag(
        None,
        "a .pt, a weights directory, a run folder or a name; several make an ensemble; default: the embedded yolov5n",
        nargs="+",
    )
    data: str = flag("shapes", "data set YAML or name, or tfds:NAME; default: the embedded shapes")
    data_root: str | None = flag(None, "folder of the data set, instead of the YAML's path")
    batch_size: int | None = flag(
        None, "images per batch over all devices; default: the data set's, else 32", "--batch-size", "--batch"
    )
    imgsz: int | None = flag(
        None, "image side in pixels; default: the data set's, else 640", "--imgsz", "--img", "--img-size"
    )
    conf_thres: float = flag(0.001, "a detection's score must exceed it")
    iou_thres: float = flag(0.6, "a detection is dropped if its IoU with a better one exceeds it")
    max_det: int = flag(300, "detections of an image at most")
    task: Literal["val", "train", "test", "speed", "study"] = flag(
        "val",
        "val, train, test = that split; speed = times at confidence .25, IoU .45, square images; "
        "study = the val split at 256 to 1536 pixels",
    )
    device: str = flag("", "cpu, gpu, tpu, or device numbers as in '0,1'; default: all of the best platform")
    workers: int = flag(8, "data loading processes at most; 0 loads in this process")
    single_cls: bool = flag(False, "treat all classes as one")
    augment: bool = flag(False, "test-time augmentation: predict at three sizes, once mirrored")
    verbose: bool = flag(False, "the table per class also for 50 classes and more")
    save_txt: bool = flag(False, "write detections as labels/*.txt: class x y w h, as fractions of the image")
    save_conf: bool = flag(False, "with --save-txt: the score at the end of each line")
    save_json: bool = flag(False, "write detections as COCO results and measure COCO's own AP")
    annotations: str | None = flag(
        None, "with --save-json: COCO annotations to measure against; default: the labels of the data set"
    )
    dtype: Literal["float32", "bfloat16"] = flag("float32", "dtype of the computation")
    half: bool = flag(False, "the same as --dtype bfloat16")
    noplots: bool = flag(False, "write no pictures")
    project: str = flag("runs/val", "folder of the runs")
    name: str = flag("exp", "name of the run; exp, exp2, … when taken")
    exist_ok: bool = flag(False, "use the run folder even if it exists")

    def __post_init__(self) -> None:
        """Refuse values that no run can have."""
        for name, least in {"batch_size": 1, "imgsz": 32, "max_det": 1, "workers": 0}.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"--{name.replace('_', '-')} {value}: must be at least {least}")
        for name in ("conf_thres", "iou_thres"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be from 0 to 1")
