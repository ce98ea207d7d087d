"""Processes of our own."""

import os
import signal
import subprocess
import sys

import pytest

from yolojax import processes
from yolojax.interrupts import Interrupt
from yolojax.processes import start_process, wait_for

pytestmark = pytest.mark.skipif(
    os.name != "posix", reason="Windows has one signal for a process of its own group, and no SIGKILL"
)

RUN = """
import sys, time
from yolojax.interrupts import interruptible
with interruptible() as interrupt:
    print("at work", flush=True)
    while not interrupt:
        time.sleep(.01)
print("saved", flush=True)
sys.exit(interrupt.status)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_signal_that_came_is_handed_on_once(tmp_path, monkeypatch, number):
    """Twice would end the process at once, before it has saved."""
    monkeypatch.setattr(processes, "PERIOD", 0.05)
    log, interrupt = tmp_path / "log.txt", Interrupt()
    process = start_process([sys.executable, "-c", RUN], log, -1)

    def watch() -> None:
        if "at work" in log.read_text():
            interrupt.signal = number

    assert wait_for(process, interrupt, watch) == 128 + number
    assert log.read_text().splitlines()[-1] == "saved"


def test_a_process_that_does_not_stop_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "PERIOD", 0.05)
    monkeypatch.setattr(processes, "_PATIENCE", 0.2)
    interrupt = Interrupt()
    interrupt.signal = signal.SIGTERM
    deaf = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE)
    with process:
        assert process.stdout is not None
        process.stdout.readline()
        assert wait_for(process, interrupt) == -signal.SIGKILL
