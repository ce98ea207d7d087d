"""Where features lie, and that only whole ones do."""

import errno
import os

import jax.numpy as jnp
import numpy as np
import pytest

from yolojax.errors import UserError
from yolojax.features.key import Key
from yolojax.features.store import Store, keys_on_disk

KEY = Key({"seed": "0", "images": "a"})
SHAPES = [(3, 2, 2, 8), (3, 1, 1, 16)]


class Filling:
    """Writes a number, and counts."""

    def __init__(self, whole=True):
        self.calls, self.whole = 0, whole

    def __call__(self, arrays):
        self.calls += 1
        for number, array in enumerate(arrays):
            array[:] = number + self.calls
        return {"mask": np.array([True, False])} if self.whole else None


@pytest.fixture(params=["memory", "disk"])
def folder(request, tmp_path):
    return None if request.param == "memory" else tmp_path / "features"


def test_what_was_computed_once_is_read_again(folder):
    store, fill = Store(KEY, folder), Filling()
    assert not store.has("view-0")
    for _ in range(2):
        kept = store("view-0", SHAPES, jnp.bfloat16, fill)
        assert [array.shape for array in kept.features] == SHAPES
        assert [float(array.min()) for array in kept.features] == [1, 2]
        assert kept.features[0].dtype == jnp.bfloat16
        np.testing.assert_array_equal(kept.beside["mask"], [True, False])
    assert fill.calls == 1
    assert store.has("view-0")
    assert not store.has("view-1")
    Store(KEY, folder)("view-0", SHAPES, jnp.bfloat16, fill)
    assert fill.calls == (2 if folder is None else 1)


def test_what_was_broken_off_is_computed_anew(folder):
    store = Store(KEY, folder)
    assert store("view-0", SHAPES, np.float32, Filling(whole=False)) is None
    assert not store.has("view-0")
    assert folder is None or not list(folder.iterdir())
    assert store("view-0", SHAPES, np.float32, Filling()) is not None


def test_a_damaged_file_is_computed_anew(tmp_path):
    fill = Filling()
    for damage in (lambda file: file.write_bytes(b"x"), lambda file: file.unlink()):
        for kind in ("bin", "npz"):
            Store(KEY, tmp_path)("val", SHAPES, np.float32, fill)
            damage(tmp_path / f"{KEY.digest}-val.{kind}")
            calls = fill.calls
            assert Store(KEY, tmp_path)("val", SHAPES, np.float32, fill).features[0].min() == calls + 1


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match="features cannot be kept there"):
        Store(KEY, tmp_path)("val", SHAPES, np.float32, Filling())
    assert not list(tmp_path.iterdir())


def test_what_differs_from_the_nearest_key_is_named(tmp_path):
    for parts in ({"seed": "1", "images": "b"}, {"seed": "1", "images": "a"}):
        Store(Key(parts), tmp_path)("val", SHAPES, np.float32, Filling())
    assert KEY.changed(keys_on_disk(tmp_path)) == ["seed"]
    assert KEY.changed([]) == []
