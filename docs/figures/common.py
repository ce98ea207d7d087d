"""What the scripts beside this file share: tables read, intervals of means, and pictures written small."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image
from scipy.special import stdtrit

from yolojax.study.comparison import CONFIDENCE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DOCS = Path(__file__).resolve().parents[1]


def read_rows(file: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with file.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def reach(values: Sequence[float]) -> float:
    """Half of the 90 % interval of a mean, by Student's t; 0 of one value."""
    if len(values) < 2:
        return 0.0
    quantile = float(stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2))
    return quantile * statistics.stdev(values) / len(values) ** 0.5


def write_png(figure: Figure, file: Path, colours: int = 255) -> None:
    """Write a figure as a picture of few colours."""
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=110)
    Image.open(drawn).convert("RGB").quantize(colours).save(file, optimize=True)
