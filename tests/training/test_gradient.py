"""Devices that share a batch: with ``--sync-bn on`` they do what one does, with ``off`` what each would do alone, and how often they tell each other."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from yolojax.exchange import Exchange
from yolojax.freezing.labels import fixed_bn
from yolojax.freezing.phases import make_phase
from yolojax.hyperparameters import Hyperparameters
from yolojax.mesh import make_mesh, put_batch
from yolojax.model.network import Network, abstract_variables, init_variables
from yolojax.training.loss import LossSettings, make_gradient
from yolojax.training.optimizer import OptimizerSettings
from yolojax.training.state import abstract_state, create_state
from yolojax.tree import flatten, map_with_path

DEVICES, IMAGES, SIZE = 4, 8, 32


class Case:
    """The gradient of the mini network, with its first two layers frozen, on one device or on all."""

    def __init__(self, spec, make_batch, dtype, computed=None):
        variables = init_variables(spec, jax.random.key(0))
        # Statistics that differ by channel and by layer, so that reading the wrong ones is seen.
        variables["batch_stats"] = map_with_path(
            lambda path, leaf: leaf + 0.1 * np.random.default_rng(len(path)).random(leaf.shape),
            variables["batch_stats"],
        )
        self.variables = jax.tree.map(lambda leaf: np.asarray(leaf, dtype), variables)
        self.labels = make_phase(tuple(flatten(variables["params"])), freeze=2).tree()
        self.network = Network(spec, dtype=computed, fixed_bn=fixed_bn(self.labels))
        self.loss = LossSettings.from_hyperparameters(Hyperparameters(), spec, SIZE)
        self.batch = make_batch(0, images=IMAGES, size=SIZE)
        # Shares with different numbers of boxes, one of them without any.
        self.batch["mask"][2:4] = False
        self.batch["mask"][4, 1:] = False

    def compiled(self, mesh=None, **exchange):
        """The gradient of a batch, and the text of its program."""
        settings = OptimizerSettings.from_hyperparameters(Hyperparameters(), batch_size=IMAGES)
        scaled = self.network.dtype == jnp.float16
        state = create_state(self.variables, self.labels, settings, mesh, self.network.fixed_bn, scaled)
        moving = state.moving
        if scaled:  # low enough for no gradient to leave float16
            moving = moving._replace(loss_scale=moving.loss_scale.replace(scale=jnp.float32(16)))
        function = jax.jit(make_gradient(self.network, self.loss, mesh, Exchange(**exchange)), static_argnums=3)
        placed = self.batch if mesh is None else put_batch(self.batch, mesh)
        text = function.lower(moving, state.resting, placed, None).compile().as_text()
        return lambda batch: jax.device_get(function(moving, state.resting, batch, None)), text, placed


def assert_close(found, expected, tolerance):
    leaves = zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True)
    for (path, a), b in leaves:
        a, b = np.float64(a), np.float64(b)
        assert np.abs(b).max() > 0
        assert np.abs(a - b).max() <= tolerance * np.abs(b).max(), jax.tree_util.keystr(path)


def reductions(text):
    """The operands of every reduction between devices."""
    return re.findall(r"= (.*?) (?:all-reduce|reduce-scatter|all-gather)(?:-start)?\(", text)


def one_batch(spec, make_batch):
    """In double precision, so that no wrong formula hides behind rounding; run in a process with four devices."""
    jax.config.update("jax_enable_x64", True)
    case = Case(spec, make_batch, np.float64)
    alone, text, _ = case.compiled()
    assert not reductions(text)
    whole = alone(case.batch)
    mesh = make_mesh(jax.devices())
    assert mesh.size == DEVICES

    together, text, placed = case.compiled(mesh, gradient_sum="float64")
    assert_close(together(placed), whole, 1e-10)
    # Two for every BatchNorm whose statistics are those of the batch, the boxes, and the gradients.
    norms = sum(path.endswith("scale") and label != "frozen" for path, label in flatten(case.labels).items())
    assert norms + 2 <= len(reductions(text)) <= 2 * norms + 2

    apart, text, placed = case.compiled(mesh, sync_bn=False, gradient_sum="float64")
    found = apart(placed)
    step = IMAGES // DEVICES
    shares = [
        alone({name: value[at : at + step] for name, value in case.batch.items()}) for at in range(0, IMAGES, step)
    ]
    total = jax.tree.map(lambda *values: sum(values), *shares)
    assert_close((found.loss, found.gradients), (total.loss, total.gradients), 1e-10)
    mean = jax.tree.map(lambda value: value / DEVICES, (total.parts, total.batch_stats))
    assert_close((found.parts, found.batch_stats), mean, 1e-10)
    assert len(reductions(text)) == 1
    # It is another gradient than that of the whole batch.
    other, same = (result.gradients["model_3"]["conv"]["kernel"] for result in (found, whole))
    assert np.abs(other - same).max() > 0.01 * np.abs(same).max()


def narrow_sums(spec, make_batch):
    """Gradients that are added up in bfloat16; run in a process with four devices."""
    case, mesh = Case(spec, make_batch, np.float32), make_mesh(jax.devices())
    wide, narrow = (
        function(placed).gradients
        for function, _, placed in (case.compiled(mesh, gradient_sum=dtype) for dtype in ("float32", "bfloat16"))
    )
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(narrow), jax.tree.leaves(wide), strict=True):
        assert a.dtype == np.float32
        error = np.abs(a - b).max() / np.abs(b).max()
        assert (0 < error < 2**-6) if a.ndim > 1 else error < 1e-5, jax.tree_util.keystr(path)


def scaled_loss(spec, make_batch):
    """A loss that is scaled, in float16; run in a process with four devices."""
    case = Case(spec, make_batch, np.float32, jnp.float16)
    alone, _, _ = case.compiled()
    together, _, placed = case.compiled(make_mesh(jax.devices()))
    whole, found = alone(case.batch), together(placed)
    assert whole.counts
    assert found.counts
    assert found.loss_scale.scale == whole.loss_scale.scale == 16
    assert_close(found.gradients, whole.gradients, 0.05)


@pytest.mark.long
def test_devices_together_do_what_one_does_and_apart_what_each_does_alone(on_devices):
    on_devices(DEVICES, "test_gradient.one_batch")


@pytest.mark.long
def test_only_the_gradients_of_kernels_are_rounded_where_they_are_added_up_in_bfloat16(on_devices):
    on_devices(DEVICES, "test_gradient.narrow_sums")


@pytest.mark.long
def test_devices_share_a_loss_that_is_scaled(on_devices):
    on_devices(DEVICES, "test_gradient.scaled_loss")


@pytest.mark.parametrize(
    ("flags", "dtype", "expected"),
    [
        (("on", "auto"), None, Exchange(sync_bn=True, gradient_sum="float32")),
        (("on", "auto"), "bfloat16", Exchange(sync_bn=True, gradient_sum="bfloat16")),
        (("off", "auto"), jnp.bfloat16, Exchange(sync_bn=False, gradient_sum="bfloat16")),
        (("on", "auto"), jnp.float16, Exchange(sync_bn=True, gradient_sum="float32")),
        (("on", "float32"), "bfloat16", Exchange(sync_bn=True, gradient_sum="float32")),
        (("on", "bfloat16"), None, Exchange(sync_bn=True, gradient_sum="bfloat16")),
    ],
)
def test_what_the_flags_mean(flags, dtype, expected):
    assert Exchange.of_flags(*flags, dtype) == expected


def test_one_device_has_nobody_to_tell(mini_spec):
    variables = abstract_variables(mini_spec)
    labels = make_phase(tuple(flatten(variables["params"])), freeze=0).tree()
    state = abstract_state(variables, labels, OptimizerSettings.from_hyperparameters(Hyperparameters(), batch_size=2))
    batch = {
        "images": jax.ShapeDtypeStruct((2, SIZE, SIZE, 3), jnp.uint8),
        "boxes": jax.ShapeDtypeStruct((2, 4, 5), jnp.float32),
        "mask": jax.ShapeDtypeStruct((2, 4), jnp.bool_),
    }
    programs = set()
    for mesh, sync_bn in ((None, True), (make_mesh(jax.devices()[:1]), False)):
        gradient = make_gradient(
            Network(mini_spec), LossSettings(), mesh, Exchange(sync_bn=sync_bn, gradient_sum="bfloat16")
        )
        lowered = jax.jit(gradient, static_argnums=3).lower(state.moving, state.resting, batch, None)
        programs.add(lowered.as_text())
    (program,) = programs
    assert "all_reduce" not in program
