"""Images as the network takes them."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike


def normalise(images: Array, dtype: DTypeLike = jnp.float32) -> Array:
    """Bytes to 0…1.

    Args:
      images: uint8, any shape.
      dtype: of the result.

    >>> normalise(jnp.array([0, 255], jnp.uint8)).tolist()
    [0.0, 1.0]
    """
    return images.astype(dtype) / 255
