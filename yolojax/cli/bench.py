"""``yolojax bench``: size, accuracy and time of every way of running a network, as YOLOv5's benchmarks.py measures them."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolojax.flags import add_fields, add_foreign, note_foreign, read_fields
from yolojax.inference.settings import BenchSettings

if TYPE_CHECKING:
    from rich.table import Table

REFUSED = {
    "half": "name the way instead: --include bfloat16",
    "pt_only": "name the way instead: --include float32",
    "test": "'yolojax export' tests the exports alone",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add YOLOv5's flags and ours."""
    add_fields(parser, BenchSettings)
    add_foreign(parser, REFUSED)


def run(arguments: argparse.Namespace) -> int:
    """Measure and print; 1 where ``--hard-fail`` says so."""
    note_foreign(arguments, {}, REFUSED)
    settings = read_fields(arguments, BenchSettings)

    from tempfile import TemporaryDirectory

    import jax
    from rich.console import Console

    from yolojax.files import write_json
    from yolojax.inference.benchmark import measure, prepare_benchmark
    from yolojax.scores import shown_score

    validation = prepare_benchmark(settings)
    with TemporaryDirectory(prefix="yolojax-bench-") as folder:
        rows = list(measure(validation, tuple(dict.fromkeys(settings.include)), Path(folder)))

    Console(highlight=False, markup=False).print(_table(rows))
    described = validation.described()
    size, batch = described["image_size"], described["batch_size"]
    sides = f"{size} px, rectangular" if described["rectangular"] else f"{size}x{size} px"
    print(
        f"{described['weights'][0]} on {described['data']} (val, {len(validation.samples)} images), {sides}, "
        f"batch {batch}, confidence > {described['confidence']:g}, NMS IoU {described['iou']:g}, {jax.devices()[0].device_kind}"
    )
    failures = [f"{row['way']} was not run: {row['problem']}" for row in rows if "problem" in row]
    for failure in failures:
        print(failure)
    if settings.hard_fail is not None:
        for row in rows:
            if "problem" not in row and (row["map50_95"] is None or row["map50_95"] < settings.hard_fail):
                failures.append(
                    f"{row['way']}: mAP50-95 {shown_score(row['map50_95'], 4)} is below {settings.hard_fail:g}"
                )
                print(failures[-1])
    if arguments.json:
        write_json(arguments.json, {"ways": rows, "images": len(validation.samples), "settings": described})
    return 1 if failures and settings.hard_fail is not None else 0


def _table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """A row for every way that could be run."""
    from rich.table import Table

    from yolojax.scores import shown_score

    table = Table("way", "MB", "mAP50", "mAP50-95", "ms per image")
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        if "problem" not in row:
            accuracy = shown_score(row["map50"], 4), shown_score(row["map50_95"], 4)
            table.add_row(row["way"], f"{row['size_mb']:,.2f}", *accuracy, f"{row['inference_ms']:,.2f}")
    return table
