"""``yolojax doctor``: what this machine has for yolojax, and what is missing."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""


def run(arguments: argparse.Namespace) -> int:
    """Look and print; 1 if no device can be used."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # only look at the memory of a GPU, take none

    from rich.console import Console

    from yolojax.doctor import examine
    from yolojax.files import write_json

    report = examine()
    console = Console(highlight=False, markup=False)
    for table in _tables(report):
        console.print(table, "")
    console.print(f"train --freeze 10 would run on: {report['train']}" if report["train"] else report["device_problem"])
    if arguments.json:
        write_json(arguments.json, report)
    return 0 if report["devices"] else 1


def _tables(report: dict[str, Any]) -> Iterable[Table]:
    """A table for every subject; each fits into 80 columns, long cells are wrapped."""
    from yolojax.doctor import PACKAGES, package_key
    from yolojax.files import readable_size

    versions = {"yolojax": report["yolojax"], "Python": report["python"]}
    versions |= {name: report[package_key(name)] or "missing" for name in PACKAGES}
    yield _table("versions", versions.items())
    absent, huge_pages = report["absent_accelerators"], report["huge_pages_problem"]
    machine = {
        "system": report["system"],
        "processors": str(report["processors"]),
        "memory": f"{readable_size(report['memory_free_bytes'])} of {readable_size(report['memory_bytes'])} free",
        "huge pages": "used by train, val, detect and bench" if huge_pages is None else f"not used: {huge_pages}",
        "NVIDIA driver": report["nvidia_driver"] or "none",
    }
    for name in absent:
        machine[f"plugin for {name}"] = "installed, but there is no such device here: JAX starts without it"
    yield _table("machine", machine.items())
    yield _table("devices of JAX", ((row["platform"], row["kind"], _memory(row)) for row in report["devices"]))
    yield _table("caches", ((row["name"], readable_size(row["bytes"]), row["folder"]) for row in report["caches"]))
    yield _table(
        "free space", ((row["name"], readable_size(row["free_bytes"]), row["folder"]) for row in report["disks"])
    )
    yield _table("extras", ((row["name"], row["command"] or "installed") for row in report["extras"]))


def _memory(row: dict[str, Any]) -> str:
    if row["memory_bytes"] is None:
        return "memory of the machine"
    from yolojax.files import readable_size

    free = f"{readable_size(row['memory_free_bytes'])} of {readable_size(row['memory_bytes'])} free for a program"
    return f"{free}; --cache device has room for {row['device_cache_images']:,} images of 640 px"


def _table(title: str, rows: Iterable[tuple[str, ...]]) -> Table:
    from rich.table import Table

    table = Table(
        title=title, title_justify="left", title_style="bold", show_header=False, box=None, padding=(0, 2, 0, 0)
    )
    for row in rows:
        table.add_row(*row)
    for column in table.columns:
        column.overflow = "fold"
    if not table.rows:
        table.add_row("none")
    return table
