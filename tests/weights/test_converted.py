"""Copies of converted checkpoints in the cache folder."""

import shutil
import sys

import numpy as np
import pytest

from yolojax.errors import UserError
from yolojax.tree import flatten
from yolojax.weights.find import load_weights


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A ``.pt`` of the embedded weights."""
    pytest.importorskip("torch")
    from convert.writer import write_checkpoint

    path = tmp_path_factory.mktemp("checkpoint") / "own.pt"
    write_checkpoint(path, load_weights("yolov5n-shapes"))
    return path


@pytest.fixture
def without_torch(monkeypatch, tmp_path):
    """A cache folder of its own, and what takes PyTorch away."""
    monkeypatch.setenv("YOLOJAX_CACHE", str(tmp_path / "cache"))
    return lambda: monkeypatch.setitem(sys.modules, "torch", None)


def assert_same(left, right):
    assert (left.spec, left.names, left.source) == (right.spec, right.names, right.source)
    first, second = flatten(left.variables), flatten(right.variables)
    assert list(first) == list(second)
    for path, leaf in first.items():
        assert leaf.dtype == second[path].dtype == np.float32
        assert leaf.tobytes() == second[path].tobytes(), path


def test_the_second_time_needs_no_torch_and_gives_the_same(checkpoint, without_torch):
    first = load_weights(checkpoint)
    without_torch()
    assert_same(load_weights(checkpoint), first)


def test_other_bytes_or_another_name_are_converted(checkpoint, without_torch, tmp_path):
    load_weights(checkpoint)
    shutil.copy(checkpoint, tmp_path / "other.pt")
    assert load_weights(tmp_path / "other.pt").source["file"] == "other.pt"
    (tmp_path / "own.pt").write_bytes(checkpoint.read_bytes()[:-1])
    without_torch()
    with pytest.raises(UserError, match="need PyTorch"):
        load_weights(tmp_path / "own.pt")


def test_a_damaged_copy_is_made_again(checkpoint, without_torch, tmp_path):
    first = load_weights(checkpoint)
    [copy] = (tmp_path / "cache" / "weights").iterdir()
    whole = copy.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], whole[:1000] + b"x" * 100 + whole[1100:]):
        copy.write_bytes(damaged)
        assert_same(load_weights(checkpoint), first)
        assert copy.read_bytes() == whole


def test_without_a_place_for_the_copy_it_is_converted_all_the_same(checkpoint, monkeypatch, tmp_path):
    (tmp_path / "cache").write_text("a file, not a folder")
    monkeypatch.setenv("YOLOJAX_CACHE", str(tmp_path / "cache"))
    for _ in range(2):
        assert load_weights(checkpoint).names == load_weights("yolov5n-shapes").names
    assert (tmp_path / "cache").read_text() == "a file, not a folder"
