"""Validation while training, on one device and on several."""

import jax
import numpy as np
import pytest

from yolojax.data.batches import validation_batches
from yolojax.data.sample import Sample
from yolojax.hyperparameters import Hyperparameters
from yolojax.mesh import make_mesh
from yolojax.model.network import init_variables
from yolojax.training import validator as validation
from yolojax.training.loss import LossSettings, compute_loss
from yolojax.training.validator import Validator, validation_batch


def on_one_and_on_all_devices(spec, _) -> None:
    """Compare the figures, and see that all devices work; run in a process with two of them."""
    rng = np.random.default_rng(0)
    boxes = np.array([[1, 0.5, 0.5, 0.4, 0.3], [0, 0.2, 0.3, 0.2, 0.2]], np.float32)
    images = rng.integers(0, 256, (5, 64, 64, 3), np.uint8)
    samples = [
        Sample(name=str(index), size=(64, 64), boxes=boxes, reader=lambda image=image: image)
        for index, image in enumerate(images)
    ]
    batches = validation_batches(samples, image_size=64, batch_size=4, stride=16)
    variables = init_variables(spec, jax.random.key(0))
    loss = LossSettings.from_hyperparameters(Hyperparameters(), spec, 64)
    placed = []
    put = jax.device_put
    validation.jax.device_put = lambda *args, **options: placed.append(put(*args, **options)) or placed[-1]
    evaluations = [
        Validator(spec, loss, ("a", "b", "c"), make_mesh(devices))(variables, batches)
        for devices in (jax.devices()[:1], jax.devices())
    ]
    assert placed[-1].addressable_shards[0].data.shape[0] == 4 // len(jax.devices())
    for evaluation in evaluations:
        assert evaluation.images == 5
        assert min(evaluation.losses.values()) > 0
    np.testing.assert_allclose([*evaluations[0].losses.values()], [*evaluations[1].losses.values()], rtol=1e-4)
    np.testing.assert_allclose(evaluations[0].curves.ap, evaluations[1].curves.ap, atol=1e-3)


@pytest.mark.long
def test_a_shorter_last_batch_is_traced_by_nobody_and_changes_no_loss(mini_spec, monkeypatch):
    rng = np.random.default_rng(0)
    boxes = np.array([[1, 0.5, 0.5, 0.4, 0.3], [0, 0.2, 0.3, 0.2, 0.2]], np.float32)
    images = rng.integers(0, 256, (5, 64, 64, 3), np.uint8)
    samples = [
        Sample(name=str(index), size=(64, 64), boxes=boxes, reader=lambda image=image: image)
        for index, image in enumerate(images)
    ]
    batches = validation_batches(samples, image_size=64, batch_size=4, stride=16)
    traces = []
    for name in ("decode", "compute_loss"):
        plain = getattr(validation, name)
        traced = lambda *args, name=name, plain=plain: traces.append(name) or plain(*args)  # noqa: E731
        monkeypatch.setattr(validation, name, traced)
    loss = LossSettings.from_hyperparameters(Hyperparameters(), mini_spec, 64)
    mesh, variables = make_mesh(jax.devices()[:1]), init_variables(mini_spec, jax.random.key(0))
    validate = Validator(mini_spec, loss, ("a", "b", "c"), mesh)
    first, again = (validate(variables, batches, threads=2) for _ in range(2))
    assert sorted(traces) == ["compute_loss", "decode"]
    assert first.images == 5
    assert first.losses == again.losses

    expected = []
    for batch in batches.iterate():
        _, heads = validate._predict(0)(variables, batch["images"])
        rows = batch["valid"]
        parts = compute_loss([head[rows] for head in heads], batch["boxes"][rows], batch["mask"][rows], mini_spec, loss)
        expected.append(parts[1])
    for name, value in first.losses.items():
        np.testing.assert_allclose(value, np.mean([float(parts[name]) for parts in expected]), rtol=1e-6)


@pytest.mark.long
def test_two_devices_find_what_one_does(on_devices):
    on_devices(2, "test_validator.on_one_and_on_all_devices")


@pytest.mark.parametrize(
    ("batch", "size", "devices", "images"),
    [(16, 640, 1, 32), (64, 640, 1, 128), (65, 640, 1, 128), (4704, 512, 2, 400)],
)
def test_a_batch_for_validation_is_twice_that_for_training_but_never_too_large_for_memory(batch, size, devices, images):
    assert validation_batch(batch, size, devices) == images
    assert validation_batch(batch, size, devices, on_cpu=True) == 2 * batch
