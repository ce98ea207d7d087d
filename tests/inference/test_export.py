"""Exported files give what the network gives, and need nothing of this package."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from yolojax.errors import UserError
from yolojax.evaluation.nms import NmsSettings, suppress_batch
from yolojax.inference.export import Form, largest_differences, read_onnx, read_stablehlo, write_onnx, write_stablehlo
from yolojax.inference.predictor import make_predict
from yolojax.model.network import abstract_variables
from yolojax.model.spec import load_spec
from yolojax.tree import flatten, unflatten
from yolojax.weights.store import Weights

SIZE = (64, 96)
NMS = NmsSettings(confidence=0.3, iou=0.4, max_detections=20, multi_label=False)


@pytest.fixture(scope="module")
def weights(tiny_model) -> Weights:
    """A small network whose scores differ from cell to cell."""
    spec = load_spec(tiny_model)
    rng = np.random.default_rng(0)

    def draw(path: str, shape: tuple[int, ...]) -> np.ndarray:
        if path.endswith("kernel"):
            return rng.normal(0, 1.5 / np.sqrt(np.prod(shape[:3])), shape)
        return rng.uniform(0.5, 1.5, shape) if path.endswith(("scale", "var")) else rng.uniform(-0.5, 0.5, shape)

    leaves = flatten(abstract_variables(spec))
    drawn = {path: draw(path, leaf.shape).astype(np.float32) for path, leaf in leaves.items()}
    source = {"licence": "AGPL-3.0-or-later", "file": "tiny.pt"}
    return Weights(spec=spec, names=("naïve 'cat'", "dog"), variables=unflatten(drawn), source=source)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (3, *SIZE, 3), np.uint8)


@pytest.fixture(scope="module")
def predictions(weights, images) -> np.ndarray:
    return np.asarray(make_predict([weights])(images)[0])


@pytest.mark.parametrize("batch", [3, None])
def test_stablehlo(weights, images, predictions, tmp_path, batch):
    write_stablehlo(tmp_path / "a.stablehlo", weights, Form(image_size=SIZE, batch_size=batch))
    run = read_stablehlo(tmp_path / "a.stablehlo")
    pixels, score = largest_differences(run(images), (predictions,))
    assert pixels < 1e-3
    assert score < 1e-5
    if batch is None:
        assert run(images[:1])[0].shape == predictions[:1].shape


def test_stablehlo_runs_without_this_package(weights, images, predictions, tmp_path):
    write_stablehlo(tmp_path / "a.stablehlo", weights, Form(image_size=SIZE, batch_size=None))
    np.save(tmp_path / "images.npy", images)
    code = (
        "import sys; sys.modules['yolojax'] = sys.modules['flax'] = None\n"
        "import numpy as np; from jax import export; from pathlib import Path\n"
        "network = export.deserialize(bytearray(Path('a.stablehlo').read_bytes()))\n"
        "np.save('found.npy', network.call(np.load('images.npy')))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    np.testing.assert_allclose(np.load(tmp_path / "found.npy"), predictions, atol=1e-3)


def test_nms_inside(weights, images, predictions, tmp_path):
    write_stablehlo(tmp_path / "a.stablehlo", weights, Form(image_size=SIZE, batch_size=None, nms=NMS))
    detections, counts = read_stablehlo(tmp_path / "a.stablehlo")(images)
    expected, expected_counts = suppress_batch(jnp.asarray(predictions), NMS)
    assert counts.min() > 0
    np.testing.assert_array_equal(counts, expected_counts)
    np.testing.assert_allclose(detections, expected, atol=1e-3)
    record = json.loads((tmp_path / "a.stablehlo.json").read_text())
    assert (record["confidence"], record["iou"]) == (0.3, 0.4)


def test_bfloat16_takes_half_the_room(weights, images, tmp_path):
    expected = np.asarray(make_predict([weights], dtype=jnp.bfloat16)(images)[0])
    sizes = []
    for dtype in ("float32", "bfloat16"):
        write_stablehlo(tmp_path / dtype, weights, Form(image_size=SIZE, batch_size=3, dtype=dtype))
        sizes.append((tmp_path / dtype).stat().st_size)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(weights.variables["params"]))
    assert sizes[0] - sizes[1] == pytest.approx(2 * parameters, rel=0.05)
    assert largest_differences(read_stablehlo(tmp_path / "bfloat16")(images), (expected,))[1] < 0.02


def test_what_stands_beside_stablehlo(weights, tmp_path):
    write_stablehlo(tmp_path / "a.stablehlo", weights, Form(image_size=SIZE, batch_size=2))
    record = json.loads((tmp_path / "a.stablehlo.json").read_text())
    assert record["names"] == ["naïve 'cat'", "dog"]
    assert (record["stride"], record["image_size"], record["batch"]) == (32, [64, 96], 2)
    assert record["licence"] == "AGPL-3.0-or-later"
    assert json.loads(record["source"])["file"] == "tiny.pt"


@pytest.mark.parametrize("batch", [3, None])
def test_onnx(weights, images, predictions, tmp_path, batch):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("jax2onnx")
    pytest.importorskip("onnxruntime")
    path = tmp_path / "a.onnx"
    write_onnx(path, weights, Form(image_size=SIZE, batch_size=batch))
    pixels, score = largest_differences(read_onnx(path)(images), (predictions,))
    assert pixels < 1e-2
    assert score < 1e-5
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    # What YOLOv5's own readers look at.
    record = {entry.key: entry.value for entry in model.metadata_props}
    assert eval(record["names"]) == {0: "naïve 'cat'", 1: "dog"}
    assert int(record["stride"]) == 32  # what YOLOv5 pads images to, for coarser levels or not
    [taken], [given] = model.graph.input, model.graph.output
    assert (taken.name, given.name) == ("images", "output0")
    shape = [side.dim_value or side.dim_param for side in taken.type.tensor_type.shape.dim]
    assert shape == [batch or "batch", 3, *SIZE]


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (Form(image_size=SIZE, nms=NMS), "--nms: ONNX gets none"),
        (Form(image_size=SIZE, dtype="bfloat16"), "no bfloat16 convolution"),
    ],
)
def test_what_onnx_cannot_hold(weights, tmp_path, form, message):
    with pytest.raises(UserError, match=message):
        write_onnx(tmp_path / "a.onnx", weights, form)
    assert not (tmp_path / "a.onnx").exists()


def test_differences():
    outputs = np.zeros((1, 2, 7))
    other = outputs.copy()
    other[0, 1, 2], other[0, 0, 6] = 3, 0.25
    assert largest_differences((other,), (outputs,)) == (3, 0.25)
    assert largest_differences((outputs[:, :1],), (outputs,)) == (float("inf"), float("inf"))
    assert largest_differences((outputs, np.array([1])), (outputs, np.array([2]))) == (float("inf"), float("inf"))
