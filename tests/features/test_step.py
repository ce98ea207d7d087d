"""A training step behind the front part: what the whole step gives, in one program, without the front part's operations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from yolojax.exchange import WHOLE_BATCH
from yolojax.features.compute import front_variables, make_front
from yolojax.features.front import front_end
from yolojax.features.shared import Shared
from yolojax.freezing.phases import make_phase
from yolojax.hyperparameters import Hyperparameters
from yolojax.mesh import make_mesh
from yolojax.model.network import Network, init_variables, parameter_sizes
from yolojax.model.spec import load_spec
from yolojax.training.loss import LossSettings
from yolojax.training.optimizer import OptimizerSettings
from yolojax.training.schedule import Schedule
from yolojax.training.state import create_state
from yolojax.training.step import fixed_modules, make_train_step, shared_step_function
from yolojax.tree import flatten


def test_runs_that_differ_in_rates_and_gains_alone_have_one_step(tiny_model):
    spec, shared = load_spec(tiny_model), Shared()
    phase = make_phase(tuple(parameter_sizes(spec)), freeze=5)
    network = Network(spec, fixed_bn=fixed_modules(phase, "fixed"), start=5)

    def step(epochs=3, name="SGD", **rates):
        hyp = Hyperparameters(**rates)
        settings = (
            LossSettings.from_hyperparameters(hyp, spec, 64),
            OptimizerSettings.from_hyperparameters(hyp, batch_size=64, name=name),
            Schedule.from_hyperparameters(hyp, epochs=epochs, batches_per_epoch=1, batch_size=64),
        )
        return shared_step_function(network, phase, settings, make_mesh(jax.devices()[:1]), WHOLE_BATCH, shared)

    first, numbers = step()
    other, others = step(lr0=0.1, lrf=0.5, momentum=0.9, weight_decay=0.1, box=0.1, epochs=9)
    assert other is first
    assert [numbers[2]["initial"], others[2]["initial"], others[2]["epochs"]] == [0.01, 0.1, 9]
    assert step(name="AdamW")[0] is not first
    assert step(anchor_t=5.0)[0] is not first


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("bfloat16", 2e-2)])
def test_a_step_on_features_is_that_on_images(tiny_model, dtype, tolerance):
    spec, hyp, dtype = load_spec(tiny_model), Hyperparameters(warmup_epochs=0), jnp.dtype(dtype)
    variables = init_variables(spec, jax.random.key(0))
    phase = make_phase(tuple(flatten(variables["params"])), freeze=5)
    fixed = fixed_modules(phase, "fixed")
    end = front_end(spec, phase, fixed)
    assert end == 5
    rng = np.random.default_rng(0)
    boxes = np.array([[[0, 0.5, 0.5, 0.4, 0.3]] * 8] * 2, np.float32)
    batches = [
        {"images": rng.integers(0, 256, (2, 64, 64, 3), np.uint8), "boxes": boxes, "mask": np.ones((2, 8), bool)}
        for _ in range(3)
    ]
    front = make_front(spec, end, dtype, make_mesh(jax.devices()[:1]), front_variables(variables, end))
    settings = (
        LossSettings.from_hyperparameters(hyp, spec, 64),
        OptimizerSettings.from_hyperparameters(hyp, batch_size=64),
        Schedule.from_hyperparameters(hyp, epochs=3, batches_per_epoch=1, batch_size=64),
    )
    ended = []
    for start in (0, end):
        step = make_train_step(Network(spec, dtype=dtype, fixed_bn=fixed, start=start), phase.tree(), *settings)
        state, losses = create_state(variables, phase.tree(), settings[1], fixed_bn=fixed), []
        for batch in batches:
            read = (
                batch
                if not start
                else {"features": jax.device_get(front(batch["images"])), **{k: batch[k] for k in ("boxes", "mask")}}
            )
            state, metrics = step(state, read)
            losses.append(float(metrics["loss"]))
        assert step.program._cache_size() == 1
        ended.append(
            (losses, flatten(jax.device_get(state.whole.params)), step.lower(state, read).cost_analysis()["flops"])
        )
    (whole, params, flops), (tail, others, fewer) = ended
    np.testing.assert_allclose(tail, whole, rtol=tolerance)
    for path, leaf in params.items():
        assert np.abs(others[path] - leaf).max() <= tolerance * np.abs(leaf).max(), path
        if path in phase.frozen:
            assert others[path].tobytes() == np.asarray(flatten(variables["params"])[path]).tobytes()
    assert fewer < 0.5 * flops
