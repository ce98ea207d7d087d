import jax
import jax.numpy as jnp
import numpy as np

from yolojax.model.decode import decode
from yolojax.model.spec import load_spec

jitted = jax.jit(decode, static_argnums=1)


def test_rows_run_over_level_anchor_row_column():
    spec = load_spec("yolov5n", classes=2)
    sizes = [(4, 6), (2, 3), (1, 2)]
    heads = [jnp.zeros((2, *size, 3, 7)) for size in sizes]
    boxes = np.asarray(jitted(heads, spec))
    assert boxes.shape == (2, 3 * (24 + 6 + 2), 7)
    expected = [
        [(column + 0.5) * stride, (row + 0.5) * stride, *anchor, 0.5, 0.5, 0.5]
        for (rows, columns), stride, anchors in zip(sizes, spec.strides, spec.anchors, strict=True)
        for anchor in anchors
        for row in range(rows)
        for column in range(columns)
    ]
    np.testing.assert_allclose(boxes, [expected] * 2, rtol=1e-6)


def test_one_box_by_hand():
    spec = load_spec("yolov5n", classes=1)
    heads = [jnp.full((1, 8 // scale, 8 // scale, 3, 6), -9.0) for scale in (1, 2, 4)]
    logits = jnp.log(jnp.asarray([0.75, 0.25, 0.9, 0.1, 0.6, 0.2])) - jnp.log1p(
        -jnp.asarray([0.75, 0.25, 0.9, 0.1, 0.6, 0.2])
    )
    heads[1] = heads[1].at[0, 3, 2, 1].set(logits)  # stride 16, row 3, column 2, anchor 62 × 45
    boxes = jitted(heads, spec)
    row = 3 * 64 + 1 * 16 + 3 * 4 + 2
    expected = [(1.5 - 0.5 + 2) * 16, (0.5 - 0.5 + 3) * 16, 1.8**2 * 62, 0.2**2 * 45, 0.6, 0.2]
    np.testing.assert_allclose(boxes[0, row], expected, rtol=1e-5)


def test_the_dtype_of_the_heads_is_kept():
    spec = load_spec("yolov5n", classes=1)
    with jax.enable_x64(True):
        assert decode([jnp.zeros((1, 1, 1, 3, 6), jnp.float64)] * 3, spec).dtype == jnp.float64
    assert decode([jnp.zeros((1, 1, 1, 3, 6), jnp.float32)] * 3, spec).dtype == jnp.float32
