import numpy as np
import pytest

from yolojax.freezing.signals import movement, norms, total


def test_norms_by_path():
    lengths = norms({"a": {"b": np.array([[3.0], [4.0]]), "c": None}, "d": np.zeros(2)})
    assert lengths == pytest.approx({"a/b": 5.0, "d": 0.0})
    assert all(type(value) is float for value in lengths.values())


def test_movement_is_the_norm_of_the_change():
    before = {"a": {"b": np.array([1.0, 2.0])}, "c": np.array(-1.0)}
    after = {"a": {"b": np.array([4.0, -2.0])}, "c": np.array(1.0)}
    assert movement(before, after) == pytest.approx({"a/b": 5.0, "c": 2.0})


def test_total_is_the_norm_of_all_together():
    values = {"a": 2.0, "b": 3.0, "c": 6.0, "d": 100.0}
    assert total(values, "abc") == pytest.approx(7.0)
    assert total(values, ()) == 0
