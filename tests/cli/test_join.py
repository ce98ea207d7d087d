"""``yolojax join`` and what other commands make of its network."""

import json

import jax
import numpy as np
import pytest
import yaml

from yolojax.cli.main import main
from yolojax.model.network import init_variables
from yolojax.model.spec import load_spec
from yolojax.weights.store import Weights, read_weights, save_weights


@pytest.fixture(scope="module")
def networks(tiny_model, tmp_path_factory):
    """Two weights directories of networks with one backbone: blue and red squares, and red and green ones."""
    folder = tmp_path_factory.mktemp("networks")
    for number, names in enumerate((("blue", "red"), ("red", "green"))):
        spec = load_spec(tiny_model, 2)
        trunk, own = (init_variables(spec, jax.random.key(seed)) for seed in (0, number + 1))
        for collection, modules in trunk.items():
            own[collection] |= {name: tree for name, tree in modules.items() if int(name.split("_")[1]) < 5}
        variables = jax.tree.map(np.asarray, own)
        source = {"file": f"{number}.pt", "image_size": 64}
        save_weights(folder / str(number), Weights(spec=spec, names=names, variables=variables, source=source))
    return folder / "0", folder / "1"


@pytest.fixture(scope="module")
def strangers(tiny_model, pyramid, networks):
    """Two more that have nothing in common with them: other initial weights, other strides."""
    folder = networks[0].parent
    (folder / "strides.yaml").write_text(yaml.safe_dump(pyramid(4, 5)))
    for name, model in (("unrelated", tiny_model), ("strides", folder / "strides.yaml")):
        spec = load_spec(model, 2)
        variables = jax.tree.map(np.asarray, init_variables(spec, jax.random.key(9)))
        save_weights(folder / name, Weights(spec=spec, names=("x", "y"), variables=variables, source={}))
    return folder


@pytest.fixture
def joined(networks, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = [*map(str, networks), "--output", "both", "--at-least", "5", "--json", "join.json"]
    assert main(["join", *words]) == 0
    (tmp_path / "printed.txt").write_text(capsys.readouterr().out)
    return tmp_path / "both"


def test_what_is_written_and_shown(joined, networks):
    printed = (joined.parent / "printed.txt").read_text()
    for text in ("trunk", "0–4", "branch A", "5–6", "branch B", "7–8", "4 classes"):
        assert text in printed
    content = json.loads((joined.parent / "join.json").read_text())
    assert [part["from"] for part in content["parts"]] == ["A", *map(str, networks)]
    assert content["classes"] == ["blue", "red", "red (B)", "green"]
    assert [part["layers"] for part in content["parts"]] == [[0, 4], [5, 6], [7, 8]]
    weights = read_weights(joined)
    total = sum(leaf.size for leaf in jax.tree.leaves(weights.variables["params"]))
    assert sum(part["parameters"] for part in content["parts"]) == total
    assert weights.spec.name == "both"


def test_old_classes_keep_every_digit(joined, networks, tiny_data, capsys):
    figures = []
    for weights in (networks[0], joined):
        words = ["--weights", str(weights), "--data", str(tiny_data), "--img", "64", "--noplots", "--device", "cpu"]
        assert main(["val", *words, "--json", "val.json"]) == 0
        figures.append(json.loads((joined.parent / "val.json").read_text()))
    assert figures[0]["per_class"] == figures[1]["per_class"]
    assert figures[0]["instances"] > 0
    assert figures[0]["map50"] == figures[1]["map50"] > 0


@pytest.mark.parametrize("way", ["float32", "unfused", "stablehlo", "onnx"])
def test_every_way_of_running_it_measures_the_classes_of_the_data(joined, networks, tiny_data, way):
    if way == "onnx":
        pytest.importorskip("jax2onnx")
        pytest.importorskip("onnxruntime")
    data = yaml.safe_load(tiny_data.read_text()) | {"names": ["red (B)", "green"]}  # the last of the four that it knows
    (joined.parent / "new.yaml").write_text(yaml.safe_dump(data))
    figures = []
    for weights in (networks[1], joined):
        words = f"--weights={weights} --data=new.yaml --img=64 --device=cpu --workers=0".split()
        assert main(["bench", *words, "--include", way, "--json", "bench.json"]) == 0
        (row,) = json.loads((joined.parent / "bench.json").read_text())["ways"]
        figures.append({name: row[name] for name in ("precision", "recall", "map50", "map50_95")})
    assert figures[1] == pytest.approx(figures[0], abs=1e-3 if way == "onnx" else 1e-6)
    assert figures[0]["map50"] > 0


@pytest.mark.long
def test_plan_and_freeze_tell_of_both_branches(joined, networks):
    words = ["--weights", str(joined), "--json", "f.json"]
    assert main(["freeze", *words, "--freeze", "7"]) == 0
    content = json.loads((joined.parent / "f.json").read_text())
    assert [row["layer"] for row in content["layers"]] == list(range(9))
    assert content["trainable"] == sum(row["parameters"] for row in content["layers"][7:])
    flops = []
    for weights in (networks[0], joined):
        words = f"--weights={weights} --img=64 --batch=2 --quick --target=cpu --freeze=5".split()
        assert main(["plan", *words, "--json", "p.json"]) == 0
        flops.append(json.loads((joined.parent / "p.json").read_text())["rows"][0]["flops"])
    assert flops[0] < flops[1] < 2 * flops[0]  # the trunk once, the rest twice


def test_a_class_of_no_branch_is_named(joined, tiny_data, tmp_path, capsys):
    data = yaml.safe_load(tiny_data.read_text()) | {"names": ["blue", "violet"]}
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(data))
    assert main(["val", "--weights", str(joined), "--data", "other.yaml", "--device", "cpu"]) == 2
    assert "no branch of both has a class 'violet'; it has blue, red, red (B), green" in capsys.readouterr().err


def test_an_old_head_on_a_new_trunk(networks, tiny_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["--data", str(tiny_data), "--img", "64", "--noplots", "--device", "cpu", "--json", "val.json"]
    assert main(["val", "--trunk", str(networks[1]), "--head", str(networks[0]), "--split", "5", *words]) == 0
    mixed = json.loads((tmp_path / "val.json").read_text())
    assert main(["val", "--weights", str(networks[0]), *words]) == 0
    assert mixed["per_class"] == json.loads((tmp_path / "val.json").read_text())["per_class"]  # one trunk
    assert mixed["settings"]["weights"] == [f"{networks[0]} on {networks[1]}"]


@pytest.mark.long
def test_training_goes_on_with_a_branch_frozen(joined, tiny_data, tmp_path):
    data = yaml.safe_load(tiny_data.read_text()) | {"names": ["blue", "red", "red (B)", "green"]}
    (tmp_path / "four.yaml").write_text(yaml.safe_dump(data))
    words = ["--weights", str(joined), "--data", "four.yaml", "--img", "64", "--batch", "4", "--epochs", "1"]
    assert main(["train", *words, "--freeze", "7", "--workers", "0", "--noplots", "--device", "cpu"]) == 0
    assert main(["audit", str(joined), "runs/train/exp", "--frozen", "7"]) == 0
    assert main(["audit", str(joined), "runs/train/exp", "--frozen", "9"]) in (1, 2)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--at-least", "6"], "share the first 5 layers, and 6 are asked for"),
        (["--at-least", "5", "--keep", "person"], "--keep person: write the letter of a network"),
        (["--at-least", "5", "--keep", "B:blue"], "--keep B: there is no class 'blue'"),
    ],
)
def test_what_cannot_be_joined(networks, tmp_path, monkeypatch, capsys, words, sentence):
    monkeypatch.chdir(tmp_path)
    assert main(["join", *map(str, networks), "--output", "out", *words]) == 2
    assert sentence in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "joining", "grafting"),
    [
        (
            "unrelated",
            "the networks share no layer, and 10 are asked for: layer 0 of B differs from A in model_0/",
            "--split 9: the head begins with one of the layers 1 to 6",
        ),
        (
            "strides",
            "share no layer, and 10 are asked for: A detects at the strides 8, 16, B at 16, 32",
            "--trunk is strides and --head is tiny: their first 9 layers differ",
        ),
    ],
)
def test_strangers_have_no_trunk_in_common(networks, strangers, tmp_path, monkeypatch, capsys, name, joining, grafting):
    monkeypatch.chdir(tmp_path)
    commands = (
        (["join", str(networks[0]), str(strangers / name), "--output", "out"], joining),
        (["val", "--trunk", str(strangers / name), "--head", str(networks[0]), "--split", "9"], grafting),
    )
    for words, sentence in commands:
        assert main(words) == 2
        (printed,) = capsys.readouterr().err.strip().splitlines()
        assert sentence in printed
        assert not list(tmp_path.iterdir())


def test_a_pt_cannot_hold_it(joined, capsys):
    pytest.importorskip("torch")
    assert main(["export", "--weights", str(joined), "--include", "torch", "--device", "cpu"]) == 2
    assert "a .pt of YOLOv5 holds one Detect, and both has 2" in capsys.readouterr().err


def test_exports_give_the_same(joined, capsys):
    words = ["--weights", str(joined), "--img", "64", "--device", "cpu", "--nms", "--conf-thres", "0.0001"]
    assert main(["export", *words, "--include", "stablehlo"]) == 0
    assert "ok" in capsys.readouterr().out


@pytest.mark.long
def test_detect_begins_with_the_rows_of_old_classes(networks, tiny_data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    data = yaml.safe_load(tiny_data.read_text()) | {"names": ["Red", "sky", "grass"]}
    (tmp_path / "three.yaml").write_text(yaml.safe_dump(data))
    words = ["--weights", str(networks[1]), "--data", "three.yaml", "--img", "64", "--batch", "4", "--epochs", "1"]
    words += ["--freeze", "6", "--workers", "0", "--noplots", "--device", "cpu", "--init-head", "names"]
    assert main(["train", *words, "--same-as", "grass=green"]) == 0
    assert "of classes: Red from red, grass from green; at their prior: sky" in capsys.readouterr().out
    source = read_weights(tmp_path / "runs" / "train" / "exp" / "weights" / "best").source
    assert source["init_head"] == {"mode": "names", "classes": {"Red": "red", "grass": "green"}, "left": ["sky"]}
    assert main(["train", *words, "--same-as", "grass=lawn"]) == 2
    assert "--same-as grass=lawn: 'lawn' is no class of the weights (red, green)" in capsys.readouterr().err
