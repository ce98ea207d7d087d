"""The first signal is noted, the second ends the process at once."""

import signal
import subprocess
import sys

import pytest

SCRIPT = """
import os, signal, sys
from yolojax.interrupts import interruptible

before = signal.getsignal(signal.SIGINT)
with interruptible() as interrupt:
    for _ in range(int(sys.argv[2])):
        os.kill(os.getpid(), int(sys.argv[1]))
    print("noted", bool(interrupt), interrupt.status)
print("handlers are back", signal.getsignal(signal.SIGINT) is before)
"""


def signalled(number: int, times: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", SCRIPT, str(int(number)), str(times)], capture_output=True, text=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_noted_and_the_second_quits_at_once(number):
    once = signalled(number, times=1)
    assert once.returncode == 0, once.stderr
    assert f"noted True {128 + number}\nhandlers are back True" in once.stdout
    assert "once more to quit at once" in once.stdout
    twice = signalled(number, times=2)
    assert twice.returncode == -number  # killed by it
    assert "noted" not in twice.stdout
