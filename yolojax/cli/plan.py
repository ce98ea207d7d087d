"""``yolojax plan``: what training would cost with one freeze or another, on this machine or on an accelerator that is not here."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolojax.flags import add_fields, read_fields
from yolojax.plan.settings import PlanSettings
from yolojax.training.settings import DEFAULT_VIEWS

if TYPE_CHECKING:
    from yolojax.plan.plan import Row


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    add_fields(parser, PlanSettings)
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="figure of memory and operations to draw (.png, .svg or .pdf)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the table."""
    import dataclasses

    from rich.console import Console

    from yolojax.augmentation.resident import image_bytes
    from yolojax.files import write_json
    from yolojax.model.spec import load_spec
    from yolojax.plan.plan import plan
    from yolojax.plan.plot import plot_plan
    from yolojax.runtime import select_devices
    from yolojax.weights.find import EMBEDDED_WEIGHTS, load_weights

    settings = read_fields(arguments, PlanSettings)
    select_devices("cpu")
    spec = load_spec(settings.cfg) if settings.cfg else load_weights(settings.weights or EMBEDDED_WEIGHTS).spec
    spec = spec.with_classes(settings.nc or spec.classes)
    console = Console(highlight=False)
    rows: list[Row] = []
    with console.status("compiling") as status:
        for row in plan(settings, spec):
            rows.append(row)
            status.update(f"compiling; {row.target}, freeze {row.freeze} took {row.compile_seconds:.0f} s")
    title = f"{spec.name}, {spec.classes} classes, {settings.batch_size} images of {settings.imgsz} px"
    for name in dict.fromkeys(row.target for row in rows):
        of_target = [row for row in rows if row.target == name]
        console.print(_table(of_target, f"{title}, {of_target[0].dtype}, {name}"))
    kept = settings.images and settings.images * image_bytes(settings.imgsz)
    if kept:
        console.print(
            f"--cache device keeps {settings.images:,} images on every device: {kept / 1e9:.2f} GB beside the peak"
        )
    for row in rows:
        if sentence := _features(row, settings):
            console.print(sentence)
    if arguments.plot:
        plot_plan(rows, arguments.plot, f"{title}, {', '.join(dict.fromkeys(row.dtype for row in rows))}")
    if arguments.json:
        write_json(
            arguments.json,
            {"network": spec.name, "device_cache_bytes": kept, "rows": [dataclasses.asdict(row) for row in rows]},
        )
    return 0


def _features(row: Row, settings: PlanSettings) -> str | None:
    """What keeping features means for a row; None where there are none."""
    from yolojax.files import readable_size

    kept = row.features
    if kept is None:
        return None
    words = [
        f"--cache features, freeze {row.freeze}, {row.dtype}: a step takes {_short(int(kept.flops), 1e9)} GFLOP, {row.flops / kept.flops:.3g} times fewer, "
        f"and {readable_size(kept.image_bytes)} are kept of each view of an image"
    ]
    whole = settings.epochs * row.flops
    part = settings.epochs * kept.flops + min(DEFAULT_VIEWS, settings.epochs) * kept.view_flops
    words.append(
        f"{settings.epochs} epochs on {DEFAULT_VIEWS} views take {part / whole:.1%} of the operations of training"
    )
    if settings.images:
        needed = DEFAULT_VIEWS * settings.images * kept.image_bytes
        words.append(f"{readable_size(needed)} for {DEFAULT_VIEWS} views of {settings.images:,} images")
    return "; ".join(words)


def _table(rows: Sequence[Row], title: str) -> Any:
    """The rows of one target."""
    from rich.table import Table

    caption = f"{_short(rows[0].memory_bytes, 1e9)} GB are there for a program."
    if rows[0].target.startswith(("cuda", "gpu")):
        caption += " The workspace of cuDNN comes on top of the peak."
    table = Table(title=title, title_justify="left", padding=(0, 1, 0, 0), caption=caption, caption_justify="left")
    table.add_column("freeze", overflow="fold")
    table.add_column("trainable", justify="right", no_wrap=True)
    for heading in ("GFLOP", "peak GB", "temp. GB", "valid. GB", "optim. MB", "weight grads", "max. batch"):
        table.add_column(heading.replace(" ", "\n"), justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            f"{row.freeze}, from epoch {row.start}" if row.start else row.freeze,
            f"{row.trainable:,}",
            f"{row.flops / 1e9:,.0f}",
            _short(row.peak_bytes, 1e9),
            _short(row.temp_bytes, 1e9),
            _short(row.validation_bytes, 1e9),
            _short(row.optimizer_bytes, 1e6),
            _short(row.weight_gradient_ops),
            _short(row.largest_batch),
            style=None if row.fits else "red",
        )
    return table


def _short(count: int | None, unit: float = 1) -> str:
    """A count in a unit; a dash where nothing is known of it."""
    if count is None or unit == 1:
        return "-" if count is None else str(count)
    value = count / unit
    return f"{value:,.0f}" if value >= 1000 else f"{value:.2f}" if value >= 0.1 or value == 0 else f"{value:.3f}"
