"""What a run writes down: its folder, settings, environment and ``results.csv`` under YOLOv5's names."""

from __future__ import annotations

import csv
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from yolojax.files import write_file

COLUMNS = (
    "epoch",
    "train/box_loss",
    "train/obj_loss",
    "train/cls_loss",
    "metrics/precision",
    "metrics/recall",
    "metrics/mAP_0.5",
    "metrics/mAP_0.5:0.95",
    "val/box_loss",
    "val/obj_loss",
    "val/cls_loss",
    "x/lr0",
    "x/lr1",
    "x/lr2",
)
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "opencv-python-headless", "pillow")


class ResultsTable:
    """``results.csv`` in YOLOv5's form: right-aligned columns of 20 characters, five significant digits."""

    def __init__(self, path: Path, keep_epochs: int = 0) -> None:
        """Open the table and keep the rows of the first ``keep_epochs`` epochs (a resumed run writes the others again)."""
        self.path = path
        rows = (
            [row for row in read_results(path) if row["epoch"] < keep_epochs] if keep_epochs and path.is_file() else []
        )
        text = "".join(f"{line}\n" for line in [_line(COLUMNS), *(_row_line(row) for row in rows)])
        write_file(path, text)

    def append(self, row: Mapping[str, float]) -> None:
        """Add one epoch; a column that is missing (no validation) is written as nan."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_row_line(row) + "\n")


def _line(cells: Sequence[str]) -> str:
    return ",".join(f"{cell:>20s}" for cell in cells)


def _row_line(row: Mapping[str, float]) -> str:
    return _line([f"{row.get(column, float('nan')):.5g}" for column in COLUMNS])


def read_results(path: Path) -> list[dict[str, float]]:
    """Rows of a ``results.csv``, ours or YOLOv5's."""
    with path.open(encoding="utf-8") as file:
        reader = csv.reader(file)
        columns = [cell.strip() for cell in next(reader)]
        return [dict(zip(columns, (float(cell) for cell in row), strict=False)) for row in reader if row]


def environment() -> dict[str, Any]:
    """Versions, devices and the commit of the working tree, for the record."""
    import jax

    devices = jax.devices()
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_threads": os.cpu_count(),
        "devices": [f"{device.platform}: {device.device_kind}" for device in devices],
        "packages": {name: _version(name) for name in _PACKAGES},
        "git_commit": _git_commit(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None
