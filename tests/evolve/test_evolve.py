"""Evolution of hyperparameters: what is tried, what is left behind, how it goes on."""

import csv
import json
import shutil
from pathlib import Path

import pytest

from yolojax.errors import UserError
from yolojax.evolve import evolve as module
from yolojax.evolve import results
from yolojax.evolve.evolve import evolve
from yolojax.evolve.space import RANGES
from yolojax.hyperparameters import Hyperparameters, load_hyperparameters
from yolojax.training.settings import TrainSettings

pytest.importorskip("optuna")


def fitness_of(params: dict) -> float:
    """Best at another ``lr0`` and ``scale`` than the first, and with freeze 10."""
    return 1 - abs(params["scale"] - 0.3) - 2 * abs(params["lr0"] - 0.02) - 0.2 * (params.get("freeze", "10") != "10")


@pytest.fixture
def tried(monkeypatch):
    """Every run's hyperparameters; runs take no time and are as good as ``fitness_of`` says."""
    seen = []

    def train(settings, base, params, run: Path, *_) -> int:
        seen.append(params)
        run.mkdir()
        figures = {"fitness": fitness_of(params), **dict.fromkeys(("precision", "recall", "map50", "map50_95"), 0.5)}
        (run / "results.json").write_text(json.dumps({"final": figures}))
        return 0

    monkeypatch.setattr(module, "_train", train)
    monkeypatch.setattr(results, "plot_evolution", lambda trials, path: None)  # takes long; the last test draws
    return seen


def settings_in(folder: Path, tiny_data: Path, **changes) -> TrainSettings:
    return TrainSettings(data=str(tiny_data), project=str(folder), **changes)


def test_hyperparameters_get_better_and_stay_in_their_ranges(tried, tmp_path, tiny_data):
    best = evolve(settings_in(tmp_path, tiny_data), 40, ["0", "10"])
    first, *others = tried
    assert first == {key: getattr(Hyperparameters(), key) for key in RANGES} | {"freeze": "0"}
    assert all(low <= params[key] <= high for params in others for key, (low, high) in RANGES.items())
    assert {params["freeze"] for params in others} == {"0", "10"}
    scores = [fitness_of(params) for params in tried]
    assert max(scores) > scores[0] + 0.2
    with (best.parent / "evolve.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["fitness"]) for row in rows] == pytest.approx(scores, rel=1e-4)
    assert load_hyperparameters(best).scale == pytest.approx(tried[scores.index(max(scores))]["scale"], rel=1e-5)
    assert "--freeze 10" in best.read_text()


def test_an_evolution_goes_on_where_it_was_stopped(tried, tmp_path, tiny_data, monkeypatch):
    evolve(settings_in(tmp_path, tiny_data), 2)
    real = module._train

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_train", killed)
    with pytest.raises(KeyboardInterrupt):
        evolve(settings_in(tmp_path, tiny_data, resume="latest"), 3)
    monkeypatch.setattr(module, "_train", real)
    best = evolve(settings_in(tmp_path, tiny_data, resume=str(tmp_path / "exp")), 4)
    assert len(tried) == 4
    with (best.parent / "evolve.csv").open() as file:
        assert [row["generation"] for row in csv.DictReader(file)] == ["1", "2", "3", "4"]


def test_a_run_that_fails_is_passed_over_unless_it_is_the_first(tried, tmp_path, tiny_data, monkeypatch):
    train = module._train

    def fails(settings, base, params, run: Path, *rest) -> int:
        Path(f"{run}.log").write_text("it is broken\n")
        return 2 if run.name.endswith(broken) else train(settings, base, params, run, *rest)

    monkeypatch.setattr(module, "_train", fails)
    broken = "002"
    evolve(settings_in(tmp_path, tiny_data), 3)
    assert len(tried) == 2
    broken = "001"
    with pytest.raises(UserError, match="the first run failed: it is broken"):
        evolve(settings_in(tmp_path, tiny_data), 3)


def test_there_must_be_something_to_choose_by(tmp_path, tiny_data):
    shutil.copytree(tiny_data.parent / "images", tmp_path / "images")
    shutil.copytree(tiny_data.parent / "labels" / "train", tmp_path / "labels" / "train")
    file = tmp_path / "squares.yaml"
    file.write_text("train: images/train\nval: images/val\nnames: [blue, red]\n")
    with pytest.raises(UserError, match="key 'val': not one box, so that --evolve has nothing to choose by"):
        evolve(settings_in(tmp_path / "runs", file), 3)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("word", ["backbon", "10-5"])
def test_a_freeze_that_nothing_can_be_leaves_no_folder(tmp_path, tiny_data, word):
    with pytest.raises(UserError, match=f"--evolve-freeze.*{word}"):
        evolve(settings_in(tmp_path / "runs", tiny_data), 3, ["10", word])
    assert not (tmp_path / "runs").exists()


def test_there_must_be_something_to_resume(tmp_path, tiny_data):
    with pytest.raises(UserError, match="no evolution to go on with"):
        evolve(settings_in(tmp_path, tiny_data, resume="latest"), 3)


@pytest.mark.long
def test_a_generation_is_a_run_of_its_own(tmp_path, tiny_data, tiny_model):
    settings = settings_in(
        tmp_path, tiny_data, weights="", cfg=str(tiny_model), imgsz=64, batch_size=4, epochs=1, workers=0, freeze=("2",)
    )
    best = evolve(settings, 1)
    run = best.parent / "generation001"
    assert not (run / "weights").exists()
    assert json.loads((run / "results.json").read_text())["freeze"] == "2"
    assert load_hyperparameters(best) == Hyperparameters()
    assert (best.parent / "evolve.png").is_file()
