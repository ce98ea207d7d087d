import jax
import jax.numpy as jnp
import numpy as np
import pytest

from yolojax.inference.distance import layer_distances, measure_distances
from yolojax.model.network import Network, init_variables
from yolojax.model.normalisation import EPSILON
from yolojax.model.spec import load_spec

SPEC = load_spec("yolov5n", classes=3)
NETWORK = Network(SPEC)


@pytest.fixture(scope="module")
def variables():
    return jax.device_get(init_variables(SPEC, jax.random.key(0)))


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (4, 64, 96, 3), np.uint8)


def batch(images, valid=None):
    return {"images": images, "valid": np.ones(len(images), bool) if valid is None else np.array(valid)}


def first_moments(variables, images):
    """Mean and variance of what comes in at the first BatchNorm, without the network."""
    y = jax.lax.conv_general_dilated(
        jnp.asarray(images, jnp.float32) / 255,
        variables["params"]["model_0"]["conv"]["kernel"],
        (2, 2),
        [(2, 2), (2, 2)],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    inputs = np.asarray(y, np.float64)
    return inputs.mean((0, 1, 2)), inputs.var((0, 1, 2))


def with_first(variables, mean, variance):
    statistics = variables["batch_stats"] | {"model_0": {"bn": {"mean": np.float32(mean), "var": np.float32(variance)}}}
    return variables | {"batch_stats": statistics}


def test_no_distance_to_the_moments_of_the_photos(variables, images):
    mean, variance = first_moments(variables, images)
    distances = measure_distances(NETWORK, with_first(variables, mean, variance), [batch(images)])
    assert distances["model_0/bn"] < 1e-4
    assert min(distances.values()) >= 0
    assert len(distances) == 57  # every BatchNorm of yolov5n


@pytest.mark.parametrize(("shift", "factor"), [(2, 1), (0, 3), (1.5, 2)])
def test_the_distance_is_in_running_deviations(variables, images, shift, factor):
    mean, variance = first_moments(variables, images)
    # Deviations in which the photos lie `shift` off, and are `factor` times as wide.
    running = np.sqrt(variance + EPSILON) / factor
    moved = with_first(variables, mean - shift * running, np.square(running) - EPSILON)
    assert measure_distances(NETWORK, moved, [batch(images)])["model_0/bn"] == pytest.approx(
        np.hypot(shift, factor - 1), rel=2e-3
    )


def test_batches_add_up_and_filled_up_rows_do_not_count(variables, images):
    whole = measure_distances(NETWORK, variables, [batch(images)])
    noise = np.full_like(images[:1], 255)
    parts = [batch(images[:2]), batch(np.concatenate([images[2:3], noise]), [True, False]), batch(images[3:])]
    in_parts = measure_distances(NETWORK, variables, parts)
    assert in_parts == pytest.approx(whole, rel=1e-4)
    counted = measure_distances(NETWORK, variables, [batch(np.concatenate([images, *[noise] * 4]))])
    assert counted["model_0/bn"] != pytest.approx(whole["model_0/bn"], rel=1e-3)


def test_every_pixel_counts_once(variables, images):
    # Photos of two shapes: a first layer of known moments, pooled by hand.
    small = images[:2, :32, :64]
    inputs = [first_moments(variables, own) for own in (images, small)]
    weights = np.array([own.shape[0] * own.shape[1] * own.shape[2] for own in (images, small)], float)
    weights /= weights.sum()
    mean = sum(weight * own for weight, (own, _) in zip(weights, inputs, strict=True))
    square = sum(weight * (spread + own**2) for weight, (own, spread) in zip(weights, inputs, strict=True))
    pooled = with_first(variables, mean, square - mean**2)
    assert measure_distances(NETWORK, pooled, [batch(images), batch(small)])["model_0/bn"] < 1e-4


def test_layers_are_means_of_their_modules():
    assert layer_distances({"model_3/bn": 2.0, "model_4/cv1/bn": 1.0, "model_4/m_0/cv2/bn": 4.0}) == {3: 2.0, 4: 2.5}
