"""``yolojax audit A B``: what changed between two checkpoints, layer by layer, bit by bit."""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from yolojax.freezing.audit import Audit, Difference


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    kinds = "weights: a .pt, a weights directory, a run folder or a name"
    parser.add_argument("before", metavar="A", help=kinds)
    parser.add_argument("after", metavar="B", help=kinds)
    parser.add_argument(
        "--frozen",
        nargs="+",
        metavar="SELECTOR",
        help="layers that were frozen between the two, as after --freeze; exit status 1 if any moved",
    )
    parser.add_argument(
        "--frozen-bn",
        choices=("fixed", "track"),
        default="fixed",
        help="BatchNorm of frozen layers: fixed = running statistics used and kept; track = batch statistics, as YOLOv5 does",
    )


def run(arguments: argparse.Namespace) -> int:
    """Compare; 1 where something moved that was frozen."""
    from rich.console import Console

    from yolojax.errors import UserError
    from yolojax.files import write_json
    from yolojax.freezing.audit import compare, kept_paths, moved_paths
    from yolojax.freezing.load import load_strategy
    from yolojax.runtime import select_devices
    from yolojax.tree import flatten
    from yolojax.weights.find import load_weights

    select_devices("cpu")
    before, after = load_weights(arguments.before), load_weights(arguments.after)
    for field in ("layers", "depth_multiple", "width_multiple"):
        if getattr(before.spec, field) != getattr(after.spec, field):
            raise UserError(
                f"{arguments.before} is {before.spec.name} and {arguments.after} is {after.spec.name}: "
                "only weights of one architecture can be compared"
            )
    audit = compare(before.variables, after.variables)
    console = Console(highlight=False)
    console.print(_table(audit, f"{arguments.before} -> {arguments.after}"))
    changed = sum(not row.identical for row in audit.layers)
    console.print(f"{len(audit.layers) - changed} layers identical, {changed} changed.")
    content = {"identical": audit.identical, "layers": _rows(audit)}
    moved: tuple[str, ...] = ()
    if arguments.frozen:
        sizes = {path: leaf.size for path, leaf in flatten(before.variables["params"]).items()}
        frozen = kept_paths(load_strategy(arguments.frozen, "--frozen", lambda: sizes), tuple(sizes), before.spec.name)
        moved = moved_paths(audit, frozen, tuple(sizes), arguments.frozen_bn)
        content["moved"] = list(moved)
        for path in moved[:10]:
            console.print(f"frozen, but moved: {path}", markup=False, soft_wrap=True)
        if len(moved) > 10:
            console.print(f"and {len(moved) - 10} more")
        if not moved:
            console.print(
                f"All that --frozen {' '.join(arguments.frozen)} holds is bit for bit the same.", markup=False
            )
    if arguments.json:
        write_json(arguments.json, content)
    return 1 if moved else 0


def _table(audit: Audit, title: str) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("layer", "parameters", "max change", "relative", "statistics", "max change", "relative"):
        table.add_column(heading, justify="left" if heading in ("parameters", "statistics") else "right")
    for row in audit.layers:
        cells = [*_cells(row.parameters), *_cells(row.statistics)]
        table.add_row(f"model_{row.layer}", *cells, style="dim" if row.identical else None)
    return table


def _cells(difference: Difference | None) -> tuple[str, str, str]:
    if difference is None:
        return "-", "", ""
    if difference.identical:
        return "identical", "", ""
    if math.isnan(difference.max_abs):
        return "other shape or no number", "", ""
    return "changed", _figure(difference.max_abs), _figure(difference.relative)


def _figure(value: float) -> str:
    """Three digits without an exponent; ``--json`` has them all.

    >>> _figure(0.01234), _figure(512345.6), _figure(1e-9)
    ('0.0123', '512,346', '< 0.0001')
    """
    return "< 0.0001" if value < 1e-4 else f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def _rows(audit: Audit) -> list[dict[str, Any]]:
    rows = []
    for row in audit.layers:
        content: dict[str, Any] = {"layer": row.layer, "identical": row.identical}
        for name, difference in (("parameters", row.parameters), ("statistics", row.statistics)):
            content[f"{name}_identical"] = difference.identical if difference else None
            content[f"{name}_max_abs"] = _finite(difference.max_abs) if difference else None
            content[f"{name}_relative"] = _finite(difference.relative) if difference else None
        rows.append(content)
    return rows


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
