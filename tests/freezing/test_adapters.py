import jax
import jax.numpy as jnp
import numpy as np
import pytest

from yolojax.errors import UserError
from yolojax.freezing.adapters import Adapter, add_adapters, merge_adapters, merge_adapters_on_host
from yolojax.tree import flatten

KERNELS = ("model_0/conv/kernel", "model_2/cv1/conv/kernel")


@pytest.fixture
def params():
    def draw(size):
        return np.random.default_rng(0).normal(size=size).astype(np.float32)

    return {
        "model_0": {"conv": {"kernel": draw(size=(3, 3, 4, 8))}, "bn": {"scale": draw(size=8), "bias": draw(size=8)}},
        "model_2": {"cv1": {"conv": {"kernel": draw(size=(1, 1, 8, 6))}}},
        "model_24": {"m_0": {"kernel": draw(size=(1, 1, 6, 5)), "bias": draw(size=5)}},
    }


def test_fresh_adapters_change_nothing(params):
    adapted = add_adapters(params, dict.fromkeys(KERNELS, Adapter(2)), jax.random.key(0))
    leaves, plain = flatten(adapted), flatten(params)
    assert len(leaves) == len(plain) + 4
    assert all(leaves[path] is plain[path] for path in plain)
    assert leaves["model_0/conv/adapter/down"].shape == (36, 2)
    assert leaves["model_0/conv/adapter/up"].shape == (2, 8)
    merged = flatten(merge_adapters(adapted))
    assert list(merged) == list(plain)
    assert all(np.array_equal(merged[path], plain[path]) for path in plain)
    assert float(jnp.abs(leaves["model_0/conv/adapter/down"]).max()) <= 1 / 6
    assert float(jnp.abs(leaves["model_0/conv/adapter/down"]).max()) > 0.1


def test_without_adapters_the_leaves_pass_by_identity(params):
    assert all(leaf is flatten(params)[path] for path, leaf in flatten(merge_adapters(params)).items())


def test_merging_is_two_convolutions_in_one(params):
    adapted = add_adapters(params, {KERNELS[0]: Adapter(2)}, jax.random.key(1))
    conv = adapted["model_0"]["conv"]
    conv["adapter"]["up"] = jax.random.normal(jax.random.key(2), (2, 8))
    x = jax.random.normal(jax.random.key(3), (1, 7, 7, 4))

    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    low = convolve(x, conv["adapter"]["down"].reshape(3, 3, 4, 2))
    expected = convolve(x, conv["kernel"]) + convolve(low, conv["adapter"]["up"].reshape(1, 1, 2, 8))
    merged = merge_adapters(adapted)["model_0"]["conv"]["kernel"]
    np.testing.assert_allclose(convolve(x, merged), expected, atol=1e-5)
    assert np.linalg.matrix_rank(np.asarray(merged - conv["kernel"]).reshape(36, 8), tol=1e-4) == 2


def test_merging_on_the_host_is_the_same_value(params):
    adapted = add_adapters(params, {KERNELS[0]: Adapter(2, 0.5), KERNELS[1]: Adapter(3)}, jax.random.key(1))
    for module, shape in ((adapted["model_0"], (2, 8)), (adapted["model_2"]["cv1"], (3, 6))):
        module["conv"]["adapter"]["up"] = jax.random.normal(jax.random.key(2), shape)
    here, there = flatten(merge_adapters_on_host(adapted)), flatten(merge_adapters(adapted))
    assert list(here) == list(there) == list(flatten(params))
    for path, leaf in here.items():
        assert leaf.dtype == np.float32
        np.testing.assert_allclose(leaf, there[path], atol=1e-6)
        assert (leaf is flatten(params)[path]) == (path not in KERNELS)


def test_gradients_reach_both_parts(params):
    adapted = add_adapters(params, dict.fromkeys(KERNELS, Adapter(2)), jax.random.key(0))
    adapted["model_0"]["conv"]["adapter"]["up"] += 0.1
    gradient = jax.grad(lambda tree: sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(merge_adapters(tree))))(adapted)
    pair = gradient["model_0"]["conv"]["adapter"]
    assert float(jnp.abs(pair["down"]).min()) > 0
    assert float(jnp.abs(pair["up"]).min()) > 0


def test_initialisation_depends_on_the_key_and_the_kernel(params):
    adapted, again, other = (
        add_adapters(params, dict.fromkeys(KERNELS, Adapter(2)), jax.random.key(seed)) for seed in (0, 0, 1)
    )
    down = adapted["model_0"]["conv"]["adapter"]["down"]
    assert np.array_equal(down, again["model_0"]["conv"]["adapter"]["down"])
    assert not np.array_equal(down, other["model_0"]["conv"]["adapter"]["down"])
    assert not np.array_equal(down[:8], adapted["model_2"]["cv1"]["conv"]["adapter"]["down"])


def test_a_rank_that_saves_nothing_is_refused(params):
    with pytest.raises(UserError, match="rank 6: model_2/cv1/conv/kernel is a 8 x 6 matrix; choose a rank below 6"):
        add_adapters(params, dict.fromkeys(KERNELS, Adapter(6)), jax.random.key(0))
