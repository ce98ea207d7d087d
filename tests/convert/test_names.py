import doctest

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convert import names

PAIRS = [
    ("model.0.conv.weight", "params", "model_0/conv/kernel"),
    ("model.0.bn.weight", "params", "model_0/bn/scale"),
    ("model.0.bn.bias", "params", "model_0/bn/bias"),
    ("model.10.bn.running_mean", "batch_stats", "model_10/bn/mean"),
    ("model.1.bn.running_var", "batch_stats", "model_1/bn/var"),
    ("model.2.m.0.cv1.conv.weight", "params", "model_2/m_0/cv1/conv/kernel"),
    ("model.24.m.2.bias", "params", "model_24/m_2/bias"),
    ("model.24.m.2.weight", "params", "model_24/m_2/kernel"),
]

modules = st.lists(st.sampled_from(["cv1", "cv2", "cv3", "m.0", "m.11"]), max_size=3)
leaves = st.sampled_from(
    ["conv.weight", "conv.bias", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var", "m.0.weight", "m.1.bias"]
)
torch_names = st.builds(
    lambda n, parts, leaf: ".".join([f"model.{n}", *parts, leaf]), st.integers(0, 99), modules, leaves
)


@pytest.mark.parametrize(("name", "collection", "path"), PAIRS)
def test_pairs(name, collection, path):
    assert names.to_path(name) == (collection, path)
    assert names.to_name(collection, path) == name


@given(st.lists(torch_names, unique=True))
def test_bijection(torch_names):
    places = [names.to_path(name) for name in torch_names]
    assert len(set(places)) == len(torch_names)
    assert [names.to_name(*place) for place in places] == torch_names


@pytest.mark.parametrize("name", ["model.0.bn.weights", "conv.weight", "model.0.bn", "module.model.0.conv.weight", ""])
def test_unknown_names_are_refused(name):
    with pytest.raises(ValueError, match="not the name"):
        names.to_path(name)


@pytest.mark.parametrize(
    "place", [("params", "model_0/bn/mean"), ("batch_stats", "model_0/conv/kernel"), ("params", "m/kernel")]
)
def test_unknown_paths_are_refused(place):
    with pytest.raises(ValueError, match="not the path"):
        names.to_name(*place)


def test_buffers_have_no_array():
    assert names.is_buffer("model.0.bn.num_batches_tracked")
    assert names.is_buffer("model.24.anchors")
    assert names.is_buffer("model.24.anchor_grid")
    assert not names.is_buffer("model.24.m.0.bias")


def test_kernels_change_layout_and_keep_their_bits():
    kernel = np.arange(2 * 3 * 4 * 5, dtype=np.float16).reshape(2, 3, 4, 5)  # output, input, height, width
    assert names.to_jax(kernel).shape == (4, 5, 3, 2)
    assert names.to_jax(kernel)[1, 2, 0, 1] == kernel[1, 0, 1, 2]
    assert names.to_jax(kernel).dtype == np.float16
    np.testing.assert_array_equal(names.to_torch(names.to_jax(kernel)), kernel)


def test_state_round_trip():
    state = {
        "model.0.conv.weight": np.random.default_rng(0).normal(size=(4, 3, 6, 6)),
        "model.0.bn.weight": np.array([-0.0, 1.0]),
        "model.0.bn.running_var": np.ones(2),
        "model.24.m.0.bias": np.ones(3),
    }
    variables = names.to_variables({**state, "model.0.bn.num_batches_tracked": np.array(3)})
    assert variables["batch_stats"] == {"model_0": {"bn": {"var": pytest.approx(np.ones(2))}}}
    assert variables["params"]["model_0"]["conv"]["kernel"].shape == (6, 6, 3, 4)
    back = names.to_state(variables)
    assert {name: array.tobytes() for name, array in back.items()} == {n: a.tobytes() for n, a in state.items()}


def test_examples():
    assert doctest.testmod(names).failed == 0
