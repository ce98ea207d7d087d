"""The settings of validation, detection, export and benchmarks: YOLOv5's flags, and ours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from yolojax.errors import UserError
from yolojax.flags import MOST_PIXELS, at_least, at_most, flag, fraction

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
        "weights: a .pt, a weights directory, a run folder or a name; several make an ensemble; default: the embedded yolov5n",
        nargs="+",
    )
    delta: str | None = flag(
        None,
        "delta of a run, *.delta.npz: what it added to --weights, which must be those that it began from; default: none",
        "--delta",
        "--adapters",
    )
    trunk: str | None = flag(
        None, "weights of the layers before the head, with --head and instead of --weights; default: none"
    )
    head: str | None = flag(
        None, "weights of the other layers, with their anchors and classes, with --trunk; default: none"
    )
    split: int | None = flag(None, "layer that the head begins with, with --head; default: Detect")
    data: str = flag("shapes", "data set YAML or name, or tfds:NAME; default: the embedded shapes")
    data_root: str | None = flag(None, "folder of the data set, instead of the YAML's path")
    batch_size: int | None = flag(
        None, "images per batch over all devices; default: the data set's, else 32", "--batch-size", "--batch"
    )
    imgsz: int | None = flag(
        None, "image side in pixels; default: the data set's, else 640", "--imgsz", "--img", "--img-size"
    )
    conf_thres: float = flag(0.001, "score that a detection must exceed, 0 to 1")
    iou_thres: float = flag(0.6, "IoU with a better detection above which one is dropped, 0 to 1")
    max_det: int = flag(300, "detections of an image at most")
    task: Literal["val", "train", "test", "speed", "study"] = flag(
        "val",
        "task: val, train, test = that split; speed = times at confidence .25, IoU .45, square images; "
        "study = the val split at 256 to 1536 pixels",
    )
    device: str = flag("", "devices: cpu, gpu, tpu, or numbers as in '0,1'; default: all of the best platform")
    workers: int = flag(8, "threads at most that load images")
    single_cls: bool = flag(False, "treat all classes as one")
    augment: bool = flag(False, "test-time augmentation: predict at three sizes, once mirrored")
    verbose: bool = flag(False, "show the table per class also for 50 classes and more")
    save_txt: bool = flag(False, "write detections as labels/*.txt: class x y w h, as fractions of the image")
    save_conf: bool = flag(False, "with --save-txt: write the score at the end of each line")
    save_json: bool = flag(False, "write detections as COCO results and measure COCO's own AP")
    annotations: str | None = flag(
        None, "with --save-json: COCO annotations to measure against; default: the labels of the data set"
    )
    dtype: Literal["float32", "bfloat16"] = flag("float32", "dtype of the computation")
    half: bool = flag(False, "compute in bfloat16, as --dtype bfloat16")
    noplots: bool = flag(False, "write no figures")
    project: str = flag("runs/val", "folder of the runs")
    name: str = flag("exp", "name of the run; exp, exp2, … when taken")
    exist_ok: bool = flag(False, "use the run folder even if it exists")

    def __post_init__(self) -> None:
        """Refuse values that no run can have."""
        if (self.trunk is None) != (self.head is None) or (self.trunk is not None and self.weights is not None):
            raise UserError("--trunk and --head go together, and stand instead of --weights")
        if self.split is not None and self.trunk is None:
            raise UserError("--split: says where --head begins, and there is no --trunk and --head")
        at_least(self, batch_size=1, imgsz=32, max_det=1, workers=0)
        at_most(self, imgsz=MOST_PIXELS)
        fraction(self, "conf_thres", "iou_thres")


@dataclass(frozen=True, kw_only=True)
class InferenceSettings(_WithDtype):
    """What looking at images depends on, under the names of YOLOv5's detect.py and with its defaults.

    Source: ``docs/yolov5.md`` §1.14.
    """

    weights: tuple[str, ...] | None = flag(
        None,
        "weights: a .pt, a weights directory, a run folder or a name; several make an ensemble; default: the embedded yolov5n",
        nargs="+",
    )
    delta: str | None = flag(
        None,
        "delta of a run, *.delta.npz: what it added to --weights, which must be those that it began from; default: none",
        "--delta",
        "--adapters",
    )
    imgsz: tuple[int, ...] | None = flag(
        None,
        "image size in pixels, one side, or height and width; default: what the weights were trained at where they tell, else 640",
        "--imgsz",
        "--img",
        "--img-size",
        nargs="+",
    )
    conf_thres: float = flag(0.25, "score that a detection must exceed, 0 to 1")
    iou_thres: float = flag(0.45, "IoU with a better detection above which one is dropped, 0 to 1")
    max_det: int = flag(1000, "detections of an image at most")
    classes: tuple[str, ...] | None = flag(None, "classes to detect, by index or name; default: all", nargs="+")
    agnostic_nms: bool = flag(False, "let boxes of different classes suppress each other")
    augment: bool = flag(False, "test-time augmentation: predict at three sizes, once mirrored")
    dtype: Literal["float32", "bfloat16"] = flag("float32", "dtype of the computation")
    half: bool = flag(False, "compute in bfloat16, as --dtype bfloat16")
    batch_size: int = flag(1, "images per batch; more pay on GPU and TPU", "--batch-size", "--batch")
    device: str = flag("", "device: cpu, gpu, tpu or a number; default: the first of the best platform")

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
        "source: image, video, folder, glob, .txt list of those, camera number or stream address; default: a few drawn images, for weights that know them",
    )
    save_txt: bool = flag(False, "write detections as labels/*.txt: class x y w h, as fractions of the image")
    save_conf: bool = flag(False, "with --save-txt: write the score at the end of each line")
    save_csv: bool = flag(False, "write all detections into predictions.csv")
    save_crop: bool = flag(False, "write what is in each box as crops/CLASS/*.jpg")
    nosave: bool = flag(False, "write no annotated images and videos")
    view_img: bool = flag(False, "also show annotated images in a window, where there is a display")
    line_thickness: int | None = flag(None, "thickness of drawn boxes in pixels; default: what suits the image size")
    hide_labels: bool = flag(False, "draw boxes without labels")
    hide_conf: bool = flag(False, "draw labels without scores")
    vid_stride: int = flag(1, "frames from one that is looked at to the next; the annotated video keeps its duration")
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
        None, "weights: a .pt, a weights directory, a run folder or a name; default: the embedded yolov5n"
    )
    delta: str | None = flag(
        None,
        "delta of a run, *.delta.npz: what it added to --weights, which must be those that it began from; default: none",
        "--delta",
        "--adapters",
    )
    include: tuple[str, ...] = flag(
        ("stablehlo",),
        "formats: stablehlo, onnx, torch (a .pt for YOLOv5 and its own exports), safetensors (a folder for the Hugging Face Hub)",
        nargs="+",
    )
    imgsz: tuple[int, ...] | None = flag(
        None,
        "image size in pixels, one side, or height and width; default: what the weights were trained at where they tell, else 640",
        "--imgsz",
        "--img",
        "--img-size",
        nargs="+",
    )
    batch_size: int = flag(1, "images per batch", "--batch-size", "--batch")
    dynamic: bool = flag(False, "take batches of any size")
    nms: bool = flag(False, "end in NMS (StableHLO)")
    agnostic_nms: bool = flag(False, "with --nms: boxes of different classes suppress each other")
    conf_thres: float = flag(0.25, "with --nms: score that a detection must exceed, 0 to 1")
    iou_thres: float = flag(0.45, "with --nms: IoU with a better detection above which one is dropped, 0 to 1")
    max_det: int = flag(100, "with --nms: detections of an image at most", "--max-det", "--topk-all")
    dtype: Literal["float32", "bfloat16"] = flag("float32", "dtype of the computation")
    half: bool = flag(False, "compute in bfloat16, as --dtype bfloat16")
    opset: int = flag(18, "version of ONNX's operators")
    device: str = flag(
        "", "device that the files are checked on: cpu, gpu, tpu or a number; default: the first of the best platform"
    )
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
        None, "weights: a .pt, a weights directory, a run folder or a name; default: the embedded yolov5n"
    )
    delta: str | None = flag(
        None,
        "delta of a run, *.delta.npz: what it added to --weights, which must be those that it began from; default: none",
        "--delta",
        "--adapters",
    )
    data: str = flag("shapes-pretraining", "data set YAML or name, or tfds:NAME; default: that of the embedded weights")
    data_root: str | None = flag(None, "folder of the data set, instead of the YAML's path")
    include: tuple[str, ...] = flag(WAYS, "ways of running, of: " + " ".join(WAYS) + "; default: all", nargs="+")
    imgsz: int | None = flag(
        None, "image side in pixels; default: the data set's, else 640", "--imgsz", "--img", "--img-size"
    )
    batch_size: int = flag(1, "images per batch", "--batch-size", "--batch")
    rect: bool = flag(
        False,
        "use batches as 'yolojax val' makes them; exports then need images of one aspect ratio",
    )
    device: str = flag(
        "",
        "device: cpu, gpu, tpu or a number; ONNX Runtime is measured on the CPU in any case; default: the first of the best platform",
    )
    workers: int = flag(8, "threads at most that load images")
    hard_fail: float | None = flag(
        None,
        "least mAP50-95: exit with status 1 if a way is below it or cannot be run; 0 without a value; default: none",
        nargs="?",
        const=0.0,
    )

    def __post_init__(self) -> None:
        """Refuse values that no run can have."""
        at_least(self, batch_size=1, imgsz=32, workers=0)
        at_most(self, imgsz=MOST_PIXELS)
        for way in self.include:
            if way not in WAYS:
                raise UserError(f"--include {way}: choose from {', '.join(WAYS)}")


def _check_sides(sides: tuple[int, ...] | None) -> None:
    if sides is not None and not (1 <= len(sides) <= 2 and min(sides) >= 32 and max(sides) <= MOST_PIXELS):
        raise UserError(
            f"--imgsz {' '.join(map(str, sides))}: one side, or height and width, of 32 to {MOST_PIXELS} pixels"
        )
