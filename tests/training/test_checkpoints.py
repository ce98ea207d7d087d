import errno
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from yolojax.errors import UserError
from yolojax.training.checkpoints import Checkpoints


@pytest.fixture
def state():
    params = {"model_0": {"kernel": jnp.arange(6.0).reshape(2, 3), "bias": jnp.array([-0.0, 0.1])}}
    return {
        "params": params,
        "optimizer": optax.sgd(0.1, momentum=0.9).init(params),
        "step": jnp.int32(7),
        "nothing": None,
    }


def damage(step: Path) -> None:
    for file in step.rglob("*"):
        if file.is_file() and "/d/" in str(file):
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def assert_same_bits(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_a_restored_state_has_the_same_bits_and_progress(tmp_path, state):
    saved = Checkpoints(tmp_path)
    saved.save(3, state, {"epoch": 1, "history": [0.5]})
    saved.close()
    restored, progress, damaged = Checkpoints(tmp_path).restore(lambda _: state)
    assert_same_bits(restored, state)
    assert progress == {"epoch": 1, "history": [0.5]}
    assert damaged == []


def test_a_new_run_has_nothing_to_restore(tmp_path, state):
    assert Checkpoints(tmp_path).restore(lambda _: state) is None


def test_the_newest_two_are_kept(tmp_path, state):
    checkpoints = Checkpoints(tmp_path)
    for step in range(4):
        checkpoints.save(step, state, {"epoch": step})
    checkpoints.close()
    assert sorted(folder.name for folder in (tmp_path / "checkpoints").iterdir()) == ["2", "3"]


def test_the_newest_is_the_one_with_the_largest_number(tmp_path, state):
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.newest() is None
    for step in (9, 10):
        checkpoints.save(step, state, {})
    assert checkpoints.newest() == tmp_path / "checkpoints" / "10"
    checkpoints.close()


def test_a_damaged_newest_checkpoint_is_reported_and_the_one_before_used(tmp_path, state):
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, {**state, "step": jnp.int32(step)}, {"epoch": step})
    checkpoints.close()
    damage(tmp_path / "checkpoints" / "2")
    restored, progress, damaged = Checkpoints(tmp_path).restore(lambda _: state)
    assert int(restored["step"]) == progress["epoch"] == 1
    assert len(damaged) == 1
    assert str(tmp_path / "checkpoints" / "2") in damaged[0]


def test_when_all_are_damaged_the_user_is_told(tmp_path, state):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state, {"epoch": 1})
    checkpoints.close()
    damage(tmp_path / "checkpoints" / "1")
    with pytest.raises(UserError, match="no checkpoint of this run can be read"):
        Checkpoints(tmp_path).restore(lambda _: state)


def test_a_full_disk_is_one_clear_error_and_keeps_what_was_saved(tmp_path, state, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state, {"epoch": 1})
    checkpoints.wait()

    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints._manager, "save", full)
    with pytest.raises(UserError, match="the disk is full"):
        checkpoints.save(2, state, {"epoch": 2})
    restored = Checkpoints(tmp_path).restore(lambda _: state)
    assert restored is not None
    assert restored[1] == {"epoch": 1}
