"""A study's YAML: what it means, and what is refused before the first run."""

import argparse
import dataclasses

import pytest

from yolojax.config import configs_root
from yolojax.data.config import load_data_config
from yolojax.errors import UserError
from yolojax.flags import add_fields, read_fields
from yolojax.study.scenarios import check_study, load_study
from yolojax.training.settings import TrainSettings, train_flags


def test_a_scenario_has_the_shared_flags_and_its_own(write_study):
    file = write_study(
        seeds=[0, 3],
        scenarios=[{"name": "A", "freeze": 2, "epochs": 5, "cache": True}, {"name": "B", "freeze": [1, 3]}],
    )
    study = load_study(file)
    first, second = (scenario.settings for scenario in study.scenarios)
    assert study.seeds == (0, 3)
    assert (first.imgsz, first.batch_size, first.epochs, first.cache, first.freeze) == (64, 4, 5, "auto", ("2",))
    assert (second.epochs, second.freeze, second.noplots) == (2, ("1", "3"), True)


@pytest.mark.parametrize("name", ["bccd", "guide", "guide-traffic-lights", "quick"])
def test_the_shipped_studies_are_well_formed(name):
    study = load_study(configs_root() / "studies" / f"{name}.yaml")
    assert {"0", "10", "24"} <= {scenario.freeze for scenario in study.scenarios}


def test_the_study_of_views_reads_the_same_photos_in_more_and_more_views():
    study = load_study(configs_root() / "studies" / "views.yaml")
    views = [(scenario.freeze, scenario.settings.kept_views) for scenario in study.scenarios]
    assert views == [(freeze, count) for freeze in ("24", "10") for count in (1, 4, 16, None)]


def test_flags_say_what_the_settings_are(write_study):
    row = {
        "name": "A",
        "freeze": ["backbone", "not:bn"],
        "frozen_bn": "track",
        "cos_lr": True,
        "label_smoothing": 0.1,
        "save_period": 2,
    }
    settings = dataclasses.replace(load_study(write_study(scenarios=[row])).scenarios[0].settings, seed=4)
    parser = argparse.ArgumentParser()
    add_fields(parser, TrainSettings)
    assert read_fields(parser.parse_args(train_flags(settings)), TrainSettings) == settings


ORIGINAL = {"name": "original", "framework": "torch", "python": "python", "weights": "n.pt", "cfg": ""}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"scenarios": [{**ORIGINAL, "delta": "best.delta.npz"}]},
            "scenario 'original': key 'delta': the original reads none",
        ),
        ({"scenarios": [{"name": "a"}, {"name": "a"}]}, "2 scenarios have the name 'a'"),
        ({"scenarios": [{"name": "a b"}, {"name": "a-b"}]}, "2 scenarios have the name 'a-b'"),
        ({"scenarios": [{"freeze": 10}]}, "scenario 1: key 'name' is missing"),
        ({"scenarios": []}, "expected a list of scenarios"),
        ({"scenarios": [{"name": "a", "epoch": 3}]}, "scenario 'a': key 'epoch' is unknown; did you mean 'epochs'"),
        ({"scenarios": [{"name": "a", "epochs": "many"}]}, "scenario 'a': key 'epochs': expected int"),
        ({"scenarios": [{"name": "a", "epochs": 0}]}, "scenario 'a': --epochs 0: must be at least 1"),
        ({"scenarios": [{"name": "a", "seed": 3}]}, "scenario 'a': key 'seed': the study sets this itself"),
        ({"scenarios": [{"name": "a", "framework": "keras"}]}, "'keras' is none of"),
        ({"scenarios": [{"name": "a", "framework": "torch"}]}, "'python: INTERPRETER' belong together"),
        ({"scenarios": [{**ORIGINAL, "freeze": "backbone"}]}, "the original takes layer numbers only"),
        ({"scenarios": [{**ORIGINAL, "frozen_bn": "fixed"}]}, "key 'frozen_bn': the original has no such flag"),
        ({"scenarios": [{**ORIGINAL, "distil": "n.pt"}]}, "key 'distil': the original has no such flag"),
        ({"scenarios": [{**ORIGINAL, "weights": ""}]}, "the original starts from weights here"),
        ({"seeds": [1, 1]}, "names a seed twice"),
        ({"seeds": [-1]}, "expected a list of numbers from 0 on"),
        ({"sceanrios": []}, "key 'sceanrios' is unknown; did you mean 'scenarios'"),
        ({"reference": [{"name": "a", "map": 0.5}]}, "key 'map' is unknown"),
    ],
)
def test_a_mistake_in_the_file_is_one_clear_error(write_study, changes, message):
    with pytest.raises(UserError) as caught:
        load_study(write_study(**changes))
    assert message in str(caught.value)
    assert "squares-study.yaml" in str(caught.value)


@pytest.mark.parametrize(
    ("scenario", "message"),
    [
        ({"data": "nowhere.yaml"}, "nowhere.yaml: no such file"),
        ({"data_root": "/nowhere"}, "nowhere"),
        ({"weights": "lost.pt", "cfg": ""}, "lost.pt: no such weights"),
        ({"replay": "lost.yaml", "replay-share": 0.5}, "lost.yaml: no such file"),
        ({"distil": "lost.pt", "distil-gain": 2.0}, "lost.pt: no such weights"),
        ({"freeze": 7}, "--freeze 7"),
        ({"freeze": "gradul"}, "did you mean 'gradual'"),
        ({"freeze": "late.yaml"}, "late.yaml"),
        ({"freeze": "overlap.yaml"}, "overlap.yaml"),
        ({"framework": "torch", "python": "$NO_SUCH_PYTHON", "weights": "n.pt"}, "$NO_SUCH_PYTHON is not set"),
        ({"framework": "torch", "python": "/no/python", "weights": "n.pt"}, "/no/python cannot be run"),
    ],
)
def test_what_a_run_would_be_refused_for_is_told_before_the_first(
    write_study, tmp_path, monkeypatch, scenario, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "late.yaml").write_text("phases:\n  - {freeze: 2}\n  - {start: 9, freeze: 0}\n")
    (tmp_path / "overlap.yaml").write_text(
        "phases:\n  - {freeze: 2}\n  - {start: 1, freeze: 0}\n  - {start: 1, freeze: 1}\n"
    )
    row = {"name": "wrong", "freeze": 2, **scenario}
    if scenario.get("framework") == "torch":
        row |= {"cfg": ""}
    with pytest.raises(UserError, match="scenario 'wrong': ") as caught:
        check_study(load_study(write_study(scenarios=[{"name": "right", "freeze": 2}, row])))
    assert message in str(caught.value)


def test_the_check_counts_what_trains(write_study):
    study = load_study(write_study(scenarios=[{"name": "all", "freeze": 0}, {"name": "some", "freeze": 2}]))
    extents = check_study(study)
    assert extents["some"].trainable < extents["all"].trainable == extents["all"].parameters
    assert (extents["some"].batch, extents["some"].epochs) == (4, 2)


def test_a_part_of_a_study_is_chosen_by_name(write_study):
    study = load_study(write_study(scenarios=[{"name": "a"}, {"name": "b"}]))
    assert [scenario.name for scenario in study.only(["b"]).scenarios] == ["b"]
    with pytest.raises(UserError, match="no scenario is named 'c'; there are: a, b"):
        study.only(["c"])


def test_the_defaults_of_the_data_set_hold_for_all_runs_and_beside_the_original(write_study):
    rows = [{"name": "ours"}, {"name": "theirs", "framework": "torch", "python": "python", "weights": "n.pt"}]
    ours, theirs = load_study(write_study(train={"data": "shapes"}, scenarios=rows)).scenarios
    defaults = load_data_config("shapes").defaults
    assert ours.settings.imgsz == theirs.settings.imgsz == defaults["img"]
    assert f"--epochs={defaults['epochs']}" in train_flags(ours.settings)
