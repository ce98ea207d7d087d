"""Recorded runs of studies."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from yolojax.study import runner
from yolojax.study.measurements import measure_study, summarise_runs
from yolojax.study.report import write_report
from yolojax.study.runner import StudyRun, planned_runs, run_study
from yolojax.study.scenarios import Extent, load_study


@pytest.fixture
def record_run() -> Callable[..., None]:
    """Fills the folder of a run as a finished run leaves it: ``record_run(run, [(map50, map50_95), …])``, ten seconds per epoch."""

    def record(run: StudyRun, scores: list[tuple[float, float]], status: str = "finished", **results) -> None:
        run.folder.mkdir(parents=True)
        rows = [f"{epoch},{map50},{map50_95}" for epoch, (map50, map50_95) in enumerate(scores)]
        (run.folder / "results.csv").write_text("\n".join(["epoch,metrics/mAP_0.5,metrics/mAP_0.5:0.95", *rows]) + "\n")
        samples = ["seconds,epochs,cpu_percent,memory_bytes,gpu_percent,gpu_memory_bytes"]
        samples += [
            f"{10 * (epoch + 1)},{epoch + 1},{150 + 10 * epoch},{10**9 + epoch},," for epoch in range(len(scores))
        ]
        (run.folder / "samples.csv").write_text("\n".join(samples) + "\n")
        content = {
            "status": status,
            "seconds": 10.0 * len(scores) + 2,
            "cpus": 2,
            "extent": {"trainable": 60, "parameters": 100, "batch": 4, "epochs": len(scores)},
        }
        (run.folder / "study.json").write_text(json.dumps(content))
        if run.scenario.framework == "yolojax":
            program = {
                "epoch": 0,
                "phase": "",
                "trainable": 50,
                "parameters": 100,
                "compile_seconds": 3.0,
                "flops": 1e9,
            }
            own = {
                "epochs": len(scores),
                "batch_size": 4,
                "device_peak_bytes": None,
                "programs": [{**program, "argument_bytes": 2_000_000, "temporary_bytes": 5_000_000}],
                "timings": [{"images_per_second": speed} for speed in (None, 40.0, 20.0, 30.0)],
            }
            (run.folder / "results.json").write_text(json.dumps({**own, **results}))

    return record


@pytest.fixture
def make_runs(write_study, tmp_path: Path) -> Callable[..., tuple]:
    """``make_runs(**changes)``: a study and its runs, nothing of them done."""

    def make(**changes):
        study = load_study(write_study(**changes))
        runs = [
            StudyRun(s, seed, tmp_path / "out" / f"{s.folder}-seed{seed}")
            for seed in study.seeds
            for s in study.scenarios
        ]
        return study, runs

    return make


@pytest.fixture
def measure_afterwards(make_runs, record_run, tmp_path: Path, monkeypatch) -> Callable[..., tuple]:
    """``measure_afterwards(name, write, **changes)``: a study of two runs that have ended, called three times, whose first measurement fails.

    ``name`` is that of the function in ``runner`` which measures, ``write(folder)`` writes what it found. Gives its one summary, and its report and
    table of runs as text.
    """

    def measure(name: str, write: Callable[[Path], None], **changes) -> tuple:
        study, runs = make_runs(seeds=[0, 1], **changes)
        for run in runs:
            record_run(run, [(0.2, 0.1)])
        asked = []

        def measured(*arguments) -> int:
            folder = next(value for value in arguments if isinstance(value, Path))
            asked.append(folder.name)
            if len(asked) == 1:
                (folder / f"{name.removeprefix('measure_')}.log").write_text("what went wrong\n")
                return 1
            write(folder)
            return 0

        monkeypatch.setattr(runner, name, measured)
        output = tmp_path / "out"
        for _ in range(3):
            assert run_study(study, output, {"freeze 2": Extent(1, 2, 4, 1)}) == []
        assert asked == [
            "freeze-2-seed0",
            "freeze-2-seed1",
            "freeze-2-seed0",
        ]  # the first one failed, and is tried again
        measurements = measure_study(study, planned_runs(study, output))
        (summary,) = summarise_runs(study, measurements)
        write_report(study, measurements, output)
        return summary, (output / "report.md").read_text(), (output / "runs.csv").read_text()

    return measure
