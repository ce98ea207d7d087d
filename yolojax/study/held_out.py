"""mAP of a run's best epoch on the test images of its data set, which neither training nor the choice of the epoch has seen."""

from __future__ import annotations

import json
from pathlib import Path

from yolojax.data.sources import load_data, open_split
from yolojax.files import write_json
from yolojax.study.validations import Start, trained_weights, validation_command, validation_scores
from yolojax.training.settings import TrainSettings

TEST = "test.json"


def check_test(settings: TrainSettings) -> None:
    """Look for the test images of a scenario's data set.

    Raises:
      UserError: there are none.
    """
    open_split(load_data(settings.data, settings.data_root), "test", single_class=settings.single_cls)


def measured_test(folder: Path) -> dict[str, float | None]:
    """What was measured of a run, ``test_map50`` and ``test_map50_95``; empty where it was not."""
    file = folder / TEST
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}


def measure_test(settings: TrainSettings, folder: Path, start: Start) -> int:
    """Validate the best epoch of a finished run on the test images.

    Args:
      settings: of the run.
      folder: of the run.
      start: runs a command in a process of its own.

    Returns:
      0, or the exit status of the validation; ``test.log`` in the folder of the run says why it failed.
    """
    values = {
        "weights": trained_weights(folder),
        "data": settings.data,
        "data-root": settings.data_root,
        "imgsz": settings.imgsz,
        "task": "test",
    }
    words = [f"--{name}={value}" for name, value in values.items() if value is not None]
    words += ["--single-cls"] if settings.single_cls else []
    if status := start(validation_command(words, settings, folder, "test"), folder / "test.log"):
        return status
    scores = validation_scores(folder, "test")
    write_json(folder / TEST, {f"test_{name}": value for name, value in scores.items()})
    return 0
