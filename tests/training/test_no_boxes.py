"""A validation split without one box: told, and nothing in the run looks like a measurement."""

import json
import math
import shutil

import pytest

from yolojax.cli.main import main
from yolojax.training import report
from yolojax.training.report import read_results
from yolojax.training.trackers import Trackers
from yolojax.weights.find import load_weights

SCORES = ("precision", "recall", "map50", "map50_95")


@pytest.fixture
def data(tiny_data, tmp_path):
    """The data set of squares; its validation images have empty label files."""
    folder = tmp_path / "squares"
    shutil.copytree(tiny_data.parent, folder)
    for file in (folder / "labels" / "val").iterdir():
        file.write_text("")
    file = folder / tiny_data.name
    file.write_text(file.read_text().replace(str(tiny_data.parent), str(folder)))
    return file


@pytest.mark.long
def test_a_run_that_cannot_be_measured_says_so_and_has_no_scores(
    data, tiny_model, tmp_path, contents, monkeypatch, capsys
):
    written = []
    monkeypatch.setattr(report, "open_trackers", lambda *_: Trackers(board=Board(written)))
    before = contents(data.parent)
    words = f"--data {data} --cfg {tiny_model} --img 64 --batch 4 --epochs 3 --patience 1 --workers 0 --name none"
    status = main(["train", "--weights=", *words.split(), "--project", str(tmp_path / "runs"), "--device", "cpu"])
    out = capsys.readouterr().out
    assert status == 0
    assert "val: not one box: there will be no precision, recall and mAP of it" in out
    assert "weights/best follows the newest weights, and --patience 1 never ends the run" in out
    assert out.count("P -  R -  mAP50 -  mAP50-95 -") == 3
    run = tmp_path / "runs" / "none"
    results = json.loads((run / "results.json").read_text())
    assert (results["epochs"], results["stopped_early"], results["best_epoch"]) == (3, False, 2)
    assert results["best"] == results["final"]
    assert [results["final"][name] for name in (*SCORES, "fitness")] == [None] * 5
    assert results["final"]["images"] == 4
    for row in read_results(run / "results.csv"):
        assert math.isnan(row["metrics/mAP_0.5"])
        assert math.isnan(row["metrics/precision"])
        assert row["val/obj_loss"] > 0
    assert len(written) == 3
    assert not any("metrics/" in name for row in written for name in row)
    best, last = (load_weights(run / "weights" / name).source["epoch"] for name in ("best", "last"))
    assert best == last == 3
    assert contents(data.parent) == before


class Board:
    """In the place of a run of Weights & Biases."""

    def __init__(self, written):
        self.written = written

    def log(self, figures, step=None):
        if step is not None:
            self.written.append(figures)

    def finish(self):
        pass
