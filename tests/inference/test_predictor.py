"""Fused networks, test-time augmentation and ensembles."""

import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

from yolojax.inference import predictor
from yolojax.inference.fuse import apply_fused, fuse
from yolojax.inference.predictor import make_predict
from yolojax.mesh import make_mesh, place_images, split
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


def test_what_lies_beside_the_part_that_counts_has_no_effect(weights):
    """Two images of other sizes in one larger batch, with noise beside them, get the logits that each gets alone."""
    network, sizes = Network(weights.spec), np.array([(64, 160), (128, 64)])
    with jax.enable_x64(True):
        wide = fuse(jax.tree.map(lambda leaf: leaf.astype(np.float64), weights.variables))
        run = jax.jit(lambda images, sizes=None: apply_fused(network, wide, images, sizes))
        batch = np.random.default_rng(2).uniform(0, 1, (2, 128, 160, 3))
        together = run(batch, sizes)
        for row, (height, width) in enumerate(sizes.tolist()):
            alone = run(batch[row : row + 1, :height, :width])
            for stride, whole, expected in zip(weights.spec.strides, together, alone, strict=True):
                rows, columns = height // stride, width // stride
                np.testing.assert_allclose(whole[row, :rows, :columns], expected[0], rtol=0, atol=1e-11)
                objects = np.asarray(whole[row, ..., 4])
                assert np.sum(objects == -np.inf) == objects.size - expected[0, ..., 4].size


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
    # Of another program, whose last digits may be other ones.
    np.testing.assert_allclose(both, np.concatenate([predictions, predictions], 1), rtol=2e-6, atol=1e-7)


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


@pytest.fixture
def traced(monkeypatch):
    """The shapes that were traced, and whether another thread did it."""
    seen: list[tuple[tuple[int, ...], bool]] = []
    here, own = threading.current_thread(), predictor.apply_fused

    def note(network, variables, images, *sizes):
        seen.append((images.shape, threading.current_thread() is not here))
        return own(network, variables, images, *sizes)

    monkeypatch.setattr(predictor, "apply_fused", note)
    return seen


@pytest.mark.parametrize("detects", [True, False])
def test_a_thread_compiles_ahead_and_no_shape_twice(weights, traced, detects):
    """As detection places images, with the size of each, and as a validation does."""
    mesh = make_mesh(jax.devices("cpu")[:1])
    predict = make_predict([weights], dtype=jnp.float32 if detects else jnp.bfloat16)  # nothing of it is compiled yet
    placed = SingleDeviceSharding(mesh.devices.flat[0]) if detects else split(mesh)
    with predict.compiled_ahead([(1, 64, 32, 3), (1, 32, 64, 3)], placed, sized=detects):
        for height, width in ((32, 64), (64, 32), (32, 64), (32, 32)):
            images = np.full((1, height, width, 3), 114, np.uint8)
            sizes = [jax.device_put(np.array([[32, 32]], np.int32), placed)] if detects else []
            predict(jax.device_put(images, mesh.devices.flat[0]) if detects else place_images(images, mesh), *sizes)
    assert traced == [((1, 64, 32, 3), True), ((1, 32, 64, 3), True), ((1, 32, 32, 3), False)]


def test_what_fails_in_the_thread_comes_out_where_it_is_needed(weights, monkeypatch):
    def fail(*_):
        raise MemoryError("no room")

    monkeypatch.setattr(predictor, "apply_fused", fail)
    predict, device = make_predict([weights], dtype=jnp.float16), jax.devices("cpu")[0]
    with (
        pytest.raises(MemoryError, match="no room"),
        predict.compiled_ahead([(1, 32, 32, 3)], SingleDeviceSharding(device)),
    ):
        predict(jax.device_put(np.zeros((1, 32, 32, 3), np.uint8), device))


def test_what_is_not_needed_any_more_is_not_compiled(weights, monkeypatch):
    begun, go_on, shapes, own = threading.Event(), threading.Event(), [], predictor.apply_fused

    def wait(network, variables, images, *sizes):
        shapes.append(images.shape)
        begun.set()
        assert go_on.wait(30)
        return own(network, variables, images, *sizes)

    monkeypatch.setattr(predictor, "apply_fused", wait)
    predict, device = make_predict([weights], classes=(0,)), jax.devices("cpu")[0]
    with predict.compiled_ahead([(1, 32, 32, 3), (1, 64, 64, 3)], SingleDeviceSharding(device)):
        assert begun.wait(30)
    go_on.set()
    for thread in threading.enumerate():
        if thread.name.startswith("yolojax-compile"):
            thread.join(30)
    assert shapes == [(1, 32, 32, 3)]
