import jax
import jax.numpy as jnp
import numpy as np
import pytest

from yolojax.model.normalisation import batch_norm_silu, fixed_norm_silu


@pytest.fixture
def arrays():
    rng = np.random.default_rng(1)
    x = rng.standard_normal((2, 3, 5, 4)) * [0.1, 1, 3, 10] + [5, 0, -1, 2]
    scale, bias, mean = rng.standard_normal((3, 4))
    variance = rng.uniform(0.1, 2, 4)
    return x, scale, bias, mean, variance


def by_hand(numpy, x, scale, bias, mean, variance):
    z = (x - mean) / numpy.sqrt(variance + 1e-3) * scale + bias
    return z / (1 + numpy.exp(-z))


def by_hand_from_batch(x, scale, bias):
    return by_hand(jnp, x, scale, bias, x.mean((0, 1, 2)), x.var((0, 1, 2)))


def test_batch_statistics_by_hand(arrays):
    x, scale, bias, near, _ = arrays
    with jax.enable_x64(True):
        y, mean, variance = batch_norm_silu(x, scale, bias, near)
    flat = x.reshape(-1, 4)
    np.testing.assert_allclose(mean, flat.sum(0) / 30, rtol=1e-12)
    np.testing.assert_allclose(variance, ((flat - flat.mean(0)) ** 2).sum(0) / 30, rtol=1e-12)
    np.testing.assert_allclose(y, by_hand(np, x, scale, bias, flat.mean(0), flat.var(0)), rtol=1e-12)


def test_fixed_statistics_by_hand(arrays):
    with jax.enable_x64(True):
        y = fixed_norm_silu(*arrays)
    np.testing.assert_allclose(y, by_hand(np, *arrays), rtol=1e-12)


def test_gradients_are_those_of_automatic_differentiation(arrays):
    cotangent = np.random.default_rng(2).standard_normal(arrays[0].shape)
    with jax.enable_x64(True):
        cases = [
            (lambda *a: batch_norm_silu(*a, arrays[3])[0], by_hand_from_batch, arrays[:3]),
            (fixed_norm_silu, lambda *a: by_hand(jnp, *a), arrays),
        ]
        for function, reference, arguments in cases:
            gradients = jax.vjp(function, *map(jnp.asarray, arguments))[1](jnp.asarray(cotangent))
            expected = jax.vjp(reference, *map(jnp.asarray, arguments))[1](jnp.asarray(cotangent))
            for gradient, expected_gradient in zip(gradients, expected, strict=True):
                assert gradient.dtype == np.float64
                assert np.abs(expected_gradient).max() > 0
                np.testing.assert_allclose(
                    gradient, expected_gradient, rtol=0, atol=1e-12 * np.abs(expected_gradient).max()
                )


def test_the_gradient_through_the_batch_ignores_shift_and_size(arrays):
    x, scale, bias, near, _ = (jnp.asarray(array, jnp.float32) for array in arrays)
    gradient = jax.grad(lambda x: jnp.sum(batch_norm_silu(x, scale, bias, near)[0] ** 2))(x)
    assert float(jnp.abs(gradient).max()) > 0.01
    np.testing.assert_allclose(gradient.sum((0, 1, 2)), 0, atol=1e-4 * float(jnp.abs(gradient).max()) * 30)


def test_bfloat16_keeps_statistics_in_float32(arrays):
    x, scale, bias, near, _ = (jnp.asarray(array, jnp.float32) for array in arrays)
    narrow = x.astype(jnp.bfloat16)
    y, mean, variance = batch_norm_silu(narrow, scale, bias, near)
    assert (y.dtype, mean.dtype, variance.dtype) == (jnp.bfloat16, jnp.float32, jnp.float32)
    # The statistics are those of the rounded input, themselves not rounded.
    np.testing.assert_allclose(mean, narrow.astype(jnp.float32).mean((0, 1, 2)), rtol=1e-5, atol=1e-6)
    gradients = jax.grad(lambda *a: batch_norm_silu(*a, near)[0].astype(jnp.float32).sum(), argnums=(0, 1, 2))(
        narrow, scale, bias
    )
    assert [gradient.dtype for gradient in gradients] == [jnp.bfloat16, jnp.float32, jnp.float32]


def test_the_backward_pass_keeps_only_the_input(arrays):
    x, scale, bias, mean, variance = (jnp.asarray(array, jnp.float32) for array in arrays)
    for function, arguments in (
        (batch_norm_silu, (x, scale, bias, mean)),
        (fixed_norm_silu, (x, scale, bias, mean, variance)),
    ):
        _, pullback = jax.vjp(function, *arguments)
        kept = [leaf for leaf in jax.tree.leaves(pullback) if getattr(leaf, "shape", None) == x.shape]
        assert len(kept) == 1


@pytest.mark.parametrize("distance", [0, 1, 30])
def test_one_pass_loses_no_digits_near_the_running_mean(distance):
    """Far from zero the squares are large and their difference small; what counts is the distance to the running mean."""
    x = 1000 + np.random.default_rng(3).standard_normal((4, 32, 32, 8))
    near = jnp.full((8,), 1000 + distance, jnp.float32)
    rounded = np.float32(x).astype(float)
    _, mean, variance = batch_norm_silu(jnp.asarray(x, jnp.float32), jnp.ones((8,)), jnp.zeros((8,)), near)
    np.testing.assert_allclose(mean, rounded.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(variance, rounded.var((0, 1, 2)), rtol=1e-6 * (1 + distance**2))


def test_a_channel_without_variance_has_none():
    x = jnp.full((1, 8, 8, 2), 0.1, jnp.float32)
    y, _, variance = batch_norm_silu(x, jnp.ones((2,)), jnp.zeros((2,)), jnp.float32([3, -7]))
    assert float(variance.min()) >= 0
    assert float(variance.max()) < 1e-5
    assert bool(jnp.isfinite(y).all())
