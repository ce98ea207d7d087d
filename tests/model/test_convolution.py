import jax
import jax.numpy as jnp
import numpy as np
import pytest

from yolojax.model.convolution import convolve, folded_stem

CASES = [
    # height, width, kernel, stride, padding
    (8, 6, 1, 1, 0),
    (8, 6, 1, 2, 0),
    (8, 6, 3, 1, 1),
    (8, 6, 3, 2, 1),
    (7, 5, 3, 2, 1),
    (8, 8, 6, 2, 2),
    (9, 7, 6, 2, 2),
    (8, 8, 4, 2, 1),
    (8, 8, 2, 2, 0),
    (8, 6, 5, 1, 0),
]


def plain(images, kernel, stride, padding):
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        images, kernel, (stride, stride), [(padding, padding)] * 2, dimension_numbers=numbers
    )


def values_and_gradients(function, images, kernel, cotangent):
    value, pullback = jax.vjp(function, images, kernel)
    return (value, *pullback(cotangent))


@pytest.mark.parametrize(("height", "width", "side", "stride", "padding"), CASES)
def test_value_and_gradients_are_those_of_a_plain_convolution(height, width, side, stride, padding):
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        images = jnp.asarray(rng.standard_normal((2, height, width, 3)))
        kernel = jnp.asarray(rng.standard_normal((side, side, 3, 4)))
        shape = jax.eval_shape(lambda x, w: plain(x, w, stride, padding), images, kernel).shape
        cotangent = jnp.asarray(rng.standard_normal(shape))
        actual = values_and_gradients(lambda x, w: convolve(x, w, stride, padding), images, kernel, cotangent)
        expected = values_and_gradients(lambda x, w: plain(x, w, stride, padding), images, kernel, cotangent)
    for actual_array, expected_array in zip(actual, expected, strict=True):
        assert actual_array.dtype == np.float64
        np.testing.assert_allclose(actual_array, expected_array, rtol=0, atol=1e-12 * np.abs(expected_array).max())


def test_two_taps_by_hand():
    images = jnp.arange(1.0, 5.0).reshape(1, 2, 2, 1)  # 1 2 / 3 4
    kernel = jnp.zeros((3, 3, 1, 1)).at[1, 1].set(10.0).at[1, 2].set(1.0)  # ten times the cell plus its right neighbour
    np.testing.assert_array_equal(convolve(images, kernel, 1, 1)[0, :, :, 0], [[12, 20], [34, 40]])


def test_bfloat16_stays_bfloat16():
    images, kernel = jnp.ones((1, 4, 4, 2), jnp.bfloat16), jnp.ones((3, 3, 2, 2), jnp.bfloat16)
    actual = values_and_gradients(
        lambda x, w: convolve(x, w, 2, 1), images, kernel, jnp.ones((1, 2, 2, 2), jnp.bfloat16)
    )
    assert {array.dtype for array in actual} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize(("side", "stride", "padding"), [(1, 1, 0), (3, 2, 1), (6, 2, 2)])
@pytest.mark.parametrize(("wanted", "convolutions"), [("value", 1), ("images", 1), ("kernel", 1), ("both", 2)])
def test_accelerators_get_plain_convolutions_and_only_the_gradients_they_need(
    side, stride, padding, wanted, convolutions
):
    images = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
    kernel = jax.ShapeDtypeStruct((side, side, 3, 4), jnp.float32)

    def run(images, kernel):
        value, pullback = jax.vjp(lambda x, w: convolve(x, w, stride, padding), images, kernel)
        gradients = pullback(jnp.ones_like(value))
        return {"value": value, "images": gradients[0], "kernel": gradients[1], "both": gradients}[wanted]

    text = jax.jit(run).trace(images, kernel).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("stablehlo.convolution") == convolutions
    assert "dot_general" not in text


@pytest.mark.parametrize(
    ("side", "stride", "padding", "folds"), [(6, 2, 2, True), (3, 2, 1, False), (1, 1, 0, False), (3, 1, 1, False)]
)
def test_a_switch_folds_the_stem_on_accelerators_and_nothing_else(side, stride, padding, folds):
    images = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
    kernel = jax.ShapeDtypeStruct((side, side, 3, 4), jnp.float32)

    def lowered():
        def run(images, kernel):  # traced anew
            value, pullback = jax.vjp(lambda x, w: convolve(x, w, stride, padding), images, kernel)
            return value, pullback(jnp.ones_like(value))

        return jax.jit(run).trace(images, kernel).lower(lowering_platforms=("cuda",)).as_text()

    plain = lowered()
    with folded_stem():
        folded = lowered()
    assert lowered() == plain
    assert plain.count("stablehlo.convolution") == folded.count("stablehlo.convolution") == 3
    assert ("tensor<2x4x4x12xf32>, tensor<3x3x12x4xf32>" in folded) == folds
    assert (folded == plain) != folds
