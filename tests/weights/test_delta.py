import json

import jax
import numpy as np
import pytest

from yolojax.cli.main import main
from yolojax.errors import UserError
from yolojax.model.network import init_variables
from yolojax.model.spec import load_spec
from yolojax.tree import flatten
from yolojax.weights.delta import arrays_sha256, read_delta
from yolojax.weights.find import load_weights
from yolojax.weights.store import Weights, save_weights


@pytest.fixture(scope="module")
def base(tiny_model, tmp_path_factory):
    """A weights directory of three classes; the data has two."""
    spec = load_spec(tiny_model, 3)
    variables = jax.tree.map(np.asarray, init_variables(spec, jax.random.key(3)))
    folder = tmp_path_factory.mktemp("base") / "base"
    save_weights(folder, Weights(spec=spec, names=("a", "b", "c"), variables=variables, source={"file": "base.pt"}))
    return folder


@pytest.fixture
def train(base, tiny_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*words):
        known = ["--weights", str(base), "--data", str(tiny_data), "--img", "64", "--batch", "4", "--epochs", "2"]
        assert main(["train", *known, "--workers", "0", "--noplots", "--device", "cpu", *words]) == 0
        return tmp_path / "runs" / "train" / "exp" / "weights"

    return run


@pytest.mark.parametrize(
    "freeze",
    [pytest.param("adapters.yaml", marks=pytest.mark.long), pytest.param("bn_only", marks=pytest.mark.long), "6"],
)
def test_base_and_delta_are_the_trained_weights(base, train, tmp_path, freeze):
    (tmp_path / "adapters.yaml").write_text("kind: adapters\nselect: 0-4\ntrain: detect\nrank: 2\nalpha: 4.0\n")
    weights = train("--freeze", freeze)
    delta = read_delta(weights / "last.delta.npz")
    assert delta.base == arrays_sha256(load_weights(base).variables)
    assert ("params/model_0/conv/adapter/down" in delta.arrays) == (freeze == "adapters.yaml")
    assert ("params/model_0/bn/scale" in delta.arrays) == (freeze == "bn_only")
    assert not any(path.endswith("conv/kernel") for path in delta.arrays)
    assert "params/model_6/m_0/kernel" in delta.arrays
    trained, again = load_weights(weights / "last"), load_weights(base, weights / "last.delta.npz")
    assert again.names == trained.names == ("blue", "red")
    assert again.spec == trained.spec
    expected, leaves = flatten(trained.variables), flatten(again.variables)
    assert leaves.keys() == expected.keys()
    for path, leaf in leaves.items():
        assert leaf.tobytes() == expected[path].tobytes(), path
    moved = flatten(load_weights(base).variables)
    assert (moved["params/model_0/conv/kernel"].tobytes() != leaves["params/model_0/conv/kernel"].tobytes()) == (
        freeze == "adapters.yaml"
    )


@pytest.mark.long
def test_statistics_that_move_are_in_it(base, train):
    weights = train("--freeze", "6", "--frozen-bn", "track")
    trained, again = load_weights(weights / "best"), load_weights(base, weights / "best.delta.npz")
    path = "batch_stats/model_0/bn/mean"
    assert flatten(again.variables)[path].tobytes() == flatten(trained.variables)[path].tobytes()
    assert flatten(again.variables)[path].tobytes() != flatten(load_weights(base).variables)[path].tobytes()


@pytest.mark.long
def test_none_where_it_would_save_nothing(train):
    weights = train("--freeze", "1")
    assert (weights / "best").is_dir()
    assert not (weights / "best.delta.npz").exists()


@pytest.mark.long
def test_training_and_bench_begin_from_base_and_delta(base, train, tiny_data, tmp_path):
    weights = train("--freeze", "6")
    delta = ["--delta", str(weights / "best.delta.npz")]
    train(*delta, "--freeze", "2", "--name", "more", "--epochs", "1")
    assert main(["audit", str(weights / "best"), "runs/train/more", "--frozen", "2"]) == 0
    source = load_weights("runs/train/more").source
    assert source["base"]["arrays_sha256"] == arrays_sha256(load_weights(weights / "best").variables)
    figures = []
    for words in (["--weights", str(weights / "best")], ["--weights", str(base), *delta]):
        words += ["--data", str(tiny_data), "--img", "64", "--include", "float32", "--workers", "0", "--device", "cpu"]
        assert main(["bench", *words, "--json", "bench.json"]) == 0
        (row,) = json.loads((tmp_path / "bench.json").read_text())["ways"]
        figures.append((row["map50"], row["map50_95"]))
    assert figures[0] == figures[1]


@pytest.mark.long
def test_other_weights_and_damage_are_refused(base, train, tmp_path, capsys):
    weights = train("--freeze", "6")
    file, others = str(weights / "best.delta.npz"), str(weights / "best")
    capsys.readouterr()
    for command in (["val"], ["detect"], ["bench"], ["export"], ["train"]):
        assert main([*command, "--delta", file, "--weights", others, "--device", "cpu"]) == 2, command
        (printed,) = capsys.readouterr().err.strip().splitlines()
        assert f"{file}: belongs to other weights than" in printed
        assert "give those that it was trained from (base.pt)" in printed
    assert main(["train", "--cfg", "yolov5n", "--delta", file]) == 2
    assert "--delta: is put on weights, and this training starts from none" in capsys.readouterr().err
    (tmp_path / "half.delta.npz").write_bytes((weights / "best.delta.npz").read_bytes()[:200])
    with pytest.raises(UserError, match=r"half\.delta\.npz: is no '\*\.delta\.npz' of a run of ours, or is damaged"):
        read_delta(tmp_path / "half.delta.npz")
    with pytest.raises(UserError, match="no such file"):
        read_delta(tmp_path / "none.delta.npz")
    content = dict(np.load(file))
    path = next(name for name in content if name.startswith("params/"))
    for spoilt, message in ((np.int32(1), "has dtype int32 instead of float32"), (np.float32("nan"), "is not finite")):
        np.savez(tmp_path / "spoilt.delta.npz", **content | {path: np.full_like(content[path], spoilt, type(spoilt))})
        assert main(["val", "--delta", "spoilt.delta.npz", "--weights", str(base), "--device", "cpu"]) == 2
        assert f"spoilt.delta.npz: {path} {message}" in capsys.readouterr().err
        with pytest.raises(UserError, match=f"{path} {message}"):  # before adapters are merged with what is frozen
            read_delta(tmp_path / "spoilt.delta.npz")
