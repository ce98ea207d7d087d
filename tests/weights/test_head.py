import jax
import numpy as np
import pytest

from yolojax.errors import UserError
from yolojax.model.network import init_variables
from yolojax.model.spec import load_spec
from yolojax.weights.head import match_classes, start_head
from yolojax.weights.start import start_variables
from yolojax.weights.store import Weights

OLD = ("Traffic light", "car", "dog")
NEW = ("automobile", "sign", "trafficlight", "Dog")


@pytest.fixture(scope="module")
def weights(tiny_model):
    spec = load_spec(tiny_model, len(OLD))
    variables = jax.tree.map(np.asarray, init_variables(spec, jax.random.key(5)))
    return Weights(spec=spec, names=OLD, variables=variables, source={"file": "old.pt"})


def rows(array, classes, anchors=3):
    return np.asarray(array).reshape(*np.shape(array)[:-1], anchors, 5 + classes)


def test_names_match_without_case_and_blanks(weights):
    head = match_classes(weights, NEW, "names", {"automobile": "car"})
    assert head.classes == {"automobile": "car", "trafficlight": "Traffic light", "Dog": "dog"}
    assert head.left == ("sign",)
    assert "automobile from car" in head.sentence()
    assert "at their prior: sign" in head.sentence()
    assert match_classes(weights, NEW, "boxes").classes == {}
    for words, text in (
        ({"bike": "car"}, "'bike' is no class of the data set"),
        ({"sign": "sing"}, "'sing' is no class of the weights"),
    ):
        with pytest.raises(UserError, match=text):
            match_classes(weights, NEW, "names", words)


@pytest.mark.parametrize("mode", ["boxes", "names"])
def test_rows_are_taken_over_and_the_rest_is_the_prior(weights, mode):
    spec = weights.spec.with_classes(len(NEW))
    variables, source, fresh = start_variables(
        weights, spec, seed=0, names=NEW, init_head=mode, same_as={"automobile": "car"}
    )
    expected, _, everything = start_variables(weights, spec, seed=0, names=NEW)
    places = {0: 1, 2: 0, 3: 2} if mode == "names" else {}
    for level in range(2):
        old, new = (item["params"]["model_6"][f"m_{level}"] for item in (weights.variables, variables))
        for leaf in ("kernel", "bias"):
            before, after = rows(old[leaf], len(OLD)), rows(new[leaf], len(NEW))
            np.testing.assert_array_equal(after[..., :5], before[..., :5])
            for label in range(len(NEW)):
                if label in places:
                    np.testing.assert_array_equal(after[..., 5 + label], before[..., 5 + places[label]])
                elif leaf == "kernel":
                    assert not after[..., 5 + label].any()
                else:
                    np.testing.assert_allclose(after[..., 5 + label], np.log(0.6 / (len(NEW) - 0.99999)), rtol=1e-6)
        assert not np.array_equal(new["kernel"], expected["params"]["model_6"][f"m_{level}"]["kernel"])
    assert variables["params"]["model_5"] is not None
    np.testing.assert_array_equal(
        variables["params"]["model_5"]["conv"]["kernel"], weights.variables["params"]["model_5"]["conv"]["kernel"]
    )
    assert source["init_head"]["mode"] == mode
    assert source["init_head"]["left"] == [name for label, name in enumerate(NEW) if label not in places]
    assert sorted(fresh.paths) == sorted(everything.paths)  # "sign" has no row of its own
    assert "class rows" in fresh.reason


def test_a_head_of_known_classes_is_not_random(weights):
    spec = weights.spec.with_classes(2)
    variables, source, fresh = start_variables(weights, spec, seed=0, names=("dog", "car"), init_head="names")
    assert fresh.paths == ()
    assert source["init_head"]["classes"] == {"dog": "dog", "car": "car"}
    assert variables["params"]["model_6"]["m_0"]["bias"].shape == (3 * 7,)


def test_fresh_is_as_before(weights):
    spec = weights.spec.with_classes(len(NEW))
    _, source, fresh = start_variables(weights, spec, seed=0, names=NEW, init_head="fresh")
    assert "init_head" not in source
    assert len(fresh.paths) == 4


def test_heads_that_do_not_fit(weights):
    spec = load_spec("yolov5n", 4)
    variables = {"params": {}, "batch_stats": {}}
    with pytest.raises(UserError, match=r"--init-head boxes: Detect of tiny .* has no rows for yolov5n"):
        start_head(variables, spec, NEW, weights, match_classes(weights, NEW, "boxes"))
    with pytest.raises(UserError, match="--init-head boxes: there are no weights"):
        start_variables(None, spec, seed=0, names=NEW, init_head="boxes")
