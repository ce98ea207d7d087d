"""The weights that come with the package, and the two figures that the embedded default promises."""

import json
import subprocess
import sys

import numpy as np
import pytest

from yolojax.config import configs_root, load_data_config
from yolojax.freezing.tree import flatten
from yolojax.model.weights import load_weights
from yolojax.training.setup import EMBEDDED_WEIGHTS

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


def test_all_of_the_network_starts_trained_and_no_class_has_been_seen():
    weights, target = load_weights(EMBEDDED_WEIGHTS), load_data_config("shapes")
    assert weights.spec.classes == len(target.names)
    assert set(weights.names).isdisjoint(target.names)


@pytest.mark.slow
def test_frozen_backbone_transfers_and_a_random_one_does_not(tmp_path):
    def map50(name, *arguments):
        command = [sys.executable, "train.py", *arguments, "--freeze", "10", "--noplots", "--project", str(tmp_path)]
        subprocess.run([*command, "--name", name], cwd=configs_root().parent, check=True)
        return json.loads((tmp_path / name / "results.json").read_text(encoding="utf-8"))["best"]["map50"]

    assert map50("embedded") >= 0.80
    assert map50("random", "--weights", "", "--cfg", "yolov5n") <= 0.30
