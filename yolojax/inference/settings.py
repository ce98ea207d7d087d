"""The settings of validation, detection, export and benchmarks: YOLOv5's flags, and ours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from yolojax.errors import UserError
from yolojax.flags import at_least, flag, fraction

Dtype = Literal["float32", "bfloat16"]
WAYS = ("float32", "unfused", "bfloat16", "stablehlo", "onnx")
EXPORTS = ("stablehlo", "onnx", "torch", "safetensors")
_OTHER_EXPORTS = (
    "torchscript", "openvino", "engine", "coreml", "saved_model", "pb", "tflite", "edgetpu", "tfjs", "paddle", "ncnn",
)  # fmt: skip


class _WithDtype:
    """Settings with ``--dtype`` and its short form ``--half``."""

    dtype: Dtype
    half: bool

    @property
    def computation(self) -> Dtype:
        """Dtype of the computation."""
        return "bfloat16" if self.half else self.dtype


@dataclass(frozen=True, kw_only=True)
class ValSettings(_WithDtype):
    """The flags of ``yolojax val``, under YOLOv5's names and with its defaults (``docs/yolov5.md`` §1.14).

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
    workers: int = flag(8, "threads at most that load images")
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
        at_least(self, batch_size=1, imgsz=32, max_det=1, workers=0)
        fraction(self, "conf_thres", "iou_thres")


@dataclass(frozen=True, kw_only=True)
class InferenceSettings(_WithDtype):
    """What looking at images depends on, under the names of YOLOv5's detect.py and with its defaults.

    Source: ``docs/yolov5.md`` §1.14.
    """

    weights: tuple[str, ...] | None = flag(
        None,
        "a .pt, a weights directory, a run folder or a name; several make an ensemble; default: the embedded yolov5n",
        nargs="+",
    )
    imgsz: tuple[int, ...] | None = flag(
        None,
        "pixels that images are scaled into: a side, or height and width; default: what the weights were trained at where they tell, else 640",
        "--imgsz",
        "--img",
        "--img-size",
        nargs="+",
    )
    conf_thres: float = flag(0.25, "a detection's score must exceed it")
    iou_thres: float = flag(0.45, "a detection is dropped if its IoU with a better one exceeds it")
    max_det: int = flag(1000, "detections of an image at most")
    classes: tuple[str, ...] | None = flag(None, "detect only these: indices or names", nargs="+")
    agnostic_nms: bool = flag(False, "boxes of different classes suppress each other")
    augment: bool = flag(False, "test-time augmentation: predict at three sizes, once mirrored")
    dtype: Literal["float32", "bfloat16"] = flag("float32", "dtype of the computation")
    half: bool = flag(False, "the same as --dtype bfloat16")
    batch_size: int = flag(1, "images computed at once; more pay on GPU and TPU", "--batch-size", "--batch")
    device: str = flag("", "cpu, gpu, tpu or a device number; default: the first of the best platform")

    def __post_init__(self) -> None:
        """Refuse values that no run can have."""
        at_least(self, batch_size=1, max_det=1)
        fraction(self, "conf_thres", "iou_thres")
        _check_sides(self.imgsz)
        if self.dtype not in get_args(Dtype):
            raise UserError(f"--dtype {self.dtype}: choose one of {', '.join(get_args(Dtype))}")


@dataclass(frozen=True, kw_only=True)
class DetectSettings(InferenceSettings):
    """The flags of ``yolojax detect``."""

    source: str | None = flag(
        None,
        "image, video, folder, glob, .txt list of those, camera number or stream address; default: a few drawn pictures, for weights that know them",
    )
    save_txt: bool = flag(False, "write detections as labels/*.txt: class x y w h, as fractions of the image")
    save_conf: bool = flag(False, "with --save-txt: the score at the end of each line")
    save_csv: bool = flag(False, "write all detections into predictions.csv")
    save_crop: bool = flag(False, "write what is in each box as crops/CLASS/*.jpg")
    nosave: bool = flag(False, "write no annotated images and videos")
    view_img: bool = flag(False, "also show annotated images in a window, where there is a display")
    line_thickness: int | None = flag(None, "of boxes, in pixels; default: what suits the size of the image")
    hide_labels: bool = flag(False, "draw boxes without labels")
    hide_conf: bool = flag(False, "draw labels without scores")
    vid_stride: int = flag(1, "look at every N-th frame of a video; the annotated one keeps its duration")
    project: str = flag("runs/detect", "folder of the runs")
    name: str = flag("exp", "name of the run; exp, exp2, … when taken")
    exist_ok: bool = flag(False, "use the run folder even if it exists")

    def __post_init__(self) -> None:
        """Refuse values that no run can have."""
        super().__post_init__()
        at_least(self, line_thickness=1, vid_stride=1)


@dataclass(frozen=True, kw_only=True)
class ExportSettings(_WithDtype):
    """The flags of ``yolojax export``, where they can be under the names of YOLOv5's export.py."""

    weights: str | None = flag(
        None, "a .pt, a weights directory, a run folder or a name; default: the embedded yolov5n"
    )
    include: tuple[str, ...] = flag(
        ("stablehlo",),
        "stablehlo, onnx, torch (a .pt for YOLOv5 and its own exports), safetensors (a folder for the Hugging Face Hub)",
        nargs="+",
    )
    imgsz: tuple[int, ...] | None = flag(
        None,
        "pixels: a side, or height and width; default: what the weights were trained at where they tell, else 640",
        "--imgsz",
        "--img",
        "--img-size",
        nargs="+",
    )
    batch_size: int = flag(1, "images of a batch", "--batch-size", "--batch")
    dynamic: bool = flag(False, "batches of any size")
    nms: bool = flag(False, "end in NMS (StableHLO)")
    agnostic_nms: bool = flag(False, "with --nms: boxes of different classes suppress each other")
    conf_thres: float = flag(0.25, "with --nms: a detection's score must exceed it")
    iou_thres: float = flag(0.45, "with --nms: a detection is dropped if its IoU with a better one exceeds it")
    max_det: int = flag(100, "with --nms: detections of an image at most", "--max-det", "--topk-all")
    dtype: Literal["float32", "bfloat16"] = flag("float32", "dtype of the computation")
    half: bool = flag(False, "the same as --dtype bfloat16")
    opset: int = flag(18, "version of ONNX's operators")
    device: str = flag("", "where the files are checked: cpu, gpu, tpu or a device number")
    project: str = flag("runs/export", "folder of the exports")
    name: str = flag("exp", "name of the folder; exp, exp2, … when taken")
    exist_ok: bool = flag(False, "use the folder even if it exists; files of the same names are replaced")

    def __post_init__(self) -> None:
        """Refuse values that no export can have."""
        at_least(self, batch_size=1, max_det=1, opset=18)
        fraction(self, "conf_thres", "iou_thres")
        _check_sides(self.imgsz)
        for name in self.include:
            if name in _OTHER_EXPORTS:
                raise UserError(
                    f"--include {name}: export torch, and let YOLOv5's own export.py make it: "
                    f"python export.py --weights NAME.pt --include {name}"
                )
            if name not in EXPORTS:
                raise UserError(f"--include {name}: choose from {', '.join(EXPORTS)}")


@dataclass(frozen=True, kw_only=True)
class BenchSettings:
    """The flags of ``yolojax bench``, under the names of YOLOv5's benchmarks.py."""

    weights: str | None = flag(
        None, "a .pt, a weights directory, a run folder or a name; default: the embedded yolov5n"
    )
    data: str = flag("shapes-pretraining", "data set YAML or name, or tfds:NAME; default: that of the embedded weights")
    data_root: str | None = flag(None, "folder of the data set, instead of the YAML's path")
    include: tuple[str, ...] = flag(WAYS, "ways of running, of: " + " ".join(WAYS) + "; default: all", nargs="+")
    imgsz: int | None = flag(
        None, "image side in pixels; default: the data set's, else 640", "--imgsz", "--img", "--img-size"
    )
    batch_size: int = flag(1, "images of a batch", "--batch-size", "--batch")
    rect: bool = flag(
        False,
        "batches as 'yolojax val' makes them; exports then need images of one aspect ratio; default: square images",
    )
    device: str = flag("", "cpu, gpu, tpu or a device number; ONNX Runtime is measured on the CPU in any case")
    workers: int = flag(8, "threads at most that load images")
    hard_fail: float | None = flag(
        None,
        "exit with status 1 if a way cannot be run, or its mAP50-95 is below this; 0 if no number is given",
        nargs="?",
        const=0.0,
    )

    def __post_init__(self) -> None:
        """Refuse values that no run can have."""
        at_least(self, batch_size=1, imgsz=32, workers=0)
        for way in self.include:
            if way not in WAYS:
                raise UserError(f"--include {way}: choose from {', '.join(WAYS)}")


def _check_sides(sides: tuple[int, ...] | None) -> None:
    if sides is not None and not (1 <= len(sides) <= 2 and min(sides) >= 32):
        raise UserError(f"--imgsz {' '.join(map(str, sides))}: one side, or height and width, of at least 32 pixels")
