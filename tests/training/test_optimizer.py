"""The optimizer, against PyTorch's formulas written out by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from yolojax.hyperparameters import Hyperparameters
from yolojax.training.optimizer import OptimizerSettings, make_optimizer
from yolojax.training.schedule import Rates
from yolojax.tree import flatten, unflatten

SHAPES = {
    "model_0/conv/kernel": (3, 3, 3, 4),
    "model_0/bn/scale": (4,),
    "model_0/bn/bias": (4,),
    "model_1/m_0/kernel": (1, 1, 4, 6),
    "model_1/m_0/bias": (6,),
}
RATE, BIAS_RATE, MOMENTUM, DECAY = 0.01, 0.07, 0.9, 0.03


def tree_of(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    return {path: scale * rng.normal(size=shape) for path, shape in SHAPES.items()}


def labels_of(frozen=(), groups=None):
    return unflatten({p: "frozen" if p in frozen else (groups or {}).get(p, "trainable") for p in SHAPES})


def rates(dtype=jnp.float64):
    return Rates(dtype(RATE), dtype(BIAS_RATE), dtype(MOMENTUM), jnp.int32(1))


def run(settings, gradients, labels=None, factors=None, flags=None):
    """Parameters after each gradient, and the last state."""
    params = jax.tree.map(jnp.asarray, unflatten(tree_of(0)))
    labels = labels or labels_of()
    state = make_optimizer(labels, settings, rates()).init(params)
    history = []

    @jax.jit
    def step(gradient, state, params, ready, restart):
        transformation = make_optimizer(labels, settings, rates(), factors, ready, restart)
        updates, state = transformation.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    for gradient, (ready, restart) in zip(gradients, flags or [(True, False)] * len(gradients), strict=True):
        params, state = step(jax.tree.map(jnp.asarray, unflatten(gradient)), state, params, ready, restart)
        history.append({path: np.asarray(leaf) for path, leaf in flatten(params).items()})
    return history, state


def by_hand(name, gradients, limit=10.0):
    params, first, second = tree_of(0), dict.fromkeys(SHAPES, 0.0), dict.fromkeys(SHAPES, 0.0)
    history = []
    for count, raw in enumerate(gradients, 1):
        norm = np.sqrt(sum((g**2).sum() for g in raw.values()))
        scale = min(1.0, limit / (norm + 1e-6))
        for path in SHAPES:
            g, w = raw[path] * scale, params[path]
            lr = BIAS_RATE if path.endswith("bias") else RATE
            decay = DECAY if path.endswith("kernel") else 0.0
            if name == "AdamW":
                w = w * (1 - lr * decay)
            else:
                g = g + decay * w
            if name == "SGD":
                first[path] = MOMENTUM * first[path] + g
                params[path] = w - lr * (g + MOMENTUM * first[path])
            else:
                first[path] = MOMENTUM * first[path] + (1 - MOMENTUM) * g
                second[path] = 0.999 * second[path] + 0.001 * g**2
                root = np.sqrt(second[path] / (1 - 0.999**count)) + 1e-8
                params[path] = w - lr / (1 - MOMENTUM**count) * first[path] / root
        history.append(dict(params))
    return history


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


SETTINGS = OptimizerSettings(weight_decay=DECAY, momentum=MOMENTUM, accumulates=False)


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_updates_are_those_of_torch(name):
    gradients = [tree_of(1, 0.1), tree_of(2, 5.0), tree_of(3, 0.1)]  # the second one is clipped
    updated, _ = run(dataclasses.replace(SETTINGS, name=name), gradients)
    for ours, expected in zip(updated, by_hand(name, gradients), strict=True):
        for path in SHAPES:
            np.testing.assert_allclose(ours[path], expected[path], rtol=1e-13, atol=1e-15, err_msg=path)


def test_gradients_are_summed_until_an_update():
    gradients = [tree_of(seed, 0.1) for seed in range(1, 7)]
    #      sum 1+2          wait              forgotten: 3 → 4+5 …
    flags = [(False, True), (True, False), (False, False), (False, True), (True, False), (True, False)]
    updated, _ = run(dataclasses.replace(SETTINGS, accumulates=True), gradients, flags=flags)
    sums = [
        {p: gradients[0][p] + gradients[1][p] for p in SHAPES},
        {p: gradients[3][p] + gradients[4][p] for p in SHAPES},
        gradients[5],
    ]
    expected = by_hand("SGD", sums)
    start = tree_of(0)
    for path in SHAPES:
        np.testing.assert_array_equal(updated[0][path], start[path])
        np.testing.assert_allclose(updated[1][path], expected[0][path], rtol=1e-13)
        np.testing.assert_array_equal(updated[3][path], updated[1][path])
        np.testing.assert_allclose(updated[4][path], expected[1][path], rtol=1e-13)
        np.testing.assert_allclose(updated[5][path], expected[2][path], rtol=1e-13)


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_frozen_leaves_have_no_state_and_do_not_count_for_the_clip(name):
    frozen = {path for path in SHAPES if path.startswith("model_0")}
    gradients = [tree_of(1, 1.0) | {path: np.full(SHAPES[path], 1e6) for path in frozen}]
    settings = dataclasses.replace(SETTINGS, name=name, accumulates=True)
    (updated,), state = run(settings, gradients, labels_of(frozen))
    trained = [p for p in SHAPES if p not in frozen]
    copies = {"SGD": 2, "Adam": 3, "AdamW": 3}[name]
    arrays = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim]
    assert sorted(leaf.shape for leaf in arrays) == sorted(copies * [SHAPES[p] for p in trained])
    (expected,) = by_hand(name, [{p: gradients[0][p] * (p in trained) for p in SHAPES}])
    for path in SHAPES:
        if path in frozen:
            np.testing.assert_array_equal(updated[path], tree_of(0)[path])
        else:
            np.testing.assert_allclose(updated[path], expected[path], rtol=1e-13)


def test_a_label_has_its_own_learning_rate():
    groups = {"model_0/conv/kernel": "early", "model_0/bn/bias": "early"}
    (plain,), _ = run(SETTINGS, [tree_of(1, 0.1)])
    (scaled,), _ = run(SETTINGS, [tree_of(1, 0.1)], labels_of(groups=groups), {"early": 0.25})
    start = tree_of(0)
    for path in SHAPES:
        factor = 0.25 if path in groups else 1
        np.testing.assert_allclose(scaled[path] - start[path], factor * (plain[path] - start[path]), rtol=1e-9)


def test_weight_decay_is_scaled_to_the_images_of_an_update():
    hyp = Hyperparameters(weight_decay=0.00036)
    for batch, decay in {48: 0.00036 * 0.75, 64: 0.00036, 16: 0.00036, 24: 0.00036 * 72 / 64, 128: 0.00072}.items():
        settings = OptimizerSettings.from_hyperparameters(hyp, batch_size=batch)
        np.testing.assert_allclose(settings.weight_decay, decay)
        assert settings.accumulates == (batch < 48)


def test_float32_stays_float32():
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), unflatten(tree_of(0)))
    for name in ("SGD", "Adam", "AdamW"):
        settings = dataclasses.replace(SETTINGS, name=name, accumulates=True)

        def update(params, settings=settings):
            transformation = make_optimizer(labels_of(), settings, rates(jnp.float32), None, jnp.bool_(True))
            before = transformation.init(params)
            return before, *transformation.update(params, before, params)

        before, updates, after = jax.eval_shape(update, params)
        assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype(jnp.float32)}
        assert [leaf.dtype for leaf in jax.tree.leaves(after)] == [leaf.dtype for leaf in jax.tree.leaves(before)]
