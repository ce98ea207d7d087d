import pytest

from yolojax.errors import UserError
from yolojax.freezing.labels import fixed_bn, freeze_labels, trainable_mask
from yolojax.tree import flatten, unflatten


@pytest.fixture
def params(p5):
    return unflatten(dict.fromkeys(p5, 0))


def test_layer_one_is_not_layer_ten(params):
    labels = freeze_labels(params, "[1]")
    assert labels["model_1"]["conv"]["kernel"] == "frozen"
    assert labels["model_10"]["conv"]["kernel"] == "trainable"


@pytest.mark.parametrize("selector", [0, 1, 10, 24, "bn", "not:bias", "**/cv1/**"])
def test_every_leaf_has_one_of_two_labels(params, selector):
    labels = freeze_labels(params, selector)
    assert list(flatten(labels)) == list(flatten(params))
    assert set(flatten(labels).values()) <= {"frozen", "trainable"}
    mask = flatten(trainable_mask(labels))
    assert mask == {path: label == "trainable" for path, label in flatten(labels).items()}
    assert any(mask.values())


def test_other_labels_are_trainable_too():
    assert trainable_mask({"a": "frozen", "b": {"c": "0-4"}}) == {"a": False, "b": {"c": True}}


def test_fixed_bn_of_frozen_layers(params):
    assert fixed_bn(freeze_labels(params, 0)) == frozenset()
    assert len(fixed_bn(freeze_labels(params, 10))) == 33
    assert len(fixed_bn(freeze_labels(params, 24))) == 57
    assert fixed_bn(freeze_labels(params, 1)) == {"model_0/bn"}


def test_bn_with_a_trained_part_is_not_fixed(params):
    assert fixed_bn(freeze_labels(params, "not:bias")) == frozenset()
    assert fixed_bn(freeze_labels(params, ["backbone", "not:bn"])) == frozenset()
    assert len(fixed_bn(freeze_labels(params, "bn"))) == 57


def test_nothing_to_train_is_an_error(params):
    with pytest.raises(UserError, match="--freeze 25 leaves nothing to train"):
        freeze_labels(params, 25)
