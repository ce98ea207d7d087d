"""Rungs 1 to 3 of the ladder: the output of every layer, heads, decoded boxes."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import seeding
from summary import Summary

from yolojax.model.decode import decode
from yolojax.model.network import Network

NETWORKS = ("n", "s", "m", "l", "x", "n6", "real")


@partial(jax.jit, static_argnums=0)
def run(spec: Any, variables: Any, images: Any) -> tuple[Any, Any, Any]:
    heads, captured = Network(spec).apply(
        variables, images, mutable=["intermediates"], capture_intermediates=lambda module, _: len(module.path) == 1
    )
    return heads, decode(heads, spec), captured["intermediates"]


def predict(name: str, network: Any, dtype: Any) -> tuple[list[np.ndarray], np.ndarray, dict[str, np.ndarray]]:
    spec, variables = network(name)
    images = seeding.images(f"inference {name}", 1 if name in ("n", "real") else 2, 64)
    variables = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), variables)
    heads, boxes, captured = jax.device_get(run(spec, variables, jnp.asarray(images, dtype) / 255))
    assert heads[0].dtype == boxes.dtype == dtype
    return heads, boxes, {layer: output["__call__"][0] for layer, output in captured.items()}


@pytest.fixture(scope="module", params=NETWORKS)
def name(request: pytest.FixtureRequest) -> Iterator[str]:
    """A network; both tests of one come before the next, so that no two are in memory at once."""
    yield request.param
    jax.clear_caches()


@pytest.mark.usefixtures("float64")
def test_layers_heads_and_boxes_in_double_precision(name, network, golden, worst):
    heads, boxes, outputs = predict(name, network, jnp.float64)
    outputs.pop(f"model_{len(network(name)[0].layers) - 1}")  # Detect: its levels follow
    outputs |= {f"level_{level}": head for level, head in enumerate(heads)}
    expected = Summary.load(golden(f"inference_{name}"), "layers")
    # Upsampling and concatenation have no module here; every layer with weights has.
    assert set(outputs) >= {layer for layer in network(name)[1]["params"] if layer in expected.paths}
    assert len(outputs) > 15
    assert worst("layers and heads, float64", expected.only(outputs).errors(outputs)) <= 1e-8

    reference = golden(f"inference_{name}")["boxes64"]
    errors = np.abs(boxes[..., :6] - reference).max((0, 1)) / np.abs(reference).max((0, 1))
    assert worst("decoded boxes, float64", dict(zip("xywhoc", errors, strict=True))) <= 1e-8


def test_heads_and_boxes_in_single_precision(name, network, golden, worst):
    heads, boxes, _ = predict(name, network, jnp.float32)
    errors = {}
    for level, head in enumerate(heads):
        reference = golden(f"inference_{name}")[f"heads32.{level}"]
        assert head.shape == reference.shape
        errors[f"level {level}"] = np.abs(head - reference).max() / np.abs(reference).max()
    assert worst("heads, float32", errors) <= 1e-4

    reference = golden(f"inference_{name}")["boxes32"]
    pixels = np.abs(boxes[..., :4] - reference[..., :4]).max((0, 1))
    assert worst("boxes, float32, pixels", dict(zip("xywh", pixels, strict=True))) <= 0.05
