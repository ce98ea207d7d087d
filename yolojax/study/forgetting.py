"""What the old head of a network still sees after a training: mAP on a second data set, before and after.

A training that moves the layers before Detect takes from the old Detect what it was made for. It is measured by putting the two together again (``yolojax val
--trunk RUN --head WEIGHTS``).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yolojax.errors import UserError
from yolojax.files import write_json
from yolojax.inference.settings import ValSettings
from yolojax.inference.validation import prepare_validation
from yolojax.runtime import select_devices
from yolojax.study.validations import Start, trained_weights, validation_command, validation_scores
from yolojax.training.settings import TrainSettings
from yolojax.weights.find import EMBEDDED_WEIGHTS, find_weights

FORGETTING = "forgetting.json"


@dataclass(frozen=True, kw_only=True)
class Forgetting:
    """The second data set of a study, under the names of the flags of ``yolojax val``.

    Attributes:
      data: data set whose classes the initial weights know.
      data_root: its folder, instead of the YAML's path.
      img: image side in pixels; None for the data set's own, else 640.
      batch: images per batch; None for the data set's own, else 32.
      split: layer that the old head begins with; None for Detect.
    """

    data: str
    data_root: str | None = None
    img: int | None = None
    batch: int | None = None
    split: int | None = None

    def flags(self) -> list[str]:
        """The flags of ``yolojax val``, but for ``--split``."""
        values = {"data": self.data, "data-root": self.data_root, "imgsz": self.img, "batch-size": self.batch}
        return [f"--{name}={value}" for name, value in values.items() if value is not None]


def check_forgetting(forgetting: Forgetting, settings: TrainSettings) -> None:
    """Read the second data set and the initial weights of a scenario.

    Raises:
      UserError: there are none, or the one does not go with the other.
    """
    if settings.weights == "" or settings.cfg or settings.delta is not None:
        raise UserError(
            "key 'forgetting': measures a Detect of 'weights' (alone, without 'cfg' and 'delta'); leave it out"
        )
    validation = prepare_validation(
        ValSettings(
            weights=(settings.weights or EMBEDDED_WEIGHTS,), data=forgetting.data, data_root=forgetting.data_root
        ),
        select_devices("cpu"),
    )
    layers = len(validation.weights[0].spec.layers)
    if forgetting.split is not None and not 0 < forgetting.split < layers:
        raise UserError(
            f"key 'forgetting': split {forgetting.split}: the head begins with one of the layers 1 to {layers - 1}"
        )


def measured_forgetting(folder: Path, forgetting: Forgetting | None) -> dict[str, float | None]:
    """What was measured of a run: ``old_map50_before``, ``old_map50_after`` and the same of ``map50_95``; empty where it was not, or of other settings."""
    file = folder / FORGETTING
    if forgetting is None or not file.is_file():
        return {}
    content = json.loads(file.read_text(encoding="utf-8"))
    return dict(content["figures"]) if content["settings"] == dataclasses.asdict(forgetting) else {}


def measure_forgetting(
    forgetting: Forgetting, settings: TrainSettings, folder: Path, output: Path, start: Start
) -> int:
    """Validate the initial weights, once for all runs that begin from them, and their head on the trunk of a run.

    Args:
      forgetting: the second data set.
      settings: of the run.
      folder: of the run, which is finished.
      output: of the study.
      start: runs a command in a process of its own.

    Returns:
      0, or the exit status of the validation that failed; ``forgetting.log`` in the folder of the run says why.
    """
    weights = find_weights(settings.weights or EMBEDDED_WEIGHTS).resolve()
    place = output / "before" / f"{weights.stem}-{hashlib.sha256(str(weights).encode()).hexdigest()[:8]}"
    split = [] if forgetting.split is None else [f"--split={forgetting.split}"]
    log = folder / "forgetting.log"
    figures = measured_forgetting(place, forgetting)
    if not figures:
        place.mkdir(parents=True, exist_ok=True)
        words = ["--weights", str(weights), *forgetting.flags()]
        if status := start(validation_command(words, settings, place, "forgetting"), log):
            return status
        figures = _scores(place, "before")
        _record(place, forgetting, figures)
    words = ["--trunk", str(trained_weights(folder)), "--head", str(weights), *split, *forgetting.flags()]
    if status := start(validation_command(words, settings, folder, "forgetting"), log):
        return status
    _record(folder, forgetting, {**figures, **_scores(folder, "after")})
    return 0


def _scores(folder: Path, when: str) -> dict[str, float | None]:
    return {f"old_{name}_{when}": value for name, value in validation_scores(folder, "forgetting").items()}


def _record(folder: Path, forgetting: Forgetting, figures: Mapping[str, float | None]) -> None:
    content: dict[str, Any] = {"settings": dataclasses.asdict(forgetting), "figures": dict(figures)}
    write_json(folder / FORGETTING, content)
