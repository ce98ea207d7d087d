from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from yolojax.errors import UserError
from yolojax.evaluation.nms import NmsSettings, suppress, suppress_batch
from yolojax.freezing.selectors import select
from yolojax.inference.predictor import make_predict, suppressed_parts
from yolojax.model.network import Network, abstract_variables, init_variables
from yolojax.model.spec import ModelSpec, branch_layers, load_spec
from yolojax.training.loss import LossSettings, compute_loss
from yolojax.tree import flatten
from yolojax.weights.join import common_layers, graft, join_weights
from yolojax.weights.store import Weights, read_weights, save_weights

FROZEN = 5  # the backbone of the tiny model
IMAGES = np.random.default_rng(0).integers(0, 255, (2, 64, 96, 3), np.uint8)


@pytest.fixture(scope="module")
def trained(tiny_model):
    """``trained(seed, names, frozen=5)``: a network whose first layers are those of seed 0, and the others of its own seed."""

    def make(seed: int, names: tuple[str, ...], frozen: int = FROZEN) -> Weights:
        spec = load_spec(tiny_model, len(names))
        trunk, own = (init_variables(spec, jax.random.key(number)) for number in (0, 100 + seed))
        variables = {
            collection: {
                name: (trunk if int(name.split("_")[1]) < frozen else own)[collection][name] for name in own[collection]
            }
            for collection in own
        }
        return Weights(
            spec=spec,
            names=names,
            variables=jax.tree.map(np.asarray, variables),
            source={"file": f"{seed}.pt", "licence": "AGPL-3.0", "image_size": 64},
        )

    return make


@pytest.fixture(scope="module")
def pair(trained):
    return trained(1, ("cat", "dog", "cow")), trained(2, ("dog", "sign"), frozen=6)


def heads_of(weights: Weights) -> list[np.ndarray]:
    images = jnp.asarray(IMAGES, jnp.float32) / 255
    return [np.asarray(head) for head in Network(weights.spec).apply(weights.variables, images)]


def test_layers_of_one_trunk_are_common(pair, trained):
    assert common_layers(pair).layers == FROZEN
    assert common_layers([trained(1, ("a",), 6), trained(2, ("b",), 6)]).layers == 6  # all but Detect
    assert "trained, or began from other weights" in common_layers(pair).reason
    assert "model_5/" in common_layers(pair).reason


def test_a_moved_statistic_is_named_with_its_cause(pair):
    moved = jax.tree.map(np.copy, pair[1].variables)
    moved["batch_stats"]["model_1"]["bn"]["mean"][3] += 1e-7
    split = common_layers([pair[0], replace(pair[1], variables=moved)])
    assert split.layers == 1
    assert "model_1/bn/mean" in split.reason
    assert "--frozen-bn fixed" in split.reason


def test_numbering_continues(pair):
    joined = join_weights(pair, at_least=FROZEN)
    assert sorted(joined.variables["params"], key=lambda name: int(name.split("_")[1])) == [
        f"model_{index}" for index in (0, 1, 2, 3, 4, 5, 6, 7, 8)
    ]
    assert joined.names == ("cat", "dog", "cow", "dog (B)", "sign")
    assert joined.spec.branches == ((0, 1, 2), (3, 4))
    assert branch_layers(joined.spec, 1) == (0, 1, 2, 3, 4, 7, 8)
    assert joined.source["licence"] == "AGPL-3.0"
    assert [record["layers"] for record in joined.source["joined"]] == [[0, 6], [7, 8]]
    for weights, network in zip(pair, joined.spec.networks, strict=True):
        assert network.resolved == weights.spec.resolved
        assert network.anchors == weights.spec.anchors
    paths = tuple(flatten(joined.variables["params"]))
    assert {path.split("/")[0] for path in select("detect", paths)} == {"model_6", "model_8"}
    assert {path.split("/")[0] for path in select("neck", paths)} == {"model_5", "model_7"}
    assert {path.split("/")[0] for path in select("7", paths)} == {f"model_{index}" for index in range(7)}


def test_every_branch_gives_the_bits_of_its_network(pair):
    joined = join_weights(pair, at_least=FROZEN)
    both = joined.spec.split(heads_of(joined))
    for own, weights in zip(both, pair, strict=True):
        for head, expected in zip(own, heads_of(weights), strict=True):
            assert head.tobytes() == expected.tobytes()


def test_predictions_are_one_tensor_with_zeros(pair):
    joined = join_weights(pair, at_least=FROZEN)
    for augment in (False, True):
        whole, *own = (np.asarray(make_predict([item], augment=augment)(IMAGES)[0]) for item in (joined, *pair))
        rows = own[0].shape[1]
        assert whole.shape == (2, rows + own[1].shape[1], 5 + 5)
        np.testing.assert_array_equal(whole[:, :rows, : 5 + 3], own[0])
        np.testing.assert_array_equal(whole[:, rows:, [0, 1, 2, 3, 4, 8, 9]], own[1])
        assert not whole[:, :rows, 8:].any()
        assert not whole[:, rows:, 5:8].any()
        assert own[0][..., 5:].min() > 0


def test_suppression_of_a_branch_is_that_of_its_network(pair):
    joined = join_weights(pair, at_least=FROZEN)
    predictions = [np.asarray(make_predict([item])(IMAGES)[0]) for item in (joined, *pair)]
    limits = NmsSettings(max_detections=20)
    settings = replace(limits, parts=suppressed_parts([joined], False))
    on_device, counts = suppress_batch(jnp.asarray(predictions[0]), settings)
    for image in range(len(IMAGES)):
        rows = suppress(predictions[0][image], settings)
        assert len(rows) == 40
        assert (np.diff(rows[:, 4]) <= 0).all()
        for known, own in zip(joined.spec.branches, predictions[1:], strict=True):
            expected = suppress(own[image], limits)
            found = rows[np.isin(rows[:, 5], known)]
            np.testing.assert_array_equal(found[:, 5], np.asarray(known)[expected[:, 5].astype(int)])
            np.testing.assert_array_equal(found[:, :5], expected[:, :5])
        np.testing.assert_array_equal(np.asarray(on_device[image, : counts[image]]), rows)
    only = suppress(predictions[0][0], replace(settings, classes=(1, 4)))
    assert set(only[:, 5]) == {1, 4}


def test_classes_may_be_left_out_or_fused(pair):
    joined = join_weights(pair, at_least=FROZEN, keep={"A": ["dog", "2"]}, same_names="fuse")
    assert joined.names == ("dog", "cow", "sign")
    assert joined.spec.branches == ((0, 1), (0, 2))
    first, second = joined.spec.split(heads_of(joined))
    for head, expected in zip(first, heads_of(pair[0]), strict=True):
        np.testing.assert_allclose(head, expected[..., [0, 1, 2, 3, 4, 6, 7]], atol=1e-6)
    for head, expected in zip(second, heads_of(pair[1]), strict=True):
        assert head.tobytes() == expected.tobytes()


def test_a_joined_network_is_written_read_and_joined_again(pair, trained, tmp_path):
    joined = join_weights(pair, at_least=FROZEN, name="two")
    save_weights(tmp_path / "two", joined)
    again = read_weights(tmp_path / "two")
    assert again.spec == joined.spec
    assert ModelSpec.from_dict(joined.spec.to_dict()) == joined.spec
    three = join_weights([again, trained(3, ("tree",))], at_least=FROZEN)
    assert three.spec.branches == ((0, 1, 2), (3, 4), (5,))
    for own, weights in zip(three.spec.split(heads_of(three)), (*pair, trained(3, ("tree",))), strict=True):
        assert all(head.tobytes() == expected.tobytes() for head, expected in zip(own, heads_of(weights), strict=True))
    shapes = {path: leaf.shape for path, leaf in flatten(abstract_variables(three.spec)).items()}
    assert shapes == {path: leaf.shape for path, leaf in flatten(three.variables).items()}


def test_the_loss_is_the_sum_of_the_branches(pair):
    joined = join_weights(pair, at_least=FROZEN)
    rng = np.random.default_rng(1)
    centre, side = rng.uniform(0.2, 0.8, (2, 6, 2)), rng.uniform(0.1, 0.4, (2, 6, 2))
    labels = np.array([[0, 1, 2, 3, 4, 4], [4, 3, 2, 1, 0, 0]], np.float32)
    boxes = np.concatenate([labels[..., None], centre, side], -1).astype(np.float32)
    mask = np.array([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0]], bool)
    heads = [jnp.asarray(head) for head in heads_of(joined)]
    total, parts = compute_loss(heads, boxes, mask, joined.spec, LossSettings(cls=0.5))
    expected = 0.0
    for own, weights, first in zip(joined.spec.split(heads), pair, (0, 3), strict=True):
        known = (boxes[..., 0] >= first) & (boxes[..., 0] < first + weights.spec.classes)
        relabelled = np.concatenate([boxes[..., :1] - first, boxes[..., 1:]], -1)
        gains = LossSettings(cls=0.5 * weights.spec.classes / 5)
        loss, own_parts = compute_loss(own, relabelled, mask & known, weights.spec, gains)
        assert all(part > 0 for part in own_parts.values())
        expected += loss
    assert float(total) == pytest.approx(float(expected), rel=1e-6)
    assert sum(map(float, parts.values())) * 2 == pytest.approx(float(expected), rel=1e-6)


def test_a_head_on_another_trunk(pair, trained):
    moved = trained(7, ("x",), frozen=0)
    mixed = graft(moved, pair[0])
    assert mixed.names == pair[0].names
    assert mixed.variables["params"]["model_5"] is moved.variables["params"]["model_5"]
    assert mixed.variables["params"]["model_6"] is pair[0].variables["params"]["model_6"]
    early = graft(moved, pair[0], 2)
    assert early.variables["batch_stats"]["model_1"] is moved.variables["batch_stats"]["model_1"]
    assert early.variables["batch_stats"]["model_2"] is pair[0].variables["batch_stats"]["model_2"]
    with pytest.raises(UserError, match="--split 9"):
        graft(moved, pair[0], 9)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"at_least": 6}, "share the first 5 layers, and 6 are asked for: layer 5 of B differs"),
        ({"keep": {"A": ["cat", "dgo"]}}, "--keep A: there is no class 'dgo'; did you mean 'dog'"),
        ({"keep": {"C": ["cat"]}}, "--keep C: the networks are A, B"),
    ],
)
def test_what_cannot_be_joined_is_said(pair, options, sentence):
    with pytest.raises(UserError, match="^.*" + sentence.replace("(", r"\(")):
        join_weights(pair, **{"at_least": FROZEN, **options})


def test_other_strides_and_other_widths_are_refused(pair, tiny_model):
    spec = load_spec("yolov5n", 2)
    other = Weights(spec=spec, names=("a", "b"), variables={"params": {}, "batch_stats": {}}, source={})
    with pytest.raises(UserError, match="share no layer, and 1 are asked for: B is yolov5n and A is tiny"):
        join_weights([pair[0], other], at_least=1)
    with pytest.raises(UserError, match="two or more"):
        join_weights(pair[:1])
    with pytest.raises(UserError, match="joined network of 5 classes, not 7"):
        join_weights(pair, at_least=FROZEN).spec.with_classes(7)
    with pytest.raises(UserError, match="cannot be part of an ensemble"):
        suppressed_parts([pair[0], join_weights(pair, at_least=FROZEN)], False)
