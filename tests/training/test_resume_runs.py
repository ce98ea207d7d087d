"""``yolojax train … --resume`` from the command line: what goes on, what is refused, and that a refusal changes no file."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from yolojax.cli.main import main
from yolojax.lock import LOCK
from yolojax.model.network import init_variables
from yolojax.model.spec import load_spec
from yolojax.training import loop
from yolojax.weights.store import Weights, save_weights

EPOCHS, BATCHES = 3, 3  # ten images, four at a time
FIGURES = re.compile(r"nan images/s|\d{5,}\.\d images/s|epoch\s+(\d+)/(\d+)")


def stopped_at(batch: int, *words: str) -> int:
    """Run ``yolojax train`` here, with SIGTERM when a batch goes to the device; its exit status."""
    put_batch, count = loop.put_batch, 0

    def counted(*arguments):
        nonlocal count
        count += 1
        if count == batch:
            os.kill(os.getpid(), signal.SIGTERM)
        return put_batch(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "put_batch", counted)
        try:
            return main(["train", *words])
        except SystemExit as stopped:
            return int(stopped.code or 0)


@pytest.fixture(scope="module")
def begun(small_model, tiny_data, tmp_path_factory) -> Path:
    """A folder with ``photos/``, ``start/`` (initial weights) and ``runs/cut``, stopped in its second epoch; every path was given relative to it."""
    place = tmp_path_factory.mktemp("begun")
    shutil.copytree(tiny_data.parent, place / "photos")
    text = tiny_data.read_text().replace(f"path: {tiny_data.parent}", "path: .")
    (place / "photos" / "squares.yaml").write_text(text)
    (place / "small.yaml").write_text(small_model)
    spec = load_spec(place / "small.yaml")
    save_weights(
        place / "start",
        Weights(
            spec=spec,
            names=("blue", "red"),
            variables=init_variables(spec, jax.random.key(0)),
            source={"file": "start"},
        ),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        words = ["--weights=start", "--data=photos/squares.yaml", "--img=64", "--batch=4", f"--epochs={EPOCHS}"]
        options = ["--workers=0", "--noplots", "--freeze=1", "--project=runs", "--name=cut"]
        assert stopped_at(BATCHES + 2, *words, *options) == 128 + signal.SIGTERM
    return place


@pytest.fixture(scope="module")
def ended(begun, tmp_path_factory) -> Path:
    """The same, with the run continued to its end."""
    place = tmp_path_factory.mktemp("ended") / "there"
    shutil.copytree(begun, place)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert main(["train", "--resume", "--project=runs", "--data=photos/squares.yaml"]) == 0
    return place


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """``copy(place)``: a copy of ``begun`` or ``ended`` to work in; the original is out of reach of what the settings name."""

    def make(place: Path) -> Path:
        shutil.copytree(place, tmp_path / "copy")
        monkeypatch.chdir(tmp_path / "copy")
        return tmp_path / "copy"

    return make


def check_lines(text: str, epochs: int) -> None:
    """No epoch beyond the last, and no speed that nobody measured."""
    for match in FIGURES.finditer(text):
        assert match[1], match[0]
        assert int(match[1]) <= int(match[2]) == epochs


@pytest.fixture
def refused(contents, capfd):
    """The one sentence with which a command ends, with status 2, and no file around is changed."""

    def run(*words: str) -> str:
        capfd.readouterr()
        before = contents(Path())
        assert main(["train", *words]) == 2
        assert contents(Path()) == before
        out, err = capfd.readouterr()
        assert "Traceback" not in out + err
        lines = err.strip().splitlines()
        assert len(lines) == 1, err
        return lines[0]

    return run


def test_a_moved_run_goes_on_from_another_folder_without_its_initial_weights(
    begun, copy, tmp_path, contents, monkeypatch, capfd
):
    place = copy(begun)
    shutil.rmtree(place / "start")
    (place / "small.yaml").unlink()
    (place / "photos").rename(tmp_path / "photos")
    (place / "runs" / "cut").rename(tmp_path / "renamed run")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    before = contents(tmp_path / "photos")
    capfd.readouterr()
    words = ["--data=../photos/squares.yaml", "--workers=1", "--project=other", "--device=cpu"]
    assert main(["train", "--resume", "../renamed run", *words]) == 0
    text = capfd.readouterr().out
    assert f"--data: {tmp_path / 'elsewhere' / '../photos/squares.yaml'} instead of" in text
    assert "--workers: 1 instead of 0" in text
    assert "--project: other instead of" in text
    assert "--device: cpu instead of" in text
    assert "continuing" in text
    check_lines(text, EPOCHS)
    assert not any(Path().iterdir())  # nothing of the run is written where the command stood
    assert contents(tmp_path / "photos") == before
    assert json.loads((tmp_path / "renamed run" / "results.json").read_text())["epochs"] == EPOCHS


def test_a_run_goes_on_where_it_stands_in_another_place(begun, copy, monkeypatch, capfd):
    place = copy(begun)
    monkeypatch.chdir(place / "runs")
    shutil.rmtree(place / "start")
    root = str(place / "photos")
    assert main(["train", "--resume", "cut", "--project=.", f"--data-root={root}"]) == 0
    text = capfd.readouterr().out
    assert f"--data-root: {root} instead of nothing" in text
    check_lines(text, EPOCHS)


def test_a_finished_run_says_so_with_the_command_for_a_new_one(ended, copy, refused):
    copy(ended)
    sentence = refused("--resume", "runs/cut")
    assert "this run is finished, after 3 epochs" in sentence
    assert re.search(r"python train.py --weights \S+cut --data \S+squares.yaml", sentence)


def test_the_command_for_a_new_run_can_be_copied_as_it_is(ended, copy, refused):
    place = copy(ended)
    (place / "runs" / "cut").rename(place / "runs" / "the first one")
    command = shlex.split(refused("--resume", "runs/the first one").rpartition(" with: ")[2])
    assert command[:3] == ["python", "train.py", "--weights"]
    assert Path(command[3]) == place / "runs" / "the first one"
    assert Path(command[5]).name == "squares.yaml"


def test_data_that_are_gone_are_named_with_the_flag_that_finds_them(begun, copy, refused):
    place = copy(begun)
    stored = place / "runs" / "cut" / "settings.yaml"
    stored.write_text(stored.read_text().replace(str(begun), str(place)))
    (place / "photos").rename(place / "pictures")
    assert "is not there any more; --data names where it is now" in refused("--resume", "runs/cut")


def test_more_epochs_extend_a_finished_run(ended, copy, capfd):
    place = copy(ended)
    capfd.readouterr()
    assert main(["train", "--resume", "runs/cut", "--epochs=4", "--data=photos/squares.yaml"]) == 0
    text = capfd.readouterr().out
    assert "--epochs: 4 instead of 3; from here on the schedule is that of 4 epochs" in text
    check_lines(text, 4)
    rates = [row.split(",") for row in (place / "runs/cut/results.csv").read_text().splitlines()]
    assert len(rates) == 1 + 4
    assert json.loads((place / "runs/cut/results.json").read_text())["epochs"] == 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seed=7"], "--seed 7: the run was begun with 0"),
        (["--freeze", "2"], "--freeze 2: the run was begun with 1"),
        (["--img=96"], "--imgsz 96: the run was begun with 64"),
        (["--batch=2"], "--batch-size 2: the run was begun with 4"),
        (["--hyp=scratch-high"], "--hyp scratch-high: the run was begun with"),
        (["--optimizer=AdamW"], "--optimizer AdamW: the run was begun with SGD"),
        (["--cfg=yolov5n"], "--cfg yolov5n: the run was begun with"),
        (["--frozen-bn=track"], "--frozen-bn track: the run was begun with fixed"),
        (["--noval"], "--noval: the run was begun without it, and"),
        (["--epochs=2"], "--epochs 2: the run was planned for 3 epochs"),
        (["--weights=start"], "--weights"),
        (["--weights=yolov5n-shapes"], "--weights"),
        (["--data=shapes"], "its classes"),
        (["--data=nowhere.yaml"], "nowhere.yaml: no such file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_would_make_it_another_run_is_refused(begun, copy, refused, words, message):
    copy(begun)
    assert message in refused("--resume", "runs/cut", *words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--resume", "runs/other"], "--resume runs/other: not a run folder"),
        (["--resume", "--project=empty"], "--resume: no run in empty"),
        (["--resume", "photos"], "--resume photos: not a run folder"),
        (["--resume", "--weights=start"], "these weights are in no run folder"),
    ],
    ids=" ".join,
)
def test_which_run_is_meant_is_never_guessed(begun, copy, refused, words, message):
    copy(begun)
    assert message in refused(*words)


def test_weights_of_a_run_continue_that_run(begun, copy, contents, capfd):
    place = copy(begun)
    newer = place / "runs" / "newer"
    shutil.copytree(place / "runs" / "cut", newer)
    os.utime(newer / "settings.yaml")
    before = contents(newer)
    capfd.readouterr()
    words = ["--weights=runs/cut/weights/last.pt", "--resume", "--project=runs", "--data=photos/squares.yaml"]
    assert main(["train", *words]) == 0
    assert f"continuing {place / 'runs' / 'cut'}" in capfd.readouterr().out
    assert contents(newer) == before


HOLD = "import sys, time; from pathlib import Path; from yolojax.lock import locked\nwith locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"


def test_two_runs_in_one_folder(begun, copy, refused):
    place = copy(begun)
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(place / "runs/cut")], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        new = ["--weights=start", "--data=photos/squares.yaml", "--img=64", "--batch=4", "--workers=0"]
        for words in (["--resume", "runs/cut"], [*new, "--project=runs", "--name=cut", "--exist-ok"]):
            sentence = refused(*words)
            assert f"process {process.pid} on" in sentence
            assert "space" not in sentence
    finally:
        process.kill()
        process.wait()
    assert (place / "runs" / "cut" / LOCK).is_file()  # left behind by the one that was killed
    assert main(["train", "--resume", "runs/cut"]) == 0
    assert not (place / "runs" / "cut" / LOCK).exists()


def test_a_lock_that_cannot_be_written_is_not_told_as_a_full_disk(begun, copy, refused):
    place = copy(begun)
    (place / "runs" / "cut" / LOCK).mkdir()
    assert f"{LOCK}: cannot be written (Is a directory)" in refused("--resume", "runs/cut")
