"""The acceptance of a real accelerator in minutes: what the project promises of a GPU or TPU, and what it takes there, measured.

    python -m benchmarks.accelerator --minutes 8          # results in runs/accelerator
    python -m benchmarks.accelerator --parts step stem    # only these
    python -m benchmarks.accelerator --small              # the same in small, to its end, on a CPU

Every case is a process of its own with a limit of time. What this machine lacks is skipped with the reason. In the folder: ``results.jsonl`` (every figure),
``results.md`` (a table), ``step.png``. It makes its own data and fetches nothing; ``benchmarks/wheels.py`` makes a folder of wheels for a machine that has
JAX for its card but not all of this project's dependencies.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.accelerator.parts import PREALLOCATE, Part, parts

MINUTES = 8


def main() -> None:
    """Run the parts, or one case of one in a process that was started for it."""
    names = [part.name for part in parts(small=False)]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accelerator", description="The acceptance of a real accelerator."
    )
    parser.add_argument("--minutes", type=float, default=MINUTES, help="for all parts together (default: %(default)s)")
    parser.add_argument("--small", action="store_true", help="tiny networks and data, for a CPU")
    parser.add_argument("--parts", nargs="+", choices=names, help="only these; each then has as long as there is")
    parser.add_argument("--torch-python", default="", help="interpreter with torch and yolov5==7.0.14 (default: this)")
    parser.add_argument("--output", type=Path, default=Path("runs/accelerator"), help="folder (default: %(default)s)")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM)
    )  # as for Ctrl-C, the case that runs ends too
    if options.case:
        _run_case(json.loads(options.case))
        return
    if not options.small and (reason := _no_accelerator()):
        parser.error(f"{reason}; --small runs all parts in small on a CPU")
    sys.exit(_accept(options))


def _no_accelerator() -> str | None:
    """Asked in a process of its own, which gives the device's memory back."""
    probe = "from yolojax.runtime import select_devices; print(select_devices()[0].platform)"
    run = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    if run.returncode:
        return f"JAX does not start ({(run.stderr.strip().splitlines() or ['?'])[-1]})"
    return "JAX finds no GPU or TPU here" if run.stdout.split()[-1] == "cpu" else None


def _accept(options: argparse.Namespace) -> int:
    """Everything, within its time; 1 where a part failed or what is asked for was not reached."""
    from benchmarks.accelerator.report import draw, table

    options.output.mkdir(parents=True, exist_ok=True)
    chosen = [
        part
        for part in parts(options.small, options.torch_python)
        if options.parts is None or part.name in options.parts
    ]
    start = time.monotonic()
    end, share = start + 60 * options.minutes, options.minutes / MINUTES
    rows: list[dict[str, Any]] = []
    due = start
    with (
        tempfile.TemporaryDirectory(prefix="accelerator-") as folder,
        (options.output / "results.jsonl").open("w", encoding="utf-8") as file,
    ):
        for part in chosen:
            due += part.seconds * share
            for row in _run_part(part, Path(folder), end if options.parts or options.small else min(due, end)):
                rows.append({"part": part.name, **row})
                print(json.dumps(rows[-1]), file=file, flush=True)
                print(f"[{time.monotonic() - start:4.0f} s] {part.name}: {_line(row)}", flush=True)
    (options.output / "results.md").write_text(table(rows), encoding="utf-8")
    draw(rows, options.output / "step.png")
    failures = [row for row in rows if row.get("passes") is False]
    print(f"{len(rows)} rows, {len(failures)} that do not pass; {options.output / 'results.md'}")
    return int(bool(failures))


def _line(row: Mapping[str, Any]) -> str:
    mark = {True: "passes", False: "DOES NOT PASS", None: ""}[row["passes"]]
    return "  ".join(
        filter(None, [f"{row['what']}: {row['result']}", row["limit"] and f"(asked: {row['limit']})", mark])
    )


def _run_part(part: Part, folder: Path, end: float) -> Iterator[dict[str, Any]]:
    rows = []
    for case in part.cases:
        new = _run(part, case, folder, end - time.monotonic())
        rows += new
        yield from new
    yield from part.judge(rows)


def _run(part: Part, case: Mapping[str, Any], folder: Path, seconds: float) -> list[dict[str, Any]]:
    """The rows of one case, and one more where it did not come to its end."""
    words = " ".join(
        f"{key} {value}" for key, value in case.items() if key in ("model", "freeze", "cache", "deterministic")
    )
    what = f"{part.name} {words}".strip()
    if seconds < 2:
        return [_row(what, "left out: no time is left", skipped="time")]
    request = {**case, "function": part.function, "folder": str(folder)}
    variables = {"JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"), **case.get("variables", {})}
    if part.starts_others:
        variables[PREALLOCATE] = "false"
    with (folder / "output").open("w+") as output, (folder / "errors").open("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.accelerator", "--case", json.dumps(request)],
            stdout=output,
            stderr=errors,
            env=os.environ | variables,
            start_new_session=True,
        )
        try:
            status: int | None = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            # A case may have started others; they end with it.
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        output.seek(0)
        errors.seek(0)
        rows = [json.loads(line) for line in output if line.startswith("{")]
        if status is None:
            rows.append(_row(what, f"stopped after {seconds:.0f} s", skipped="time"))
        elif status:
            last = errors.read().strip()[-1500:]
            rows.append(_row(what, f"failed: {last.splitlines()[-1] if last else status}", passes=False, error=last))
    return rows


def _row(what: str, result: str, passes: bool | None = None, **figures: Any) -> dict[str, Any]:
    return {"what": what, "result": result, "limit": "", "passes": passes, **figures}


def _run_case(case: Mapping[str, Any]) -> None:
    from benchmarks.accelerator.bench import AbsentError
    from yolojax.runtime import select_devices

    select_devices()
    module, _, function = case["function"].partition(":")
    try:
        for row in getattr(import_module(f"benchmarks.accelerator.{module}"), function)(case):
            print(json.dumps(row), flush=True)
    except AbsentError as reason:
        print(json.dumps(_row(function, f"skipped: {reason}", skipped=str(reason))), flush=True)


if __name__ == "__main__":
    main()
