import dataclasses
import doctest
import json

import pytest
import yaml

from yolojax.model.spec import load_spec
from yolojax.training.settings import TrainSettings
from yolojax.weights import card as module
from yolojax.weights.card import RunFacts, model_card, run_facts, train_words
from yolojax.weights.store import Weights

SETTINGS = {
    "weights": "yolov5n.pt", "cfg": "", "data": "my data/bccd.yaml", "freeze": ["10"], "frozen_bn": "track",
    "imgsz": 320, "batch_size": 16, "epochs": 15, "hyp": "finetune", "optimizer": "SGD", "seed": 0, "workers": 8,
}  # fmt: skip
FIGURES = {"map50": 0.53412345, "map50_95": 0.276, "precision": 0.5, "recall": 0.6}
SOURCE = {"licence": "AGPL-3.0 License", "trained_from": "yolov5n.pt", "image_size": 320}


def card(facts, source=SOURCE, names=("a | b", "two")):
    text = model_card(Weights(spec=load_spec("yolov5n", 2), names=names, variables={}, source=source), facts)
    _, head, body = text.split("---\n", 2)
    return yaml.safe_load(head), body


def test_examples_in_docstrings():
    results = doctest.testmod(module)
    assert results.attempted
    assert not results.failed


def test_the_head_is_what_the_hub_reads():
    head, _ = card(RunFacts(settings=SETTINGS, figures=FIGURES))
    assert head["license"] == "agpl-3.0"
    assert head["pipeline_tag"] == "object-detection"
    assert head["datasets"] == ["bccd"]
    [entry] = head["model-index"]
    assert entry["name"] == "yolov5n-bccd"
    [result] = entry["results"]
    assert result["task"] == {"type": "object-detection"}
    assert {metric["name"]: metric["value"] for metric in result["metrics"]} == {
        "mAP50": 0.53412, "mAP50-95": 0.276, "precision": 0.5, "recall": 0.6
    }  # fmt: skip


def test_the_body_tells_data_freeze_figures_and_command():
    _, body = card(RunFacts(settings=SETTINGS, figures=FIGURES))
    for row in (
        "| data | bccd |",
        "| frozen layers | 10, BatchNorm track |",
        "| mAP50 | 0.534 |",
        "| classes | a \\| b, two |",
        "| licence of the weights | AGPL-3.0 License |",
    ):
        assert row in body
    assert (
        "yolojax train --weights yolov5n.pt --data 'my data/bccd.yaml' --freeze 10 --frozen-bn track --img 320 "
        "--batch 16 --epochs 15 --hyp finetune --optimizer SGD\n"
    ) in body


def test_the_command_names_every_flag_that_decides_what_is_learned():
    no_matter = {  # where data and files lie, what is kept, told and computed with
        *(
            "data_root",
            "resume",
            "nosave",
            "noplots",
            "device",
            "workers",
            "project",
            "name",
            "exist_ok",
            "save_period",
        ),
        *("deterministic", "remat", "steps_per_dispatch", "wandb", "entity", "mlflow", "strict"),
    }
    for name, default in json.loads(json.dumps(dataclasses.asdict(TrainSettings()))).items():
        other = {bool: not default, float: 0.375, int: 7, list: ["7"]}.get(type(default), "off")
        if name != "data":
            assert train_words({"data": "shapes", name: default})[4:] == []
            assert bool(train_words({"data": "shapes", name: other})[4:]) == (name not in no_matter), name
    assert train_words({"cos_lr": True, "sync_bn": "off"}) == ["yolojax", "train", "--cos-lr", "--sync-bn", "off"]


def test_what_is_not_known_is_not_told():
    head, body = card(RunFacts(), source={})
    assert head["license"] == "unknown"
    assert "datasets" not in head
    assert "model-index" not in head
    for word in ("mAP50", "Trained with", "frozen layers", "None"):
        assert word not in body


@pytest.mark.parametrize(("name", "map50"), [("best", 0.5), ("last", 0.4)])
def test_the_facts_of_the_run_around_the_weights(tmp_path, name, map50):
    place = tmp_path / "exp" / "weights" / name
    place.mkdir(parents=True)
    assert run_facts(place) == RunFacts()
    (tmp_path / "exp" / "settings.yaml").write_text(yaml.safe_dump(SETTINGS))
    assert run_facts(place) == RunFacts(settings=SETTINGS)  # still running
    figures = {"best": {"map50": 0.5, "epoch": 3}, "final": {"map50": 0.4, "epoch": 5}}
    (tmp_path / "exp" / "results.json").write_text(json.dumps(figures))
    assert run_facts(place) == RunFacts(settings=SETTINGS, figures={"map50": map50})
