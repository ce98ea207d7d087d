import errno
import json
import logging
import threading
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from yolojax.errors import UserError
from yolojax.training.checkpoints import CheckpointError, Checkpoints, has_checkpoint, on_host


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
    assert not has_checkpoint(tmp_path)
    saved.save(3, state, {"epoch": 1, "history": [0.5]})
    saved.close()
    assert has_checkpoint(tmp_path)
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.steps() == [3]
    assert checkpoints.progress(3) == {"epoch": 1, "history": [0.5]}
    assert_same_bits(checkpoints.restore(3, state), state)


def test_small_arrays_are_one_in_the_file(tmp_path, state):
    params = {f"model_{number}": {"kernel": jnp.ones((2, 3)), "bias": jnp.full(3, number)} for number in range(40)}
    saved = Checkpoints(tmp_path)
    saved.save(3, state | {"params": params}, {})
    saved.close()
    metadata = json.loads((tmp_path / "checkpoints" / "3" / "packed_state" / "_METADATA").read_text())
    # 40 kernels, that of the optimizer, and a vector for float32 and one for int32
    assert len(metadata["tree_metadata"]) == 43
    assert_same_bits(Checkpoints(tmp_path).restore(3, state | {"params": params}), state | {"params": params})


def test_a_checkpoint_leaf_by_leaf_is_read(tmp_path, state):
    # As several processes write it, and as it was always written once.
    by_path = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]}
    with ocp.CheckpointManager(tmp_path / "checkpoints") as manager:
        items = {"state": ocp.args.StandardSave(by_path), "progress": ocp.args.JsonSave({"epoch": 1})}
        manager.save(3, args=ocp.args.Composite(**items))
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.progress(3) == {"epoch": 1}
    assert_same_bits(checkpoints.restore(3, state), state)


@pytest.mark.parametrize("bias", [jnp.zeros(1), jnp.zeros(3), jnp.zeros(2, jnp.bfloat16), jnp.zeros((2, 1))])
def test_a_checkpoint_of_another_structure_is_no_good_one(tmp_path, state, bias):
    saved = Checkpoints(tmp_path)
    saved.save(3, state, {})
    saved.close()
    params = {"model_0": state["params"]["model_0"] | {"bias": bias}}
    with pytest.raises(CheckpointError, match=str(tmp_path / "checkpoints" / "3")):
        Checkpoints(tmp_path).restore(3, state | {"params": params})


def test_the_same_step_is_saved_again_once_its_epoch_is_counted(tmp_path, state):
    for epoch in (1, 2):
        saved = Checkpoints(tmp_path)
        saved.save(3, state, {"epoch": epoch})
        saved.close()
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.steps() == [3]
    assert checkpoints.progress(3) == {"epoch": 2}
    assert_same_bits(checkpoints.restore(3, state), state)


def test_a_new_run_has_nothing_to_restore(tmp_path, state):
    assert Checkpoints(tmp_path).steps() == []


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
    assert checkpoints.steps() == [10, 9]
    checkpoints.close()


def test_a_damaged_checkpoint_is_told_apart_from_a_good_one(tmp_path, state):
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, {**state, "step": jnp.int32(step)}, {"epoch": step})
    checkpoints.close()
    damage(tmp_path / "checkpoints" / "2")
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(CheckpointError, match=str(tmp_path / "checkpoints" / "2")):
        checkpoints.restore(2, state)
    assert int(checkpoints.restore(1, state)["step"]) == checkpoints.progress(1)["epoch"] == 1


def test_a_full_disk_is_one_clear_error_and_keeps_what_was_saved(tmp_path, state, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state, {"epoch": 1})
    checkpoints.wait()

    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints._manager, "save", full)
    with pytest.raises(UserError, match="the disk is full"):
        checkpoints.save(2, state, {"epoch": 2})
    assert Checkpoints(tmp_path).progress(1) == {"epoch": 1}


def test_what_is_written_in_the_background_does_not_wait_and_keeps_its_order(tmp_path, state):
    checkpoints, may_go, done = Checkpoints(tmp_path), threading.Event(), []

    def write(number):
        assert may_go.wait(10)
        done.append(number)
        checkpoints.save(number, on_host(state), {"epoch": number})

    checkpoints.in_background(partial(write, 1))
    assert not done  # whoever trains is not held up
    may_go.set()
    checkpoints.in_background(partial(write, 2))
    checkpoints.close()
    assert done == [1, 2]
    again = Checkpoints(tmp_path)
    assert again.steps() == [2, 1]
    assert_same_bits(again.restore(2, state), state)


def test_copies_for_the_background_are_no_views(state):
    copies = jax.tree.leaves(on_host(state))
    assert copies
    assert all(isinstance(copy, np.ndarray) and copy.flags.owndata for copy in copies)


@pytest.mark.parametrize("ask", ["in_background", "wait", "newest", "close"])
def test_an_error_of_the_background_comes_out_where_it_is_next_asked(tmp_path, ask):
    checkpoints = Checkpoints(tmp_path)

    def write():
        raise UserError("weights/last: cannot be written (the disk is full); what was there before is untouched")

    checkpoints.in_background(write)
    with pytest.raises(UserError, match="weights/last: cannot be written"):
        getattr(checkpoints, ask)(*([lambda: None] if ask == "in_background" else []))


def test_an_error_of_a_background_save_is_told_once(tmp_path, state, caplog):
    checkpoints = Checkpoints(tmp_path)
    (tmp_path / "checkpoints").rmdir()
    (tmp_path / "checkpoints").write_text("in the way")

    def save() -> None:
        checkpoints.save(1, state, {"epoch": 1})
        checkpoints.wait()

    logging.getLogger("absl").setLevel(logging.WARNING)  # absl sets its own level again when its flags are read
    with pytest.raises(UserError, match="the checkpoint could not be saved"):
        save()
    assert not caplog.records
