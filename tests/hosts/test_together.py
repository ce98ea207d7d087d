"""Two processes train one network: as one would, and they stop as one."""

import signal
import sys

import pytest

from yolojax.training.checkpoints import Checkpoints

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="processes find each other's devices by gloo, which is tried on Linux"
)


def test_a_signal_to_one_process_stops_both_and_one_process_goes_on_with_the_same_figures(
    together, words, tmp_path, log_of
):
    """Four steps by two processes, one of which is then asked to stop; the rest by one process with two devices."""
    runs = tmp_path / "runs"
    first, second = together([*words, "--epochs=2"], struck={1: f"step 4 {int(signal.SIGTERM)}"})
    assert (first.status, second.status) == (128 + signal.SIGTERM,) * 2, first.errors + second.errors
    assert "saved; continue with" in first.output
    assert [line for line in second.output.splitlines() if "[Gloo]" not in line] == []  # process 0 alone prints
    assert "process 1 of 2" in log_of(1)
    assert "asked to stop: process 1" in log_of(0)
    assert len(Checkpoints(runs / "exp").steps()) == 2  # of the first epoch, and of both processes together

    (resumed,) = together(["train", f"--resume={runs / 'exp'}"], count=1, devices=2)
    (whole,) = together([*words, "--epochs=2", "--name=whole"], count=1, devices=2)
    assert (resumed.status, whole.status) == (0, 0), resumed.errors + whole.errors
    assert (runs / "exp" / "results.csv").read_bytes() == (runs / "whole" / "results.csv").read_bytes()


def test_a_process_that_finds_no_other_ends_with_a_sentence(together, words):
    (alone,) = together(
        [*words, "--coordinator=127.0.0.1:1", "--process-id=1", "--process-count=2"], count=1, YOLOJAX_START_SECONDS="4"
    )
    assert alone.status == 2
    assert "process 0 has not answered at 127.0.0.1:1" in alone.errors.splitlines()[-1]
    assert "within 4 s" in alone.errors


def test_what_is_wrong_in_one_process_is_told_by_both(together, words, tmp_path, log_of):
    """Process 1 has another seed: each of the two says so, with the status of a user's mistake, and nothing is trained."""
    for ended in together(words, own={1: ["--seed=7"]}):
        assert ended.status == 2, ended.errors
    assert "process 1 and process 0 differ in --seed (7 and 0)" in log_of(1)
    assert not (tmp_path / "runs" / "exp" / "weights").exists()


def test_an_error_of_one_process_ends_the_other_with_its_words(together, words, tmp_path):
    first, second = together(words, own={1: [f"--data={tmp_path / 'none.yaml'}"]})
    assert (first.status, second.status) == (2, 2)
    assert "none.yaml" in second.errors
    assert "process 1 on" in first.errors
    assert "none.yaml" in first.errors
