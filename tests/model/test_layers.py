from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from yolojax.model.layers import C3, SPPF, BatchNorm, Bottleneck, Mode, shifted_maxima, upsample


def reduce_window(x, window):
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, window, window, 1), (1, 1, 1, 1), "SAME")


@pytest.mark.parametrize("window", [1, 3, 5, 9])
@pytest.mark.parametrize("size", [(6, 7), (10, 10), (2, 3), (1, 1)])
def test_shifted_maxima_equal_max_pooling_to_the_bit(window, size):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.integers(-3, 4, (2, *size, 4)) * rng.choice([1.0, -0.0, 1e-30], (2, *size, 4)), jnp.float32)
    np.testing.assert_array_equal(shifted_maxima(x, window), reduce_window(x, window))
    x = jnp.asarray(rng.standard_normal((2, *size, 4)) - 5, jnp.float32)  # all negative: padding must not win
    np.testing.assert_array_equal(shifted_maxima(x, window), reduce_window(x, window))


def test_shifted_maxima_have_the_gradient_of_max_pooling():
    rng = np.random.default_rng(1)
    with jax.enable_x64(True):
        x, cotangent = (jnp.asarray(rng.standard_normal((2, 6, 7, 3))) for _ in range(2))

        @partial(jax.jit, static_argnums=0)
        def chained(pool):
            return jax.vjp(lambda x: pool(pool(pool(x, 5), 5), 5), x)[1](cotangent)[0]

        np.testing.assert_allclose(chained(shifted_maxima), chained(reduce_window), rtol=1e-12, atol=1e-12)


def test_cells_that_share_the_maximum_share_the_gradient():
    gradient = jax.grad(lambda x: shifted_maxima(x, 3).sum())(jnp.zeros((1, 4, 4, 1)))
    assert float(gradient.sum()) == 16
    assert float(gradient.min()) > 0


def test_no_select_and_scatter_is_compiled():
    x = jnp.zeros((1, 8, 8, 2))
    assert "select_and_scatter" in jax.jit(jax.grad(lambda x: reduce_window(x, 5).sum())).lower(x).as_text()
    assert "select_and_scatter" not in jax.jit(jax.grad(lambda x: shifted_maxima(x, 5).sum())).lower(x).as_text()


def test_upsample_repeats_cells():
    x = jnp.arange(12.0).reshape(1, 2, 3, 2)
    np.testing.assert_array_equal(upsample(x, 2), x.repeat(2, 1).repeat(2, 2))


def batch_norm(train, fixed_bn=frozenset(), dtype=jnp.float32):
    rng = np.random.default_rng(2)
    x = jnp.asarray(rng.standard_normal((2, 2, 3, 4)) * 2 + 1, dtype)
    variables = {
        "params": {"scale": jnp.asarray([1.0, 2, 3, 4]), "bias": jnp.asarray([0.0, 1, 2, 3])},
        "batch_stats": {"mean": jnp.asarray([0.1, -0.0, 0.3, 0.4]), "var": jnp.asarray([0.5, 0.6, 0.7, 0.8])},
    }
    y, changed = BatchNorm().apply(variables, x, Mode(train, fixed_bn), mutable=["batch_stats"])
    return x, y, variables["batch_stats"], changed["batch_stats"]


def test_running_statistics_follow_the_batch_with_momentum_and_unbiased_variance():
    x, _, before, after = batch_norm(train=True)
    flat = np.asarray(x, np.float64).reshape(-1, 4)
    np.testing.assert_allclose(after["mean"], 0.97 * before["mean"] + 0.03 * flat.mean(0), rtol=1e-5)
    np.testing.assert_allclose(after["var"], 0.97 * before["var"] + 0.03 * flat.var(0, ddof=1), rtol=1e-5)


@pytest.mark.parametrize(("train", "fixed_bn"), [(False, frozenset()), (True, frozenset({""}))])
def test_running_statistics_are_used_and_kept_to_the_bit(train, fixed_bn):
    x, y, before, after = batch_norm(train, fixed_bn)
    for name in before:
        assert np.asarray(before[name]).tobytes() == np.asarray(after[name]).tobytes()
    z = (x - before["mean"]) / jnp.sqrt(before["var"] + 1e-3) * jnp.arange(1.0, 5) + jnp.arange(4.0)
    np.testing.assert_allclose(y, z * jax.nn.sigmoid(z), rtol=1e-5, atol=1e-6)


def test_statistics_of_one_value_stay_finite():
    variables = {
        "params": {"scale": jnp.ones(2), "bias": jnp.zeros(2)},
        "batch_stats": {"mean": jnp.zeros(2), "var": jnp.ones(2)},
    }
    _, changed = BatchNorm().apply(variables, jnp.ones((1, 1, 1, 2)), Mode(train=True), mutable=["batch_stats"])
    np.testing.assert_allclose(changed["batch_stats"]["var"], 0.97)


@pytest.mark.parametrize(
    ("module", "expected"), [(Bottleneck(4), 1.0), (Bottleneck(4, shortcut=False), 0.0), (Bottleneck(6), 0.0)]
)
def test_a_bottleneck_adds_its_input_only_where_it_can(module, expected):
    x = jnp.ones((1, 4, 4, 4))
    variables = jax.tree.map(jnp.zeros_like, module.init(jax.random.key(0), x, Mode()))
    np.testing.assert_array_equal(module.apply(variables, x, Mode()), jnp.full((1, 4, 4, module.features), expected))


def paths(module):
    variables = jax.eval_shape(lambda key: module.init(key, jnp.zeros((1, 4, 4, 16)), Mode()), jax.random.key(0))
    leaves = jax.tree_util.tree_leaves_with_path(variables["params"])
    return {"/".join(key.key for key in path): leaf.shape for path, leaf in leaves}


def test_blocks_have_pytorchs_names_and_shapes():
    kernels = {path: shape for path, shape in paths(C3(32, repeats=2)).items() if path.endswith("kernel")}
    assert kernels == {
        "cv1/conv/kernel": (1, 1, 16, 16),
        "cv2/conv/kernel": (1, 1, 16, 16),
        "cv3/conv/kernel": (1, 1, 32, 32),
        "m_0/cv1/conv/kernel": (1, 1, 16, 16),
        "m_0/cv2/conv/kernel": (3, 3, 16, 16),
        "m_1/cv1/conv/kernel": (1, 1, 16, 16),
        "m_1/cv2/conv/kernel": (3, 3, 16, 16),
    }
    assert paths(SPPF(24)) == {
        "cv1/conv/kernel": (1, 1, 16, 8),
        "cv1/bn/scale": (8,),
        "cv1/bn/bias": (8,),
        "cv2/conv/kernel": (1, 1, 32, 24),
        "cv2/bn/scale": (24,),
        "cv2/bn/bias": (24,),
    }
