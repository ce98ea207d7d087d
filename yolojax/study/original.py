"""How the original is run beside ours: the PyPI package ``yolov5`` in an interpreter of its own, on a copy of the data in its layout."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
from pathlib import Path
from typing import Any

import cv2

from yolojax.data.config import DataConfig
from yolojax.data.sample import Sample
from yolojax.data.sources import SplitName, load_data, open_split
from yolojax.files import write_yaml
from yolojax.hyperparameters import load_hyperparameters
from yolojax.study.scenarios import Scenario, interpreter
from yolojax.weights.find import EMBEDDED_WEIGHTS, find_weights, load_weights

_SPLITS: tuple[SplitName, ...] = ("train", "val")
# One finished epoch in the log: "  2/14  0G  0.1283  …  320: 100%|████| 13/13 [00:12<00:00,  1.05it/s]".
_EPOCH_LINE = re.compile(r"(\d+)/\d+ +[\d.]+G [^|]*: 100%\|[^|]*\| (\d+)/\2 \[[^,]*, +([\d.]+)(it/s|s/it)\]")


def write_inputs(scenario: Scenario, folder: Path) -> None:
    """Write what the original needs into ``folder``: the data in YOLO layout, its YAML, hyperparameters, weights as a ``.pt``, a font.

    The user's own files are only read: the original repairs JPEGs in place and writes caches beside labels, so it gets copies.

    Raises:
      UserError: the weights are not there, or no ``.pt`` and PyTorch, which writes one, is missing.
    """
    data = load_data(scenario.settings.data, scenario.settings.data_root)
    settings = scenario.settings
    file = _data_file(data, folder)
    if not file.is_file():  # it is written last
        content: dict[str, Any] = {"path": str(file.parent.resolve()), "nc": len(data.names), "names": list(data.names)}
        for split in _SPLITS:
            content[split] = f"images/{split}"
            for number, sample in enumerate(open_split(data, split).samples):
                _write_sample(sample, file.parent, split, number)
        write_yaml(file, content)
    hyperparameters = dataclasses.asdict(load_hyperparameters(settings.hyp or "scratch-low"))
    write_yaml(
        folder / f"{scenario.folder}-hyp.yaml",
        {key: value for key, value in hyperparameters.items() if value is not None},
    )
    weights = _weights_file(scenario, folder)
    if not weights.is_file():
        from convert.writer import write_checkpoint  # needs torch

        write_checkpoint(weights, load_weights(scenario.settings.weights or EMBEDDED_WEIGHTS))
    font = folder / "config" / "Arial.ttf"
    if not font.is_file():  # the original downloads this font before it trains, unless there is one
        from matplotlib import get_data_path

        font.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", font)


def _data_file(data: DataConfig, folder: Path) -> Path:
    return folder / data.file.stem / "data.yaml"


def _weights_file(scenario: Scenario, folder: Path) -> Path:
    """The ``.pt`` that the original starts from: the user's, or one that ``write_inputs`` writes from weights of another kind."""
    path = find_weights(scenario.settings.weights or EMBEDDED_WEIGHTS)
    return path if path.suffix == ".pt" else folder / f"{scenario.folder}-weights.pt"


def _write_sample(sample: Sample, folder: Path, split: str, number: int) -> None:
    stem = f"{number:06d}"
    image, label = folder / "images" / split, folder / "labels" / split / f"{stem}.txt"
    for parent in (image, label.parent):
        parent.mkdir(parents=True, exist_ok=True)
    original = Path(sample.name)
    if original.is_file():
        shutil.copyfile(original, image / f"{stem}{original.suffix.lower()}")
    else:
        cv2.imwrite(str(image / f"{stem}.png"), cv2.cvtColor(sample.load(), cv2.COLOR_RGB2BGR))
    rows = [f"{int(row[0])} " + " ".join(f"{value:.8g}" for value in row[1:]) for row in sample.boxes.tolist()]
    label.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")


def original_command(scenario: Scenario, seed: int, run: Path, inputs: Path) -> list[str]:
    """The original's command line for a run; it continues the run where its folder holds a checkpoint."""
    start = [interpreter(scenario), "-m", "yolov5.train"]
    last = run / "weights" / "last.pt"
    if last.is_file():
        return [*start, "--resume", str(last.resolve())]
    data = load_data(scenario.settings.data, scenario.settings.data_root)
    settings = scenario.settings
    # A bare file name would be taken for one to download.
    words: dict[str, Any] = {
        "weights": _weights_file(scenario, inputs).resolve(),
        "data": _data_file(data, inputs).resolve(),
        "hyp": (inputs / f"{scenario.folder}-hyp.yaml").resolve(),
        "imgsz": settings.imgsz,
        "batch-size": settings.batch_size,
        "epochs": settings.epochs,
        "optimizer": settings.optimizer,
        "workers": settings.workers,
        "label-smoothing": settings.label_smoothing,
        "patience": settings.patience or 10**9,
        "save-period": settings.save_period,
        "seed": seed,
        "project": run.parent.resolve(),
        "name": run.name,
    }
    if settings.device:
        words["device"] = {"gpu": "0", "cuda": "0"}.get(settings.device, settings.device)
    if settings.cache:
        words["cache"] = settings.cache
    switches = ["rect", "nosave", "noval", "noautoanchor", "noplots"]
    switches += ["image_weights", "multi_scale", "single_cls", "cos_lr"]
    return [
        *start,
        *(f"--{key}={value}" for key, value in words.items()),
        *(f"--{key.replace('_', '-')}" for key in switches if getattr(settings, key)),
        "--exist-ok",
        "--freeze",
        *settings.freeze,
    ]


def original_environment(inputs: Path) -> dict[str, str]:
    """The environment of the original: its files of the trusted kind are read by a newer torch, nothing is downloaded or reported."""
    return os.environ | {
        "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1",
        "YOLOV5_CONFIG_DIR": str((inputs / "config").resolve()),
        "HF_HUB_OFFLINE": "1",
        "WANDB_MODE": "disabled",
        "COMET_MODE": "DISABLED",
    }


def step_seconds(log: str) -> list[float]:
    """Mean time of a step in each epoch, in seconds, from the original's log (the bar's own mean, waiting for data included)."""
    seconds: dict[int, float] = {}
    for epoch, _, speed, unit in _EPOCH_LINE.findall(log):
        if float(speed):
            seconds[int(epoch)] = 1 / float(speed) if unit == "it/s" else float(speed)
    return [seconds[epoch] for epoch in sorted(seconds)]
