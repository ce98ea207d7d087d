"""Validations of a study's finished runs, each by ``yolojax val`` in a process of its own."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from yolojax.training.settings import TrainSettings

SCORES = ("map50", "map50_95")

Start = Callable[[Sequence[str], Path], int]  # a command and its log to an exit status


def trained_weights(folder: Path) -> Path:
    """What a finished run gives to ``yolojax val``: the ``.pt`` of the original, else the run itself, whose best epoch is taken."""
    original = folder / "weights" / "best.pt"
    return original if original.is_file() else folder


def validation_command(words: Sequence[str], settings: TrainSettings, folder: Path, name: str) -> list[str]:
    """The command of a validation on the device of a run, which leaves its results in ``folder/name``."""
    device = [f"--device={settings.device}"] if settings.device else []
    places = ["--project", str(folder), "--name", name, "--exist-ok", "--noplots"]
    return [sys.executable, "-m", "yolojax", "val", *words, *device, *places]


def validation_scores(folder: Path, name: str) -> dict[str, float | None]:
    """What a validation found, by the names in ``SCORES``."""
    content = json.loads((folder / name / "results.json").read_text(encoding="utf-8"))
    return {score: content[score] for score in SCORES}
