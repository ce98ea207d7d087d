"""Runs are processes: finished ones stay, broken ones go on, failed ones stop nobody. The trainer here is a script of a few lines."""

import json
import os
import signal
import sys
import threading
import time

import pytest

from yolojax import processes
from yolojax.errors import UserError
from yolojax.study import runner
from yolojax.study.runner import planned_runs, run_study
from yolojax.study.scenarios import Extent, load_study

# Notes that it was called; fails, waits, or works, as its scenario's name says.
TRAINER = """
import pathlib, signal, sys, time
folder, name, resumed = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3]
with (folder / "calls").open("a") as file: print(resumed, file=file)
(folder / "settings.yaml").touch()
print("training", name, flush=True)
if "failing" in name: sys.exit("no good\\n" + "the reason")
if "slow" in name and resumed == "False":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    (folder / "waiting").touch()
    time.sleep(60)
(folder / "results.csv").write_text("epoch\\n0\\n1\\n")
"""


@pytest.fixture
def study(write_study, tmp_path, monkeypatch):
    """Makes a study of scenarios with these names whose runs are those of ``TRAINER``."""
    script = tmp_path / "trainer.py"
    script.write_text(TRAINER)

    def command(run):
        resumed = (run.folder / "settings.yaml").is_file()
        return [sys.executable, str(script), str(run.folder), run.scenario.name, str(resumed)]

    monkeypatch.setattr(runner, "own_command", command)
    monkeypatch.setattr(processes, "PERIOD", 0.05)
    return lambda *names, **changes: load_study(write_study(scenarios=[{"name": name} for name in names], **changes))


def run(study, output, **options):
    return run_study(
        study, output, dict.fromkeys((scenario.name for scenario in study.scenarios), Extent(1, 2, 4, 2)), **options
    )


def calls(output, name):
    return (output / name / "calls").read_text().split()


def test_a_failed_run_stops_nobody_and_goes_on_next_time(study, tmp_path, caplog):
    output, reports = tmp_path / "out", []
    failed = run(study("failing", "good", seeds=[0, 1]), output, after_run=lambda: reports.append(1))
    assert [run.name for run in failed] == ["failing, seed 0", "failing, seed 1"]
    assert len(reports) == 4
    assert "FAILED failing, seed 0 (exit status 1): the reason; log:" in caplog.text
    assert "training failing" in (output / "failing-seed0" / "log.txt").read_text()
    record = json.loads((output / "good-seed1" / "study.json").read_text())
    assert (record["status"], record["seed"], record["exit_status"]) == ("finished", 1, 0)
    run(study("failing", "good", seeds=[0, 1]), output)
    assert calls(output, "good-seed0") == ["False"]
    assert calls(output, "failing-seed0") == ["False", "True"]


def test_seeds_come_one_after_the_other_over_all_scenarios(study, tmp_path):
    runs = planned_runs(study("a", "b", seeds=[0, 5]), tmp_path)
    assert [run.name for run in runs] == ["a, seed 0", "b, seed 0", "a, seed 5", "b, seed 5"]


def test_an_interruption_is_handed_on_and_the_run_continues_later(study, tmp_path):
    output = tmp_path / "out"

    def interrupt():
        while not (output / "slow-seed0" / "waiting").is_file():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=interrupt).start()
    with pytest.raises(SystemExit) as stopped:
        run(study("slow", "good"), output)
    assert stopped.value.code == 128 + signal.SIGTERM
    record = json.loads((output / "slow-seed0" / "study.json").read_text())
    assert (record["status"], record["exit_status"]) == ("interrupted", 143)
    assert not (output / "good-seed0").exists()
    assert run(study("slow", "good"), output) == []
    assert calls(output, "slow-seed0") == ["False", "True"]
    assert json.loads((output / "slow-seed0" / "study.json").read_text())["seconds"] > record["seconds"]


def test_the_process_is_sampled(study, tmp_path):
    run(study("good"), tmp_path / "out")
    header, *rows = (tmp_path / "out" / "good-seed0" / "samples.csv").read_text().splitlines()
    assert header == "seconds,epochs,cpu_percent,memory_bytes,gpu_percent,gpu_memory_bytes"
    assert rows[-1].split(",")[1] == "2"  # the epochs of results.csv at the end


def test_runs_with_other_settings_are_not_taken_for_this_study(study, tmp_path, write_study):
    run(study("good"), tmp_path / "out")
    changed = load_study(write_study(scenarios=[{"name": "good", "epochs": 7}]))
    with pytest.raises(UserError, match=r"good-seed0: was run with epochs 2, and .* now says 7; remove the folder"):
        planned_runs(changed, tmp_path / "out")


def test_two_studies_never_share_a_folder(study, tmp_path):
    fcntl = pytest.importorskip("fcntl")
    (tmp_path / "out").mkdir()
    with (tmp_path / "out" / ".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another study"):
            run(study("good"), tmp_path / "out")
