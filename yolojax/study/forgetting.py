"""What the old head of a network still sees after a training: mAP on a second data set, before and after.

A training that moves the layers before Detect takes from the old Detect what it was made for. It is measured by putting the two together again (``yolojax val
--trunk RUN --head WEIGHTS``).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yolojax.errors import UserError
from yolojax.files import write_json
from yolojax.inference.settings import ValSettings
from yolojax.inference.validation import prepare_validation
from yolojax.runtime import select_devices
from yolojax.training.settings import TrainSettings
from yolojax.weights.find import EMBEDDED_WEIGHTS, find_weights

FORGETTING = "forgetting.json"
SCORES = ("map50", "map50_95")

Start = Callable[[Sequence[str], Path], int]  # a command and its log to an exit status


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
    last = folder / "weights" / "best.pt"  # of the original
    trunk = last if last.is_file() else folder
    split = [] if forgetting.split is None else [f"--split={forgetting.split}"]
    log = folder / "forgetting.log"
    figures = measured_forgetting(place, forgetting)
    if not figures:
        place.mkdir(parents=True, exist_ok=True)
        if status := start(_command(["--weights", str(weights)], forgetting, settings, place), log):
            return status
        figures = _scores(place, "before")
        _record(place, forgetting, figures)
    words = ["--trunk", str(trunk), "--head", str(weights), *split]
    if status := start(_command(words, forgetting, settings, folder), log):
        return status
    _record(folder, forgetting, {**figures, **_scores(folder, "after")})
    return 0


def _command(words: Sequence[str], forgetting: Forgetting, settings: TrainSettings, folder: Path) -> list[str]:
    device = [f"--device={settings.device}"] if settings.device else []
    places = ["--project", str(folder), "--name", "forgetting", "--exist-ok", "--noplots"]
    return [sys.executable, "-m", "yolojax", "val", *words, *forgetting.flags(), *device, *places]


def _scores(folder: Path, when: str) -> dict[str, float | None]:
    content = json.loads((folder / "forgetting" / "results.json").read_text(encoding="utf-8"))
    return {f"old_{name}_{when}": content[name] for name in SCORES}


def _record(folder: Path, forgetting: Forgetting, figures: Mapping[str, float | None]) -> None:
    content: dict[str, Any] = {"settings": dataclasses.asdict(forgetting), "figures": dict(figures)}
    write_json(folder / FORGETTING, content)
