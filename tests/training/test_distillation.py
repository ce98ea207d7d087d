"""What a teacher adds to the loss, and that it is read alone."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from yolojax.exchange import Exchange
from yolojax.freezing.labels import fixed_bn
from yolojax.freezing.phases import make_phase
from yolojax.hyperparameters import Hyperparameters
from yolojax.mesh import make_mesh, put_batch
from yolojax.model.network import Network, init_variables
from yolojax.training.loss import LossSettings, compute_loss, make_gradient
from yolojax.training.optimizer import OptimizerSettings
from yolojax.training.schedule import Schedule
from yolojax.training.state import create_state
from yolojax.training.step import make_train_step
from yolojax.tree import flatten
from yolojax.weights.teacher import Distillation

SIZE = 32


def random_heads(spec, classes, seed, images=2, sure=True):
    """Logits of every level; in a few cells, if ``sure``, an object that nobody doubts."""
    rng = np.random.default_rng(seed)
    heads = []
    for stride in spec.strides:
        head = rng.normal(size=(images, SIZE // stride, SIZE // stride, 3, 5 + classes)).astype(np.float32)
        head[..., 4] = -12
        if sure:
            head[:, 1, 1, :, 4] = 2
        heads.append(jnp.asarray(head))
    return heads


@partial(jax.jit, static_argnums=(2, 3))
def part(heads, taught, spec, settings):
    """What a teacher adds, where no image has a box."""
    images = len(heads[0])
    nothing = jnp.zeros((images, 8, 5)), jnp.zeros((images, 8), bool)
    return compute_loss(heads, *nothing, spec, settings, taught=taught)[1]["distil"]


gradient_of_part = jax.jit(jax.grad(part), static_argnums=(2, 3))


@pytest.fixture
def lesson(mini_spec):
    """The teacher knows two classes; the pupil calls the second of them its first, and has two of its own."""
    spec = mini_spec.with_classes(2)
    settings = LossSettings.from_hyperparameters(Hyperparameters(), mini_spec, SIZE)
    return dataclasses.replace(settings, distillation=Distillation(spec=spec, classes=((0, 1),)))


def test_who_predicts_what_the_teacher_does_has_nothing_to_learn(mini_spec, lesson):
    settings = dataclasses.replace(lesson, distillation=Distillation(spec=mini_spec, classes=((0, 0), (1, 1), (2, 2))))
    taught = random_heads(mini_spec, 3, seed=0)
    gradients = gradient_of_part(taught, taught, mini_spec, settings)
    assert max(float(jnp.abs(gradient).max()) for gradient in gradients) < 1e-6
    others = gradient_of_part(random_heads(mini_spec, 3, seed=1), taught, mini_spec, settings)
    assert min(float(jnp.abs(gradient).max()) for gradient in others) > 1e-3


def test_only_classes_that_both_know_and_cells_where_the_teacher_sees_one_are_taught(mini_spec, lesson):
    heads, taught = random_heads(mini_spec, 3, seed=1), random_heads(mini_spec, 2, seed=0)
    for gradient in gradient_of_part(heads, taught, mini_spec, lesson):
        moved = np.abs(np.asarray(gradient)).max(0)
        assert (moved[1, 1, :, :6] > 0).all()  # box, objectness, the first class
        assert not moved[..., 6:].any()
        moved[1, 1] = 0
        assert not moved.any()
    blind = random_heads(mini_spec, 2, seed=0, sure=False)
    assert part(heads, blind, mini_spec, lesson) == 0
    # It is sure of an object, but of a class that the pupil does not know.
    foreign = [head.at[..., 6].set(-12) for head in taught]
    assert part(heads, foreign, mini_spec, lesson) == 0


def test_a_part_is_that_of_the_loss_with_the_teacher_for_labels(mini_spec, lesson):
    """One cell of one level, by hand."""
    heads, taught = random_heads(mini_spec, 3, seed=1, images=1), random_heads(mini_spec, 2, seed=0, images=1)
    taught = [taught[0].at[:, 1, 1, 1:, 4].set(-12), taught[1].at[..., 4].set(-12)]
    cell, teacher = (1 / (1 + np.exp(-np.float64(x[0][0, 1, 1, 0]))) for x in (heads, taught))
    sure = teacher[4] * teacher[6]

    def entropy(own, wanted):
        return -(wanted * np.log(own) + (1 - wanted) * np.log(1 - own))

    def only(**gains):
        return float(
            part(heads, taught, mini_spec, dataclasses.replace(lesson, **{"box": 0, "obj": 0, "cls": 0, **gains}))
        )

    assert only(cls=1) == pytest.approx(sure * entropy(cell[5], teacher[6]) / 3, rel=1e-5)
    cells = heads[0][..., 0].size
    assert only(obj=1) == pytest.approx(4 * sure * entropy(cell[4], teacher[4]) / cells, rel=1e-5)
    assert 0 < only(box=1) < 2.5 * sure
    twice = dataclasses.replace(lesson, distillation=dataclasses.replace(lesson.distillation, gain=2.0))
    assert part(heads, taught, mini_spec, twice) == pytest.approx(2 * float(part(heads, taught, mini_spec, lesson)))


def test_a_teacher_of_nothing_certain_gives_no_nan(mini_spec, lesson):
    """Cells that are held by nothing may have sides of 0."""
    heads, taught = random_heads(mini_spec, 3, seed=1), random_heads(mini_spec, 2, seed=0)
    heads = [head.at[:, 0, 0, :, 2:4].set(-100.0) for head in heads]
    gradients = gradient_of_part(heads, taught, mini_spec, lesson)
    assert all(bool(jnp.isfinite(gradient).all()) for gradient in gradients)


def setting(spec):
    """A network with its first two layers frozen, its state with a teacher, and the loss that has it."""
    variables, old = init_variables(spec, jax.random.key(0)), spec.with_classes(2)
    teacher = init_variables(old, jax.random.key(1))
    for level in teacher["params"]["model_5"].values():
        level["bias"] += 8  # a random one sees nothing
    labels = make_phase(tuple(flatten(variables["params"])), freeze=2).tree()
    network = Network(spec, fixed_bn=fixed_bn(labels))
    settings = LossSettings.from_hyperparameters(Hyperparameters(), spec, SIZE)
    settings = dataclasses.replace(settings, distillation=Distillation(spec=old, classes=((0, 1), (2, 0))))
    return variables, jax.tree.map(np.asarray, teacher), labels, network, settings


@pytest.mark.long
def test_the_teacher_is_read_by_a_step_and_keeps_its_bits(mini_spec, make_batch):
    variables, teacher, labels, network, settings = setting(mini_spec)
    optimizer = OptimizerSettings.from_hyperparameters(Hyperparameters(), batch_size=2)
    schedule = Schedule.from_hyperparameters(
        Hyperparameters(warmup_epochs=0), epochs=2, batches_per_epoch=3, batch_size=2
    )

    def trained(settings, teacher):
        state = create_state(variables, labels, optimizer, fixed_bn=network.fixed_bn)
        state = dataclasses.replace(state, resting=state.resting._replace(teacher=teacher))
        step = make_train_step(network, labels, settings, optimizer, schedule)
        after, metrics = step(state, make_batch(0, size=SIZE))
        return jax.device_get((after, metrics))

    placed = jax.device_put(teacher)
    (after, metrics), (_, plain) = (
        trained(settings, placed),
        trained(dataclasses.replace(settings, distillation=None), None),
    )
    assert metrics["distil"] > 0
    assert "distil" not in plain
    assert metrics["loss"] == pytest.approx(2 * sum(metrics[name] for name in ("box", "obj", "cls", "distil")))
    for name in ("box", "obj", "cls"):
        assert metrics[name] == pytest.approx(plain[name], rel=1e-6)
    for kept, before in zip(jax.tree.leaves(placed), jax.tree.leaves(teacher), strict=True):
        assert np.asarray(kept).tobytes() == before.tobytes()
    assert "teacher" not in after.whole._asdict()
    assert metrics["gradient_norm"] != plain["gradient_norm"]
    frozen = after.whole.params["model_0"]["conv"]["kernel"]
    assert frozen.tobytes() == np.asarray(variables["params"]["model_0"]["conv"]["kernel"]).tobytes()


def shared_batch(spec, make_batch):
    """Four devices; in double precision, so that no wrong formula hides behind rounding."""
    jax.config.update("jax_enable_x64", True)
    variables, teacher, labels, network, settings = setting(spec)
    variables, teacher = (
        jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree) for tree in (variables, teacher)
    )
    optimizer = OptimizerSettings.from_hyperparameters(Hyperparameters(), batch_size=8)
    batch = make_batch(0, images=8, size=SIZE)

    def gradient(mesh, batch, **exchange):
        state = create_state(variables, labels, optimizer, mesh, network.fixed_bn)
        resting = state.resting._replace(teacher=teacher)
        function = jax.jit(make_gradient(network, settings, mesh, Exchange(**exchange)), static_argnums=3)
        placed = batch if mesh is None else put_batch(batch, mesh)
        return jax.device_get(function(state.moving, resting, placed, None))

    def assert_close(found, expected):
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            assert np.abs(a - b).max() <= 1e-10 * np.abs(b).max()

    mesh, whole = make_mesh(jax.devices()), gradient(None, batch)
    assert mesh.size == 4
    assert whole.parts["distil"] > 0
    together = gradient(mesh, batch, gradient_sum="float64")
    assert_close((together.loss, together.parts, together.gradients), (whole.loss, whole.parts, whole.gradients))
    apart = gradient(mesh, batch, sync_bn=False, gradient_sum="float64")
    shares = [
        gradient(None, {name: value[at : at + 2] for name, value in batch.items()})
        for at in range(0, len(batch["mask"]), 2)
    ]
    total = jax.tree.map(lambda *values: sum(values), *shares)
    assert_close((apart.loss, apart.gradients), (total.loss, total.gradients))
    assert_close(apart.parts, jax.tree.map(lambda value: value / 4, total.parts))


@pytest.mark.long
def test_devices_share_what_a_teacher_adds(on_devices):
    on_devices(4, "test_distillation.shared_batch")
