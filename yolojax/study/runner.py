"""Runs a study, one run after the other: each in a process, runs that share features in one. Finished runs are kept, interrupted ones go on, a failed one
stops no other."""

from __future__ import annotations

import csv
import dataclasses
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from yolojax.errors import UserError
from yolojax.files import write_json
from yolojax.hosts.cluster import Cluster
from yolojax.interrupts import Interrupt, interruptible
from yolojax.processes import last_line, locked_folder, start_process, wait_for
from yolojax.study.forgetting import measure_forgetting, measured_forgetting
from yolojax.study.held_out import measure_test, measured_test
from yolojax.study.original import original_command, original_environment, write_inputs
from yolojax.study.sampling import COLUMNS, Sampler
from yolojax.study.scenarios import Extent, Scenario, Study
from yolojax.study.together import SharedProcess, sharing
from yolojax.system import processors, stop_signals
from yolojax.training.settings import TrainSettings, train_command

log = logging.getLogger(__name__)

RECORD, LOG, SAMPLES = "study.json", "log.txt", "samples.csv"


@dataclass(frozen=True)
class StudyRun:
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


def planned_runs(study: Study, output: Path) -> list[StudyRun]:
    """All runs of a study, seed by seed, so that an unfinished study compares everything on the same seeds; those that share features after one another.

    Raises:
      UserError: a folder holds a run of the same name with other settings.
    """
    runs = [
        StudyRun(scenario, seed, output / f"{scenario.folder}-seed{seed}")
        for seed in study.seeds
        for scenario in _neighbours(study.scenarios)
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


def _neighbours(scenarios: Sequence[Scenario]) -> list[Scenario]:
    """Scenarios in their order, but those that share features stand where the first of them does."""
    keys = [sharing(scenario, 0) or scenario for scenario in scenarios]
    order = sorted(range(len(keys)), key=lambda place: keys.index(keys[place]))
    return [scenarios[place] for place in order]


def run_study(
    study: Study,
    output: Path,
    extents: Mapping[str, Extent],
    after_run: Callable[[], None] = lambda: None,
    cluster: Cluster | None = None,
) -> list[StudyRun]:
    """Do what is still to do of a study.

    Args:
      study: checked.
      output: folder of the study; ``--resume``-able run folders inside.
      extents: of ``check_study``.
      after_run: called after every run, for instance to write the report anew.
      cluster: of this process, the first of several whose runs are done together; see ``follow_study``.

    Returns:
      The runs that failed; their logs stand in their folders.

    Raises:
      UserError: the folder holds other runs, or another study is at work in it.
      SystemExit: a signal asked to stop; the current run has saved what it has.
    """
    runs = planned_runs(study, output)
    with (
        locked_folder(output, "study") as lock,
        interruptible() as interrupt,
        closing(_Starter(runs, lock)) as starter,
    ):
        for number, run in enumerate(runs, 1):
            if interrupt:
                raise SystemExit(interrupt.status)
            if run.record()["status"] == "finished":
                _validate(study, run, output, interrupt, lock)
                continue
            log.info("[%d/%d] %s: %s", number, len(runs), run.name, run.folder / LOG)
            status = _run(run, output / "original", extents[run.scenario.name], interrupt, starter, cluster)
            _stop_if_asked(interrupt, status, run, cluster)
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
                _validate(study, run, output, interrupt, lock)
            after_run()
    return [run for run in runs if run.record()["status"] != "finished"]


def _validate(study: Study, run: StudyRun, output: Path, interrupt: Interrupt, lock: int) -> None:
    """Validate a finished run as the study asks for, where that is not done; a failure is told, and tried again by the next call."""

    def start(command: Sequence[str], file: Path) -> int:
        return wait_for(start_process(command, file, lock), interrupt)

    def tell(status: int, file: Path, what: str) -> None:
        if status and not interrupt:
            log.warning("%s: %s: %s; log: %s", run.name, what, last_line(file), file)

    settings, folder = run.scenario.settings, run.folder
    if study.test and not measured_test(folder):
        status = measure_test(settings, folder, start)
        tell(status, folder / "test.log", "its test images could not be validated")
    if study.forgetting is not None and not measured_forgetting(folder, study.forgetting) and not interrupt:
        status = measure_forgetting(study.forgetting, settings, folder, output, start)
        tell(status, folder / "forgetting.log", "what it forgot could not be measured")


def follow_study(study: Study, output: Path, extents: Mapping[str, Extent], cluster: Cluster) -> None:
    """Take part in what the first process of several does of a study: every run is trained by a process of each.

    Raises:
      UserError: the folder holds other runs.
      SystemExit: a signal asked one of them to stop.
    """
    with interruptible() as interrupt:
        for run in planned_runs(study, output):
            if run.record()["status"] == "finished" or _has_ended(run, extents[run.scenario.name]):
                continue
            run.folder.mkdir(parents=True, exist_ok=True)
            file = run.folder / f"log-{cluster.process_id}.txt"
            status = wait_for(start_process(own_command(run), file, -1, _environment(cluster)), interrupt)
            _stop_if_asked(interrupt, status, run, cluster)


def _stop_if_asked(interrupt: Interrupt, status: int, run: StudyRun, cluster: Cluster | None) -> None:
    """Leave the study after a run that has stopped for a signal, be it to one of the other processes."""
    stopped = status in {128 + number for number in stop_signals()} if cluster else False
    if interrupt or stopped:
        log.info("stopped; the same command goes on with %s", run.name)
        raise SystemExit(interrupt.status if interrupt else status)


def _has_ended(run: StudyRun, extent: Extent) -> bool:
    """Whether a run needs no process any more: one that ended just before its study did."""
    # Such a run refuses to go on; so does the original in its last validation, which only repeats figures.
    ended = run.scenario.framework == "torch" or (run.folder / "results.json").is_file()
    return ended and _epochs(run.folder) >= extent.epochs


class _Starter:
    """Starts runs: those that share features in one process after another, all others in one of their own."""

    def __init__(self, runs: Sequence[StudyRun], lock: int) -> None:
        self._lock = lock
        waiting = (run for run in runs if run.record()["status"] != "finished")
        self._counts = Counter(sharing(run.scenario, run.seed) for run in waiting)
        self._shared: tuple[TrainSettings, SharedProcess] | None = None

    def start(self, run: StudyRun, command: Sequence[str], environment: Mapping[str, str]) -> tuple[Any, int]:
        """The process, or the part of one, that trains a run; and how many runs its process had before."""
        key = sharing(run.scenario, run.seed)
        if self._shared and (self._shared[0] != key or not self._shared[1].alive):
            self.close()
        if key is None or self._counts[key] < 2:
            return start_process(command, run.folder / LOG, self._lock, environment), 0
        if self._shared is None:
            self._shared = key, SharedProcess(self._lock, environment, run.folder / LOG)
        process, settings = self._shared[1], dataclasses.replace(run.scenario.settings, seed=run.seed)
        return process.train(settings, run.folder, run.folder / LOG), process.runs - 1

    def shares(self, run: StudyRun) -> bool:
        """Whether other runs read the same views of images as this one."""
        key = sharing(run.scenario, run.seed)
        return key is not None and self._counts[key] > 1

    def close(self) -> None:
        """End the process that waits for runs."""
        if self._shared is not None:
            self._shared[1].close()
            self._shared = None


def _run(
    run: StudyRun, inputs: Path, extent: Extent, interrupt: Interrupt, starter: _Starter, cluster: Cluster | None
) -> int:
    """Train in a process and watch it; its exit status."""
    run.folder.mkdir(parents=True, exist_ok=True)
    before = float(run.record()["seconds"])
    if run.scenario.framework == "torch":
        write_inputs(run.scenario, inputs)
        command, environment = (
            original_command(run.scenario, run.seed, run.folder, inputs),
            original_environment(inputs),
        )
    else:
        command, environment = own_command(run), _environment(cluster)
    record = {
        "scenario": run.scenario.name,
        "framework": run.scenario.framework,
        "seed": run.seed,
        "settings": _plain_settings(run),
        "extent": dataclasses.asdict(extent),
        "cpus": processors(),
        "command": command,
    }
    if _has_ended(run, extent):
        write_json(run.folder / RECORD, {**record, "status": "finished", "seconds": before})
        return 0
    write_json(run.folder / RECORD, {**record, "status": "running", "seconds": before})
    started = time.monotonic()
    process, before_it = starter.start(run, command, environment)
    record |= {"shares_features": starter.shares(run), "runs_before_in_process": before_it}
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


def own_command(run: StudyRun) -> list[str]:
    """The command line of one of our own runs; it continues the run where its folder holds one."""
    return train_command(dataclasses.replace(run.scenario.settings, seed=run.seed), run.folder)


def _environment(cluster: Cluster | None) -> dict[str, str]:
    return (
        os.environ
        | (cluster.variables if cluster else {})
        | {
            # JAX would take most of a GPU's memory at once, and nvidia-smi would show that instead of what is needed.
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
            # Every run compiles for itself: with the cache the second seed would seem to compile in no time.
            "JAX_ENABLE_COMPILATION_CACHE": "false",
        }
    )


def _plain_settings(run: StudyRun) -> dict[str, Any]:
    settings = dataclasses.asdict(run.scenario.settings)
    return {**json.loads(json.dumps(settings)), "framework": run.scenario.framework}
