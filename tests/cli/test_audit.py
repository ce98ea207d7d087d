import copy
import dataclasses
import json

import jax
import numpy as np
import pytest

from yolojax.cli.main import main
from yolojax.model.network import abstract_variables
from yolojax.model.spec import load_spec
from yolojax.weights.store import Weights, save_weights


def weights(name="yolov5n", classes=2) -> Weights:
    spec = load_spec(name, classes)
    draw = np.random.default_rng(0).random
    variables = jax.tree.map(lambda leaf: draw(leaf.shape, np.float32), abstract_variables(spec))
    return Weights(spec=spec, names=tuple(map(str, range(classes))), variables=variables, source={})


@pytest.fixture(scope="module")
def before() -> Weights:
    return weights()


@pytest.fixture(scope="module")
def saved(before, tmp_path_factory):
    folder = tmp_path_factory.mktemp("audit") / "before"
    save_weights(folder, before)
    return folder


@pytest.fixture
def audit(before, tmp_path, monkeypatch):
    """Run the command against a changed copy in memory; gives status and figures."""

    def run(change, *words: str) -> tuple[int, dict]:
        after = dataclasses.replace(before, variables=copy.deepcopy(before.variables))
        change(after.variables)
        monkeypatch.setattr("yolojax.weights.find.load_weights", {"before": before, "after": after}.__getitem__)
        file = tmp_path / "audit.json"
        status = main(["audit", "before", "after", *words, "--json", str(file)])
        return status, json.loads(file.read_text())

    return run


def train_head(variables) -> None:
    for layer, block in variables["params"].items():
        if int(layer.removeprefix("model_")) >= 10:
            for leaf in jax.tree.leaves(block):
                leaf += 0.01


def move_statistics(variables) -> None:
    train_head(variables)
    variables["batch_stats"]["model_3"]["bn"]["mean"][0] += 1


def move_one_bit(variables) -> None:
    train_head(variables)
    bias = variables["params"]["model_9"]["cv1"]["bn"]["bias"]
    bias[0] = np.nextafter(bias[0], 2)


def test_identical_weights(audit, capsys):
    status, report = audit(lambda variables: None, "--frozen", "24")
    assert (status, report["identical"], report["moved"]) == (0, True, [])
    assert len(report["layers"]) == 19
    assert "19 layers identical, 0 changed" in capsys.readouterr().out


def test_a_frozen_backbone(audit, capsys):
    status, report = audit(train_head, "--frozen", "10")
    assert (status, report["identical"], report["moved"]) == (0, False, [])
    assert [row["layer"] for row in report["layers"] if row["identical"]] == list(range(10))
    last = report["layers"][-1]
    assert last["parameters_max_abs"] == pytest.approx(0.01, rel=1e-3)
    assert 0 < last["parameters_relative"] < 0.1
    assert last["statistics_identical"] is None
    assert report["layers"][10]["statistics_identical"] is True
    assert "bit for bit" in capsys.readouterr().out


def test_more_is_claimed_than_was_frozen(audit, capsys):
    status, report = audit(train_head, "--frozen", "11")
    assert status == 1
    assert set(report["moved"]) == {f"params/model_10/{leaf}" for leaf in ("conv/kernel", "bn/scale", "bn/bias")}
    assert "frozen, but moved: params/model_10/conv/kernel" in capsys.readouterr().out


def test_one_bit_is_enough(audit):
    status, report = audit(move_one_bit, "--frozen", "backbone")
    assert (status, report["moved"]) == (1, ["params/model_9/cv1/bn/bias"])


def test_statistics_may_move_with_track_only(audit):
    assert audit(move_statistics, "--frozen", "10")[1]["moved"] == ["batch_stats/model_3/bn/mean"]
    assert audit(move_statistics, "--frozen", "10", "--frozen-bn", "track")[0] == 0


def test_a_strategy_in_phases_is_held_to_what_it_never_trains(audit):
    assert audit(train_head, "--frozen", "backbone.yaml")[0] == 0
    assert audit(train_head, "--frozen", "all_but_detect")[0] == 1


def test_other_classes_are_a_change_of_detect(before, saved, tmp_path):
    other = before.spec.with_classes(3)
    variables = copy.deepcopy(before.variables)
    variables["params"]["model_24"] = jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, np.float32), abstract_variables(other)["params"]["model_24"]
    )
    save_weights(tmp_path / "other", Weights(spec=other, names=("a", "b", "c"), variables=variables, source={}))
    file = tmp_path / "audit.json"
    assert main(["audit", str(saved), str(tmp_path / "other"), "--frozen", "24", "--json", str(file)]) == 0
    rows = json.loads(file.read_text())["layers"]
    assert [row["layer"] for row in rows if not row["identical"]] == [24]
    assert rows[-1]["parameters_max_abs"] is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "nowhere"),
        (["--frozen", "30"], "--frozen 30: yolov5n has layers 0 to 24"),
        (["--frozen", "plateau"], "depends on the training"),
        (["--frozen", "gradual"], "--frozen gradual: nothing is frozen all the time"),
        (["--frozen", "0"], "--frozen 0: nothing is frozen all the time"),
    ],
)
def test_a_mistake_is_one_line(saved, capsys, words, message):
    after = words[:1] if words[0] == "nowhere" else [str(saved), *words]
    assert main(["audit", str(saved), *after]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_another_architecture_is_refused(saved, tmp_path, capsys):
    save_weights(tmp_path / "s", weights("yolov5s"))
    assert main(["audit", str(saved), str(tmp_path / "s")]) == 2
    assert "only weights of one architecture" in capsys.readouterr().err
