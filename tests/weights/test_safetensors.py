import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from yolojax.cli.main import main
from yolojax.errors import UserError
from yolojax.model.network import init_variables
from yolojax.model.spec import load_spec
from yolojax.tree import flatten
from yolojax.weights.find import load_weights
from yolojax.weights.safetensors import read_safetensors, write_safetensors
from yolojax.weights.store import Weights, save_weights

safetensors = pytest.importorskip("safetensors")


@pytest.fixture
def weights(tiny_model):
    spec = load_spec(tiny_model)
    variables = jax.tree.map(np.array, init_variables(spec, jax.random.key(0)))
    bias = variables["params"]["model_0"]["bn"]["bias"]
    bias[:4] = -0.0, np.finfo(np.float32).tiny / 8, np.pi, -1e38  # a sign of nothing, a denormal, and others
    source = {"file": "a.pt", "licence": "AGPL-3.0", "image_size": 64}
    return Weights(spec=spec, names=("naïve", "| dog"), variables=variables, source=source)


def assert_same(weights, other):
    assert (weights.spec, weights.names, dict(weights.source)) == (other.spec, other.names, dict(other.source))
    arrays, others = flatten(weights.variables), flatten(other.variables)
    assert arrays.keys() == others.keys()
    for path, leaf in arrays.items():
        assert (leaf.dtype, leaf.shape, leaf.tobytes()) == (np.float32, others[path].shape, others[path].tobytes()), (
            path
        )


def test_every_bit_comes_back_from_folder_and_file(tmp_path, weights):
    write_safetensors(tmp_path / "w", weights, "a card")
    assert_same(load_weights(tmp_path / "w"), weights)
    assert_same(load_weights(tmp_path / "w" / "model.safetensors"), weights)
    (tmp_path / "w" / "model.safetensors").rename(tmp_path / "alone.safetensors")
    assert_same(load_weights(tmp_path / "alone.safetensors"), weights)
    assert (tmp_path / "w" / "README.md").read_text() == "a card"
    config = json.loads((tmp_path / "w" / "config.json").read_text())
    assert config["library_name"] == "yolojax"
    assert config["classes"] == ["naïve", "| dog"]
    save_weights(tmp_path / "back", load_weights(tmp_path / "alone.safetensors"))
    assert_same(load_weights(tmp_path / "back"), weights)


def test_other_programs_read_the_arrays(tmp_path, weights):
    from safetensors.numpy import load_file

    write_safetensors(tmp_path / "w", weights, "")
    arrays = load_file(tmp_path / "w" / "model.safetensors")
    assert arrays.keys() == flatten(weights.variables).keys()
    np.testing.assert_array_equal(
        arrays["params/model_0/conv/kernel"], weights.variables["params"]["model_0"]["conv"]["kernel"]
    )


def test_it_is_read_without_torch(tmp_path, weights):
    write_safetensors(tmp_path / "w", weights, "")
    code = (
        "import sys; sys.modules['torch'] = None; from yolojax.weights.find import load_weights; "
        f"print(load_weights({str(tmp_path / 'w')!r}).spec.classes)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "2\n"


@pytest.fixture
def freeze(tmp_path, contents, capfd):
    """``yolojax freeze`` with weights: its status and output. With status 2 it says one sentence; no file is ever changed."""

    def run(place):
        before = contents(tmp_path)
        status = main(["freeze", "--weights", str(place)])
        assert contents(tmp_path) == before
        out, err = capfd.readouterr()
        assert "Traceback" not in out + err
        assert len(err.splitlines()) == (status == 2)
        return status, " ".join((out + err).split())

    return run


@pytest.mark.parametrize("cut", [0, 7, 100, -4])
def test_a_damaged_file_is_refused_and_left_alone(tmp_path, weights, freeze, cut):
    write_safetensors(tmp_path / "w", weights, "")
    file = tmp_path / "w" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:cut])
    status, text = freeze(file)
    assert status == 2
    assert "model.safetensors: is damaged (" in text
    assert text.endswith("; copy or download it again")


def change_array(file, path, change):
    """Write a file anew, with another array at a path."""
    from safetensors import safe_open
    from safetensors.numpy import save_file

    with safe_open(file, framework="numpy") as content:
        metadata, arrays = content.metadata(), {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
    save_file({**arrays, path: change(arrays[path])}, file, metadata)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (np.int32, "has dtype int32 instead of float32"),
        (np.bool_, "has dtype bool instead of float32"),
        (
            lambda array: array * np.float32("nan"),
            "is not finite (NaN or infinity); the training that wrote it diverged",
        ),
        (lambda array: np.where(array == array.max(), np.inf, array).astype(np.float16), "is not finite"),
        (lambda array: array.astype(np.float64) + 1e300, "is not finite"),
        (lambda array: array[..., :1].copy(), "arrays and architecture do not fit; other shape:"),
    ],
)
def test_arrays_that_no_network_can_use_are_refused(tmp_path, weights, freeze, change, message):
    write_safetensors(tmp_path / "w", weights, "")
    change_array(tmp_path / "w" / "model.safetensors", "params/model_1/conv/kernel", change)
    status, text = freeze(tmp_path / "w")
    assert status == 2
    assert "model.safetensors: " in text
    assert message in text
    assert "params/model_1/conv/kernel" in text


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_floating_point_numbers_become_float32(tmp_path, weights, dtype):
    import ml_dtypes  # bfloat16 of NumPy

    write_safetensors(tmp_path / "w", weights, "")
    kernel = weights.variables["params"]["model_1"]["conv"]["kernel"].astype(getattr(ml_dtypes, dtype, dtype))
    change_array(tmp_path / "w" / "model.safetensors", "params/model_1/conv/kernel", lambda _: kernel)
    read = load_weights(tmp_path / "w").variables["params"]["model_1"]["conv"]["kernel"]
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, kernel.astype(np.float32))


def edited(text):
    config = json.loads(text)
    return json.dumps(config | {"classes": ["cat", "dog"], "strides": [1, 2]})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (edited, "says something else about classes, strides"),
        (lambda text: text[:-3], "cannot be read ("),
        (lambda text: "[]", "holds no record"),
        (
            lambda text: '{"model_type": "bert"}',
            "says something else about format, architecture, classes, strides, source",
        ),
    ],
)
def test_a_config_that_is_edited_or_broken_changes_nothing_and_is_told(tmp_path, weights, freeze, change, message):
    write_safetensors(tmp_path / "w", weights, "")
    config = tmp_path / "w" / "config.json"
    config.write_text(change(config.read_text()), encoding="utf-8")
    status, text = freeze(tmp_path / "w")
    assert status == 0
    assert f"config.json: {message}" in text
    assert text.count("what counts is the record inside model.safetensors") == 1
    assert_same(load_weights(tmp_path / "w"), weights)


@pytest.mark.parametrize(
    "change", [None, lambda text: json.dumps(json.loads(text), sort_keys=True), lambda text: "\ufeff" + text]
)
def test_a_config_that_says_the_same_or_is_gone_is_not_spoken_of(tmp_path, weights, freeze, change):
    write_safetensors(tmp_path / "w", weights, "")
    config = tmp_path / "w" / "config.json"
    if change is None:
        config.unlink()
    else:
        config.write_text(change(config.read_text()), encoding="utf-8")
    status, text = freeze(tmp_path / "w")
    assert status == 0
    assert "config.json" not in text


def test_a_file_of_others_is_refused(tmp_path, weights):
    from safetensors.numpy import save_file

    save_file({"a": np.zeros(3, np.float32)}, tmp_path / "bert.safetensors")
    with pytest.raises(UserError, match=r"bert\.safetensors: holds arrays but not which network they belong to"):
        load_weights(tmp_path / "bert.safetensors")
    record = {
        "format": "yolojax weights 1",
        "architecture": weights.spec.to_dict(),
        "classes": ["a", "b"],
        "source": {},
    }
    save_file({"a": np.zeros(3, np.float32)}, tmp_path / "b.safetensors", {"yolojax": json.dumps(record)})
    with pytest.raises(
        UserError, match=r"b\.safetensors: arrays and architecture do not fit; missing: batch_stats/model_0/bn/mean"
    ):
        read_safetensors(tmp_path / "b.safetensors")


def test_the_package_is_asked_for(tmp_path, weights, monkeypatch):
    write_safetensors(tmp_path / "w", weights, "")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(UserError, match=r"need safetensors: pip install 'yolojax\[safetensors\]'"):
        load_weights(tmp_path / "w")
