"""What the original is given: data in its layout, its own command line."""

import cv2
import jax
import numpy as np
import pytest

from yolojax.data.sources import load_data, open_split
from yolojax.model.network import init_variables
from yolojax.model.spec import load_spec
from yolojax.study.original import original_command, write_inputs
from yolojax.study.scenarios import load_study
from yolojax.weights.find import load_weights
from yolojax.weights.store import Weights, save_weights


@pytest.fixture
def scenario(write_study, tmp_path):
    """Makes a scenario of the original."""
    (tmp_path / "n.pt").touch()
    row = {
        "name": "original",
        "framework": "torch",
        "python": "/its/python",
        "weights": str(tmp_path / "n.pt"),
        "cfg": "",
    }
    return lambda **changes: load_study(write_study(scenarios=[{**row, **changes}])).scenarios[0]


def test_the_copy_of_the_data_has_the_same_images_and_boxes(scenario, tmp_path, tiny_data):
    write_inputs(scenario(), tmp_path / "inputs")
    copy = load_data(tmp_path / "inputs" / "squares" / "data.yaml")
    whole = load_data(tiny_data)
    assert copy.names == whole.names
    for split, count in (("train", 10), ("val", 4)):
        before, after = (open_split(data, split).samples for data in (whole, copy))
        assert len(after) == count
        for sample, copied in zip(before, after, strict=True):
            np.testing.assert_array_equal(copied.load(), sample.load())
            np.testing.assert_allclose(copied.boxes, sample.boxes, atol=1e-7)
    assert not (tmp_path / "inputs" / "squares").samefile(whole.root)


def test_images_without_a_file_are_written_without_loss(scenario, tmp_path, monkeypatch):
    from yolojax.data.sample import Sample, make_split, no_boxes
    from yolojax.study import original

    pixels = np.random.default_rng(0).integers(0, 256, (8, 9, 3), np.uint8)
    sample = Sample(name="archive:3", size=(8, 9), boxes=no_boxes(), reader=lambda: pixels)
    monkeypatch.setattr(original, "open_split", lambda *_: make_split("train", 1, [sample], []))
    write_inputs(scenario(), tmp_path / "inputs")
    written = cv2.imread(str(tmp_path / "inputs" / "squares" / "images" / "train" / "000000.png"))
    np.testing.assert_array_equal(written[..., ::-1], pixels)


@pytest.mark.parametrize("given", ["{weights}/n.pt", "n.pt", "n"])
def test_weights_are_looked_for_as_everywhere(scenario, tmp_path, monkeypatch, given):
    monkeypatch.setenv("YOLOJAX_WEIGHTS", str(tmp_path))
    command = original_command(
        scenario(weights=given.format(weights=tmp_path)), 0, tmp_path / "run", tmp_path / "inputs"
    )
    assert f"--weights={tmp_path / 'n.pt'}" in command


def test_weights_that_are_no_pt_are_written_as_one(scenario, tmp_path, tiny_model):
    pytest.importorskip("torch")
    spec = load_spec(tiny_model)
    weights = Weights(spec=spec, names=("a", "b"), variables=init_variables(spec, jax.random.key(0)), source={})
    save_weights(tmp_path / "exp" / "weights" / "best", weights)
    (tmp_path / "exp" / "settings.yaml").touch()
    original = scenario(weights=str(tmp_path / "exp"))
    write_inputs(original, tmp_path / "inputs")
    file = tmp_path / "inputs" / "original-weights.pt"
    assert f"--weights={file}" in original_command(original, 0, tmp_path / "run", tmp_path / "inputs")
    for before, after in zip(
        jax.tree.leaves(weights.variables), jax.tree.leaves(load_weights(file).variables), strict=True
    ):
        np.testing.assert_array_equal(after, before)


def test_the_command_is_the_originals_own(scenario, tmp_path):
    run = tmp_path / "out" / "original-seed3"
    command = original_command(scenario(freeze=[0, 1], cos_lr=True, patience=0), 3, run, tmp_path / "inputs")
    assert command[:3] == ["/its/python", "-m", "yolov5.train"]
    assert command[-3:] == ["--freeze", "0", "1"]
    assert {"--imgsz=64", "--batch-size=4", "--epochs=2", "--seed=3", "--cos-lr", "--exist-ok", "--noplots"} < set(
        command
    )
    assert f"--weights={tmp_path / 'n.pt'}" in command
    assert f"--project={tmp_path / 'out'}" in command
    assert not any(word.startswith(("--frozen-bn", "--dtype", "--cfg", "--strict")) for word in command)
    (run / "weights").mkdir(parents=True)
    (run / "weights" / "last.pt").touch()
    assert original_command(scenario(), 3, run, tmp_path / "inputs")[3:] == [
        "--resume",
        str(run / "weights" / "last.pt"),
    ]
