import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yolojax.tree import flatten, map_with_path, merge, partition, unflatten

keys = st.text("abc_0123", min_size=1, max_size=3)
few = settings(max_examples=40)
trees = st.dictionaries(
    keys, st.recursive(st.integers(), lambda inner: st.dictionaries(keys, inner, min_size=1, max_size=3), max_leaves=8)
)


@few
@given(trees)
def test_unflatten_undoes_flatten(tree):
    assert unflatten(flatten(tree)) == tree


@few
@given(trees, st.randoms(use_true_random=False))
def test_merge_undoes_partition(tree, random):
    mask = map_with_path(lambda path, leaf: random.random() < 0.5, tree)
    chosen, rest = partition(tree, mask)
    assert merge(chosen, rest) == merge(rest, chosen) == tree
    assert {path for path, leaf in flatten(chosen).items() if leaf is not None} == {
        path for path, value in flatten(mask).items() if value
    }


def test_leaves_pass_by_identity():
    leaf = np.array([-0.0, np.nan])
    chosen, rest = partition({"a": {"b": leaf}, "c": 0}, {"a": {"b": True}, "c": False})
    assert chosen["a"]["b"] is leaf
    assert merge(chosen, rest)["a"]["b"] is leaf


def test_order_is_kept():
    assert list(flatten({"model_2": {"b": 1, "a": 2}, "model_10": {"c": 3}})) == [
        "model_2/b",
        "model_2/a",
        "model_10/c",
    ]


@pytest.mark.parametrize("paths", [("a", "a/b"), ("a/b", "a"), ("a/b", "a/b/c/d")])
def test_a_leaf_is_no_folder(paths):
    with pytest.raises(ValueError, match="both a leaf and a folder"):
        unflatten(dict.fromkeys(paths, 0))


def test_different_structures_are_named():
    with pytest.raises(ValueError, match="differ at a/c"):
        partition({"a": {"b": 1}}, {"a": {"b": True, "c": True}})
    with pytest.raises(ValueError, match="a/b is in both parts"):
        merge({"a": {"b": 1}}, {"a": {"b": 2}})
    with pytest.raises(ValueError, match="a/b is in neither part"):
        merge({"a": {"b": None}}, {"a": {"b": None}})
