"""How many workers there may be, and that they leave the caller's program alone."""

import multiprocessing
import subprocess
import sys
from types import SimpleNamespace

import pytest

from yolojax.data import workers
from yolojax.data.workers import affordable_workers

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


def test_where_there_is_no_such_folder_all_are_taken(tmp_path):
    assert affordable_workers(8, 2**40, tmp_path / "nowhere") == (8, "")


def test_a_daemon_takes_a_thread(tmp_path, monkeypatch):
    monkeypatch.setattr(multiprocessing, "current_process", lambda: SimpleNamespace(daemon=True))
    affordable, reason = affordable_workers(8, 1, tmp_path)
    assert affordable == 0
    assert "daemon" in reason


@pytest.mark.parametrize("way", ["script", "stdin", "-c", pytest.param("-i", marks=pytest.mark.slow)])
def test_a_program_without_main_guard_runs_once(tmp_path, way):
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    words = {"script": [str(script)], "stdin": ["-"], "-c": ["-c", PROGRAM], "-i": ["-q", "-i"]}[way]
    source = PROGRAM if way in ("stdin", "-i") else None
    done = subprocess.run([sys.executable, *words], input=source, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines() == ["started", "[0, 1, 2, 3, 4, 5]"]
    assert not done.stderr.replace(">>>", "").strip()


@pytest.mark.slow
def test_a_notebook_runs_once():
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(PROGRAM)])
    nbclient.NotebookClient(notebook, timeout=120).execute()
    assert {output["name"] for output in notebook.cells[0].outputs} == {"stdout"}
    text = "".join(output["text"] for output in notebook.cells[0].outputs)
    assert text == "started\n[0, 1, 2, 3, 4, 5]\n"
