"""Batches made ahead of time."""

import os
import signal
import sys

import numpy as np
import pytest

from yolojax.data.prefetch import Prefetch, _lost_worker
from yolojax.errors import UserError


class Killed:
    """Batches of one number each; whoever makes number 99 is killed while at it, as by a system that runs out of memory."""

    def __len__(self):
        return 1000

    def __getitem__(self, number):
        if number == 99:
            os.kill(os.getpid(), signal.SIGKILL)
        return np.full(100, number)


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL there")
def test_a_worker_that_is_killed_is_told_in_a_sentence():
    batches = Prefetch(Killed(), 3, workers=2)
    try:
        assert next(batches)[0] == 3
        with pytest.raises(UserError, match=r"^--workers 2: .* signal 9 \(SIGKILL\); .*memory.*--resume goes on"):
            for _ in batches:
                pass
    finally:
        batches.close()


@pytest.mark.parametrize(
    ("status", "words"),
    [(-7, "signal 7 (SIGBUS); so it ends where /dev/shm has no room"), (3, "status 3; --workers 0 needs")],
)
def test_what_a_lost_worker_is_a_sign_of(status, words):
    assert words in _lost_worker(status, 1)
