"""From phase to phase: what is frozen keeps its bits in every phase of every strategy, moments and averages carry over as documented."""

from typing import ClassVar

import jax
import numpy as np
import pytest

from yolojax.config import configs_root
from yolojax.freezing.labels import FROZEN
from yolojax.freezing.load import load_strategy, rehearse
from yolojax.freezing.phases import History, labelled_phase, make_phase
from yolojax.hyperparameters import Hyperparameters
from yolojax.model.network import Network, init_variables
from yolojax.model.spec import load_spec
from yolojax.training.loss import LossSettings
from yolojax.training.optimizer import OptimizerSettings
from yolojax.training.schedule import Schedule
from yolojax.training.state import change_phase, create_state, divide, enter_phase, separate
from yolojax.training.step import fixed_modules, make_train_step
from yolojax.tree import flatten, map_with_path

# Every step of 64 images is an update; the rate is high because a warm-up of 100 steps begins with nothing.
HYP = Hyperparameters(lr0=50.0)
KEY = jax.random.key(0)


class Run:
    """A network whose phase can be changed."""

    steps: ClassVar[dict] = {}  # compiled ones, shared between tests

    def __init__(self, file, phase, optimizer="SGD"):
        self.spec = load_spec(file)
        self.variables = init_variables(self.spec, KEY)
        self.settings = OptimizerSettings.from_hyperparameters(HYP, batch_size=64, name=optimizer)
        self.phase = phase
        fixed = fixed_modules(phase, "fixed")
        self.state = create_state(enter_phase(self.variables, phase, KEY), phase.tree(), self.settings, fixed_bn=fixed)

    def enter(self, phase):
        self.state = change_phase(self.state, phase, self.settings, KEY, None, fixed_modules(phase, "fixed"))
        self.phase = phase

    def train(self, batch):
        key = (self.settings.name, self.phase)
        if key not in self.steps:
            network = Network(self.spec, fixed_bn=fixed_modules(self.phase, "fixed"))
            schedule = Schedule.from_hyperparameters(HYP, epochs=100, batches_per_epoch=10, batch_size=64)
            loss = LossSettings.from_hyperparameters(HYP, self.spec, 64)
            self.steps[key] = make_train_step(network, self.phase.tree(), loss, self.settings, schedule)
        self.state, metrics = self.steps[key](self.state, batch, dict(self.phase.factors))
        assert metrics["finite"]

    def moments(self):
        """Arrays of the optimizer's state by the path of their parameter."""
        leaves = {}
        for path, leaf in jax.tree_util.tree_flatten_with_path(self.state.whole.opt_state)[0]:
            keys = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)][1:]  # behind the group's label
            leaves.setdefault("/".join(keys), []).append(np.asarray(leaf))
        return leaves


def bits(tree):
    return {path: np.asarray(leaf).tobytes() for path, leaf in flatten(tree).items()}


@pytest.fixture(scope="module")
def paths(tiny_model):
    return tuple(flatten(init_variables(load_spec(tiny_model), KEY)["params"]))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(file.stem, marks=[pytest.mark.long] * (file.stem == "freezeout"))  # it has the most phases
        for file in sorted((configs_root() / "freezing").glob("*.yaml"))
    ],
)
def test_what_a_phase_freezes_keeps_its_bits_and_all_else_moves(name, tiny_model, paths, make_batch):
    phases = [phase for _, phase in rehearse(load_strategy(name), paths, 20)]
    run = Run(tiny_model, phases[0])
    for number, phase in enumerate(phases):
        if number:
            run.enter(phase)
        before, averages = bits(run.state.params), bits(run.state.whole.ema_params)
        statistics = bits(run.state.whole.batch_stats)
        for seed in range(2):
            run.train(make_batch(seed, classes=2))
        after, averages_after = bits(run.state.params), bits(run.state.whole.ema_params)
        labels = dict(phase.labels)
        assert set(after) == set(labels)
        for path, label in labels.items():
            assert (after[path] == before[path]) == (label == FROZEN), path
            assert (averages_after[path] == averages[path]) == (label == FROZEN), path
        fixed = fixed_modules(phase, "fixed")
        for path, old in statistics.items():
            assert (bits(run.state.whole.batch_stats)[path] == old) == (path.rpartition("/")[0] in fixed), path
        assert set(run.moments()) == {path for path, label in labels.items() if label != FROZEN}


@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
@pytest.mark.long
def test_moments_of_what_stays_trainable_carry_over_and_what_thaws_starts_as_new(
    optimizer, tiny_model, paths, make_batch
):
    first = make_phase(paths, freeze=5)
    # Another label for what trained before, and one for what thaws: labels alone do not touch the moments.
    second = labelled_phase({path: "late" if path.startswith("model_6") else "early" for path in paths})
    run = Run(tiny_model, first, optimizer)
    for seed in range(3):
        run.train(make_batch(seed, classes=2))
    old, averages = run.moments(), bits(run.state.whole.ema_params)
    run.enter(second)
    assert bits(run.state.whole.ema_params) == averages
    new = run.moments()
    assert set(new) == set(paths)
    fresh = Run(tiny_model, second, optimizer)
    fresh_moments = fresh.moments()
    for path, leaves in new.items():
        expected = fresh_moments[path] if path in first.frozen else old[path]
        assert [leaf.tobytes() for leaf in leaves] == [leaf.tobytes() for leaf in expected], path
        assert any(leaf.any() for leaf in leaves) == (path not in first.frozen), path

    # From the same weights, what thawed makes the very step that it makes at the start of a run.
    reached = run.state.whole
    started = fresh.state.whole._replace(params=reached.params, batch_stats=reached.batch_stats, step=reached.step)
    fixed = fixed_modules(second, "fixed")
    fresh.state = separate(divide(started, second.tree(), fixed), None)
    for each in (run, fresh):
        each.train(make_batch(9, classes=2))
    ours, theirs = bits(run.state.params), bits(fresh.state.params)
    for path in paths:
        assert (ours[path] == theirs[path]) == (path in first.frozen), path


def test_an_average_goes_on_where_it_stopped(tiny_model, paths, make_batch):
    frozen_first = "model_0/conv/kernel"
    run = Run(tiny_model, make_phase(paths, freeze=0))
    start = bits(run.state.params)[frozen_first]
    run.train(make_batch(0, classes=2))
    run.train(make_batch(1, classes=2))
    run.enter(make_phase(paths, freeze=5))
    kept = bits(run.state.whole.ema_params)[frozen_first]
    assert kept not in (start, bits(run.state.params)[frozen_first])
    run.train(make_batch(2, classes=2))
    assert bits(run.state.whole.ema_params)[frozen_first] == kept
    assert int(run.state.whole.ema_updates) == 3
    run.enter(make_phase(paths, freeze=0))
    assert bits(run.state.whole.ema_params)[frozen_first] == kept
    run.train(make_batch(3, classes=2))
    assert bits(run.state.whole.ema_params)[frozen_first] != kept


def test_adapters_are_merged_where_their_phase_ends(tiny_model, paths):
    run = Run(tiny_model, load_strategy("adapters").phase(0, History(epochs=20), paths))
    original = flatten(run.variables["params"])

    def adapt(size):
        return map_with_path(lambda path, leaf: leaf + size if path.endswith("adapter/up") else leaf, run.state.params)

    adapted = run.state.whole._replace(params=adapt(1.0), ema_params=adapt(0.5))
    run.state = divide(adapted, run.phase.tree(), fixed_modules(run.phase, "fixed"))
    before = {path: np.asarray(leaf) for path, leaf in flatten(run.state.params).items()}
    run.enter(make_phase(paths, freeze=5))
    for tree, size in ((run.state.params, 1.0), (run.state.whole.ema_params, 0.5)):
        assert set(flatten(tree)) == set(paths)
        for path, leaf in flatten(tree).items():
            expected = np.asarray(original[path])
            if path.endswith("/kernel") and int(path[6]) < 5:  # a layer of the backbone
                down = before[path.removesuffix("kernel") + "adapter/down"]
                expected = expected + (size * down.sum(1)).reshape(*expected.shape[:3], 1)
            np.testing.assert_allclose(leaf, expected, rtol=1e-5, atol=1e-6)
