import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yolojax.errors import UserError
from yolojax.freezing.labels import fixed_bn
from yolojax.freezing.phases import EpochRecord, History, Phase, check_phase, make_phase, moment, stages
from yolojax.freezing.selectors import layer_of, select
from yolojax.tree import flatten


def layers(paths) -> set[int]:
    return set(map(layer_of, paths))


def test_five_stages_are_halves_of_backbone_and_neck_and_detect(p5, p6):
    assert list(stages(5, p5)) == ["0-4", "5-9", "10-17", "18-23", "24"]
    assert list(stages(5, p6)) == ["0-5", "6-11", "12-23", "24-32", "33"]
    for paths in (p5, p6):
        parts = list(stages(5, paths).values())
        assert parts[0] | parts[1] == select("backbone", paths)
        assert parts[4] == select("detect", paths)


@given(count=st.integers(2, 19))
def test_stages_partition_the_network_from_front_to_back(count):
    layers_with_parameters = [k for k in range(25) if k not in {11, 12, 15, 16, 19, 22}]
    paths = [f"model_{k}/conv/{leaf}" for k in layers_with_parameters for leaf in ("kernel", "bias")]
    parts = list(stages(count, paths).values())
    assert len(parts) == count
    assert sorted(path for part in parts for path in part) == sorted(paths)
    assert layers(parts[-1]) == {24}
    order = [layer for part in parts for layer in sorted(layers(part))]
    assert order == sorted(order)
    sizes = [len(part) for part in parts[:-1]]
    assert max(sizes) - min(sizes) <= 2  # one layer of two leaves


def test_stages_by_hand(p5):
    parts = stages(["backbone", "neck", "detect"], p5)
    assert list(parts) == ["backbone", "neck", "detect"]
    assert list(parts.values()) == [select(name, p5) for name in parts]


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (["backbone", "detect"], "is in none of them"),
        (["0-10", "neck", "detect"], "'neck' overlaps with one before it at model_10/"),
        (["0-9", "0-9", "head"], "a selector is there twice"),
        (1, "1 is not between 2 and 19"),
        (20, "20 is not between 2 and 19"),
        (True, "neither a number nor a list"),
        ("backbone", "neither a number nor a list"),
        (["all"], "neither a number nor a list"),
        (["0-30", "detect"], "groups 0-30: the network has layers 0 to 24"),
    ],
)
def test_stages_that_do_not_partition_are_refused(groups, message, p5):
    with pytest.raises(UserError, match=message):
        stages(groups, p5)


def test_rates_make_groups_of_their_own(p5):
    phase = make_phase(p5, freeze="0-1", rates={"0-4": 0.1, "detect": 3}, factor=0.5)
    assert phase.factors == {"0-4": 0.05, "trainable": 0.5, "detect": 1.5}
    labels = dict(phase.labels)
    assert layers(path for path in p5 if labels[path] == "0-4") == {2, 3, 4}
    assert layers(phase.frozen) == {0, 1}
    assert flatten(phase.tree()) == labels


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"freeze": 1, "train": 2}, "give either 'freeze' or 'train'"),
        ({"train": 0}, "there is nothing to train"),
        ({"freeze": "all"}, "freeze all leaves nothing to train"),
        ({"rates": {"0-4": 0.1, "4-5": 0.2}}, "rates: '0-4' and '4-5' overlap at model_4/"),
        ({"freeze": 10, "rates": {"backbone": 0.1}}, "rates: all of 'backbone' is frozen"),
        ({"rates": {"0-4": 0}}, "factor of '0-4': 0 is no number above 0; freeze what shall not move"),
        ({"rates": {"0-4": "fast"}}, "factor of '0-4': 'fast' is no number"),
        ({"rates": {"0-4": float("nan")}}, "factor of '0-4': nan is no number"),
        ({"factor": -1}, "factor: -1 is no number above 0"),
        ({"train": 26}, "train 26: the network has layers 0 to 24"),
    ],
)
def test_bad_phases_are_refused(options, message, p5):
    with pytest.raises(UserError, match=message):
        make_phase(p5, **options)


def test_equal_phases_share_a_compiled_step(p5):
    phase = make_phase(p5, freeze=10, factor=1.0, name="a")
    other = make_phase(p5, freeze="backbone", factor=0.5, name="b")
    assert phase == other
    assert hash(phase) == hash(other)
    assert phase != make_phase(p5, freeze=9)
    assert phase != make_phase(p5, freeze=10, rates={"neck": 1.0})


def test_phase_labels_drive_batch_norm(p5):
    assert fixed_bn(make_phase(p5, freeze=10, rates={"neck": 0.1}).tree()) == fixed_bn(make_phase(p5, freeze=10).tree())
    assert len(fixed_bn(make_phase(p5, freeze=10).tree())) == 33


@pytest.mark.parametrize(
    ("labels", "factors", "message"),
    [
        ({"model_0/a": "x"}, {"x": 1.0}, "model_1/b has no label"),
        ({"model_0/a": "x", "model_1/b": "x", "model_2/c": "x"}, {"x": 1.0}, "model_2/c is no parameter"),
        ({"model_0/a": "frozen", "model_1/b": "frozen"}, {}, "there is nothing to train"),
        ({"model_0/a": "x", "model_1/b": "y"}, {"x": 1.0}, "factor of 'y': None is no number"),
    ],
)
def test_labels_must_partition_the_network(labels, factors, message):
    with pytest.raises(UserError, match=message):
        check_phase(Phase(labels, factors=factors), ("model_0/a", "model_1/b"))


def test_what_was_hashed_does_not_change():
    labels = {"a/kernel": "x", "b/kernel": "frozen"}
    phase = Phase(labels)
    before = hash(phase)
    labels["b/kernel"] = "x"
    assert phase.label("b/kernel") == "frozen"
    with pytest.raises(TypeError):
        phase.labels["b/kernel"] = "x"
    assert hash(phase) == before == hash(Phase({"b/kernel": "frozen", "a/kernel": "x"}))
    assert phase == Phase({"b/kernel": "frozen", "a/kernel": "x"})
    assert len({phase: 1, Phase({"a/kernel": "x", "b/kernel": "x"}): 2}) == 2


def test_a_phase_answers_for_every_path(p5):
    phase = make_phase(p5, freeze=10, rates={"detect": 3})
    assert {path for path in p5 if not phase.trains(path)} == phase.frozen == select(10, p5)
    assert phase.label("model_24/m_0/kernel") == "detect"
    assert not phase.trains("model_24/m_0/no_such")
    assert flatten(phase.mask) == {path: phase.trains(path) for path in p5}
    assert phase.tree() is phase.tree()


@pytest.mark.parametrize(("value", "epoch"), [(0, 0), (7, 7), ("0%", 0), ("50%", 25), ("12.5 %", 6), ("100%", 50)])
def test_moments(value, epoch):
    assert moment(value, 50, "start") == epoch


@pytest.mark.parametrize("value", [-1, 1.5, "5", "half", "-5%", True, None])
def test_other_moments_are_refused(value):
    with pytest.raises(UserError, match="neither an epoch"):
        moment(value, 50, "start")


def test_history_goes_through_json():
    history = History(
        epochs=9,
        network="yolov5n",
        records=(EpochRecord(fitness=0.5, loss=1.5, learning_rate=0.01, movement={"a": 0.1}), EpochRecord()),
        gradient_norms={"a": 1.0},
        parameter_norms={"a": 2.0},
    )
    assert History.from_dict(json.loads(json.dumps(history.to_dict()))) == history
