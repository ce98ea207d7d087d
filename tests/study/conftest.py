"""Recorded runs of studies."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from yolojax.study.runner import StudyRun
from yolojax.study.scenarios import load_study


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
