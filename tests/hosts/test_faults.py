"""Faults at every place: all leave together or are ended, the last checkpoint is good, and other numbers of processes go on from it.

Four devices in all, whatever the number of processes: the same table, the same frozen bits, and parameters within 1e-6.
"""

import math
import random
import signal
import sys

import numpy as np
import pytest

from yolojax.training.checkpoints import Checkpoints, has_checkpoint
from yolojax.tree import flatten
from yolojax.weights.find import load_weights

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        sys.platform != "linux", reason="processes find each other's devices by gloo, which is tried on Linux"
    ),
]

SURVIVORS_END_WITHIN = 60  # seconds
BATCHES = 3  # in an epoch
PLACES = {
    "step": 6,
    "save": 2,
    "validation": 2,
}  # how often each comes in two epochs; four images of validation are one batch


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The results of the run that nothing happens to; made once, by whichever test comes first."""
    return tmp_path_factory.mktemp("undisturbed"), {}


def figures(run):
    """All that equal runs have in common: the table, and the bits of the weights."""
    leaves = flatten(load_weights(run / "weights" / "last").variables)
    return (run / "results.csv").read_bytes(), {path: np.asarray(leaf).tobytes() for path, leaf in leaves.items()}


def assert_goes_on(together, words, tmp_path, undisturbed, count):
    """Continue with other processes, and compare with the run that nothing happened to."""
    place, known = undisturbed
    if not known:
        (whole,) = together([*words[:-1], f"--project={place}", "--epochs=2"], count=1, devices=4)
        assert whole.status == 0, whole.errors
        known["figures"] = figures(place / "exp")
    run = tmp_path / "runs" / "exp"
    saved = has_checkpoint(run)
    resumed = together(["train", f"--resume={run}"], count=count, devices=4 // count)
    for ended in resumed:
        assert ended.status == 0, ended.errors
    assert ("continuing" in resumed[0].output) == saved
    assert "cannot be read" not in resumed[0].output
    table, leaves = figures(run)
    expected_table, expected_leaves = known["figures"]
    assert table == expected_table
    for path, expected in expected_leaves.items():
        if path.split("/")[1] in {f"model_{layer}" for layer in range(4)}:
            assert leaves[path] == expected, path  # frozen
        # Two processes with two devices each add up in another order than one with four.
        np.testing.assert_allclose(
            *(np.frombuffer(bits, np.float32) for bits in (leaves[path], expected)), rtol=0, atol=1e-6
        )


@pytest.mark.parametrize("number", range(20))
def test_sigterm(together, words, tmp_path, undisturbed, seconds_since_signal, number):
    rank, step = number % 2, random.Random(number).randint(1, 5)
    ended = together([*words, "--epochs=2"], devices=2, struck={rank: f"step {step} {int(signal.SIGTERM)}"})
    assert [process.status for process in ended] == [128 + signal.SIGTERM] * 2, ended
    print(f"both ended within {max(map(seconds_since_signal, ended)):.1f} s of the signal")
    # It goes with this step, and is seen while the next one of the epoch runs.
    assert Checkpoints(tmp_path / "runs" / "exp").steps()[0] == min(step + 1, BATCHES * math.ceil(step / BATCHES))
    assert_goes_on(together, words, tmp_path, undisturbed, 4 if number % 4 == 3 else 1)


@pytest.mark.parametrize(
    ("struck", "told"),
    [
        ({0: "step 4 2"}, "process 0"),
        ({1: "step 4 2"}, "process 1"),
        ({0: "step 4 -2", 1: "step 5 -2"}, "process 0, process 1"),  # a terminal's
    ],
)
def test_ctrl_c(together, words, tmp_path, undisturbed, log_of, struck, told):
    first, second = together([*words, "--epochs=2", "--workers=1"], devices=2, struck=struck)
    assert [first.status, second.status] == [128 + signal.SIGINT] * 2, first.errors + second.errors
    assert "saved; continue with" in first.output.splitlines()[-1]
    assert "Traceback" not in first.errors + second.errors
    for process in (0, 1):
        assert f"asked to stop: {told}" in log_of(process)
    saved = Checkpoints(tmp_path / "runs" / "exp")
    assert [saved.progress(step)["batch"] for step in saved.steps()] == [2, 0]  # one in the second epoch, of both
    assert_goes_on(together, words, tmp_path, undisturbed, 1)


@pytest.mark.parametrize("struck", [{0: "step 4 2 2"}, {1: "step 4 2 2"}, {0: "step 4 -2 -2", 1: "step 4 -2 -2"}])
def test_a_second_ctrl_c_ends_a_process_at_once_and_then_the_others(
    together, words, tmp_path, undisturbed, log_of, struck
):
    ended = together([*words, "--epochs=2", "--workers=1"], devices=2, struck=struck)
    assert all(ended[process].status == -signal.SIGINT for process in struck), ended
    assert all(process.status for process in ended)
    first, last = sorted(process.moment for process in ended)
    assert last - first < SURVIVORS_END_WITHIN
    print(f"the last one ended {last - first:.1f} s after the first")
    for process in (0, 1):
        assert any(word in log_of(process) for word in ("ended without a word", "failed"))
    assert_goes_on(together, words, tmp_path, undisturbed, 1)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("number", range(4))
def test_sigkill(together, words, tmp_path, undisturbed, log_of, rank, place, number):
    time = 1 + number % PLACES[place]
    ended = together([*words, "--epochs=2"], devices=2, struck={rank: f"{place} {time} {int(signal.SIGKILL)}"})
    killed, survivor = ended[rank], ended[1 - rank]
    assert killed.status == -signal.SIGKILL
    assert survivor.status != 0, survivor.output
    assert survivor.moment - killed.moment < SURVIVORS_END_WITHIN
    assert any(word in log_of(1 - rank) for word in ("ended without a word", "failed", "could not be saved"))
    print(f"survivor ended after {survivor.moment - killed.moment:.1f} s with status {survivor.status}")
    assert_goes_on(together, words, tmp_path, undisturbed, 4 if number % 2 else 1)
