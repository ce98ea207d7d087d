"""What a training starts from."""

import jax
import numpy as np
import pytest

from yolojax.hyperparameters import load_hyperparameters
from yolojax.model.network import init_variables
from yolojax.model.spec import load_spec
from yolojax.tree import flatten
from yolojax.weights.start import start_variables, with_fitting_anchors
from yolojax.weights.store import Weights


@pytest.fixture(scope="module")
def weights(tiny_model):
    spec = load_spec(tiny_model)
    variables = jax.tree.map(np.asarray, init_variables(spec, jax.random.key(1)))
    return Weights(spec=spec, names=("a", "b"), variables=variables, source={"file": "tiny.pt"})


def test_without_weights_everything_is_random(weights):
    variables, source, random = start_variables(None, weights.spec, 0)
    assert set(random.paths) == set(flatten(variables["params"]))
    assert source == {"file": None, "trained_by": "yolojax"}


def test_weights_of_the_same_classes_are_taken_whole(weights):
    variables, source, random = start_variables(weights, weights.spec, 0)
    assert random.paths == ()
    assert source["trained_from"] == "tiny.pt"
    for leaf, expected in zip(jax.tree.leaves(variables), jax.tree.leaves(weights.variables), strict=True):
        np.testing.assert_array_equal(leaf, expected)


def test_other_classes_make_detect_random_and_say_why(weights):
    variables, _, random = start_variables(weights, weights.spec.with_classes(5), 0)
    assert {path.split("/")[0] for path in random.paths} == {"model_6"}
    assert random.reason == "2 classes before, 5 now"
    before, after = (flatten(tree["params"]) for tree in (weights.variables, variables))
    assert all(np.array_equal(after[path], before[path]) for path in before if path not in random.paths)


def test_anchors_that_are_to_stay_stay(weights):
    hyperparameters = load_hyperparameters("scratch-low")
    spec = with_fitting_anchors(weights.spec, weights, [], 64, hyperparameters, keep=True, seed=0)
    assert spec is weights.spec
