import json
import subprocess
import sys

import jax
import numpy as np
import pytest

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


@pytest.mark.parametrize("cut", [0, 7, 100, -4])
def test_a_damaged_file_is_refused_and_left_alone(tmp_path, weights, cut):
    write_safetensors(tmp_path / "w", weights, "")
    file = tmp_path / "w" / "model.safetensors"
    file.write_bytes(content := file.read_bytes()[:cut])
    with pytest.raises(UserError, match=r"model\.safetensors: is damaged \(.*\); copy or download it again"):
        load_weights(file)
    assert file.read_bytes() == content


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
