import errno
import json
import os
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from yolojax.cli.main import main
from yolojax.config import configs_root
from yolojax.errors import UserError
from yolojax.model.network import init_variables
from yolojax.model.spec import ModelSpec
from yolojax.weights import store as module
from yolojax.weights.find import EMBEDDED_WEIGHTS, find_weights, load_weights
from yolojax.weights.store import Weights, initialised_parameters, save_weights, transfer

SPEC = ModelSpec.from_dict(
    {
        "nc": 2,
        "anchors": [[10, 13, 16, 30], [30.5, 61, 62, 45]],
        "backbone": [[-1, 1, "Conv", [8, 3, 2]], [-1, 1, "Conv", [8, 3, 2]]],
        "head": [[-1, 1, "Conv", [16, 3, 2]], [[1, 2], 1, "Detect", ["nc", "anchors"]]],
    },
    "tiny",
)


def make(seed: int = 0, spec: ModelSpec = SPEC) -> Weights:
    variables = jax.tree.map(np.asarray, init_variables(spec, jax.random.key(seed)))
    names = tuple(f"class {index}" for index in range(spec.classes))
    return Weights(spec=spec, names=names, variables=variables, source={"file": "tiny.pt", "licence": "unknown"})


def leaves(tree):
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def assert_same(weights: Weights, other: Weights) -> None:
    assert (weights.spec, weights.names, dict(weights.source)) == (other.spec, other.names, dict(other.source))
    leaves_read, expected = leaves(weights.variables), leaves(other.variables)
    assert leaves_read.keys() == expected.keys()
    assert len(leaves_read) == 19
    for path, leaf in leaves_read.items():
        assert leaf.dtype == np.float32
        assert leaf.tobytes() == np.asarray(expected[path], np.float32).tobytes(), path


def names_in(folder):
    return sorted(os.listdir(folder))


def test_round_trip_keeps_every_bit(tmp_path):
    weights = make()
    weights.variables["params"]["model_0"]["bn"]["bias"] = np.full(8, -0.0, np.float32)
    save_weights(tmp_path / "new" / "w", weights)
    assert_same(load_weights(tmp_path / "new" / "w"), weights)
    assert names_in(tmp_path / "new") == ["w"]
    record = json.loads((tmp_path / "new" / "w" / "weights.json").read_text())
    assert record["classes"] == ["class 0", "class 1"]
    assert record["strides"] == [4, 8]
    assert record["architecture"]["anchors"] == [[10, 13, 16, 30], [30.5, 61, 62, 45]]
    assert record["source"]["licence"] == "unknown"


def test_half_precision_on_disk_is_float32_in_memory(tmp_path):
    weights = make()
    halved = Weights(spec=SPEC, names=weights.names, source={}, variables=jax.tree.map(np.float16, weights.variables))
    save_weights(tmp_path / "w", halved)
    assert_same(load_weights(tmp_path / "w"), halved)


def test_an_older_weights_directory_is_replaced(tmp_path):
    save_weights(tmp_path / "w", make(0))
    save_weights(tmp_path / "w", make(1))
    assert_same(load_weights(tmp_path / "w"), make(1))
    assert names_in(tmp_path) == ["w"]


def test_others_with_the_same_files(tmp_path):
    save_weights(tmp_path / "best", make(0))
    save_weights(tmp_path / "last", make(1), [tmp_path / "best", tmp_path / "epochs" / "3"])
    for place in ("last", "best", "epochs/3"):
        assert_same(load_weights(tmp_path / place), make(1))
    assert names_in(tmp_path) == ["best", "epochs", "last"]


def test_one_that_cannot_be_written_stays_as_it_was(tmp_path):
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(UserError, match="notes: exists and is not a weights directory"):
        save_weights(tmp_path / "last", make(1), [tmp_path / "notes"])
    assert (tmp_path / "notes").read_text() == "mine"
    assert_same(load_weights(tmp_path / "last"), make(1))


def test_a_folder_of_the_user_is_never_replaced(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
    (tmp_path / "notes").write_text("mine")
    for name in ("photos", "notes"):
        with pytest.raises(UserError, match=f"{name}: exists and is not a weights directory"):
            save_weights(tmp_path / name, make())
    assert (tmp_path / "photos" / "cat.jpg").read_bytes() == b"cat"
    assert (tmp_path / "notes").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    save_weights(tmp_path / "empty", make())
    assert names_in(tmp_path) == ["empty", "notes", "photos"]


def test_a_full_disk_leaves_the_old_weights(tmp_path, monkeypatch):
    save_weights(tmp_path / "w", make(0))

    def full(self, path, item):
        path.mkdir()
        (path / "half").write_bytes(b"written")
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise RuntimeError("saving failed") from error

    monkeypatch.setattr(ocp.Checkpointer, "save", full)
    with pytest.raises(UserError, match="the disk is full"):
        save_weights(tmp_path / "w", make(1))
    monkeypatch.undo()
    assert names_in(tmp_path) == ["w"]
    assert_same(load_weights(tmp_path / "w"), make(0))


def test_a_crash_between_the_renames_loses_nothing(tmp_path, monkeypatch):
    save_weights(tmp_path / "w", make(0))

    def killed(new, target):
        target.rename(module.replaced(target))
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_replace", killed)
    with pytest.raises(KeyboardInterrupt):
        save_weights(tmp_path / "w", make(1))
    monkeypatch.undo()
    assert_same(load_weights(tmp_path / "w"), make(0))
    save_weights(tmp_path / "w", make(2))
    assert_same(load_weights(tmp_path / "w"), make(2))
    assert names_in(tmp_path) == ["w"]


def test_run_folder_gives_best_else_last(tmp_path):
    save_weights(tmp_path / "exp" / "weights" / "last", make(0))
    assert_same(load_weights(tmp_path / "exp"), make(0))
    save_weights(tmp_path / "exp" / "weights" / "best", make(1))
    assert_same(load_weights(tmp_path / "exp"), make(1))
    assert_same(load_weights(tmp_path / "exp" / "weights"), make(1))


def test_names_are_looked_up(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("YOLOJAX_WEIGHTS", str(tmp_path / "store"))
    save_weights("store/yolov5m", make(0))
    assert_same(load_weights("yolov5m"), make(0))
    save_weights("weights/yolov5m", make(1))
    assert_same(load_weights("yolov5m.pt"), make(1))
    save_weights("yolov5m", make(2))
    assert_same(load_weights("yolov5m"), make(2))


def test_missing_weights_say_how_to_get_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"yolov5x6: no such weights; download https://.*/yolov5x6.pt"):
        load_weights("yolov5x6")
    with pytest.raises(UserError, match=r"bast\.pt: no such weights; give a \.pt file"):
        load_weights("runs/bast.pt")
    (tmp_path / "runs").mkdir()
    with pytest.raises(UserError, match="runs: is neither a weights directory nor a run folder"):
        load_weights("runs")


def test_a_folder_of_something_else_does_not_hide_the_weights_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("yolov5n", EMBEDDED_WEIGHTS):
        (tmp_path / name).mkdir()
    assert find_weights(EMBEDDED_WEIGHTS) == configs_root() / "weights" / EMBEDDED_WEIGHTS
    (tmp_path / "yolov5n.pt").touch()
    assert find_weights("yolov5n") == Path("yolov5n.pt")


def test_an_export_is_no_weights(tmp_path):
    (tmp_path / "a.onnx").write_bytes(b"onnx")
    with pytest.raises(UserError, match=r"a\.onnx: is an export; give the weights that it was made from"):
        load_weights(tmp_path / "a.onnx")


def test_damage_is_named(tmp_path):
    folder = tmp_path / "w"

    def damaged(change, match):
        save_weights(folder, make())
        change()
        with pytest.raises(UserError, match=match):
            load_weights(folder)

    def edit(**changes):
        record = json.loads((folder / "weights.json").read_text())
        (folder / "weights.json").write_text(json.dumps({**record, **changes}))

    def empty_arrays():
        for file in (folder / "arrays").rglob("*"):
            if file.is_file():
                file.write_bytes(b"")

    architecture = make().spec.to_dict()
    damaged(lambda: (folder / "weights.json").write_text('{"format"'), "weights.json: is damaged")
    damaged(lambda: edit(format="yolojax weights 9"), "'yolojax weights 9'")
    damaged(lambda: edit(classes=["one"]), "1 class names for 2 classes")
    damaged(lambda: edit(architecture={**architecture, "nc": 3}), r"other shape: params/model_3/m_0/bias \(14,\)")
    damaged(empty_arrays, "arrays: cannot be read")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.int32(1), "params/model_0/bn/bias has dtype int32 instead of float32"),
        (np.float32("nan"), "params/model_0/bn/bias is not finite (NaN or infinity)"),
    ],
)
def test_arrays_that_no_network_can_use_are_refused(tmp_path, contents, capfd, value, message):
    weights = make()
    weights.variables["params"]["model_0"]["bn"]["bias"] = np.full(8, value)
    save_weights(tmp_path / "w", weights)
    before = contents(tmp_path)
    assert main(["freeze", "--weights", str(tmp_path / "w")]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert f"{tmp_path / 'w'}: {message}" in line
    assert contents(tmp_path) == before


def test_transfer_keeps_all_that_fits():
    weights = make()
    same = transfer(weights, SPEC, jax.random.key(7))
    assert same.initialised == ()
    assert len(same.transferred) == 19
    assert {p: leaf.tobytes() for p, leaf in leaves(same.variables).items()} == {
        p: leaf.tobytes() for p, leaf in leaves(weights.variables).items()
    }


def test_another_class_count_initialises_detect_only():
    weights = make()
    moved = transfer(weights, SPEC.with_classes(5), jax.random.key(7))
    assert moved.initialised == tuple(f"model_3/m_{i}/{leaf}" for i in (0, 1) for leaf in ("bias", "kernel"))
    assert "model_2/bn/mean" in moved.transferred
    fresh = leaves(init_variables(SPEC.with_classes(5), jax.random.key(7)))
    for path, leaf in leaves(moved.variables).items():
        expected = fresh[path] if "model_3" in path else leaves(weights.variables)[path]
        np.testing.assert_array_equal(leaf, expected)


def test_weights_that_fit_nothing_are_refused():
    other = ModelSpec.from_dict({**SPEC.to_dict(), "width_multiple": 2.0, "nc": 3}, "wide")
    with pytest.raises(UserError, match="do not fit"):
        transfer(make(), other, jax.random.key(0))


def test_weights_of_version_0_1_still_load():
    weights = load_weights(Path(__file__).parent / "written_by_0_1")
    assert weights.names == ("circle", "square")
    assert weights.spec.strides == (4, 8)
    assert weights.source == {"file": "tiny.pt", "licence": "unknown"}
    assert len(jax.tree.leaves(weights.variables)) == 19
    for leaf in jax.tree.leaves(weights.variables):
        np.testing.assert_array_equal(leaf, np.arange(leaf.size, dtype=np.float32).reshape(leaf.shape) / 16)


@pytest.mark.parametrize("name", ["last", "best"])
def test_the_pt_that_a_run_of_the_original_would_have(tmp_path, name):
    save_weights(tmp_path / "exp" / "weights" / name, make(3))
    assert_same(load_weights(tmp_path / "exp" / "weights" / f"{name}.pt"), make(3))
    (tmp_path / "exp" / "weights" / name).rename(tmp_path / "exp" / "weights" / f".{name}.replaced")
    assert_same(load_weights(tmp_path / "exp" / "weights" / f"{name}.pt"), make(3))  # a save was cut off


def test_what_would_be_initialised_is_known_without_doing_it():
    weights, other = make(), SPEC.with_classes(5)
    expected = transfer(weights, other, jax.random.key(0)).initialised
    assert initialised_parameters(weights, other) == expected
    assert initialised_parameters(weights, SPEC) == ()
