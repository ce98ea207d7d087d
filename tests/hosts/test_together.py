"""Two processes train one network: as one would, and they stop as one."""

import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from yolojax.training.checkpoints import Checkpoints
from yolojax.training.report import read_results
from yolojax.tree import flatten
from yolojax.weights.find import load_weights

CONFIGS = Path(__file__).resolve().parents[2] / "configs"

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="processes find each other's devices by gloo, which is tried on Linux"
)


@pytest.fixture
def few_shapes(tmp_path) -> Callable[..., Path]:
    """``few_shapes(train=16, val=16)``: a data YAML with so many of the images that the embedded network was trained on."""

    def write(**counts: int) -> Path:
        content = yaml.safe_load((CONFIGS / "data" / "shapes-pretraining.yaml").read_text(encoding="utf-8"))
        del content["defaults"]
        content["options"] |= counts
        data = tmp_path / "few.yaml"
        data.write_text(yaml.safe_dump(content))
        return data

    return write


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


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        "--cache=device",
        "--cache=device --steps-per-dispatch=2",
        "--freeze=surgical",
        "--freeze=adapters",
        "--multi-scale",
        "--multi-scale --cache=device",
        "--sync-bn=off",
    ],
)
def test_two_processes_leave_the_table_of_one(together, words, tmp_path, flags):
    for count, name in ((2, "two"), (1, "one")):
        for ended in together(
            [*words, "--epochs=2", *flags.split(), f"--name={name}"], count=count, devices=2 // count
        ):
            assert ended.status == 0, ended.errors
    two, one = (tmp_path / "runs" / name / "results.csv" for name in ("two", "one"))
    assert two.read_bytes() == one.read_bytes()


@pytest.mark.slow
def test_a_number_of_a_device_means_one_of_every_process(together, words, tmp_path):
    several = together([*words, "--epochs=1", "--device=1", "--name=two"], devices=2)
    one = together([*words, "--epochs=1", "--name=one"], count=1, devices=2)
    assert [ended.status for ended in (*several, *one)] == [0, 0, 0]
    two, one = (tmp_path / "runs" / name / "results.csv" for name in ("two", "one"))
    assert two.read_bytes() == one.read_bytes()


@pytest.mark.slow
def test_a_signal_stops_both_after_the_same_call_of_several_steps(together, words, tmp_path):
    """Three batches per epoch, in calls of two steps and of one; the signal comes in the first call, so the second one knows of it."""
    words = [*words, "--epochs=2", "--cache=device", "--steps-per-dispatch=2"]
    stopped = together(words, struck={1: f"dispatch 1 {int(signal.SIGTERM)}"})
    assert [ended.status for ended in stopped] == [128 + signal.SIGTERM] * 2, stopped
    saved = Checkpoints(tmp_path / "runs" / "exp")
    progress = [saved.progress(step) for step in saved.steps()]
    assert [(one["epoch"], one["batch"]) for one in progress] == [(0, 3)]  # and that epoch is validated yet
    for ended in (*together(["train", f"--resume={tmp_path / 'runs' / 'exp'}"]), *together([*words, "--name=whole"])):
        assert ended.status == 0, ended.errors
    resumed, whole = (tmp_path / "runs" / name / "results.csv" for name in ("exp", "whole"))
    assert resumed.read_bytes() == whole.read_bytes()


@pytest.mark.slow
def test_a_loss_that_is_not_finite_ends_both(together, words, tmp_path, log_of):
    hyp = tmp_path / "hyp.yaml"
    hyp.write_text("warmup_bias_lr: 1.0e+30\n")
    for ended in together([*words, f"--hyp={hyp}"]):
        assert ended.status == 2, ended.errors
    first, second = (
        {line.split("yolojax train: ")[-1] for line in log_of(process).splitlines() if "not finite" in line}
        for process in (0, 1)
    )
    assert len(first | second) == 1  # each names the images of both


@pytest.mark.slow
def test_both_stop_early_after_the_same_epoch_as_one(together, few_shapes, tmp_path):
    """The embedded network, whose figures fall because its rate is far too high."""
    hyp = tmp_path / "hyp.yaml"
    hyp.write_text("lr0: 4\nwarmup_bias_lr: 0\n")
    fixed = f"train --data={few_shapes(train=16, val=16)} --hyp={hyp} --img=64 --batch=8 --freeze=10 --workers=0 --noplots --project={tmp_path}"
    for count, name in ((2, "two"), (1, "one")):
        words = [*fixed.split(), "--epochs=9", "--patience=1", f"--name={name}"]
        for ended in together(words, count=count, devices=2 // count):
            assert ended.status == 0, ended.errors
    for process in (0, 1):
        log = (tmp_path / "two" / "logs" / f"process-{process}.txt").read_text(encoding="utf-8")
        assert "no improvement in 1 epochs: stopped" in log
    two, one = (tmp_path / name / "results.csv" for name in ("two", "one"))
    assert two.read_bytes() == one.read_bytes()
    assert 2 <= len(read_results(two)) < 9


@pytest.mark.slow
def test_two_processes_validate_as_one(together, few_shapes, tmp_path):
    """The embedded network: the figures, those of each class too, in every digit, and the picture of the confusion matrix."""
    data = few_shapes(train=1, val=30)
    found = []
    for count, name in ((2, "two"), (1, "one")):
        words = f"val --data={data} --img=128 --batch=8 --project={tmp_path} --name={name}"
        for ended in together(words.split(), count=count, devices=2 // count):
            assert ended.status == 0, ended.errors
        figures = json.loads((tmp_path / name / "results.json").read_text())
        assert figures.pop("speed_ms")
        found.append((figures, (tmp_path / name / "confusion_matrix.png").read_bytes()))
    assert found[0] == found[1]
    assert found[1][0]["map50"] > 0.3
    assert len(found[1][0]["per_class"]) > 3


@pytest.mark.long
def test_a_process_that_finds_no_other_ends_with_a_sentence(together, words):
    (alone,) = together(
        [*words, "--coordinator=127.0.0.1:1", "--process-id=1", "--process-count=2"], count=1, YOLOJAX_START_SECONDS="4"
    )
    assert alone.status == 2
    assert "process 0 has not answered at 127.0.0.1:1" in alone.errors.splitlines()[-1]
    assert "within 4 s" in alone.errors


def test_ctrl_c_ends_the_search_for_other_processes(together, words):
    """Python's own handler would wait for JAX, which does not come back before the others are there or the time is over."""
    words = [*words, "--coordinator=127.0.0.1:1", "--process-id=1", "--process-count=2"]
    (alone,) = together(words, count=1, struck={0: f"search 1 {int(signal.SIGINT)}"}, YOLOJAX_START_SECONDS="1")
    assert alone.status == -signal.SIGINT, alone.errors


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


@pytest.mark.slow
def test_a_folder_that_one_process_does_not_see_is_told_by_both(together, words, tmp_path):
    """A name is the same folder for both only where they stand in the same place."""
    places = {0: tmp_path / "first", 1: tmp_path / "second"}
    for place in places.values():
        place.mkdir()
    for ended in together([*words, "--project=runs"], folders=places):
        assert ended.status == 2
        assert "process 1 on" in ended.errors
        assert "cannot see what process 0 writes there; give --project a folder that all machines share" in ended.errors


@pytest.mark.slow
def test_a_study_is_done_by_two_processes(together, write_study, tmp_path):
    scenarios = [{"name": "one", "freeze": 2}, {"name": "two", "freeze": 4}]
    first, second = together(["study", str(write_study(scenarios=scenarios)), f"--output={tmp_path / 'study'}"])
    assert (first.status, second.status) == (0, 0), first.output + first.errors + second.errors
    for name in ("one", "two"):
        [run] = (tmp_path / "study").glob(f"*{name}*seed0")
        assert json.loads((run / "study.json").read_text())["status"] == "finished"
        assert "process 1 of 2" in (run / "logs" / "process-1.txt").read_text(encoding="utf-8")
        assert (run / "log-1.txt").is_file()
    assert (tmp_path / "study" / "report.html").is_file()
    assert "report:" not in second.output


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("struck", [0, 1])
def test_a_signal_to_one_process_stops_the_study_of_both_with_its_status(
    together, write_study, tmp_path, struck, number
):
    """At its twelfth look, some 24 s after the run was started; the run would take minutes."""
    scenarios = [{"name": "long", "freeze": 2, "epochs": 300}]
    words = ["study", str(write_study(scenarios=scenarios)), f"--output={tmp_path / 'study'}"]
    for ended in together(words, struck={struck: f"look 12 {int(number)}"}):
        assert ended.status == 128 + number, ended.output + ended.errors
        assert "Traceback" not in ended.errors
        assert "stopped; the same command goes on with long, seed 0" in ended.output
    [run] = (tmp_path / "study").glob("long-seed0")
    assert f"asked to stop: process {struck}" in (run / "logs" / "process-0.txt").read_text(encoding="utf-8")
    assert Checkpoints(run).steps()


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    ["--freeze=10", "--freeze=gradual", "--freeze=surgical", "--freeze=10 --cache=ram --image-weights"],
)
@pytest.mark.parametrize("count", [2, 4])
def test_real_photos_train_as_in_one_process(together, shared_data, tmp_path, flags, count):
    """yolov5n on photos of blood cells: losses within 1e-5, parameters within 1e-6, the same figures of validation.

    Parameters that are equal to the bit give the same digits of mAP; four processes add up in another order than one, and the last digit may differ.
    """
    fixed = f"train --data=bccd --data-root={shared_data / 'bccd'} --img=128 --batch=32 --epochs=3 --workers=0 --noplots --project={tmp_path}"
    for number, name in ((count, "several"), (1, "one")):
        words = [*fixed.split(), *flags.split(), f"--name={name}"]
        for ended in together(words, count=number, devices=count // number, timeout=3000):
            assert ended.status == 0, ended.errors
    several, one = (read_results(tmp_path / name / "results.csv") for name in ("several", "one"))
    losses, parameters = [], []  # the table has five digits, the checkpoint all of them
    for name in ("several", "one"):
        saved = Checkpoints(tmp_path / name)
        newest = saved.steps()[0]
        assert newest >= 20
        losses.append(np.array([record["loss"] for record in saved.progress(newest)["history"]["records"]]))
        parameters.append(flatten(load_weights(tmp_path / name / "weights" / "last").variables["params"]))
    apart = max(np.abs(parameters[0][path] - leaf).max() for path, leaf in parameters[1].items())
    print(f"losses differ by {np.abs(losses[0] / losses[1] - 1).max():.1e} of their size, parameters by {apart:.1e}")
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5, atol=0)
    assert apart <= 1e-6
    assert len(several) == len(one) == 3
    for row, expected in zip(several, one, strict=True):
        for column, value in expected.items():
            figure = column.startswith("metrics/")
            same = (
                value
                if figure and apart == 0
                else pytest.approx(value, abs=1e-5)
                if figure
                else pytest.approx(value, rel=1e-5)
            )
            assert row[column] == same, column
