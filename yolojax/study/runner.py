"""Runs a study: one process per run, one after the other; finished runs stay, broken ones go on, failed ones stop nobody."""

from __future__ import annotations

import csv
import dataclasses
import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from yolojax.errors import UserError
from yolojax.files import write_json
from yolojax.interrupts import Interrupt, interruptible
from yolojax.study.original import original_command, original_environment, write_inputs
from yolojax.study.sampling import COLUMNS, PERIOD, Sampler
from yolojax.study.scenarios import Extent, Scenario, Study
from yolojax.training.settings import TrainSettings

log = logging.getLogger(__name__)

RECORD, LOG, SAMPLES = "study.json", "log.txt", "samples.csv"
_PATIENCE = 300.0  # seconds that an interrupted run gets to save


@dataclass(frozen=True)
class Run:
    """One training of a study: a scenario, a seed, and the folder that holds all about it."""

    scenario: Scenario
    seed: int
    folder: Path

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.scenario.name}, seed {self.seed}"

    def record(self) -> dict[str, Any]:
        """What ``study.json`` says: the settings, how it went (``status``), and the wall time in ``seconds``."""
        file = self.folder / RECORD
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"status": "missing", "seconds": 0.0}


def planned_runs(study: Study, output: Path) -> list[Run]:
    """All runs of a study, seed by seed, so that an unfinished study compares everything on the same seeds.

    Raises:
      UserError: a folder holds a run of the same name with other settings.
    """
    runs = [
        Run(scenario, seed, output / f"{scenario.folder}-seed{seed}")
        for seed in study.seeds
        for scenario in study.scenarios
    ]
    for run in runs:
        now = _plain_settings(run)
        before = run.record().get("settings", now)
        changed = [key for key in now if key in before and before[key] != now[key]]
        if changed:
            raise UserError(
                f"{run.folder}: was run with {changed[0]} {before[changed[0]]!r}, and {study.file} now says "
                f"{now[changed[0]]!r}; remove the folder to run it again, or choose another --output"
            )
    return runs


def run_study(
    study: Study, output: Path, extents: Mapping[str, Extent], after_run: Callable[[], None] = lambda: None
) -> list[Run]:
    """Do what is still to do of a study.

    Args:
      study: checked.
      output: folder of the study; ``--resume``-able run folders inside.
      extents: of ``check_study``.
      after_run: called after every run, for instance to write the report anew.

    Returns:
      The runs that failed; their logs stand in their folders.

    Raises:
      UserError: the folder holds other runs, or another study is at work in it.
      SystemExit: a signal asked to stop; the current run has saved what it has.
    """
    runs = planned_runs(study, output)
    with alone(output) as lock, interruptible() as interrupt:
        for number, run in enumerate(runs, 1):
            if run.record()["status"] == "finished":
                continue
            log.info("[%d/%d] %s: %s", number, len(runs), run.name, run.folder / LOG)
            status = _run(run, output / "original", extents[run.scenario.name], interrupt, lock)
            if interrupt:
                log.info("stopped; the same command goes on with %s", run.name)
                raise SystemExit(interrupt.status)
            record = run.record()
            if status:
                log.warning(
                    "FAILED %s (exit status %d): %s; log: %s",
                    run.name,
                    status,
                    last_line(run.folder / LOG),
                    run.folder / LOG,
                )
            else:
                log.info("finished %s in %.1f min", run.name, record["seconds"] / 60)
            after_run()
    return [run for run in runs if run.record()["status"] != "finished"]


def _run(run: Run, inputs: Path, extent: Extent, interrupt: Interrupt, lock: int) -> int:
    """Train in a process of its own and watch it; its exit status."""
    run.folder.mkdir(parents=True, exist_ok=True)
    before = float(run.record()["seconds"])
    if run.scenario.framework == "torch":
        write_inputs(run.scenario, inputs)
        command, environment = (
            original_command(run.scenario, run.seed, run.folder, inputs),
            original_environment(inputs),
        )
    else:
        command, environment = train_command(run), _environment()
    record = {
        "scenario": run.scenario.name,
        "framework": run.scenario.framework,
        "seed": run.seed,
        "settings": _plain_settings(run),
        "extent": dataclasses.asdict(extent),
        "cpus": _cpus(),
        "command": command,
    }
    if run.scenario.framework == "torch" and _epochs(run.folder) >= extent.epochs:
        # It was stopped in its last validation, which only repeats figures; the original refuses to go on from there.
        write_json(run.folder / RECORD, {**record, "status": "finished", "seconds": before})
        return 0
    write_json(run.folder / RECORD, {**record, "status": "running", "seconds": before})
    started = time.monotonic()
    process = start_process(command, run.folder / LOG, lock, environment)
    sampler = Sampler(process.pid)
    with _samples(run.folder / SAMPLES) as (file, writer):

        def watch() -> None:
            row: dict[str, Any] = sampler.sample() if process.returncode is None else {}
            row |= {"seconds": round(before + time.monotonic() - started, 2), "epochs": _epochs(run.folder)}
            writer.writerow(row)
            file.flush()

        exit_status = wait_for(process, interrupt, watch)
    seconds = before + time.monotonic() - started
    status = {"status": "interrupted" if interrupt else "failed" if exit_status else "finished"}
    write_json(run.folder / RECORD, {**record, **status, "exit_status": exit_status, "seconds": seconds})
    return exit_status


def start_process(
    command: Sequence[str], output: Path, lock: int, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start a command that adds what it prints to a log.

    Args:
      command: and its arguments.
      output: log file.
      lock: of ``alone``, which the process holds as well.
      environment: of the process, if it is not that of this one.
    """
    with output.open("ab") as file:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches this process alone, which hands it on once
            pass_fds=(lock,) if lock >= 0 else (),
        )


def wait_for(process: subprocess.Popen[bytes], interrupt: Interrupt, watch: Callable[[], None] = lambda: None) -> int:
    """Wait until a process ends, and hand an interruption on to it.

    Args:
      process: to wait for.
      interrupt: of this process.
      watch: called every ``PERIOD`` seconds, and once more at the end.

    Returns:
      Its exit status.
    """
    asked = 0.0
    while process.returncode is None:
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=PERIOD)
        watch()
        if interrupt and not asked:
            asked = time.monotonic()
            process.send_signal(signal.SIGTERM)
        if asked and time.monotonic() - asked > _PATIENCE:
            process.kill()
    return process.returncode


@contextmanager
def _samples(path: Path) -> Iterator[tuple[IO[str], csv.DictWriter[str]]]:
    fresh = not path.is_file()
    with path.open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="")
        if fresh:
            writer.writeheader()
        yield file, writer


def _epochs(folder: Path) -> int:
    """How many epochs a run has written down."""
    try:
        with (folder / "results.csv").open("rb") as file:
            return max(sum(1 for _ in file) - 1, 0)
    except OSError:
        return 0


def train_command(run: Run) -> list[str]:
    """The command line of one of our own runs; it continues the run where its folder holds one."""
    start = [sys.executable, "-m", "yolojax.cli.main", "train"]
    if (run.folder / "settings.yaml").is_file():
        return [*start, "--resume", str(run.folder)]
    settings = dataclasses.replace(
        run.scenario.settings, seed=run.seed, project=str(run.folder.parent), name=run.folder.name, exist_ok=True
    )
    return [*start, *train_flags(settings)]


def train_flags(settings: TrainSettings) -> list[str]:
    """The flags of ``yolojax train`` that say what differs from its defaults."""
    words: list[str] = []
    for item in dataclasses.fields(TrainSettings):
        value, flag = getattr(settings, item.name), f"--{item.name.replace('_', '-')}"
        if value == getattr(TrainSettings(), item.name):
            continue
        words += [flag] if value is True else [flag, *value] if isinstance(value, tuple) else [f"{flag}={value}"]
    return words


def _environment() -> dict[str, str]:
    return os.environ | {
        # JAX would take most of a GPU's memory at once, and nvidia-smi would show that instead of what is needed.
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        # Every run compiles for itself: with the cache the second seed would seem to compile in no time.
        "JAX_ENABLE_COMPILATION_CACHE": "false",
    }


def _plain_settings(run: Run) -> dict[str, Any]:
    settings = dataclasses.asdict(run.scenario.settings)
    return {**json.loads(json.dumps(settings)), "framework": run.scenario.framework}


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def last_line(output: Path) -> str:
    """The last line of a log, shortened, as the likeliest reason of a failure."""
    lines = output.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return textwrap.shorten(lines[-1], 240) if lines else "no output"


@contextmanager
def alone(output: Path) -> Iterator[int]:
    """Hold the folder for one study; runs inherit the hold, so that a run that outlived its study is not started twice.

    Gives the file descriptor, or -1 where the system has no such locks.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        file = (output / ".lock").open("a")
    except OSError as error:
        raise UserError(f"{output}: the folder of the study cannot be made ({error.strerror})") from error
    with file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:
            yield -1
            return
        except OSError as error:
            raise UserError(
                f"{output}: another study, or a run that it left behind, is at work in this folder"
            ) from error
        yield file.fileno()
