"""Whole runs: what they leave behind, how they stop, and that a resumed one ends with the same bits."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import yaml

from yolojax.data.stream import TrainingStream
from yolojax.errors import UserError
from yolojax.evaluation.evaluator import Evaluation
from yolojax.model import network
from yolojax.model.network import init_variables
from yolojax.model.spec import load_spec
from yolojax.training import loop, state
from yolojax.training.checkpoints import Checkpoints
from yolojax.training.loop import train
from yolojax.training.report import read_results
from yolojax.training.run import read_settings
from yolojax.training.settings import TrainSettings
from yolojax.training.setup import prepare
from yolojax.training.trackers import Trackers
from yolojax.weights.find import load_weights
from yolojax.weights.store import Weights, save_weights

# Runs the command line in a process that sends itself a signal when it hands a given batch to the device.
SIGNALLED = """
import os, sys
from yolojax.cli.main import main
from yolojax.training import loop

put_batch, calls = loop.put_batch, 0

def counted(batch, mesh):
    global calls
    calls += 1
    if calls == int(sys.argv[1]):
        os.kill(os.getpid(), int(sys.argv[2]))
    return put_batch(batch, mesh)

if __name__ == "__main__":
    loop.put_batch = counted
    sys.exit(main(sys.argv[3:]))
"""
BATCHES = 3  # of an epoch: ten images, four at a time


@pytest.fixture
def settings(tiny_model, tiny_data, tmp_path):
    def make(**changes):
        fixed = {
            "weights": "",
            "cfg": str(tiny_model),
            "data": str(tiny_data),
            "imgsz": 64,
            "batch_size": 4,
            "epochs": 2,
            "workers": 0,
        }
        return TrainSettings(**{**fixed, "freeze": ("2",), "project": str(tmp_path), "noplots": True, **changes})

    return make


@pytest.fixture
def command(tiny_model, tiny_data, tmp_path):
    """Runs ``yolojax train`` in a process of its own, optionally signalled at a batch."""
    script = tmp_path / "signalled.py"
    script.write_text(SIGNALLED)
    environment = os.environ | {"YOLOJAX_CACHE": str(tmp_path / "cache")}

    def run(*arguments, at=0, number=signal.SIGKILL):
        words = [
            sys.executable,
            str(script),
            str(at),
            str(int(number)),
            "train",
            *arguments,
            "--project",
            str(tmp_path),
        ]
        return subprocess.run(words, capture_output=True, text=True, timeout=300, env=environment, check=False)

    fixed = [
        "--weights=",
        f"--cfg={tiny_model}",
        f"--data={tiny_data}",
        "--img=64",
        "--batch=4",
        "--epochs=4",
        "--freeze=2",
        "--noplots",
    ]
    return lambda *arguments, resume=None, **options: run(
        *([f"--resume={tmp_path / resume}"] if resume else [*fixed, "--workers=2"]), *arguments, **options
    )


def bits(run: Path) -> dict[str, bytes]:
    """Everything that two equal runs must agree on."""
    checkpoints = Checkpoints(run)
    newest = checkpoints._read(checkpoints._manager.latest_step(), packed_state=ocp.args.StandardRestore())
    weights = load_weights(run / "weights" / "last").variables
    leaves = {f"state{key}": np.asarray(leaf) for key, leaf in newest.items()}
    for collection, tree in weights.items():
        leaves |= {f"{collection}/{path}": leaf for path, leaf in _flat(tree).items()}
    return {name: leaf.tobytes() for name, leaf in leaves.items()} | {"csv": (run / "results.csv").read_bytes()}


def _flat(tree, prefix=""):
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {path: leaf for key, value in tree.items() for path, leaf in _flat(value, f"{prefix}/{key}").items()}


def test_a_run_leaves_its_records(settings, tmp_path, monkeypatch):
    handed_over = set()
    monkeypatch.setattr(Trackers, "close", lambda _, run: handed_over.update(file.name for file in run.iterdir()))
    results = train(settings(noplots=False))
    run = tmp_path / "exp"
    files = {file.name for file in run.iterdir()}
    curves = {"PR_curve.png", "P_curve.png", "R_curve.png", "F1_curve.png", "confusion_matrix.png"}
    figures = {"results.png", "labels.jpg", "train_batch0.jpg", "train_batch1.jpg", "train_batch2.jpg", *curves}
    assert files >= {
        "results.csv",
        "results.json",
        "settings.yaml",
        "hyp.yaml",
        "freeze.json",
        "environment.json",
        *figures,
    }
    assert handed_over >= {*figures}  # all of them are there when the trackers are closed
    assert json.loads((run / "results.json").read_text()) == json.loads(json.dumps(results))
    assert results["dtype"] == read_settings(run).dtype == "float32"  # what auto means on a CPU
    assert results["final"]["epoch"] == 1
    assert [row["epoch"] for row in read_results(run / "results.csv")] == [0, 1]
    assert all(row["train/box_loss"] > 0 for row in read_results(run / "results.csv"))
    frozen = json.loads((run / "freeze.json").read_text())
    assert frozen["frozen_paths"] == [
        f"model_{layer}/{leaf}" for layer in (0, 1) for leaf in ("bn/bias", "bn/scale", "conv/kernel")
    ]
    data = json.loads((run / "environment.json").read_text())["data"]
    assert (data["train"]["images"], data["val"]["images"]) == (10, 4)
    assert data["train"]["sha256"] != data["val"]["sha256"]
    assert load_weights(run).names == ("blue", "red")
    (program,) = results["programs"]  # one phase, one shape: compiled once
    assert program["trainable"] == frozen["trainable"] < program["parameters"] == frozen["parameters"]
    assert min(program[key] for key in ("compile_seconds", "flops", "argument_bytes", "temporary_bytes")) > 0
    assert [timing["images_per_second"] > 0 for timing in results["timings"]] == [True, True]


@pytest.mark.long
def test_a_killed_run_ends_with_the_bits_of_one_that_was_not(command, tmp_path):
    assert command("--name=whole").returncode == 0
    killed = command("--name=killed", at=2 * BATCHES + 2)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    resumed = command(resume="killed")
    assert resumed.returncode == 0, resumed.stderr
    assert "continuing" in resumed.stdout
    whole = bits(tmp_path / "whole")
    assert bits(tmp_path / "killed") == whole
    # The runs mean something: gradients were summed over several batches, and the weights moved.
    assert any("total" in name and any(leaf) for name, leaf in whole.items())

    stopped = command("--name=stopped", at=BATCHES + 2, number=signal.SIGTERM)
    assert stopped.returncode == 128 + signal.SIGTERM, stopped.stderr
    assert f"--resume {tmp_path / 'stopped'}" in stopped.stdout
    assert command(resume="stopped").returncode == 0
    assert bits(tmp_path / "stopped") == whole


@pytest.mark.long
@pytest.mark.parametrize(
    ("strategy", "phases"),
    [
        # Freezes by how far parameters moved in whole epochs, the interrupted one among them.
        pytest.param("kind: plateau\ngroups: 5\ntolerance: 1000\npatience: 1\nstart: 1", [0, 2, 3], id="plateau"),
        # Has arrays that no other phase has.
        pytest.param("kind: adapters\nselect: backbone\ntrain: detect\nrank: 2", [0], id="adapters"),
        # Chooses by the gradients at the start of the run.
        pytest.param("kind: surgical\ngroups: 5\nalso: detect", [0], id="surgical", marks=pytest.mark.slow),
        # Thaws in the epoch after.
        pytest.param("phases: [{train: detect}, {start: 3, freeze: 0}]", [0, 3], id="phases", marks=pytest.mark.slow),
    ],
)
def test_a_strategy_stopped_in_the_middle_of_a_phase_ends_with_the_same_bits(
    settings, tmp_path, monkeypatch, strategy, phases
):
    (tmp_path / "strategy.yaml").write_text(strategy)
    run = settings(freeze=(str(tmp_path / "strategy.yaml"),), epochs=4, name="whole")
    assert [program["epoch"] for program in train(run)["programs"]] == phases

    check_stopping(run, tmp_path, monkeypatch)


@pytest.mark.slow
def test_images_drawn_by_weight_are_the_same_after_an_interruption(settings, tmp_path, monkeypatch):
    run = settings(image_weights=True, epochs=4, name="whole")
    train(run)
    check_stopping(run, tmp_path, monkeypatch)


def check_stopping(run, tmp_path, monkeypatch):
    """A run that is stopped in its third epoch and resumed ends with the bits of ``whole``."""
    calls, put_batch = [], loop.put_batch

    def stops_in_the_third_epoch(batch, mesh):
        calls.append(batch)
        if len(calls) == 2 * BATCHES + 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return put_batch(batch, mesh)

    monkeypatch.setattr(loop, "put_batch", stops_in_the_third_epoch)
    with pytest.raises(SystemExit):
        train(dataclasses.replace(run, name="stopped"))
    assert len(calls) == 2 * BATCHES + 2
    train(TrainSettings(resume=str(tmp_path / "stopped")))
    assert bits(tmp_path / "stopped") == bits(tmp_path / "whole")


@pytest.mark.long
def test_a_run_killed_before_its_first_checkpoint_starts_again(command, tmp_path):
    assert command("--name=killed", at=2).returncode == -signal.SIGKILL
    again = command(resume="killed")
    assert again.returncode == 0, again.stderr
    assert "starting it again" in again.stdout
    assert len(read_results(tmp_path / "killed" / "results.csv")) == 4


@pytest.mark.long
def test_two_runs_with_one_seed_have_the_same_bits_and_another_seed_has_not(settings, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(settings(name=name, seed=seed))
    assert bits(tmp_path / "a") == bits(tmp_path / "b") != bits(tmp_path / "c")


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_files(settings, tmp_path):
    hyp = tmp_path / "hyp.yaml"
    hyp.write_text("warmup_bias_lr: 1.0e+30\n")
    with pytest.raises(UserError, match=r"epoch 1, batch (\d) \(step \1\): the loss is not finite; .*\d\.png"):
        train(settings(hyp=str(hyp)))


@pytest.mark.long
def test_a_run_in_float16_leaves_out_what_overflows_and_resumes_to_the_bit(settings, tmp_path, monkeypatch, caplog):
    """Its loss scale is a part of the checkpoint; the first one is so high here that gradients leave float16."""
    monkeypatch.setattr(state, "FIRST_SCALE", 2.0**20)
    run = settings(dtype="float16", epochs=4, name="whole")
    with caplog.at_level("INFO", "yolojax"):
        results = train(run)
    left_out = [timing["overflows"] for timing in results["timings"]]
    assert 0 < sum(left_out) < 4 * BATCHES
    assert f"{left_out[0]} steps left out (overflow of float16)" in caplog.text
    assert results["dtype"] == "float16"
    check_stopping(run, tmp_path, monkeypatch)
    again = json.loads((tmp_path / "stopped" / "results.json").read_text())
    assert [timing["overflows"] for timing in again["timings"]] == left_out


@pytest.mark.long
def test_gradients_that_always_overflow_stop_the_run_and_say_what_to_do(settings, monkeypatch):
    monkeypatch.setattr(loop, "LEAST_SCALE", 2.0**29)
    monkeypatch.setattr(state, "FIRST_SCALE", 2.0**30)
    sentence = (
        r"epoch 1, batch 3 \(step 3\): the gradient leaves float16 even with .*begin again with --dtype float32, .*png"
    )
    with pytest.raises(UserError, match=sentence):
        train(settings(dtype="float16"))


@pytest.mark.long
def test_best_weights_are_the_newest_ones_until_something_is_validated(settings, monkeypatch):
    saved = []
    monkeypatch.setattr(
        "yolojax.training.run.save_weights",
        lambda folder, weights, also: saved.extend((weights.source["epoch"], place.name) for place in (folder, *also)),
    )
    monkeypatch.setattr("yolojax.training.report.load_weights", None)  # the best validation is known without it
    train(settings(noval=True, epochs=3))
    assert saved == [(epoch, name) for epoch in (1, 2, 3) for name in ("last", "best")]


@pytest.mark.long
def test_images_are_drawn_by_what_the_last_validation_found_badly(settings, monkeypatch):
    drawn, draw = [], TrainingStream.draw

    def observed(stream, epoch, weights):
        drawn.append((epoch, weights))
        draw(stream, epoch, weights)

    monkeypatch.setattr(TrainingStream, "draw", observed)
    monkeypatch.setattr(
        Evaluation, "per_class", lambda _: [{"class": 0, "map50_95": 0.9}, {"class": 1, "map50_95": 0.0}]
    )
    monkeypatch.setattr("yolojax.training.report._show_best", lambda *_: None)
    train(settings(image_weights=True))
    (first, before), (second, after) = drawn
    assert (first, second) == (0, 1)
    assert before.sum() == pytest.approx(1)
    assert np.abs(before - after).max() > 0.01


@pytest.mark.long
def test_early_stopping_counts_epochs_since_the_best_one(settings, tmp_path):
    hyp = tmp_path / "hyp.yaml"
    hyp.write_text(
        "lr0: 0\nwarmup_bias_lr: 0\n"
    )  # only BatchNorm statistics move, so that validation does not improve for long
    results = train(settings(hyp=str(hyp), patience=1, epochs=6))
    rows = read_results(tmp_path / "exp" / "results.csv")
    scores = [0.1 * row["metrics/mAP_0.5"] + 0.9 * row["metrics/mAP_0.5:0.95"] for row in rows]
    worse = [epoch for epoch, score in enumerate(scores) if score < max(scores[: epoch + 1])]
    assert results["epochs"] == (worse[0] + 1 if worse else 6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": "nowhere.yaml"}, "nowhere.yaml: no such file"),
        ({"data_root": "nowhere"}, "nowhere"),
        ({"weights": "yolov9"}, "yolov9: no such weights"),
        ({"cfg": ""}, "add --cfg"),
        ({"batch_size": -1}, "--batch-size -1: 'yolojax train' finds it"),
        ({"freeze": ("30",)}, "has layers 0 to 6"),
        ({"freeze": ("7",)}, "nothing to train"),
        ({"hyp": "nothing"}, "nothing: no such file"),
        ({"device": "tpu"}, "--device tpu: no TPU is attached"),
    ],
)
def test_a_mistake_is_told_before_anything_is_written(settings, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        train(settings(**changes))
    assert not list(tmp_path.iterdir())


def test_random_layers_that_are_frozen(settings, tmp_path, caplog):
    sentence = "--freeze 2: model_0 to model_1 start from random numbers (there are no weights to start from)"
    with pytest.raises(UserError, match=re.escape(sentence)):
        train(settings(freeze=("2",), strict=True))
    assert not list(tmp_path.iterdir())
    with caplog.at_level("WARNING", "yolojax"):
        prepare(settings(freeze=("2",)))
    assert sentence in caplog.text
    assert "(--strict refuses this)" in caplog.text
    caplog.clear()
    prepare(settings(freeze=("0",), strict=True))
    assert "random numbers" not in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "--batch-size 0: must be at least 1"),
        ({"batch_size": -2}, "--batch-size -2: must be at least 1"),
        ({"image_weights": True, "rect": True}, "--image-weights: cannot go with --rect"),
        ({"epochs": 0}, "--epochs 0: must be at least 1"),
        ({"imgsz": 8}, "--imgsz 8: must be at least 32"),
        ({"label_smoothing": 1.0}, "--label-smoothing"),
    ],
)
def test_a_setting_that_no_run_can_have_is_refused(settings, changes, message):
    with pytest.raises(UserError, match=message):
        settings(**changes)


def test_an_image_size_between_two_strides_is_rounded_up(settings, caplog):
    with caplog.at_level("WARNING", "yolojax"):
        results = train(settings(imgsz=50, epochs=1))
    assert "--img 50 is not a multiple of the stride 32: 64 is used" in caplog.text
    assert results["epochs"] == 1


@pytest.mark.long
def test_remat_reaches_the_step_and_changes_rounding_alone(settings, tmp_path, monkeypatch):
    repeated = []

    def counted(block, *, original=network._computed_again):
        repeated.append(block)
        return original(block)

    monkeypatch.setattr(network, "_computed_again", counted)
    for name, remat in (("plain", False), ("again", True)):
        train(settings(epochs=1, remat=remat, project=str(tmp_path), name=name))
        assert bool(repeated) == remat
    rows = [read_results(tmp_path / name / "results.csv")[0] for name in ("plain", "again")]
    assert list(rows[1].values()) == pytest.approx(
        list(rows[0].values()), rel=1e-4, abs=1e-4
    )  # mAP of boxes that rank alike


@pytest.fixture
def odd_model(pyramid, tmp_path_factory):
    def write(*levels, **options):
        file = tmp_path_factory.mktemp("odd") / "odd.yaml"
        file.write_text(yaml.safe_dump(pyramid(*levels, **options)))
        return str(file)

    return write


@pytest.mark.long
def test_a_network_without_its_coarsest_level_trains(settings, odd_model, tiny_data, contents):
    model = Path(odd_model(3, 4))
    before = contents(model.parent, tiny_data.parent)
    results = train(settings(cfg=str(model), imgsz=64, epochs=1, noplots=True))
    assert results["epochs"] == 1
    assert contents(model.parent, tiny_data.parent) == before
    assert len(load_weights(results["weights"]).spec.strides) == 2


def test_a_number_of_anchors_is_found_for_the_boxes(settings, odd_model, caplog):
    with caplog.at_level("INFO", "yolojax"):
        job, _ = prepare(settings(cfg=odd_model(4, 5, anchors=3)))
    assert "odd asks for 3 anchors per level; they were found for the boxes and fit" in caplog.text
    sides = [side for level in job.spec.anchors for anchor in level for side in anchor]
    assert len(sides) == 12
    assert all(8 <= side <= 26 for side in sides)  # squares of 10 to 24 px
    assert job.spec.own_anchors


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"noautoanchor": True}, "--noautoanchor"), ({}, "too few different boxes to find them for")],
)
def test_anchors_that_cannot_be_found_are_taken_over(settings, odd_model, caplog, changes, reason):
    job, _ = prepare(settings(cfg=odd_model(3, 4, 5, anchors=50 if not changes else 3), **changes))
    assert (
        f"asks for {len(job.spec.anchors[0])} anchors per level ({reason}): those of yolov5n are taken" in caplog.text
    )
    if changes:
        assert job.spec.anchors == load_spec("yolov5n").anchors


def test_anchors_of_the_weights_come_before_those_of_a_shipped_model(settings, odd_model, tmp_path, caplog):
    spec = load_spec(odd_model(3, 4, 5))
    variables = jax.tree.map(np.asarray, init_variables(spec, jax.random.key(0)))
    save_weights(tmp_path / "w", Weights(spec=spec, names=("blue", "red"), variables=variables, source={}))
    job, _ = prepare(settings(cfg=odd_model(3, 4, 5, anchors=3), weights=str(tmp_path / "w"), noautoanchor=True))
    assert "(--noautoanchor): those of the weights are taken" in caplog.text
    assert job.spec.anchors == spec.anchors != load_spec("yolov5n").anchors
