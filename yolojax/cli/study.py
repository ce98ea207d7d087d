"""``yolojax study``: compare freezing strategies, and frameworks, side by side."""

from __future__ import annotations

import argparse
import dataclasses
import logging
from pathlib import Path

log = logging.getLogger(__name__)


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
    from yolojax.study.measurements import measure_study, summarise
    from yolojax.study.report import write_report
    from yolojax.study.runner import planned_runs, run_study
    from yolojax.study.scenarios import check_study, load_study

    whole = load_study(arguments.study)
    study = whole.only(arguments.only)
    output = arguments.output or arguments.project / (arguments.name or study.file.stem)

    def report() -> Path:
        return write_report(whole, measure_study(whole, planned_runs(whole, output)), output)

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
        failed = run_study(study, output, extents, lambda: print(f"report: {report()}"))
    page = report()
    print(page.with_suffix(".md").read_text(encoding="utf-8"))
    print(f"report: {page}")
    for run in failed:
        print(f"failed: {run.name}; log: {run.folder / 'log.txt'}")
    if arguments.json:
        measured = measure_study(whole, planned_runs(whole, output))
        write_json(arguments.json, [dataclasses.asdict(row) for row in summarise(whole, measured)])
    return 1 if failed else 0
