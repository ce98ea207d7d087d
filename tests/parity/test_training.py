"""Rungs 4 to 7 of the ladder: targets, loss parts, gradients of every leaf, BatchNorm statistics, one optimizer step."""

import dataclasses
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import seeding
from summary import Summary

from yolojax.freezing.labels import TRAINABLE
from yolojax.hyperparameters import load_hyperparameters
from yolojax.model.boxes import complete_iou
from yolojax.model.network import Network
from yolojax.model.spec import ModelSpec, load_spec
from yolojax.training.loss import LossSettings, compute_loss
from yolojax.training.optimizer import OptimizerSettings, make_optimizer
from yolojax.training.schedule import Rates
from yolojax.training.targets import build_targets
from yolojax.tree import flatten, map_with_path, unflatten

BATCH = 4
# Compiling the backward pass of the larger ones takes minutes.
NETWORKS = ["n", "real", *(pytest.param(name, marks=pytest.mark.slow) for name in ("s", "n6", "m", "l", "x"))]
SCRATCH_LOW, FINETUNE = load_hyperparameters("scratch-low"), load_hyperparameters("finetune")


def image_size(name: str) -> int:
    return 192 if name == "n6" else 64


@pytest.mark.parametrize("name", ["n", "s", "m", "l", "x", "n6", "real"])
@pytest.mark.usefixtures("float64")
def test_targets_are_equal(name, spec, golden):
    spec = spec(name)
    boxes, mask = seeding.labels(f"training {name}", BATCH, spec.classes)
    matched = 0
    for level, (anchors, stride) in enumerate(zip(spec.anchors, spec.strides, strict=True)):
        cells = image_size(name) // stride
        shapes = np.asarray(anchors) / stride
        targets = build_targets(jnp.asarray(boxes, jnp.float64), jnp.asarray(mask), shapes, (cells, cells), 4.0)
        held = np.asarray(targets.mask)
        # The original's order: offset, anchor, box (image by image).
        offset, anchor, image, box = np.nonzero(held.transpose(1, 2, 0, 3))
        column, row = np.asarray(targets.cells)[image, offset, box].T
        keys = ("cells", "classes", "boxes", "anchors")
        expected = {key: golden(f"training_{name}")[f"{key}{level}"] for key in keys}
        np.testing.assert_array_equal(np.stack([image, anchor, row, column], 1), expected["cells"])
        np.testing.assert_array_equal(np.asarray(targets.classes)[image, box], expected["classes"])
        np.testing.assert_array_equal(np.asarray(targets.boxes)[image, offset, box], expected["boxes"])
        np.testing.assert_array_equal(shapes[anchor], expected["anchors"])
        matched += len(image)
    assert matched > 50


def rates(bias_learning_rate: float = 0.01) -> Rates:
    return Rates(*jnp.array([0.01, bias_learning_rate, 0.937]), jnp.int32(1))


def optimizer_for(params: Any, settings: OptimizerSettings, now: Rates) -> optax.GradientTransformation:
    return make_optimizer(jax.tree.map(lambda _: TRAINABLE, params), settings, now)


@cache
def training_step(spec: ModelSpec, size: int) -> Any:
    """Loss, gradients and one update; compiled once for networks of one architecture and size of image."""
    loss = LossSettings.from_hyperparameters(SCRATCH_LOW, spec, size)
    optimizer = OptimizerSettings.from_hyperparameters(SCRATCH_LOW, batch_size=BATCH)

    @jax.jit
    def step(variables: Any, images: Any, boxes: Any, mask: Any) -> Any:
        def forward(params: Any) -> Any:
            state = variables | {"params": params}
            heads, mutated = Network(spec).apply(state, images, train=True, mutable=["batch_stats"])
            total, parts = compute_loss(heads, boxes, mask, spec, loss)
            return total, (parts, mutated["batch_stats"])

        params = variables["params"]
        (total, (parts, statistics)), gradients = jax.value_and_grad(forward, has_aux=True)(params)
        transformation = optimizer_for(params, optimizer, rates(bias_learning_rate=0.05))
        updates, _ = transformation.update(gradients, transformation.init(params), params)
        return total, parts, statistics, gradients, optax.apply_updates(params, updates)

    return step


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.usefixtures("float64")
def test_loss_gradients_statistics_and_step(name, network, golden, worst):
    spec, variables = network(name)
    size = image_size(name)
    images = jnp.asarray(seeding.images(f"training {name}", BATCH, size), jnp.float64) / 255
    boxes, mask = seeding.labels(f"training {name}", BATCH, spec.classes)
    variables = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), variables)
    total, parts, statistics, gradients, stepped = jax.device_get(
        training_step(spec, size)(variables, images, jnp.asarray(boxes), jnp.asarray(mask))
    )

    expected = golden(f"training_{name}")
    ours = dict(zip(("box", "obj", "cls", "total"), [parts["box"], parts["obj"], parts["cls"], total], strict=True))
    assert min(ours.values()) > 0
    errors = {
        part: abs(value - reference) / abs(reference)
        for (part, value), reference in zip(ours.items(), expected["parts"], strict=True)
    }
    assert worst("loss parts", errors) <= 1e-8

    flat = flatten(gradients)
    assert all(np.abs(gradient).max() > 0 for gradient in flat.values())
    assert worst("gradients", Summary.load(expected, "gradients").errors(flat)) <= 1e-8
    norm = np.sqrt(sum(float((gradient**2).sum()) for gradient in flat.values()))
    assert norm == pytest.approx(float(expected["gradient_norm"]), rel=1e-8)
    assert worst("BatchNorm statistics", Summary.load(expected, "statistics").errors(flatten(statistics))) <= 1e-8
    assert worst("one step", Summary.load(expected, "stepped").errors(flatten(stepped))) <= 1e-8


@pytest.mark.parametrize("kind", ["SGD", "Adam", "AdamW"])
@pytest.mark.usefixtures("float64")
def test_two_steps_of_every_optimizer(kind, golden, worst):
    """The gradient of the second step is clipped, that of the first is not."""
    expected = Summary.load(golden("optimizers"), kind)
    paths = {
        path: tuple(map(int, shape.split("x"))) for path, shape in zip(expected.paths, expected.shapes, strict=True)
    }
    params = unflatten(seeding.arrays(paths, 0))
    settings = OptimizerSettings.from_hyperparameters(SCRATCH_LOW, batch_size=BATCH, name=kind)

    @jax.jit
    def two_steps(params: Any, gradients: Any) -> Any:
        transformation = optimizer_for(params, settings, rates())
        state = transformation.init(params)
        for gradient in gradients:
            updates, state = transformation.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
        return params

    gradients = [
        map_with_path(
            lambda path, leaf, step=step, scale=scale: (
                scale * seeding.uniform(seeding.generator("gradient", step, path), -1, 1, leaf.shape)
            ),
            params,
        )
        for step, scale in enumerate((1e-3, 1.0))
    ]
    errors = expected.errors(flatten(jax.device_get(two_steps(params, gradients))))
    assert worst(f"two steps of {kind}", errors) <= 1e-8


LOSSES = {
    "plain": (SCRATCH_LOW, 6, 0.0),
    "no-labels": (SCRATCH_LOW, 6, 0.0),
    "one-class": (SCRATCH_LOW, 1, 0.0),
    "focal-weighted-smoothed": (dataclasses.replace(FINETUNE, fl_gamma=1.5), 6, 0.1),
}


@partial(jax.jit, static_argnums=(0, 1))
def loss_at(spec: ModelSpec, settings: LossSettings, heads: Any, boxes: Any, mask: Any) -> Any:
    def loss(heads: Any) -> Any:
        total, parts = compute_loss(heads, boxes, mask, spec, settings)
        return total, jnp.stack([parts["box"], parts["obj"], parts["cls"], total])

    (_, parts), gradients = jax.value_and_grad(loss, has_aux=True)(heads)
    return parts, gradients


@pytest.mark.parametrize("variant", LOSSES)
@pytest.mark.usefixtures("float64")
def test_every_setting_of_the_loss(variant, golden, worst):
    hyp, classes, smoothing = LOSSES[variant]
    spec = load_spec("yolov5n", classes=classes)
    settings = LossSettings.from_hyperparameters(hyp, spec, 320, smoothing)
    boxes, mask = seeding.labels(variant, 3, classes)
    mask &= variant != "no-labels"
    shapes = [(3, cells, cells, 3, 5 + classes) for cells in (40, 20, 10)]
    heads = [
        jnp.asarray(seeding.uniform(seeding.generator("head", variant, level), -4, 2, shape))
        for level, shape in enumerate(shapes)
    ]
    parts, gradients = jax.device_get(loss_at(spec, settings, heads, boxes, mask))
    reference = golden("losses")[f"{variant}.parts"]
    assert (reference[[1, 3]] > 0).all()
    assert worst("loss settings", {variant: np.abs(parts - reference).max() / reference.max()}) <= 1e-8
    tree = {f"level{level}": gradient for level, gradient in enumerate(gradients)}
    errors = Summary.load(golden("losses"), f"{variant}.gradients").errors(tree)
    assert (
        worst("loss settings, gradients at the heads", {f"{variant} {level}": e for level, e in errors.items()}) <= 1e-8
    )


@pytest.mark.usefixtures("float64")
def test_complete_iou_and_its_gradient(golden, worst):
    first, second = (golden("losses")[f"iou.{name}"] for name in ("first", "second"))

    def summed(boxes: Any) -> Any:
        overlap = complete_iou(boxes, second)
        return overlap.sum(), overlap

    (_, overlap), gradient = jax.jit(jax.value_and_grad(summed, has_aux=True))(first)
    pairs = {"complete": overlap, "gradient": gradient}
    expected = {name: golden("losses")[f"iou.{name}"] for name in pairs}
    errors = {
        name: float(np.abs(ours - expected[name]).max() / np.abs(expected[name]).max()) for name, ours in pairs.items()
    }
    assert worst("complete IoU", errors) <= 1e-8
