"""The smallest vocabulary for choosing leaves of a nested dict: flatten, map, partition, merge.

A path is the keys joined by ``/``, for example ``model_2/m_0/cv1/conv/kernel``. Leaves are whatever is not a mapping.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

Tree: TypeAlias = dict[str, Any]


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}/")
        else:
            yield prefix + key, value


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The leaves by path, in the order of the tree; an empty dict inside leaves no trace.

    >>> flatten({"a": {"b": 1, "c": 2}, "d": 3})
    {'a/b': 1, 'a/c': 2, 'd': 3}
    """
    return dict(_leaves(tree))


def unflatten(leaves: Mapping[str, Any]) -> Tree:
    """The nested dict that ``flatten`` took apart.

    Raises:
      ValueError: a path is both a leaf and a folder; the message names it.

    >>> unflatten({"a/b": 1, "a/c": 2, "d": 3})
    {'a': {'b': 1, 'c': 2}, 'd': 3}
    """
    tree: Tree = {}
    folders = {"": tree}

    def folder(path: str) -> Tree:
        if path not in folders:
            above, _, key = path.rpartition("/")
            parent = folder(above)
            if key in parent:
                raise ValueError(f"{path} is both a leaf and a folder")
            folders[path] = parent[key] = {}
        return folders[path]

    for path, leaf in leaves.items():
        above, _, key = path.rpartition("/")
        parent = folder(above)
        if key in parent:
            raise ValueError(f"{path} is both a leaf and a folder")
        parent[key] = leaf
    return tree


def map_with_path(function: Callable[..., Any], tree: Mapping[str, Any], *rest: Mapping[str, Any]) -> Tree:
    """Apply ``function(path, leaf, *leaves of the rest)`` to every leaf.

    Args:
      function: called once per leaf.
      tree: gives the structure.
      rest: trees of the same structure.

    Raises:
      ValueError: the structures differ; the message names the first path.

    >>> map_with_path(lambda path, x, y: f"{path} {x + y}", {"a": {"b": 1}}, {"a": {"b": 2}})
    {'a': {'b': 'a/b 3'}}
    """
    flat, others = flatten(tree), [flatten(other) for other in rest]
    for other in others:
        if different := flat.keys() ^ other.keys():
            raise ValueError(f"the trees differ at {min(different)}")
    return unflatten({path: function(path, leaf, *(other[path] for other in others)) for path, leaf in flat.items()})


def partition(tree: Mapping[str, Any], mask: Mapping[str, Any]) -> tuple[Tree, Tree]:
    """Split a tree into the leaves where ``mask`` is true and the rest.

    Args:
      tree: nested dict of arrays.
      mask: same structure, booleans.

    Returns:
      Two trees of the structure of ``tree``; a leaf that belongs to the other one is ``None``. ``merge`` puts them
      together again. (To JAX ``None`` is no leaf, so a gradient with respect to one part is about that part alone.)

    Raises:
      ValueError: the structures differ; the message names the first path.

    >>> partition({"a": 1, "b": 2}, {"a": True, "b": False})
    ({'a': 1, 'b': None}, {'a': None, 'b': 2})
    """
    return (
        map_with_path(lambda _, leaf, chosen: leaf if chosen else None, tree, mask),
        map_with_path(lambda _, leaf, chosen: None if chosen else leaf, tree, mask),
    )


def merge(first: Mapping[str, Any], second: Mapping[str, Any]) -> Tree:
    """Put together what ``partition`` took apart; the leaves are the same objects.

    Raises:
      ValueError: the structures differ, or a leaf is in both or in neither; the message names the path.

    >>> merge({"a": 1, "b": None}, {"a": None, "b": 2})
    {'a': 1, 'b': 2}
    """

    def choose(path: str, left: Any, right: Any) -> Any:
        if (left is None) == (right is None):
            raise ValueError(f"{path} is in {'neither part' if left is None else 'both parts'}")
        return right if left is None else left

    return map_with_path(choose, first, second)
