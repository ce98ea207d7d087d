"""Fused networks, test-time augmentation and ensembles."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from yolojax.inference.fuse import apply_fused, fuse
from yolojax.inference.predictor import make_predict
from yolojax.model.decode import decode
from yolojax.model.network import Network, abstract_variables
from yolojax.model.spec import load_spec
from yolojax.tree import flatten, unflatten
from yolojax.weights.store import Weights


@pytest.fixture(scope="module")
def weights() -> Weights:
    """A network whose BatchNorm does something: no statistic is 0 or 1."""
    spec = load_spec("yolov5n", classes=3)
    rng = np.random.default_rng(0)

    def draw(path: str, shape: tuple[int, ...]) -> np.ndarray:
        if path.endswith("kernel"):
            gain = 0.2 if path.startswith("params/model_24") else 1.5  # logits of a few units
            return rng.normal(0, gain / np.sqrt(np.prod(shape[:3])), shape)
        return rng.uniform(0.5, 1.5, shape) if path.endswith(("scale", "var")) else rng.uniform(-0.5, 0.5, shape)

    leaves = flatten(abstract_variables(spec))
    drawn = {path: draw(path, leaf.shape).astype(np.float32) for path, leaf in leaves.items()}
    return Weights(spec=spec, names=("a", "b", "c"), variables=unflatten(drawn), source={})


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (2, 64, 96, 3), np.uint8)


def test_fused_equals_unfused_in_double_precision(weights, images):
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: leaf.astype(np.float64), weights.variables)
        network, scaled = Network(weights.spec), jnp.asarray(images, jnp.float64) / 255
        plain = jax.jit(network.apply)(wide, scaled)
        fused = jax.jit(lambda variables, images: apply_fused(network, variables, images))(fuse(wide), scaled)
    for expected, outputs in zip(plain, fused, strict=True):
        assert outputs.dtype == np.float64
        assert np.abs(expected).max() > 0.1
        np.testing.assert_allclose(outputs, expected, rtol=0, atol=1e-11)


def test_fuse_keeps_nothing_of_batch_norm_but_its_bias(weights):
    paths = flatten(fuse(weights.variables))
    assert not any(path.endswith(("scale", "mean", "var")) for path in paths)
    assert {path.split("/")[0] for path in paths} == {"params"}
    assert all(leaf.dtype == np.float32 for leaf in paths.values())


def test_predictions_are_those_of_the_network(weights, images):
    predictions, heads = make_predict([weights])(images)
    apply = jax.jit(Network(weights.spec).apply)
    expected = apply(weights.variables, images.astype(np.float32) / 255)
    for level, other in zip(heads, expected, strict=True):
        np.testing.assert_allclose(level, other, rtol=0, atol=1e-4)
    np.testing.assert_allclose(predictions, decode(expected, weights.spec), rtol=0, atol=1e-2)


def test_bfloat16_is_near(weights, images):
    wide, _ = make_predict([weights])(images)
    narrow, _ = make_predict([weights], dtype=jnp.bfloat16)(images)
    assert narrow.dtype == np.float32
    difference = np.abs(narrow - wide)[..., 4:]
    assert 1e-5 < difference.max() < 0.1


def test_an_ensemble_puts_predictions_together(weights, images):
    predictions, _ = make_predict([weights])(images)
    both, _ = make_predict([weights, weights])(images)
    np.testing.assert_array_equal(both, np.concatenate([predictions, predictions], 1))


def test_test_time_augmentation_equals_the_original(shared_data):
    pytest.importorskip("torch")
    from yolojax.weights.find import load_weights

    golden = np.load(Path(__file__).resolve().parent.parent / "goldens" / "inference_real.npz")
    weights = load_weights(shared_data / "weights" / "yolov5n.pt")
    predictions, _ = make_predict([weights], augment=True)(_golden_images())
    np.testing.assert_allclose(predictions[..., :6], golden["augmented"], rtol=0, atol=1e-3)


def _golden_images() -> np.ndarray:
    import importlib.util

    path = Path(__file__).resolve().parent.parent / "goldens" / "seeding.py"
    module_spec = importlib.util.spec_from_file_location("golden_seeding", path)
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    return module.images("inference real", 1, 64)
