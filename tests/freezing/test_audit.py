import copy
import math

import numpy as np
import pytest

from yolojax.freezing.audit import compare, moved_paths
from yolojax.tree import flatten


@pytest.fixture
def variables():
    draw = np.random.default_rng(0).normal

    def block(channels):
        return {
            "conv": {"kernel": draw(size=(1, 1, 2, channels)).astype(np.float32)},
            "bn": {"scale": np.ones(channels, np.float32), "bias": np.zeros(channels, np.float32)},
        }

    return {
        "params": {
            "model_0": block(4),
            "model_1": block(4),
            "model_10": block(4),
            "model_24": {"m_0": {"bias": draw(size=3)}},
        },
        "batch_stats": {f"model_{k}": {"bn": {"mean": draw(size=4), "var": np.ones(4)}} for k in (0, 1, 10)},
    }


def test_the_same_bits_are_identical(variables):
    audit = compare(variables, copy.deepcopy(variables))
    assert audit.identical
    assert [row.layer for row in audit.layers] == [0, 1, 10, 24]
    assert all(row.identical and row.parameters.max_abs == 0 for row in audit.layers)
    assert audit.layers[-1].statistics is None


def test_the_sign_of_zero_is_a_difference(variables):
    after = copy.deepcopy(variables)
    after["params"]["model_1"]["bn"]["bias"][2] = -0.0
    assert np.array_equal(after["params"]["model_1"]["bn"]["bias"], variables["params"]["model_1"]["bn"]["bias"])
    audit = compare(variables, after)
    assert audit.changed == ("params/model_1/bn/bias",)
    assert not audit.layers[1].identical
    assert (audit.layers[1].parameters.max_abs, audit.layers[1].parameters.relative) == (0, 0)
    assert moved_paths(audit, frozenset({"model_1/bn/bias"}), list(flatten(variables["params"]))) == audit.changed


def test_nan_is_itself(variables):
    variables["params"]["model_0"]["bn"]["scale"][0] = math.nan
    assert compare(variables, copy.deepcopy(variables)).identical


def test_how_much_a_layer_changed(variables):
    after = copy.deepcopy(variables)
    kernel = after["params"]["model_1"]["conv"]["kernel"]
    kernel[0, 0, 0, 0] += 3
    kernel[0, 0, 1, 1] -= 4
    after["batch_stats"]["model_10"]["bn"]["mean"] += 0.5
    audit = compare(variables, after)
    row = audit.layers[1]
    size = math.sqrt(sum(float(np.sum(np.square(leaf))) for leaf in flatten(variables["params"]["model_1"]).values()))
    assert row.parameters.max_abs == pytest.approx(4, abs=1e-5)
    assert row.parameters.relative == pytest.approx(5 / size, rel=1e-5)
    assert row.statistics.identical
    assert audit.layers[2].parameters.identical
    assert audit.layers[2].statistics.max_abs == pytest.approx(0.5)
    assert not audit.layers[2].identical
    assert audit.layers[0].identical


def test_other_shapes_dtypes_and_missing_leaves_are_changes(variables):
    after = copy.deepcopy(variables)
    after["params"]["model_24"]["m_0"]["bias"] = np.zeros(5)
    after["params"]["model_0"]["bn"]["scale"] = np.ones(4, np.float64)
    del after["batch_stats"]["model_1"]["bn"]["var"]
    after["params"]["model_10"]["extra"] = np.zeros(1)
    audit = compare(variables, after)
    assert set(audit.changed) == {
        *("params/model_24/m_0/bias", "params/model_0/bn/scale", "batch_stats/model_1/bn/var", "params/model_10/extra")
    }
    assert math.isnan(audit.layers[3].parameters.max_abs)
    assert audit.layers[0].parameters.max_abs == 0
    assert not audit.layers[0].parameters.identical


def test_a_change_from_zero_is_infinite(variables):
    for leaf in flatten(variables["params"]["model_0"]).values():
        leaf[...] = 0
    after = copy.deepcopy(variables)
    after["params"]["model_0"]["bn"]["bias"][0] = 1
    assert compare(variables, after).layers[0].parameters.relative == math.inf


def test_a_value_that_is_no_number_gives_no_figure(variables):
    after = copy.deepcopy(variables)
    after["params"]["model_0"]["bn"]["bias"][0] = math.nan
    row = compare(variables, after).layers[0]
    assert not row.identical
    assert math.isnan(row.parameters.max_abs)
    assert math.isnan(row.parameters.relative)


@pytest.mark.parametrize("frozen_bn", ["fixed", "track"])
def test_what_moved_although_it_was_frozen(variables, frozen_bn):
    after = copy.deepcopy(variables)
    after["batch_stats"]["model_0"]["bn"]["var"][0] = 2
    after["batch_stats"]["model_10"]["bn"]["var"][0] = 2
    after["params"]["model_10"]["conv"]["kernel"] += 1
    paths = list(flatten(variables["params"]))
    frozen = frozenset(path for path in paths if path.startswith(("model_0/", "model_1/")))
    expected = ("batch_stats/model_0/bn/var",) if frozen_bn == "fixed" else ()
    assert moved_paths(compare(variables, after), frozen, paths, frozen_bn) == expected
    # Statistics of a BatchNorm whose bias trains are free to move.
    assert moved_paths(compare(variables, after), frozen - {"model_0/bn/bias"}, paths, frozen_bn) == ()
