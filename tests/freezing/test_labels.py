import pytest

from yolojax.freezing.labels import fixed_bn, trainable_mask
from yolojax.freezing.phases import make_phase
from yolojax.tree import flatten


@pytest.fixture
def labels(p5):
    return lambda selector: make_phase(p5, freeze=selector).tree()


def test_layer_one_is_not_layer_ten(labels):
    tree = labels("[1]")
    assert tree["model_1"]["conv"]["kernel"] == "frozen"
    assert tree["model_10"]["conv"]["kernel"] == "trainable"


@pytest.mark.parametrize("selector", [0, 1, 10, 24, "bn", "not:bias", "**/cv1/**"])
def test_every_leaf_has_one_of_two_labels(labels, p5, selector):
    tree = labels(selector)
    assert list(flatten(tree)) == list(p5)
    assert set(flatten(tree).values()) <= {"frozen", "trainable"}
    mask = flatten(trainable_mask(tree))
    assert mask == {path: label == "trainable" for path, label in flatten(tree).items()}
    assert any(mask.values())


def test_other_labels_are_trainable_too():
    assert trainable_mask({"a": "frozen", "b": {"c": "0-4"}}) == {"a": False, "b": {"c": True}}


def test_fixed_bn_of_frozen_layers(labels):
    assert fixed_bn(labels(0)) == frozenset()
    assert len(fixed_bn(labels(10))) == 33
    assert len(fixed_bn(labels(24))) == 57
    assert fixed_bn(labels(1)) == {"model_0/bn"}


def test_bn_with_a_trained_part_is_not_fixed(labels):
    assert fixed_bn(labels("not:bias")) == frozenset()
    assert fixed_bn(labels(["backbone", "not:bn"])) == frozenset()
    assert len(fixed_bn(labels("bn"))) == 57
