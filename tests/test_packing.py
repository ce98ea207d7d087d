"""Small arrays that are carried as few."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from yolojax.mesh import make_mesh, replicated
from yolojax.packing import Packing


@pytest.fixture(scope="module")
def arrays():
    """Of several numbers of axes and dtypes, in no order; one is empty."""
    rng = np.random.default_rng(0)
    vectors = [jnp.asarray(rng.normal(size=size), jnp.float32) for size in (5, 1, 0, 3)]
    kernels = [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((2, 3), (1, 1, 4, 2))]
    others = [jnp.int32(7), jnp.bool_(True), jnp.asarray([1.5, -2], jnp.bfloat16), jnp.float32(0.1)]
    return [vectors[0], kernels[0], others[0], others[1], vectors[1], kernels[1], others[2], *vectors[2:], others[3]]


def same(left, right):
    for one, other in zip(left, right, strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("mesh", [None, make_mesh])
def test_what_is_put_is_taken_again(arrays, mesh):
    mesh = mesh and mesh()
    packing = Packing.of(arrays)
    carried = packing.put(arrays, mesh)
    assert len(carried) == 6  # two kernels, and a vector of each of four dtypes
    assert carried[0] is arrays[1]
    taken = packing.take(carried, mesh)
    same(taken, arrays)
    assert taken[1] is arrays[1]
    if mesh is not None:
        assert {array.sharding for array in (*carried[2:], *(taken[place] for place in (0, 2, 3)))} == {
            replicated(mesh)
        }


def test_a_program_sees_what_the_host_sees(arrays):
    packing = Packing.of(arrays)
    carried = packing.put(arrays, None)
    same(jax.jit(packing.unpack)(carried), arrays)
    same(jax.jit(packing.pack)(arrays), carried)


def test_those_of_like_arrays_are_equal(arrays):
    packing = Packing.of(arrays)
    assert packing == Packing.of(jax.tree.map(jnp.copy, arrays))
    assert hash(packing) == hash(Packing.of(list(arrays)))
    assert packing != Packing.of(arrays[1:])


def test_each_by_itself_where_none_are_put_together(arrays):
    packing = Packing.of(arrays, 0)
    carried = packing.put(arrays, None)
    assert all(one is other for one, other in zip(carried, arrays, strict=True))
    assert all(one is other for one, other in zip(packing.take(carried, None), arrays, strict=True))
    same(jax.jit(packing.unpack)(carried), arrays)
    assert packing != Packing.of(arrays)
