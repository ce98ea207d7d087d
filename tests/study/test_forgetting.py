"""What an old head still sees on the trunk of a run: measured by the commands that a study starts, here in this process."""

import json

import jax
import numpy as np
import pytest

from yolojax.cli.main import main
from yolojax.errors import UserError
from yolojax.model.network import init_variables
from yolojax.model.spec import load_spec
from yolojax.study.forgetting import Forgetting, check_forgetting, measure_forgetting, measured_forgetting
from yolojax.study.scenarios import load_study
from yolojax.training.settings import TrainSettings
from yolojax.weights.store import Weights, save_weights

NAMES = ("old_map50_before", "old_map50_after", "old_map50_95_before", "old_map50_95_after")


def write_network(folder, model, names, trunk_seed):
    spec = load_spec(model, len(names))
    trunk, own = (init_variables(spec, jax.random.key(seed)) for seed in (trunk_seed, 20 + len(names)))
    for collection, modules in trunk.items():
        own[collection] |= {name: tree for name, tree in modules.items() if name != "model_6"}
    save_weights(folder, Weights(spec=spec, names=names, variables=jax.tree.map(np.asarray, own), source={}))
    return folder


@pytest.fixture
def old(tiny_model, tmp_path):
    return write_network(tmp_path / "old", tiny_model, ("blue", "red"), 1)


def start(command, log):
    assert command[1:3] == ["-m", "yolojax"]
    return main([*command[3:], "--device", "cpu"])


def test_a_frozen_trunk_forgets_nothing_and_another_one_does(old, tiny_model, tiny_data, tmp_path):
    second = Forgetting(data=str(tiny_data), img=64, batch=4)
    settings, commands, found = TrainSettings(weights=str(old)), [], []

    def counted(command, log):
        commands.append(command)
        return start(command, log)

    for name, trunk_seed in (("frozen", 1), ("moved", 2)):
        run = tmp_path / "study" / name
        write_network(run / "weights" / "best", tiny_model, ("a", "b", "c"), trunk_seed)
        assert measured_forgetting(run, second) == {}
        assert measure_forgetting(second, settings, run, tmp_path / "study", counted) == 0
        found.append(measured_forgetting(run, second))
        assert set(found[-1]) == set(NAMES)
        assert measured_forgetting(run, Forgetting(data=str(tiny_data), img=96)) == {}
    assert ["--head" in command for command in commands] == [False, True, True]  # the weights as they came: once
    frozen, moved = found
    assert frozen["old_map50_before"] > 0
    for name in ("old_map50", "old_map50_95"):
        assert frozen[f"{name}_after"] == frozen[f"{name}_before"] == moved[f"{name}_before"] != moved[f"{name}_after"]


def test_the_second_data_set_has_to_go_with_the_weights(old, tiny_data, tmp_path):
    second = Forgetting(data=str(tiny_data))
    check_forgetting(second, TrainSettings(weights=str(old)))
    with pytest.raises(UserError, match="split 7: the head begins with one of the layers 1 to 6"):
        check_forgetting(Forgetting(data=str(tiny_data), split=7), TrainSettings(weights=str(old)))
    with pytest.raises(UserError, match="key 'forgetting': measures a Detect of 'weights'"):
        check_forgetting(second, TrainSettings(weights="", cfg="yolov5n"))
    text = tiny_data.read_text().replace("[blue, red]", "[blue, red, green]")
    (tmp_path / "three.yaml").write_text(text)
    with pytest.raises(UserError, match=r"has 2 classes, but .*three\.yaml names 3"):
        check_forgetting(Forgetting(data=str(tmp_path / "three.yaml")), TrainSettings(weights=str(old)))


def test_a_study_reads_its_key(write_study, tiny_data):
    study = load_study(write_study(forgetting={"data": str(tiny_data), "split": 3}))
    assert study.forgetting == Forgetting(data=str(tiny_data), split=3)
    with pytest.raises(UserError, match="key 'forgetting': key 'dat' is unknown; did you mean 'data'"):
        load_study(write_study(forgetting={"dat": "x"}))
    with pytest.raises(UserError, match="key 'forgetting': expected 'key: value' lines"):
        load_study(write_study(forgetting="coco128"))


def test_a_study_that_has_run_gets_its_column(measure_afterwards, tiny_data, caplog):
    def write(folder):
        figures = {name: 0.1 * place for place, name in enumerate(NAMES, 1)}
        content = {"settings": {"data": str(tiny_data), "data_root": None, "img": None, "batch": None, "split": None}}
        (folder / "forgetting.json").write_text(json.dumps({**content, "figures": figures}))

    summary, report, runs = measure_afterwards("measure_forgetting", write, forgetting={"data": str(tiny_data)})
    assert "what it forgot could not be measured: what went wrong; log:" in caplog.text
    assert [summary.mean[name] for name in NAMES] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert "| old data before | old data after |" in report
    assert "| .300 | .400 |" in report
    assert "old_map50_before" in runs.splitlines()[0]
