"""A run that is stopped, or whose disk fills up, while a checkpoint is written: one sentence at the end, and the last good checkpoint whole."""

import os
import signal
import subprocess
import sys

import pytest

from yolojax.training.checkpoints import Checkpoints

SCRIPT = """
import multiprocessing, os, resource, signal, sys, time
from yolojax.cli.main import main
from yolojax.training.checkpoints import Checkpoints

what, times = int(sys.argv[1]), int(sys.argv[2])  # -1: the process that loads images is killed; 0: the disk is full; else a signal
save, calls = Checkpoints.save, []

def strike():
    for count in range(times):
        while count and signal.getsignal(what) != signal.SIG_DFL:  # the first is not noted yet: two would be one for the system
            time.sleep(0.01)
        os.kill(os.getpid(), what)

def struck(self, *arguments):
    calls.append(arguments)
    if len(calls) == 2 and what == 0:  # no file may grow beyond this: as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
    save(self, *arguments)  # goes on in the background
    if len(calls) == 2 and what < 0:
        for worker in multiprocessing.active_children():
            worker.kill()
    elif len(calls) == 2 and what:
        strike()

Checkpoints.save = struck
if __name__ == "__main__":
    sys.exit(main(sys.argv[3:]))
"""


@pytest.fixture
def struck(tiny_model, tiny_data, tmp_path, contents):
    """Trains in a process of its own that is struck at its second checkpoint; files that were there before are left as they are."""
    script = tmp_path / "struck.py"
    script.write_text(SCRIPT)

    def run(what: int, times: int = 1):
        words = f"train --weights= --cfg={tiny_model} --data={tiny_data} --img=64 --batch=4 --epochs=60 --workers=1 --noplots"
        command = [sys.executable, str(script), str(what), str(times), *words.split(), "--project", str(tmp_path)]
        environment = os.environ | {"YOLOJAX_CACHE": str(tmp_path / "cache")}
        before = contents(tiny_model.parent, tiny_data.parent)
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)
        assert contents(tiny_model.parent, tiny_data.parent) == before
        return done

    return run


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="has no limit of file sizes")
def test_a_disk_that_fills_up_is_told_last_and_alone(struck, tmp_path):
    done = struck(0)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith(f"yolojax train: {tmp_path / 'exp'}")
    assert "Traceback" not in done.stdout
    assert Checkpoints(tmp_path / "exp").progress(3)["epoch"] == 1


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="processes end with other statuses there")
def test_a_killed_worker_is_told_last_and_alone(struck, tmp_path):
    done = struck(-1)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("yolojax train: --workers 1: a process that loads images was ended by signal 9 (SIGKILL)")
    assert "Traceback" not in done.stdout
    assert Checkpoints(tmp_path / "exp").steps()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_a_checkpoint_is_written_ends_with_the_command_that_continues(struck, tmp_path, number):
    done = struck(int(number))
    assert done.returncode == 128 + number, done.stderr
    assert not done.stderr.strip()
    assert done.stdout.strip().splitlines()[-1].startswith("saved; continue with: python train.py --resume")
    checkpoints = Checkpoints(tmp_path / "exp")
    newest, before = (checkpoints.progress(step)["epoch"] for step in checkpoints.steps())
    assert 2 <= before <= newest < 60  # files are written while the next epochs train


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_quits_at_once_and_leaves_the_checkpoint_before_whole(struck, tmp_path, number):
    done = struck(int(number), 2)
    assert done.returncode == -number
    assert not done.stderr.strip()
    checkpoints = Checkpoints(tmp_path / "exp")
    assert checkpoints.steps()
    assert all(checkpoints.progress(step)["epoch"] >= 1 for step in checkpoints.steps())
