"""A validation beside an epoch, from milliseconds of a batch."""

import argparse

import pytest

from benchmarks.roofline import CHIPS, listed_chip
from benchmarks.validation_roofline import table


def test_seconds_are_those_of_whole_batches():
    options = argparse.Namespace(batch=4, train=41, val=17)  # eleven steps; three batches of eight
    rows = dict(
        line.strip("| ").split(" | ")
        for line in table({"predict": 100, "nms": 10, "step": 300}, options).splitlines()[2:]
    )
    assert rows == {
        "prediction of 17 images": "0.30",
        "suppression of their boxes": "0.03",
        "both, on the device": "0.33",
        "an epoch of 41 images, freeze 0": "3.30",
        "validation, of the epoch": "0.10",
    }


def test_a_chip_whose_peaks_are_not_known_is_refused():
    assert listed_chip("cuda:h100", "anything") is CHIPS["cuda:h100"]
    with pytest.raises(SystemExit, match="the peaks of Abacus are not listed"):
        listed_chip("abacus", "Abacus")
