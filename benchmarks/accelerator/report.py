"""What an acceptance leaves behind: a table and a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]


def table(rows: Sequence[Row]) -> str:
    """Markdown, a line per row; the machine and its versions stand first."""
    lines = ["| part | what | result | asked | |", "|-|-|-|-|-|"]
    for row in rows:
        mark = {True: "passes", False: "**does not pass**", None: ""}[row["passes"]]
        cells = [row["part"], row["what"], row["result"], row["limit"], mark]
        lines.append(f"| {' | '.join(str(cell).replace('|', '/') for cell in cells)} |")
    return "\n".join(lines) + "\n"


def draw(rows: Sequence[Row], file: Path) -> bool:
    """Time of a step and its peak memory by freezing depth, beside the roofline and the original; false where no step was measured."""
    steps = [row for row in rows if row["part"] == "step" and "milliseconds" in row]
    if not steps:
        return False
    from yolojax.figures import COLOURS, INK, new_figure, quiet_axes

    theirs = {(row["model"], row["freeze"]): row for row in rows if row["part"] == "original" and "original" in row}
    names = [f"{row['model']}\nfreeze {row['freeze']}\n{row['dtype']}" for row in steps]
    figure = new_figure(3 + 1.2 * len(steps), 3.5)
    left, right = figure.subplots(1, 2)
    places = range(len(steps))
    left.bar(places, [row["milliseconds"] for row in steps], 0.6, color=COLOURS[0], label="measured")
    for place, row in enumerate(steps):
        if row["roofline"]:
            left.hlines(row["roofline"]["roofline_ms"], place - 0.3, place + 0.3, color=INK)
        if original := theirs.get((row["model"], row["freeze"])):
            left.plot(place, original["original"]["median"], "d", color=COLOURS[1])
    left.set_ylabel("ms per step (line: roofline, diamond: the original)")
    right.bar(places, [(row["peak_bytes"] or row["planned_bytes"] or 0) / 1e9 for row in steps], 0.6, color=COLOURS[0])
    right.set_ylabel("GB at the peak" + ("" if steps[0]["peak_bytes"] else ", as compiled"))
    for axes in (left, right):
        quiet_axes(axes)
        axes.set_xticks(list(places), names, fontsize=6)
    figure.savefig(file)
    return True
