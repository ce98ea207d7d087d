import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from yolojax.freezing.adapters import Adapter, add_adapters, merge_adapters
from yolojax.model.network import Network, abstract_variables, init_heads, init_variables
from yolojax.model.spec import ModelSpec, load_spec
from yolojax.tree import flatten, map_with_path


def flat(tree):
    return {"/".join(key.key for key in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def count(params, freeze=0):
    return sum(
        math.prod(leaf.shape)
        for path, leaf in flat(params).items()
        if int(path.split("/")[0].removeprefix("model_")) >= freeze
    )


@partial(jax.jit, static_argnums=0, static_argnames=("dtype", "fixed_bn"))
def run(spec, variables, images, **settings):
    return Network(spec, **settings).apply(variables, images, train=True, mutable=["batch_stats"])


@pytest.fixture(scope="module")
def tiny(tiny_model):
    spec = load_spec(tiny_model)
    return spec, init_variables(spec, jax.random.key(0))


@pytest.mark.parametrize(
    ("size", "parameters"),
    [
        ("n", 1_872_157),
        ("s", 7_235_389),
        ("m", 21_190_557),
        ("l", 46_563_709),
        ("x", 86_749_405),
        ("n6", 3_246_940),
        ("s6", 12_626_620),
        ("m6", 35_731_932),
        ("l6", 76_770_172),
        ("x6", 140_794_780),
    ],
)
def test_parameters_at_80_classes(size, parameters):
    assert count(abstract_variables(load_spec(f"yolov5{size}"))["params"]) == parameters


@pytest.mark.parametrize(
    ("size", "batch_norms", "backbone_batch_norms", "trainable"),
    [
        ("n", 57, 33, (1_790_977, 744_609, 33_825)),
        ("s", 57, 33, (7_073_569, 2_902_113, 67_425)),
        ("m", 79, 47, (20_948_097, 8_780_193, 101_025)),
        ("l", 101, 61, (46_240_609, 19_657_697, 134_625)),
        ("x", 123, 75, (86_345_665, 37_070_625, 168_225)),
    ],
)
def test_trainable_parameters_at_20_classes(size, batch_norms, backbone_batch_norms, trainable):
    variables = abstract_variables(load_spec(f"yolov5{size}", classes=20))
    assert tuple(count(variables["params"], freeze) for freeze in (0, 10, 24)) == trainable
    means = [path for path in flat(variables["batch_stats"]) if path.endswith("/mean")]
    assert len(means) == batch_norms
    assert sum(int(path.split("/")[0].removeprefix("model_")) < 10 for path in means) == backbone_batch_norms


def test_names_mirror_pytorch():
    variables = abstract_variables(load_spec("yolov5n"))
    params, statistics = flat(variables["params"]), flat(variables["batch_stats"])
    assert params["model_0/conv/kernel"].shape == (6, 6, 3, 16)
    assert params["model_2/m_0/cv2/conv/kernel"].shape == (3, 3, 16, 16)
    assert params["model_9/cv2/bn/scale"].shape == (256,)
    assert params["model_24/m_2/kernel"].shape == (1, 1, 256, 255)
    assert params["model_24/m_2/bias"].shape == (255,)
    assert statistics["model_23/m_0/cv1/bn/var"].shape == (128,)
    layers = {int(path.split("/")[0].removeprefix("model_")) for path in params}
    assert layers == set(range(25)) - {11, 12, 15, 16, 19, 22}
    assert {leaf.dtype for leaf in [*params.values(), *statistics.values()]} == {jnp.dtype(jnp.float32)}


def test_first_values_are_pytorchs_defaults_and_the_prior_of_rare_objects():
    spec = load_spec("yolov5n", classes=20)
    variables = init_variables(spec, jax.random.key(0))
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), variables)
    assert shapes == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), abstract_variables(spec))
    kernel = variables["params"]["model_3"]["conv"]["kernel"]
    bound = (3 * 3 * 32) ** -0.5
    assert 0.99 * bound < float(kernel.max()) <= bound
    assert -bound <= float(kernel.min()) < -0.99 * bound
    assert float(kernel.std()) == pytest.approx(bound / 3**0.5, rel=0.02)
    assert float(jnp.abs(jnp.corrcoef(kernel.reshape(288, 64).T) - jnp.eye(64)).max()) < 0.3
    assert set(np.unique(variables["params"]["model_3"]["bn"]["scale"])) == {1}
    assert set(np.unique(variables["params"]["model_3"]["bn"]["bias"])) == {0}
    assert set(np.unique(variables["batch_stats"]["model_3"]["bn"]["mean"])) == {0}
    assert set(np.unique(variables["batch_stats"]["model_3"]["bn"]["var"])) == {np.float32(0.9)}
    for level, (stride, inputs) in enumerate(zip((8, 16, 32), (64, 128, 256), strict=True)):
        prior = np.zeros(25)
        prior[4] = math.log(8 / (640 / stride) ** 2)
        prior[5:] = math.log(0.6 / (20 - 0.99999))
        noise = np.asarray(variables["params"]["model_24"][f"m_{level}"]["bias"]).reshape(3, 25) - prior
        assert 0.8 * inputs**-0.5 < np.abs(noise).max() <= inputs**-0.5 + 1e-6


def test_other_classes_change_detect_alone(tiny):
    spec, variables = tiny
    single = init_variables(spec.with_classes(1), jax.random.key(0))
    bias = np.asarray(single["params"]["model_6"]["m_0"]["bias"]).reshape(3, 6)
    np.testing.assert_allclose(bias[:, 5], math.log(0.6 / 1e-5), atol=24**-0.5)
    before, after = (flat(tree["params"] | {"model_6": {}}) for tree in (variables, single))
    assert len(before) > 20
    jax.tree.map(np.testing.assert_array_equal, before, after)


def test_keys_decide_the_first_values(tiny):
    spec, variables = tiny
    same, other = init_variables(spec, jax.random.key(0)), init_variables(spec, jax.random.key(1))
    jax.tree.map(np.testing.assert_array_equal, variables, same)
    assert not jnp.array_equal(
        variables["params"]["model_0"]["conv"]["kernel"], other["params"]["model_0"]["conv"]["kernel"]
    )


def test_heads_are_read_without_a_transpose():
    spec = load_spec("yolov5n", classes=20)
    images = jax.ShapeDtypeStruct((2, 64, 96, 3), jnp.float32)
    lowered = jax.jit(Network(spec).apply).trace(abstract_variables(spec), images).lower(lowering_platforms=("cuda",))
    assert [head.shape for head in lowered.out_info] == [(2, 8, 12, 3, 25), (2, 4, 6, 3, 25), (2, 2, 3, 3, 25)]
    assert lowered.as_text().count("stablehlo.convolution") == 60
    assert "stablehlo.transpose" not in lowered.as_text()


def test_only_statistics_of_layers_that_are_not_fixed_move(tiny):
    spec, variables = tiny
    fixed = frozenset({"model_0/bn", "model_2/m_0/cv1/bn"})
    images = jax.random.uniform(jax.random.key(1), (2, 32, 32, 3))
    _, changed = run(spec, variables, images, fixed_bn=fixed)
    before, after = flat(variables["batch_stats"]), flat(changed["batch_stats"])
    assert before.keys() == after.keys()
    kept = {path for path in before if np.asarray(before[path]).tobytes() == np.asarray(after[path]).tobytes()}
    assert kept == {f"{path}/{name}" for path in fixed for name in ("mean", "var")}


def test_fixed_everywhere_is_inference(tiny):
    spec, variables = tiny
    fixed = frozenset(path.removesuffix("/mean") for path in flat(variables["batch_stats"]))
    images = jax.random.uniform(jax.random.key(1), (2, 32, 32, 3))
    trained, _ = run(spec, variables, images, fixed_bn=fixed)
    for trained_head, head in zip(trained, jax.jit(Network(spec).apply)(variables, images), strict=True):
        np.testing.assert_array_equal(trained_head, head)


def test_bfloat16_computes_narrow_and_returns_wide(tiny):
    spec, variables = tiny
    images = jax.random.uniform(jax.random.key(1), (2, 32, 32, 3))

    def loss(params):
        outputs = run(spec, variables | {"params": params}, images, dtype=jnp.bfloat16)
        return sum(jnp.mean(head**2) for head in outputs[0]), outputs

    outputs = jax.eval_shape(jax.grad(loss, has_aux=True), variables["params"])
    assert {leaf.dtype for leaf in jax.tree.leaves(outputs)} == {jnp.dtype(jnp.float32)}
    heads = run(spec, variables, images, dtype=jnp.bfloat16)[0]
    for head, exact_head in zip(heads, run(spec, variables, images)[0], strict=True):
        assert 0 < float(jnp.abs(head - exact_head).max()) < 0.05 * float(jnp.abs(exact_head).max())


def test_float64_reaches_every_output(tiny):
    spec, variables = tiny
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), variables)
        images = jnp.full((1, 32, 32, 3), 0.5, jnp.float64)
        outputs = run(spec, wide, images)
        assert {leaf.dtype for leaf in jax.tree.leaves(outputs)} == {jnp.dtype(jnp.float64)}


def test_every_parameter_has_a_gradient(tiny):
    spec, variables = tiny
    images = jax.random.uniform(jax.random.key(1), (2, 32, 32, 3))

    def loss(params):
        heads, _ = run(spec, variables | {"params": params}, images)
        return sum(jnp.sum(head**2) for head in heads)

    for path, gradient in flat(jax.jit(jax.grad(loss))(variables["params"])).items():
        assert bool(jnp.isfinite(gradient).all()), path
        assert float(jnp.abs(gradient).max()) > 0, path


@pytest.mark.parametrize(
    ("frozen", "kernels", "convolutions"),
    [
        # 13 forward, one for each trainable kernel, and one for each input that something trainable lies before.
        ((), 13, 13 + 13 + 12),
        ((0, 1, 2), 6, 13 + 6 + 5),
        ((0, 1, 2, 3, 4, 5), 2, 13 + 2),
        ((5,), 12, 13 + 12 + 12),
    ],
)
def test_a_frozen_layer_has_no_backward_pass(tiny, frozen, kernels, convolutions):
    spec, variables = tiny
    names = {f"model_{index}" for index in frozen}
    trainable = {name: leaf for name, leaf in variables["params"].items() if name not in names}
    assert sum(leaf.ndim == 4 for leaf in jax.tree.leaves(trainable)) == kernels

    def loss(trainable, variables, images):
        params = variables["params"] | trainable
        heads, changed = run(spec, variables | {"params": params}, images)
        return sum(jnp.sum(head**2) for head in heads), changed

    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    traced = jax.jit(jax.value_and_grad(loss, has_aux=True)).trace(trainable, variables, images)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("stablehlo.convolution") == convolutions
    assert "select_and_scatter" not in text


def test_remat_computes_no_convolution_again_and_gives_the_same_figures(tiny):
    spec, variables = tiny
    images = jax.random.uniform(jax.random.key(1), (2, 32, 32, 3))
    results, normalisations = [], []
    for remat in (False, True):

        def loss(params, remat=remat):
            network = Network(spec, remat=remat)
            heads, changed = network.apply(variables | {"params": params}, images, train=True, mutable=["batch_stats"])
            return sum(jnp.sum(head**2) for head in heads), changed

        traced = jax.jit(jax.value_and_grad(loss, has_aux=True)).trace(variables["params"])
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
        assert text.count("stablehlo.convolution") == 13 + 13 + 12
        normalisations.append(text.count("stablehlo.rsqrt"))
        results.append(jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"]))
    assert normalisations[1] > normalisations[0]  # those of blocks come again
    assert jax.tree.structure(results[0]) == jax.tree.structure(results[1])
    for expected, value in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(value, expected, rtol=0, atol=1e-5 * float(jnp.abs(expected).max()))


@pytest.mark.parametrize("start", [1, 3, 6])
def test_a_network_cut_in_two_is_the_whole(tiny, start):
    spec, variables = tiny
    images = jax.random.uniform(jax.random.key(1), (2, 64, 96, 3))
    fixed = frozenset(path.rpartition("/")[0] for path in flat(variables["batch_stats"]))
    whole, _ = run(spec, variables, images, fixed_bn=fixed)
    front, rear = Network(spec, fixed_bn=fixed, end=start), Network(spec, fixed_bn=fixed, start=start)
    features = jax.jit(front.apply)(variables, images)
    assert len(features) == len(spec.crossing(start))
    heads, moved = jax.jit(partial(rear.apply, train=True, mutable=["batch_stats"]))(variables, features)
    for expected, head in zip(whole, heads, strict=True):
        np.testing.assert_array_equal(head, expected)
    assert flat(moved["batch_stats"]).keys() == flat(variables["batch_stats"]).keys()


def test_features_must_be_float_and_as_many_as_are_read(tiny):
    spec, variables = tiny
    with pytest.raises(TypeError, match="features must be float, not int32"):
        Network(spec, start=1).apply(variables, (jnp.zeros((1, 32, 32, 16), jnp.int32),))
    with pytest.raises(ValueError, match="zip"):
        Network(spec, start=6).apply(variables, (jnp.zeros((1, 8, 8, 16)),))


def test_images_must_be_float_and_fit_the_strides(tiny):
    spec, variables = tiny
    with pytest.raises(TypeError, match="float"):
        Network(spec).apply(variables, jnp.zeros((1, 32, 32, 3), jnp.uint8))
    with pytest.raises(ValueError, match="multiples of 16"):
        Network(spec).apply(variables, jnp.zeros((1, 32, 40, 3)))


@pytest.mark.parametrize(("detected", "deepest"), [((3, 4), 5), ((2, 3, 4, 5), 5), ((3, 4, 5, 6, 7), 7)])
def test_any_levels_can_be_detected_at(pyramid, detected, deepest):
    spec = ModelSpec.from_dict(pyramid(*detected, deepest=deepest))
    variables = jax.eval_shape(lambda: init_variables(spec, jax.random.key(0)))
    images = jax.ShapeDtypeStruct((1, spec.stride, 2 * spec.stride, 3), jnp.float32)
    heads = jax.eval_shape(Network(spec).apply, variables, images)
    assert [head.shape[1:3] for head in heads] == [
        (spec.stride // 2**level, 2 * spec.stride // 2**level) for level in detected
    ]
    with pytest.raises(ValueError, match=f"multiples of {2**deepest}"):
        jax.eval_shape(Network(spec).apply, variables, jax.ShapeDtypeStruct((1, 2**deepest // 2, 64, 3), jnp.float32))


@pytest.mark.long
def test_adapters_give_what_their_merged_kernels_give(tiny_model):
    spec = load_spec(tiny_model)
    variables = init_variables(spec, jax.random.key(0))
    kernels = [path for path in flatten(variables["params"]) if path.endswith("/kernel")]
    adapters = {kernel: Adapter(2, 0.5 if number % 2 else 1.0) for number, kernel in enumerate(kernels)}
    images = np.random.default_rng(1).random((1, 64, 64, 3))

    @jax.jit
    def both(params):
        network = Network(spec)
        return [network.apply({**variables, "params": tree}, images) for tree in (params, merge_adapters(params))]

    with jax.enable_x64(True):
        variables, images = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), (variables, images))
        params = add_adapters(variables["params"], adapters, jax.random.key(2))
        plain = both(variables["params"])[0]
        for name in ("first", "trained"):
            beside, merged = both(params)
            for head, expected, start in zip(beside, merged, plain, strict=True):
                np.testing.assert_allclose(head, expected, rtol=1e-9, atol=1e-9)
                assert (float(jnp.abs(head - start).max()) > 1e-3) == (name == "trained")
            params = map_with_path(lambda path, leaf: leaf + 3.0 * path.endswith("adapter/up"), params)


def test_heads_alone_are_those_of_the_whole(tiny):
    spec, variables = tiny
    heads, whole = flatten(init_heads(spec, jax.random.key(0))), flatten(variables)
    assert list(heads) == [path for path in whole if path.startswith(f"params/model_{spec.detects[0].index}/")]
    assert all(leaf.tobytes() == np.asarray(whole[path]).tobytes() for path, leaf in heads.items())


def test_shapes_that_were_asked_for_are_not_shared():
    spec = load_spec("yolov5n")
    abstract_variables(spec)["params"].clear()
    assert abstract_variables(spec)["params"]
