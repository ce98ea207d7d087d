"""How many workers there may be, and that they leave the caller's program alone."""

import multiprocessing
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest

from yolojax.cli.main import main
from yolojax.data import workers
from yolojax.data.workers import SHARED_MEMORY, affordable_workers

# No main guard: each worker that imported this would print, and start workers of its own.
PROGRAM = """
import numpy as np
from yolojax.data.prefetch import Prefetch
print("started", flush=True)
batches = Prefetch([np.full((4, 64, 64, 3), number, np.uint8) for number in range(6)], 0, 2)
print(sorted(int(next(batches)[0, 0, 0, 0]) for _ in range(6)), flush=True)
batches.close()
"""


@pytest.mark.parametrize(("free", "count"), [(10**9, 8), (64_000_000, 4), (10_000_000, 0)])
def test_workers_fit_into_shared_memory(tmp_path, monkeypatch, free, count):
    monkeypatch.setattr(workers.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    affordable, reason = affordable_workers(8, 2_000_000, tmp_path)
    assert affordable == count
    assert bool(reason) == (count < 8)
    if reason:
        assert f"--workers {count} instead of 8" in reason
        assert "--shm-size" in reason


def test_little_shared_memory_is_told_in_figures_above_zero(tmp_path, monkeypatch):
    monkeypatch.setattr(workers.shutil, "disk_usage", lambda _: SimpleNamespace(free=102_400))
    affordable, reason = affordable_workers(2, 50_000, tmp_path)
    assert affordable == 0
    assert "has 0.1 MB free, and a worker needs 0.35 MB there" in reason


@pytest.mark.skipif(not SHARED_MEMORY.is_dir(), reason="shared memory is no folder here")
@pytest.mark.long
def test_a_run_with_little_shared_memory_says_so_and_trains(
    tiny_model, tiny_data, tmp_path, contents, monkeypatch, capfd
):
    def usage(folder, measure=shutil.disk_usage):
        return SimpleNamespace(free=102_400) if folder == SHARED_MEMORY else measure(folder)

    monkeypatch.setattr(workers.shutil, "disk_usage", usage)
    before = contents(tiny_model.parent, tiny_data.parent)
    words = f"--weights= --cfg={tiny_model} --data={tiny_data} --img=64 --batch=4 --epochs=1 --workers=2 --noplots --device=cpu"
    assert main(["train", *words.split(), "--project", str(tmp_path)]) == 0
    out, err = capfd.readouterr()
    assert f"--workers 0 instead of 2: {SHARED_MEMORY} has 0.1 MB free, and a worker needs 0.34 MB there" in out
    assert "--shm-size" in out
    assert not err
    assert (tmp_path / "exp" / "results.json").is_file()
    assert contents(tiny_model.parent, tiny_data.parent) == before


def test_where_there_is_no_such_folder_all_are_taken(tmp_path):
    assert affordable_workers(8, 2**40, tmp_path / "nowhere") == (8, "")


def test_a_daemon_takes_a_thread(tmp_path, monkeypatch):
    monkeypatch.setattr(multiprocessing, "current_process", lambda: SimpleNamespace(daemon=True))
    affordable, reason = affordable_workers(8, 1, tmp_path)
    assert affordable == 0
    assert "daemon" in reason


@pytest.mark.parametrize(
    "way",
    [
        "script",
        *(pytest.param(way, marks=pytest.mark.long) for way in ("stdin", "-c")),
        pytest.param("-i", marks=pytest.mark.slow),
    ],
)
def test_a_program_without_main_guard_runs_once(tmp_path, contents, way):
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    before = contents(tmp_path)
    words = {"script": [str(script)], "stdin": ["-"], "-c": ["-c", PROGRAM], "-i": ["-q", "-i"]}[way]
    source = PROGRAM if way in ("stdin", "-i") else None
    command = [sys.executable, *words]
    done = subprocess.run(command, input=source, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines() == ["started", "[0, 1, 2, 3, 4, 5]"]
    assert not done.stderr.replace(">>>", "").strip()
    assert contents(tmp_path) == before


TRAINING = """
print("started", flush=True)
from yolojax.training.loop import train
from yolojax.training.settings import TrainSettings
settings = TrainSettings(weights="", cfg={model!r}, data={data!r}, imgsz=64, batch_size=4, epochs=1, workers=2, noplots=True)
print("ended", train(settings)["epochs"], flush=True)
"""
CHILD = """
import multiprocessing
def job(code={code!r}): exec(code)
if __name__ == "__main__":
    child = multiprocessing.get_context("spawn").Process(target=job, daemon={daemon})
    child.start(); child.join(); raise SystemExit(child.exitcode)
"""


@pytest.mark.slow
@pytest.mark.parametrize("way", ["script", "stdin", "thread", "child", "daemon"])
def test_training_from_a_program_makes_one_run(tmp_path, tiny_model, tiny_data, contents, way):
    code = TRAINING.format(model=str(tiny_model), data=str(tiny_data))
    if way == "thread":
        code = (
            f"import threading\nthread = threading.Thread(target=exec, args=({code!r},))\nthread.start(); thread.join()"
        )
    elif way in ("child", "daemon"):
        code = CHILD.format(code=code, daemon=way == "daemon")
    script = tmp_path / "program.py"
    script.write_text(code)
    before = contents(tmp_path, tiny_model.parent, tiny_data.parent)
    command, source = ([sys.executable, "-"], code) if way == "stdin" else ([sys.executable, script.name], None)
    done = subprocess.run(command, input=source, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert [line for line in done.stdout.splitlines() if line.startswith(("started", "ended"))] == [
        "started",
        "ended 1",
    ]
    assert ("--workers 0" in done.stderr + done.stdout) == (way == "daemon")
    assert [run.name for run in (tmp_path / "runs" / "train").iterdir()] == ["exp"]
    assert before.items() <= contents(tmp_path, tiny_model.parent, tiny_data.parent).items()


@pytest.mark.slow
def test_a_notebook_runs_once():
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(PROGRAM)])
    nbclient.NotebookClient(notebook, timeout=120).execute()
    assert {output["name"] for output in notebook.cells[0].outputs} == {"stdout"}
    text = "".join(output["text"] for output in notebook.cells[0].outputs)
    assert text == "started\n[0, 1, 2, 3, 4, 5]\n"
