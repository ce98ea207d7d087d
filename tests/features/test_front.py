"""Up to which layer nothing moves."""

import pytest

from yolojax.errors import UserError
from yolojax.features.front import feature_bytes, feature_shapes, front_end, require_front
from yolojax.freezing.labels import fixed_bn
from yolojax.freezing.load import load_strategy
from yolojax.freezing.phases import History, make_phase
from yolojax.model.network import parameter_sizes
from yolojax.model.spec import load_spec

SPEC = load_spec("yolov5n")
PATHS = tuple(parameter_sizes(SPEC))


def phase(**choice):
    return make_phase(PATHS, **choice)


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({}, 0),
        ({"freeze": 10}, 10),
        ({"freeze": 11}, 11),  # not 13: an upsampled map is four times as large
        ({"freeze": 24}, 24),
        ({"freeze": [0, 1, 2, 5]}, 3),
        ({"freeze": [1, 2]}, 0),
        ({"train": "bn"}, 0),
        ({"train": ["model_3/conv/kernel", "head"]}, 3),
        ({"train": ["model_4/cv2/bn/bias", "head"]}, 4),
    ],
)
def test_the_front_part_ends_where_something_moves(choice, expected):
    frozen = phase(**choice)
    assert front_end(SPEC, frozen, fixed_bn(frozen.tree())) == expected


def test_statistics_that_follow_the_batch_leave_no_front_part():
    assert front_end(SPEC, phase(freeze=10), frozenset()) == 0


def test_features_are_what_later_layers_read():
    assert feature_shapes(SPEC, 10, (320, 256)) == ((40, 32, 64), (20, 16, 128), (10, 8, 256))
    assert feature_bytes(SPEC, 24, (64, 64), 2) == 2 * (8 * 8 * 64 + 4 * 4 * 128 + 2 * 2 * 256)


def test_a_run_without_a_front_part_is_refused():
    def check(*phases):
        require_front(SPEC, "it", {each: fixed_bn(each.tree()) for each in phases})

    check(phase(freeze=10), phase())
    with pytest.raises(UserError, match="--freeze it: layer 0 moves in every phase; freeze the first layers, as --fr"):
        check(phase())
    adapted = load_strategy("adapters").phase(0, History(epochs=1), PATHS)
    with pytest.raises(UserError, match="--freeze it: layer 0 has adapters, so that what it gives changes with every"):
        check(adapted)
