"""The training step as a whole: freezing to the bit, accumulation, determinism, what the compiled program costs."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from yolojax.freezing.labels import fixed_bn
from yolojax.freezing.phases import make_phase
from yolojax.hyperparameters import Hyperparameters
from yolojax.mesh import make_mesh, put_batch
from yolojax.model.network import Network, abstract_variables, init_variables
from yolojax.model.spec import load_spec
from yolojax.training.loss import LossSettings
from yolojax.training.optimizer import OptimizerSettings
from yolojax.training.schedule import Schedule
from yolojax.training.state import abstract_state, create_state
from yolojax.training.step import TrainStep, make_train_step
from yolojax.tree import flatten, map_with_path


def build(spec, variables, *, freeze=0, fixed=True, batch_size=2, batches_per_epoch=3, size=64, mesh=None, **options):
    """A step and a state for it."""
    labels = make_phase(tuple(flatten(variables["params"])), freeze=freeze).tree()
    dtype = options.pop("dtype", None)
    scaled = dtype == jnp.float16
    hyp = Hyperparameters(**options)
    still = fixed_bn(labels) if fixed else frozenset()
    network = Network(spec, dtype=dtype, fixed_bn=still)
    schedule = Schedule.from_hyperparameters(hyp, epochs=5, batches_per_epoch=batches_per_epoch, batch_size=batch_size)
    optimizer = OptimizerSettings.from_hyperparameters(hyp, batch_size=batch_size)
    loss = LossSettings.from_hyperparameters(hyp, spec, size)
    step = make_train_step(network, labels, loss, optimizer, schedule, mesh)
    if jax.tree.leaves(variables)[0].__class__ is jax.ShapeDtypeStruct:
        return step, abstract_state(variables, labels, optimizer, still, scaled)
    return step, create_state(variables, labels, optimizer, mesh, still, scaled)


def bits(tree):
    return {path: np.asarray(leaf).tobytes() for path, leaf in flatten(tree).items()}


def with_leaves(state, **trees):
    """A state in which nothing rests, with other trees."""
    return dataclasses.replace(state, moving=state.moving._replace(**trees))


def momentum_of(state):
    summed = state.whole.opt_state.inner_states["trainable"].inner_state
    (trace,) = (part.trace for part in summed.inner if hasattr(part, "trace"))
    return trace


def compile_quickly(step, *arguments):
    """Machine code that is not optimised compiles in half the time; operations and buffers are decided before it."""
    compiled = step.lower(*arguments).compile({"xla_backend_optimization_level": 0})
    return TrainStep(lambda *inputs, size: compiled(*inputs)), compiled


def check_freezing(spec, variables, make_batch, freeze, fixed):
    """Train five steps; what is frozen has its old bits and everything else has moved."""
    step, state = build(spec, variables, freeze=freeze, fixed=fixed, lr0=50.0)  # high, for a warm-up of 100 steps
    step, _ = compile_quickly(step, state, make_batch(0))
    before = {path: np.asarray(leaf) for path, leaf in flatten(variables["params"]).items()}
    statistics = bits(variables["batch_stats"])
    frozen = {path for path in before if int(path.split("/")[0][6:]) < freeze}
    updates = []
    for index in range(5):
        state, metrics = step(state, make_batch(index))
        updates.append(int(state.whole.ema_updates))
        assert metrics["finite"]
        assert min(metrics[part] for part in ("loss", "box", "obj", "cls", "gradient_norm")) > 0
    # Accumulation grows from 1 to 2 in these five; the second epoch begins with the fourth.
    assert updates == [1, 2, 2, 3, 3]

    params, average = bits(state.params), bits(state.whole.ema_params)
    assert 0 < len(frozen) < len(before)
    for path, old in before.items():
        if path in frozen:
            assert params[path] == average[path] == old.tobytes(), path
        else:
            assert old.tobytes() not in (params[path], average[path]), path
    for tree in (state.whole.batch_stats, state.whole.ema_batch_stats):
        for path, new in bits(tree).items():
            assert (new == statistics[path]) == (fixed and int(path.split("/")[0][6:]) < freeze), path

    held = [leaf.shape for leaf in jax.tree.leaves(state.whole.opt_state) if leaf.ndim]
    trained = [leaf.shape for path, leaf in before.items() if path not in frozen]
    assert sorted(held) == sorted(2 * trained)  # momentum, and the sum of gradients


def plant_negative_zeros(variables):
    def plant(path, leaf):
        return leaf if path.endswith(("scale", "var")) else leaf.at[(0,) * leaf.ndim].set(-0.0)

    return {part: map_with_path(plant, tree) for part, tree in variables.items()}


@pytest.mark.parametrize("freeze", [10, 24])
def test_frozen_leaves_keep_their_bits_and_all_others_move(make_batch, freeze):
    spec = dataclasses.replace(load_spec("yolov5n", classes=3), width_multiple=1 / 32, depth_multiple=0.1)
    variables = plant_negative_zeros(init_variables(spec, jax.random.key(0)))
    check_freezing(spec, variables, make_batch, freeze, fixed=True)


@pytest.fixture(scope="module")
def mini(mini_spec):
    """A network, its variables, and a step for it with three batches to the epoch."""
    variables = init_variables(mini_spec, jax.random.key(0))
    step, _ = build(mini_spec, variables)
    return SimpleNamespace(spec=mini_spec, variables=variables, step=step)


def fresh_state(mini, **options):
    return build(mini.spec, mini.variables, **options)[1]


def test_tracked_statistics_of_frozen_layers_move(mini, make_batch):
    check_freezing(mini.spec, plant_negative_zeros(mini.variables), make_batch, 2, fixed=False)


def test_traced_once_and_the_same_bits_again(mini, make_batch):
    results = []
    for _ in range(2):
        state = fresh_state(mini)
        for index in range(5):
            state, metrics = mini.step(state, make_batch(index))
        results.append((jax.tree.map(lambda leaf: np.asarray(leaf).tobytes(), state), float(metrics["loss"])))
    assert mini.step.program._cache_size() == 1
    assert results[0] == results[1]


def test_between_updates_only_sums_and_statistics_change(mini, make_batch):
    state = fresh_state(mini)
    for index in range(2):
        state, _ = mini.step(state, make_batch(index))
    kept = [
        bits(tree) for tree in (state.params, state.whole.ema_params, state.whole.ema_batch_stats, momentum_of(state))
    ]
    statistics = bits(state.whole.batch_stats)
    state, _ = mini.step(state, make_batch(2))
    assert (int(state.whole.step), int(state.whole.ema_updates), int(state.whole.last_update)) == (3, 2, 1)
    assert [
        bits(tree) for tree in (state.params, state.whole.ema_params, state.whole.ema_batch_stats, momentum_of(state))
    ] == kept
    assert all(new != statistics[path] for path, new in bits(state.whole.batch_stats).items())


def test_the_sum_is_forgotten_at_the_start_of_an_epoch(mini, make_batch):
    # Iteration 2 finds no update and ends the epoch: the update of iteration 3 may not see its batch.
    ends, statistics = [], None
    for third in (2, 99):
        state = fresh_state(mini)
        for seed in (0, 1, third):
            state, _ = mini.step(state, make_batch(seed))
        statistics = statistics or jax.device_get(state.whole.batch_stats)
        state = with_leaves(state, batch_stats=jax.tree.map(jnp.array, statistics))
        state, _ = mini.step(state, make_batch(3))
        assert int(state.whole.last_update) == 3
        ends.append(bits(state.params))
    assert ends[0] == ends[1]


def test_a_large_batch_keeps_no_sums(mini):
    small, large = fresh_state(mini, batch_size=16), fresh_state(mini, batch_size=64)
    count = len(jax.tree.leaves(small.params))
    assert len(jax.tree.leaves(small.moving.opt_state)) - len(jax.tree.leaves(large.moving.opt_state)) == count


def test_the_callers_arrays_survive(mini, make_batch):
    mini.step(fresh_state(mini), make_batch(0))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(mini.variables))


@pytest.mark.long
def test_mixed_precision_keeps_the_state_wide(mini, make_batch):
    step, state = build(mini.spec, mini.variables, dtype=jnp.bfloat16)
    dtypes = jax.tree.map(lambda leaf: leaf.dtype, state)
    state, metrics = compile_quickly(step, state, make_batch(0))[0](state, make_batch(0))
    _, wide = mini.step(fresh_state(mini), make_batch(0))
    assert jax.tree.map(lambda leaf: leaf.dtype, state) == dtypes
    np.testing.assert_allclose(metrics["loss"], wide["loss"], rtol=0.02)
    assert metrics["loss"] != wide["loss"]


@pytest.mark.parametrize("batch_size", [16, 64])  # sums of four batches, and none
@pytest.mark.long
def test_in_float16_a_gradient_that_overflows_counts_for_nothing(mini, make_batch, batch_size):
    step, state = build(mini.spec, mini.variables, dtype=jnp.float16, batch_size=batch_size, warmup_epochs=0.0)
    step, _ = compile_quickly(step, state, make_batch(0))
    assert float(state.moving.loss_scale.scale) == 65536
    # High enough for the gradient of any loss to leave float16, whose greatest number is 65,504.
    state = with_leaves(state, loss_scale=state.moving.loss_scale.replace(scale=jnp.float32(2.0**40)))
    before, after_update = jax.device_get(state.whole), []
    for index in range(60):
        state, metrics = step(state, make_batch(index))
        assert metrics["finite"]
        if not metrics["overflows"]:
            break
        for name in ("params", "ema_params", "opt_state", "ema_updates", "last_update"):
            for old, new in zip(*(jax.tree.leaves(getattr(tree, name)) for tree in (before, state.whole)), strict=True):
                assert np.asarray(old).tobytes() == np.asarray(new).tobytes(), name
        after_update.append(float(state.moving.loss_scale.scale))
    assert after_update == [2.0 ** (39 - index) for index in range(len(after_update))]
    assert 5 < len(after_update) < 40
    for index in range(4):
        state, metrics = step(state, make_batch(index))
    assert not metrics["overflows"]
    assert bits(state.params) != bits(before.params)
    assert int(state.moving.ema_updates) > 0


@pytest.mark.long
def test_in_float16_a_step_moves_as_in_float32(mini, make_batch):
    step, state = build(mini.spec, mini.variables, dtype=jnp.float16)
    state, metrics = compile_quickly(step, state, make_batch(0))[0](state, make_batch(0))
    _, wide = mini.step(fresh_state(mini), make_batch(0))
    assert not metrics["overflows"]
    np.testing.assert_allclose(metrics["loss"], wide["loss"], rtol=0.01)
    np.testing.assert_allclose(metrics["gradient_norm"], wide["gradient_norm"], rtol=0.02)
    assert state.moving.params["model_0"]["conv"]["kernel"].dtype == jnp.float32


def test_a_loss_that_is_not_finite_is_reported(mini, make_batch):
    state = fresh_state(mini)
    params = map_with_path(lambda path, leaf: leaf * np.nan if path.endswith("m_0/bias") else leaf, state.params)
    _, metrics = mini.step(with_leaves(state, params=params), make_batch(0))
    assert not metrics["finite"]


COST = {0: None, 10: (0.60, 0.35), 24: (0.37, 0.10)}


@pytest.mark.long
def test_freezing_saves_computation_and_memory_in_the_compiled_program():
    spec = load_spec("yolov5n", classes=20)
    variables = abstract_variables(spec)
    batch = {
        "images": jax.ShapeDtypeStruct((8, 320, 320, 3), jnp.uint8),
        "boxes": jax.ShapeDtypeStruct((8, 32, 5), jnp.float32),
        "mask": jax.ShapeDtypeStruct((8, 32), jnp.bool_),
    }
    costs = {}
    for freeze in COST:
        step, state = build(spec, variables, freeze=freeze, batch_size=8, size=320)
        _, compiled = compile_quickly(step, state, batch)
        costs[freeze] = np.array([compiled.cost_analysis()["flops"], compiled.memory_analysis().temp_size_in_bytes])
    assert costs[0][0] > 1e10
    for freeze, limits in COST.items():
        if limits is not None:
            assert (costs[freeze] <= costs[0] * limits).all(), (freeze, costs[freeze] / costs[0])


def three_steps(spec, make_batch):
    """Losses, last norm of the gradient, parameters and momentum after three steps on one device and on all; run in a process with eight."""
    variables = init_variables(spec, jax.random.key(0))
    results = []
    for devices in (jax.devices()[:1], jax.devices()):
        mesh = make_mesh(devices)
        step, state = build(spec, variables, batch_size=8, mesh=mesh)
        batches = [put_batch(make_batch(index, images=8, size=32), mesh) for index in range(3)]
        step, _ = compile_quickly(step, state, batches[0])
        losses = []
        for batch in batches:
            state, metrics = step(state, batch)
            losses.append([float(metrics[key]) for key in ("loss", "box", "obj", "cls", "gradient_norm")])
        assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state))
        results.append((losses, jax.device_get(state)))
    (single_losses, single), (all_losses, many) = results
    np.testing.assert_allclose(all_losses, single_losses, rtol=1e-5)
    assert np.ptp(single_losses, axis=0).min() > 0
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(single), jax.tree.leaves(many), strict=True):
        error = np.abs(a - b).max() / max(np.abs(a).max(), 1e-6)
        assert error < 1e-4, (jax.tree_util.keystr(path), error)


@pytest.mark.long
def test_eight_devices_do_what_one_does(on_devices):
    on_devices(8, "test_step.three_steps")


@pytest.mark.parametrize(("freeze", "most"), [(24, 40), (10, 700)])
def test_a_step_returns_no_leaf_that_rests(freeze, most):
    """Each leaf in or out costs Python time at every step: of 811 that the state has at freeze 24, few cross the border twice."""
    spec = load_spec("yolov5n", classes=20)
    step, state = build(spec, abstract_variables(spec), freeze=freeze, batch_size=8, size=320)
    whole = len(jax.tree.leaves(state.whole))
    moving = len(jax.tree.leaves(state.moving))
    assert moving <= most < whole
    program = jax.eval_shape(
        lambda *arguments: step.program(*arguments, {}, size=None),
        state.moving,
        state.resting,
        {
            "images": jax.ShapeDtypeStruct((8, 320, 320, 3), jnp.uint8),
            "boxes": jax.ShapeDtypeStruct((8, 32, 5), jnp.float32),
            "mask": jax.ShapeDtypeStruct((8, 32), jnp.bool_),
        },
    )
    assert len(jax.tree.leaves(program[0])) == moving
