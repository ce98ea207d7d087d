"""Several processes on this machine in the place of several machines."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

# Runs the command line in a process that sends itself signals at its n-th step, call of several steps, checkpoint or batch of validation, when it has
# searched for the others long enough, or at its n-th look at a process of its own. A negative signal goes to its process group, as from a terminal: to data
# workers and all else that it has started.
STRUCK = """
import os, subprocess, sys, time
from pathlib import Path
from yolojax.cli.main import main
from yolojax.hosts import membership
from yolojax.training import loop, validator
from yolojax.training.checkpoints import Checkpoints

PLACES = {
    "step": (loop, "put_batch"),
    "dispatch": (loop.Step, "__call__"),
    "save": (Checkpoints, "save"),
    "validation": (validator, "place_images"),
    "search": (membership, "_give_up"),
    "look": (subprocess.Popen, "wait"),
}

def send(what):
    if what < 0:
        os.killpg(0, -what)
    else:
        os.kill(os.getpid(), what)

def strike(place, number, *signals):
    owner, name = PLACES[place]
    function, calls = getattr(owner, name), []

    def counted(*arguments, **options):
        calls.append(1)
        if len(calls) == int(number):
            Path(__file__).with_suffix(".moment").write_text(str(time.monotonic()))
            for what in signals:
                send(int(what))
        return function(*arguments, **options)

    setattr(owner, name, counted)

if __name__ == "__main__":
    if sys.argv[1]:
        strike(*sys.argv[1].split())
    sys.exit(main(sys.argv[2:]))
"""


@dataclass(frozen=True)
class Ended:
    """A process that has ended: its exit status, what it printed, and when it ended, in seconds."""

    status: int
    output: str
    errors: str
    moment: float


@pytest.fixture
def together(tmp_path) -> Callable[..., list[Ended]]:
    """``together(words, count=2, devices=1)`` runs a command in several processes at once, or in one.

    ``struck`` has the signals that processes send themselves, ``own`` the words that they alone have, ``folders`` where they are started; all
    by process.
    """
    script = tmp_path / "struck.py"
    script.write_text(STRUCK)

    def run(
        words: list[str],
        count: int = 2,
        devices: int = 1,
        struck: dict[int, str] | None = None,
        own: dict[int, list[str]] | None = None,
        folders: dict[int, Path] | None = None,
        timeout: float = 900,
        **environment: str,
    ) -> list[Ended]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"--coordinator=127.0.0.1:{free.getsockname()[1]}"
        flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
        started = []
        for number in range(count):
            several = [address, f"--process-id={number}", f"--process-count={count}"] if count > 1 else []
            strike, alone = (struck or {}).get(number, ""), (own or {}).get(number, [])
            command = [sys.executable, str(script), strike, *words, *alone, *several]
            variables = os.environ | {"XLA_FLAGS": flags} | environment
            started.append(
                subprocess.Popen(
                    command,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    env=variables,
                    cwd=(folders or {}).get(number),
                    start_new_session=bool(strike),  # a process group of its own
                )
            )

        def wait(process: subprocess.Popen[str]) -> Ended:
            try:
                texts = process.communicate(timeout=timeout)
            finally:
                process.kill()
            return Ended(process.returncode, *texts, time.monotonic())

        with ThreadPoolExecutor(count) as waiting:
            return list(waiting.map(wait, started))

    return run


@pytest.fixture
def seconds_since_signal(tmp_path) -> Callable[[Ended], float]:
    """``seconds_since_signal(ended)``: how long a process lived on after one of them had sent itself a signal."""
    return lambda ended: ended.moment - float((tmp_path / "struck.moment").read_text())


@pytest.fixture
def words(tiny_model, tiny_data, tmp_path) -> list[str]:
    """A small training."""
    fixed = (
        f"train --weights= --cfg={tiny_model} --data={tiny_data} --img=64 --batch=4 --freeze=4 --workers=0 --noplots"
    )
    return [*fixed.split(), f"--project={tmp_path / 'runs'}"]


@pytest.fixture
def log_of(tmp_path) -> Callable[..., str]:
    """``log_of(process, run="exp")``: what a process has written to the log that it keeps in the run folder."""
    return lambda process, run="exp": (tmp_path / "runs" / run / "logs" / f"process-{process}.txt").read_text(
        encoding="utf-8"
    )
