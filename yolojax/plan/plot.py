"""The figure of a plan: memory and operations of a step, by freeze."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from matplotlib.patches import Patch

from yolojax.errors import UserError
from yolojax.figures import COLOURS, INK, MUTED, new_figure, quiet_axes
from yolojax.files import write_file
from yolojax.plan.plan import Row


def plot_plan(rows: Sequence[Row], path: Path, title: str) -> None:
    """Draw a plan.

    Args:
      rows: of one network, batch and image size.
      path: file to write; its ending says in which format.
      title: line above the panels.

    Raises:
      UserError: there is no such format, or the file cannot be written.
    """
    names = list(dict.fromkeys(_name(row) for row in rows))
    targets = list(dict.fromkeys(row.target for row in rows))
    figure = new_figure(max(7.5, 2.5 + 0.34 * len(names) * len(targets) ** 0.5), 6)
    memory, operations = figure.subplots(2, 1, sharex=True)
    width = 0.8 / len(targets)
    for number, target in enumerate(targets):
        for row in (row for row in rows if row.target == target and row.peak_bytes is not None):
            assert row.peak_bytes is not None
            assert row.temp_bytes is not None
            place = names.index(_name(row)) + (number - (len(targets) - 1) / 2) * width
            kept = (row.peak_bytes - row.temp_bytes) / 1e9
            memory.bar(place, kept, width, color=COLOURS[number], alpha=0.45)
            memory.bar(place, row.temp_bytes / 1e9, width, bottom=kept, color=COLOURS[number])
    # Operations are counted before anything is made for a device, so every target has the same.
    flops = {_name(row): row.flops / row.batch / 1e9 for row in rows}
    operations.bar(range(len(names)), list(flops.values()), 0.8, color=MUTED)
    memory.set_ylabel("memory of a step, GB")
    operations.set_ylabel("GFLOP per image")
    operations.set_xlabel("freeze")
    crowded = max(map(len, names)) > 8 or len(names) > 30
    operations.set_xticks(range(len(names)), names, rotation=30 if crowded else 0, ha="right" if crowded else "center")
    shades = [Patch(color=COLOURS[number], label=target) for number, target in enumerate(targets)]
    shades.append(Patch(color=COLOURS[0], alpha=0.45, label="of it, weights, averages, optimizer and images"))
    memory.legend(handles=shades, frameon=False, fontsize=9, labelcolor=INK)
    for axes in (memory, operations):
        quiet_axes(axes)
        axes.grid(visible=False, axis="x")
        axes.margins(x=0.01)
    figure.suptitle(title, color=INK, fontsize=11)
    buffer = io.BytesIO()
    try:
        figure.savefig(buffer, format=path.suffix.removeprefix(".") or "png", dpi=110)
    except ValueError as error:
        raise UserError(f"--plot {path}: {error}") from error
    write_file(path, buffer.getvalue())


def _name(row: Row) -> str:
    return f"{row.freeze}, from epoch {row.start}" if row.start else row.freeze
