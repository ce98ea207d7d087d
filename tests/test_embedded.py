"""The weights that come with the package, and the two figures that the embedded default promises."""

import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest

from yolojax.config import configs_root
from yolojax.data.config import load_data_config
from yolojax.tree import flatten
from yolojax.weights.find import EMBEDDED_WEIGHTS, load_weights

FOLDER = configs_root() / "weights" / EMBEDDED_WEIGHTS
MEGABYTE = 10**6


def test_weights_are_small_and_complete():
    weights = load_weights(EMBEDDED_WEIGHTS)
    assert weights.spec.name == "yolov5n"
    assert all(np.isfinite(leaf).all() for leaf in flatten(weights.variables).values())
    assert sum(file.stat().st_size for file in FOLDER.rglob("*") if file.is_file()) <= 4 * MEGABYTE


def test_record_says_how_the_weights_were_made():
    weights = load_weights(EMBEDDED_WEIGHTS)
    assert weights.source["licence"] == "AGPL-3.0-or-later"
    assert "--data shapes-pretraining" in weights.source["command"]
    assert weights.names == load_data_config("shapes-pretraining").names


def test_checksum_is_that_of_the_arrays():
    weights = load_weights(EMBEDDED_WEIGHTS)
    arrays = dict(sorted(flatten(weights.variables).items()))
    digest = hashlib.sha256(b"".join(leaf.astype(np.float16).tobytes() for leaf in arrays.values()))
    assert digest.hexdigest() == weights.source["sha256"]


def test_all_of_the_network_starts_trained_and_no_class_has_been_seen():
    weights, target = load_weights(EMBEDDED_WEIGHTS), load_data_config("shapes")
    assert weights.spec.classes == len(target.names)
    assert set(weights.names).isdisjoint(target.names)


def fine_tuned_map50(folder, *arguments):
    """Of the command that the readme begins with, the data set's own defaults included."""
    command = [sys.executable, "train.py", "--freeze", "10", "--noplots", "--project", str(folder), "--name", "run"]
    subprocess.run([*command, *arguments], cwd=configs_root().parent, check=True)
    return json.loads((folder / "run" / "results.json").read_text(encoding="utf-8"))["best"]["map50"]


@pytest.mark.slow
def test_frozen_backbone_transfers(tmp_path):
    assert fine_tuned_map50(tmp_path) >= 0.80


@pytest.mark.slow
def test_random_backbone_does_not(tmp_path):
    assert fine_tuned_map50(tmp_path, "--weights", "", "--cfg", "yolov5n") <= 0.30
