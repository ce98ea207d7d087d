"""The state of a step: what moves, what rests, and the moving average."""

import jax
import jax.numpy as jnp
import numpy as np

from yolojax.training.optimizer import OptimizerSettings
from yolojax.training.state import create_state, decay, divide, share_averages, update_average


def test_weights_are_those_of_the_formula_and_sum_to_one():
    for updates in (1, 2, 10, 2000, 100_000):
        keep, take = decay(jnp.int32(updates))
        expected = 0.9999 * (1 - np.exp(-updates / 2000))
        np.testing.assert_allclose(keep, expected, rtol=1e-6)
        np.testing.assert_allclose(take, 1 - expected, rtol=1e-6)


def test_the_first_update_forgets_the_initial_copy():
    average = update_average({"a": jnp.float32(5)}, {"a": jnp.float32(1)}, jnp.int32(1))
    np.testing.assert_allclose(average["a"], 1 + 4 * 0.9999 * (1 - np.exp(-1 / 2000)), rtol=1e-6)


def test_what_is_not_ready_keeps_its_bits():
    average, new = {"a": jnp.float32([-0.0, 0.3])}, {"a": jnp.float32([1, 2])}
    result = update_average(average, new, jnp.int32(3), jnp.bool_(False))
    assert np.asarray(result["a"]).tobytes() == np.asarray(average["a"]).tobytes()


def test_the_dtype_of_the_average_stays():
    with jax.enable_x64(True):
        for dtype in (jnp.float32, jnp.float64):
            tree = {"a": jnp.ones(2, dtype)}
            assert update_average(tree, tree, jnp.int32(1))["a"].dtype == dtype


LABELS = {"model_0": {"conv": {"kernel": "frozen"}}, "model_1": {"conv": {"kernel": "trainable"}}}


def variables():
    params = {name: {"conv": {"kernel": jnp.ones((1, 1, 2, 2))}} for name in LABELS}
    return {"params": params, "batch_stats": {name: {"bn": {"mean": jnp.zeros(2)}} for name in LABELS}}


def test_what_rests_is_in_memory_once_and_what_moves_is_not_the_callers():
    given = variables()
    state = create_state(given, LABELS, OptimizerSettings(), fixed_bn={"model_0/bn"})
    resting = state.resting
    assert resting.params["model_0"]["conv"]["kernel"] is resting.ema_params["model_0"]["conv"]["kernel"]
    assert resting.batch_stats["model_0"]["bn"]["mean"] is resting.ema_batch_stats["model_0"]["bn"]["mean"]
    assert state.moving.params["model_0"]["conv"]["kernel"] is None
    assert state.moving.batch_stats["model_0"]["bn"]["mean"] is None
    ours, average = (tree["model_1"]["conv"]["kernel"] for tree in (state.moving.params, state.moving.ema_params))
    pointers = {leaf.unsafe_buffer_pointer() for leaf in (ours, average, given["params"]["model_1"]["conv"]["kernel"])}
    assert len(pointers) == 3


def test_dividing_and_joining_keeps_every_leaf():
    state = create_state(variables(), LABELS, OptimizerSettings())
    again = divide(state.whole, LABELS, {"model_1/bn"})
    assert again.resting.batch_stats["model_1"]["bn"]["mean"] is state.moving.batch_stats["model_1"]["bn"]["mean"]
    for ours, theirs in zip(jax.tree.leaves(state.whole), jax.tree.leaves(again.whole), strict=True):
        assert ours is theirs


def test_averages_are_shared_only_where_the_bits_are_the_same():
    whole = create_state(variables(), LABELS, OptimizerSettings()).whole
    zeros = {"model_0": {"bn": {"mean": jnp.array([0.0, -0.0])}}, "model_1": {"bn": {"mean": jnp.zeros(2)}}}
    state = share_averages(divide(whole._replace(ema_batch_stats=zeros), LABELS, {"model_0/bn", "model_1/bn"}))
    values, averages = state.resting.batch_stats, state.resting.ema_batch_stats
    assert values["model_1"]["bn"]["mean"] is averages["model_1"]["bn"]["mean"]
    assert values["model_0"]["bn"]["mean"] is not averages["model_0"]["bn"]["mean"]  # 0 and -0 differ
