"""The moving average."""

import jax
import jax.numpy as jnp
import numpy as np

from yolojax.training.state import decay, update_average


def test_weights_are_those_of_the_formula_and_sum_to_one():
    for updates in (1, 2, 10, 2000, 100_000):
        keep, take = decay(jnp.int32(updates))
        expected = 0.9999 * (1 - np.exp(-updates / 2000))
        np.testing.assert_allclose(keep, expected, rtol=1e-6)
        np.testing.assert_allclose(take, 1 - expected, rtol=1e-6)


def test_the_first_update_forgets_the_initial_copy():
    average = update_average({"a": jnp.float32(5)}, {"a": jnp.float32(1)}, {"a": True}, jnp.int32(1))
    np.testing.assert_allclose(average["a"], 1 + 4 * 0.9999 * (1 - np.exp(-1 / 2000)), rtol=1e-6)


def test_what_cannot_move_is_the_same_object_and_what_is_not_ready_keeps_its_bits():
    values = jnp.float32([-0.0, 0.1])
    average = {"still": values, "moving": jnp.float32([-0.0, 0.3])}
    new = {"still": values, "moving": jnp.float32([1, 2])}
    result = update_average(average, new, {"still": False, "moving": True}, jnp.int32(3), jnp.bool_(False))
    assert result["still"] is average["still"]
    assert np.asarray(result["moving"]).tobytes() == np.asarray(average["moving"]).tobytes()


def test_the_dtype_of_the_average_stays():
    with jax.enable_x64(True):
        for dtype in (jnp.float32, jnp.float64):
            tree = {"a": jnp.ones(2, dtype)}
            assert update_average(tree, tree, {"a": True}, jnp.int32(1))["a"].dtype == dtype
