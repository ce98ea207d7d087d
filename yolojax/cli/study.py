"""``yolojax study``: compare freezing strategies, and frameworks, side by side."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from yolojax.errors import UserError

if TYPE_CHECKING:
    from yolojax.study.measurements import Summary

log = logging.getLogger(__name__)

_PERIOD = 60.0  # seconds between two reports of an unfinished study; one takes some seconds to draw
_SHOWN = ("map50", "map50_95", "wall_seconds", "step_seconds", "memory_bytes")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument("study", metavar="STUDY", help="study YAML or name (quick, bccd, guide)")
    parser.add_argument("--project", type=Path, default=Path("runs/study"), metavar="DIR", help="folder of the studies")
    parser.add_argument("--name", metavar="NAME", help="name of the study's folder; default: that of its file")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="folder of the study, instead of --project and --name"
    )
    parser.add_argument("--only", nargs="+", default=(), metavar="NAME", help="scenarios to run; default: all")
    parser.add_argument("--check", action="store_true", help="check everything and list the runs, but train nothing")
    parser.add_argument("--report", action="store_true", help="write the report of what is there, but train nothing")


def run(arguments: argparse.Namespace) -> int:
    """Run what is missing, and write tables, plots and the report; 1 if a run failed."""
    from yolojax.files import write_json
    from yolojax.hosts.cluster import find_cluster
    from yolojax.study.measurements import measure_study, summarise_runs
    from yolojax.study.report import write_report
    from yolojax.study.runner import follow_study, planned_runs, run_study
    from yolojax.study.scenarios import check_study, load_study

    whole = load_study(arguments.study)
    study = whole.only(arguments.only)
    output = arguments.output or arguments.project / (arguments.name or study.file.stem)

    def report() -> Path:
        return write_report(whole, measure_study(whole, planned_runs(whole, output)), output)

    written = -math.inf

    def after_run() -> None:
        nonlocal written
        if time.monotonic() - written >= _PERIOD:
            print(f"report: {report()}")
            written = time.monotonic()

    cluster = find_cluster(arguments.coordinator, arguments.process_id, arguments.process_count)
    if cluster is not None:
        if any(scenario.framework == "torch" for scenario in study.scenarios):
            raise UserError(
                "the original is trained by one process: choose other scenarios with --only, or start the study once"
            )
        if cluster.process_id:
            follow_study(study, output, check_study(study), cluster)
            return 0
    failed = []
    if not arguments.report:
        runs = planned_runs(study, output)
        extents = check_study(study)
        done = sum(run.record()["status"] == "finished" for run in runs)
        log.info("%s: %d runs in %s, %d of them finished", study.title, len(runs), output, done)
        if arguments.check:
            for run in runs:
                log.info("%-12s %s", run.record()["status"], run.name)
            return 0
        failed = run_study(study, output, extents, after_run, cluster)
    page = report()
    summaries = summarise_runs(whole, measure_study(whole, planned_runs(whole, output)))
    _show(whole.title, summaries)
    print(f"all figures: {page.with_suffix('.md')}")
    print(f"report: {page}")
    for run in failed:
        print(f"failed: {run.name}; log: {run.folder / 'log.txt'}")
    if arguments.json:
        write_json(arguments.json, [dataclasses.asdict(row) for row in summaries])
    return 1 if failed else 0


def _show(title: str, summaries: Sequence[Summary]) -> None:
    """Print the figures that matter most, which fit into 80 columns; means over the seeds."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from yolojax.study.report import COLUMNS

    columns = [column for column in COLUMNS if column.key in _SHOWN]
    table = Table("scenario", "BN", "runs", title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.columns[0].overflow = "fold"
    for column in columns:
        table.add_column(column.heading.replace(", ", "\n"), justify="right", no_wrap=True)
    for row in summaries:
        cells = [column.show(row.mean[column.key]) for column in columns]
        table.add_row(row.name, row.frozen_bn, str(len(row.seeds)), *cells)
    Console(highlight=False, markup=False).print(table)
