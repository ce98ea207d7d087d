"""The flag by which several processes stop after the same step."""

import re

import jax
import numpy as np
import pytest

from yolojax.mesh import make_mesh, put_batch
from yolojax.model.network import init_variables


def no_question_of_its_own(spec, make_batch):
    """A program with the flag has as many reductions between devices as one without it, and every device learns that one has asked; run with two devices."""
    from test_step import build

    mesh = make_mesh()
    step, state = build(spec, init_variables(spec, jax.random.key(0)), batch_size=2, mesh=mesh)
    batch = make_batch(0, images=2, size=32)
    counts = []
    for flag in ({}, {"stop": np.array([0, 1], np.float32)}):
        placed = put_batch({**batch, **flag}, mesh)
        program = step.lower(state, placed).compile()
        counts.append(len(re.findall(r" all-reduce(?:-start)?\(", program.as_text())))
        assert not re.search(r" (all-gather|all-to-all|collective-permute)\S*\(", program.as_text())
    assert counts[0] == counts[1] > 0, counts
    _, metrics = program(state.moving, state.resting, placed, {})
    assert float(metrics["stop"]) == 1


@pytest.mark.long
def test_a_step_asks_nobody_whether_to_stop(on_devices):
    on_devices(2, "test_stopping.no_question_of_its_own")
