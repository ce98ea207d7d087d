import doctest

import jax.numpy as jnp
import numpy as np
import pytest

from yolojax.model import images


def test_the_example_in_the_docstring():
    results = doctest.testmod(images)
    assert results.attempted
    assert not results.failed


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_every_byte_is_itself_divided_by_255(dtype):
    values = np.arange(256, dtype=np.uint8)
    scaled = images.normalise(jnp.asarray(values), dtype)
    assert scaled.dtype == dtype
    np.testing.assert_array_equal(scaled, jnp.asarray(values, dtype) / 255)
