"""Settings of a training run: YOLOv5's flags, and ours, and what they mean beside ``--resume``."""

from __future__ import annotations

import dataclasses
import math
import re
import sys
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from yolojax.config import from_mapping, read_yaml
from yolojax.data.config import DataConfig
from yolojax.errors import UserError
from yolojax.files import write_yaml
from yolojax.flags import MOST_PIXELS, MOST_SEED, at_least, at_most, flag, fraction

LARGEST = -1  # a batch size: the most images that fit
OptimizerName: TypeAlias = Literal["SGD", "Adam", "AdamW"]
# What an interrupted run may be continued with: where its data and its devices are, and how exactly these compute.
_MAY_CHANGE = ("data", "data_root", "device", "workers", "project", "deterministic", "remat", "steps_per_dispatch")

CACHES = ("auto", "device", "ram", "disk", "val")
DEFAULT_VIEWS = 8
# What features are not kept for, and why.
_NO_FEATURES = {
    "multi_scale": "which changes the size of images from batch to batch",
    "image_weights": "which draws images anew in every epoch, by what was found",
    "rect": "whose batches have shapes of their own",
    "replay": "whose images are other ones in every epoch",
    "distil": "whose teacher reads the images themselves",
}

SETTINGS = "settings.yaml"  # in a run folder, for those who resume


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """What the flags leave open, decided: the flag, else the data set's own ``defaults``, else YOLOv5's.

    Attributes:
      imgsz: image side in pixels.
      epochs: passes over the training images.
      batch_size: images per step over all devices.
      hyp: hyperparameter YAML or name.
      optimizer: its name.
    """

    imgsz: int
    epochs: int
    batch_size: int
    hyp: str
    optimizer: OptimizerName


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """The flags of ``yolojax train``, under YOLOv5's names and with its defaults (``docs/yolov5.md`` §1.14).

    ``None`` for ``imgsz``, ``epochs``, ``batch_size``, ``hyp`` and ``optimizer`` means: the data set's own ``defaults``, else YOLOv5's (640, 100, 16,
    scratch-low, SGD).
    """

    weights: str | None = flag(
        None,
        "initial weights: a .pt, a weights directory, a run folder or a name; '' trains from scratch; default: the embedded yolov5n",
    )
    delta: str | None = flag(
        None,
        "delta of a run, *.delta.npz: what it added to --weights, which must be those that it began from; default: none",
        "--delta",
        "--adapters",
    )
    cfg: str = flag("", "model YAML (yolov5m, path); default: the architecture of the weights")
    data: str = flag("shapes", "data set YAML or name, or tfds:NAME; default: the embedded shapes")
    data_root: str | None = flag(None, "folder of the data set, instead of the YAML's path")
    hyp: str | None = flag(None, "hyperparameter YAML or name; default: the data set's, else scratch-low")
    epochs: int | None = flag(None, "passes over the training images; default: the data set's, else 100")
    batch_size: int | None = flag(
        None,
        "images per step over all devices; -1: the most that fit, with a margin; default: the data set's, else 16",
        "--batch-size",
        "--batch",
    )
    imgsz: int | None = flag(
        None, "image side in pixels; default: the data set's, else 640", "--imgsz", "--img", "--img-size"
    )
    freeze: tuple[str, ...] = flag(
        ("0",),
        "layers to freeze: 10 = layers 0 to 9; 0 1 2; 0-9; 95%% of the parameters; 'model_*/cv1/**'; backbone; a strategy's name or file",
        nargs="+",
    )
    frozen_bn: Literal["fixed", "track"] = flag(
        "fixed",
        "BatchNorm of frozen layers: fixed = running statistics used and kept; track = batch statistics, as YOLOv5 does",
    )
    init_head: Literal["fresh", "boxes", "names"] = flag(
        "fresh",
        "start of Detect for other classes: fresh = random numbers, as YOLOv5; boxes = the old rows of boxes and objectness; "
        "names = those of classes of the same name too",
    )
    same_as: tuple[str, ...] = flag(
        (), "classes that are named otherwise in the weights, with --init-head names; default: none", nargs="+"
    )
    replay: str | None = flag(
        None,
        "second data set of which every batch has images too, so that its classes are not forgotten: a data set YAML or name, "
        "or tfds:NAME, whose classes are matched by name; default: none",
    )
    replay_share: float = flag(0.25, "share of the images of a batch that --replay gives, 0 to 1, both excluded")
    distil: str | None = flag(
        None,
        "frozen network that teaches the classes that it knows by name, so that they are not forgotten: weights as for --weights, "
        "with the same strides and anchors; default: none",
    )
    distil_gain: float = flag(1.0, "weight of what the teacher of --distil adds to the loss, above 0")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = flag(
        "auto",
        "dtype of the computation; parameters stay float32; auto: bfloat16 on TPUs and GPUs from Ampere on, float16 on Volta and Turing, else float32",
    )
    sync_bn: Literal["on", "off"] = flag(
        "on",
        "BatchNorm and the means of the loss, where devices share a batch: on, also without a value = over the whole batch; "
        "off = over the share of each device, as YOLOv5 does unless --sync-bn is given, so that devices wait for each other once per step",
        nargs="?",
        const="on",
    )
    gradient_sum: Literal["auto", "float32", "bfloat16"] = flag(
        "auto",
        "dtype in which devices that share a batch add up the gradients of kernels; auto: bfloat16 where the computation is in it, else float32",
    )
    rect: bool = flag(False, "rectangular training: batches of one aspect ratio, no mosaic, no shuffling")
    resume: str | None = flag(
        None,
        "interrupted run to continue: its folder or name; the latest one without a value",
        nargs="?",
        const="latest",
    )
    nosave: bool = flag(False, "save the final checkpoint only")
    noval: bool = flag(False, "validate after the final epoch only")
    noautoanchor: bool = flag(False, "keep the anchors even if they fit the boxes badly")
    noplots: bool = flag(False, "write no figures")
    cache: str | None = flag(
        None,
        "decoded images kept: device = on the devices, which then make the batches; ram; disk; val = those of validation alone, in ram; "
        "auto, also without a value = device on a GPU where they fit, else ram; features, features:VIEWS = what frozen layers compute "
        "of VIEWS (8) views of each image; default: nothing is",
        nargs="?",
        const="auto",
    )
    image_weights: bool = flag(
        False, "sample images by weight: more often those of classes that are rare or found badly"
    )
    albumentations: bool = flag(
        False, "blur, grey or equalise one image in a hundred each, as YOLOv5 does where Albumentations is installed"
    )
    device: str = flag("", "devices: cpu, gpu, tpu, or numbers as in '0,1'; default: all of the best platform")
    multi_scale: bool = flag(False, "vary the image size by +-50 %% over seven sizes; each is compiled once")
    single_cls: bool = flag(False, "treat all classes as one")
    optimizer: Literal["SGD", "Adam", "AdamW"] | None = flag(None, "optimizer; default: the data set's, else SGD")
    workers: int = flag(8, "data loading processes at most; 0 loads in this process")
    project: str = flag("runs/train", "folder of the runs")
    name: str = flag("exp", "name of the run; exp, exp2, … when taken")
    exist_ok: bool = flag(False, "use the run folder even if it exists; a finished run in it is replaced")
    cos_lr: bool = flag(False, "cosine instead of linear learning rate")
    label_smoothing: float = flag(0.0, "label smoothing epsilon, 0 to 1")
    patience: int = flag(100, "epochs without improvement before stopping; 0 never stops")
    save_period: int = flag(-1, "epochs between checkpoints that are kept; below 1: only last and best")
    deterministic: bool = flag(
        False, "on a GPU, leave out operations whose bits differ from run to run, so that a run can be repeated exactly"
    )
    remat: bool = flag(
        False,
        "keep fewer arrays of a step for its backward pass, and compute them again there: a quarter less memory for a little more time on a GPU or TPU",
    )
    steps_per_dispatch: str = flag(
        "auto",
        "training steps per call of the device where it makes its own batches: a number, or auto: as many as take 50 to 100 ms",
    )
    seed: int = flag(0, "seed of weights, order and augmentation")
    wandb: bool = flag(False, "send metrics and figures to Weights & Biases")
    entity: str | None = flag(None, "user or team of Weights & Biases; default: yours")
    mlflow: bool = flag(False, "send metrics and figures to MLflow: to MLFLOW_TRACKING_URI, else into ./mlruns")
    strict: bool = flag(
        False,
        "refuse to train when the data check finds anything, or when layers that start from random numbers are frozen",
    )

    def __post_init__(self) -> None:
        """Refuse values that no run can have."""
        if self.image_weights and self.rect:
            raise UserError("--image-weights: cannot go with --rect, whose batches are in a fixed order")
        self._check_cache()
        self._check_old_classes()
        for name in ("rect", "albumentations", "replay"):
            if self.cache == "device" and getattr(self, name):
                raise UserError(
                    f"--cache device: cannot go with --{name}, which is done on the host alone; --cache ram can"
                )
        if self.delta is not None and (self.weights == "" or (self.weights is None and self.cfg)):
            raise UserError("--delta: is put on weights, and this training starts from none; name them with --weights")
        if self.same_as and self.init_head != "names":
            raise UserError("--same-as: says which classes are the same for --init-head names")
        for pair in self.same_as:
            if not all(part.strip() for part in pair.split("=", 1)) or "=" not in pair:
                raise UserError(f"--same-as {pair}: write NEW=OLD, a class of the data set and one of the weights")
        at_least(self, epochs=1, imgsz=32, workers=0, patience=0, seed=0)
        at_most(self, imgsz=MOST_PIXELS, seed=MOST_SEED)
        if self.batch_size != LARGEST:
            at_least(self, batch_size=1)
        fraction(self, "label_smoothing", below=True)
        if self.steps_per_dispatch != "auto" and not (
            self.steps_per_dispatch.isdecimal() and int(self.steps_per_dispatch)
        ):
            raise UserError(f"--steps-per-dispatch {self.steps_per_dispatch}: must be auto or a number from 1 on")

    def _check_old_classes(self) -> None:
        """``--replay`` and ``--distil``, which keep old classes."""
        for name, main in (("replay_share", "replay"), ("distil_gain", "distil")):
            value, flag = getattr(self, name), f"--{name.replace('_', '-')}"
            if not (0 < value < 1 if main == "replay" else 0 < value < math.inf):
                raise UserError(f"{flag} {value}: must be above 0{' and below 1' if main == 'replay' else ''}")
            if getattr(self, main) is None and value != getattr(TrainSettings, name):
                raise UserError(f"{flag}: belongs to --{main}, which is not given")
            if getattr(self, main) is not None and self.batch_size == LARGEST:
                raise UserError(f"--batch-size -1: does not count what --{main} takes; name a number")
        if self.replay is not None and self.rect:
            raise UserError("--replay: cannot go with --rect, whose batches are of images of like shape")

    def _check_cache(self) -> None:
        if self.cache is None or self.cache in CACHES:
            return
        if self.kept_views is None:
            raise UserError(f"--cache {self.cache}: is none of {', '.join(CACHES)}, features and features:VIEWS")
        if self.kept_views < 1:
            raise UserError(f"--cache {self.cache}: must be at least one view")
        if self.frozen_bn == "track":
            raise UserError(
                "--cache features: cannot go with --frozen-bn track, where frozen layers compute with the statistics of each batch; "
                "--frozen-bn fixed can"
            )
        for name, reason in _NO_FEATURES.items():
            if getattr(self, name):
                raise UserError(f"--cache features: cannot go with --{name.replace('_', '-')}, {reason}")

    @property
    def kept_views(self) -> int | None:
        """Views of each image of which features are kept; None where none are."""
        match = re.fullmatch(r"features(?::(\d+))?", self.cache or "")
        return match and int(match[1] or DEFAULT_VIEWS)

    @property
    def images_cache(self) -> str | None:
        """What is kept of images alone, for who keeps no features."""
        return self.cache if self.kept_views is None else "ram"

    @property
    def host_cache(self) -> Literal["ram", "disk"] | None:
        """Where images are kept that are read on the host, as those of validation are."""
        return None if self.cache is None else "disk" if self.cache == "disk" else "ram"

    @property
    def same_as_classes(self) -> dict[str, str]:
        """``same_as``, by the new name."""
        return {new.strip(): old.strip() for new, old in (pair.split("=", 1) for pair in self.same_as)}

    def resolve(self, data: DataConfig) -> Resolved:
        """What is not given, filled in from the data set, else from YOLOv5's defaults."""
        return Resolved(
            imgsz=self.imgsz or data.defaults.get("img", 640),
            epochs=self.epochs or data.defaults.get("epochs", 100),
            batch_size=self.batch_size or data.defaults.get("batch", 16),
            hyp=self.hyp or data.defaults.get("hyp", "scratch-low"),
            optimizer=self.optimizer or data.defaults.get("optimizer", "SGD"),
        )

    def with_defaults(self, data: DataConfig) -> TrainSettings:
        """These settings with ``resolve`` written into them."""
        return dataclasses.replace(self, **dataclasses.asdict(self.resolve(data)))

    def with_absolute_paths(self) -> TrainSettings:
        """These settings with every file and folder by its absolute path, so that they mean the same in any working directory."""
        files: dict[str, Any] = {
            name: str(Path(value).absolute())
            for name in ("weights", "delta", "cfg", "data", "data_root", "hyp", "replay", "distil")
            if (value := getattr(self, name))
            and (Path(value).is_file() or (name in ("weights", "data_root", "distil") and Path(value).is_dir()))
        }
        if len(self.freeze) == 1 and Path(self.freeze[0]).is_file():
            files["freeze"] = (str(Path(self.freeze[0]).absolute()),)
        return dataclasses.replace(self, **files)


def settings_to_resume(stored: TrainSettings, asked: TrainSettings, given: Set[str]) -> tuple[TrainSettings, list[str]]:
    """The settings that an interrupted run goes on with.

    Args:
      stored: those that it was begun with.
      asked: those beside ``--resume``.
      given: names of those of ``asked`` that hold; the others are only defaults.

    Returns:
      Settings, and a sentence for each that is not as it was.

    Raises:
      UserError: one would change what the run is.
    """
    changes: dict[str, Any] = {}
    asked = asked.with_absolute_paths()
    for name in sorted(given - {"resume"}):
        before, value = getattr(stored, name), getattr(asked, name)
        flag = f"--{name.replace('_', '-')}"
        left_open = (name, value) in (
            ("weights", ""),
            ("weights", None),
            ("cache", "auto"),
            ("dtype", "auto"),
            ("batch_size", LARGEST),
        )
        if value == before or left_open:
            continue
        if name == "epochs" and value < (before or 0):
            raise UserError(
                f"--epochs {value}: the run was planned for {before} epochs and can be extended, not shortened"
            )
        moved = name in ("replay", "distil") and None not in (before, value)  # what is there is compared
        if name not in (*_MAY_CHANGE, "epochs") and not moved:
            words = (
                f"{flag}: the run was begun without it"
                if value is True
                else f"{flag} {_shown(value)}: the run was begun with {_shown(before)}"
            )
            raise UserError(f"{words}, and --resume goes on with that; leave {flag} out, or begin a new run")
        changes[name] = value
    sentences = [
        f"--{name.replace('_', '-')}: {_shown(value)} instead of {_shown(getattr(stored, name))}"
        for name, value in changes.items()
    ]
    return dataclasses.replace(stored, **changes), sentences


def _shown(value: Any) -> str:
    return " ".join(value) if isinstance(value, tuple) else "nothing" if value in (None, "") else str(value)


def train_flags(settings: TrainSettings) -> list[str]:
    """The flags of ``yolojax train`` that say what differs from its defaults."""
    words: list[str] = []
    for item in dataclasses.fields(TrainSettings):
        value, name = getattr(settings, item.name), f"--{item.name.replace('_', '-')}"
        if value == getattr(TrainSettings(), item.name):
            continue
        words += [name] if value is True else [name, *value] if isinstance(value, tuple) else [f"{name}={value}"]
    return words


def train_command(settings: TrainSettings, run: Path) -> list[str]:
    """The command line of a training in a process of its own, which continues the run where its folder holds one.

    Args:
      settings: of the run.
      run: its folder.
    """
    start = [sys.executable, "-m", "yolojax", "train"]
    if (run / "settings.yaml").is_file():
        return [*start, "--resume", str(run)]
    return [*start, *train_flags(dataclasses.replace(settings, project=str(run.parent), name=run.name, exist_ok=True))]


def read_settings(folder: Path) -> TrainSettings:
    """The settings that a run was started with."""
    content = read_yaml(folder / SETTINGS)
    freeze = tuple(map(str, content.pop("freeze", ["0"])))
    return dataclasses.replace(from_mapping(TrainSettings, content, folder / SETTINGS), freeze=freeze)


def write_settings(settings: TrainSettings, folder: Path) -> None:
    """Write what ``read_settings`` reads."""
    values = {**dataclasses.asdict(settings), "resume": None}
    write_yaml(folder / SETTINGS, {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()})
