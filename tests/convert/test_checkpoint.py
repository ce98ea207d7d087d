import hashlib
import pathlib
import re
import sys

import numpy as np
import pytest

from convert.__main__ import main
from convert.checkpoint import read_checkpoint
from yolojax.errors import UserError
from yolojax.weights.find import load_weights

NAMES = ("cat", "dog", "traffic light")


def arrays(weights):
    leaves = {}

    def walk(node, path):
        for key, value in node.items():
            walk(value, f"{path}/{key}") if isinstance(value, dict) else leaves.__setitem__(f"{path}/{key}", value)

    walk(weights.variables, "")
    return leaves


@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize(
    ("kind", "names", "anchor_grid"),
    [
        pytest.param("models.yolo.Model", list(NAMES), True, id="v6.0"),
        pytest.param("models.yolo.Model", list(NAMES), False, id="v6.1"),
        pytest.param("models.yolo.DetectionModel", dict(enumerate(NAMES)), False, id="v7.0"),
        pytest.param("yolov5.models.yolo.DetectionModel", dict(enumerate(NAMES)), False, id="pip"),
    ],
)
def test_every_generation(builder, tmp_path, kind, names, anchor_grid, half):
    model = builder.model(kind, names, anchor_grid=anchor_grid)
    model = model.half() if half else model
    path = builder.save(tmp_path / "best.pt", model)
    weights = read_checkpoint(path)

    assert weights.names == NAMES
    assert (weights.spec.name, weights.spec.classes, weights.spec.strides) == ("best", 3, (4, 8))
    assert weights.spec.anchors == (((10, 13), (16, 30)), ((30, 61), (62, 45)))
    assert weights.source == {
        "file": "best.pt",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "licence": "unknown",
        "precision": "float16" if half else "float32",
        "taken_from": "model",
        "batches_tracked": 41,
    }
    state = {name: tensor.float().numpy() for name, tensor in model.state_dict().items()}
    leaves = arrays(weights)
    counted = sum("num_batches_tracked" in name for name in state)
    assert len(leaves) == len(state) - counted - (2 if anchor_grid else 1)
    assert {leaf.dtype for leaf in leaves.values()} == {np.dtype("float32")}
    kernel = state["model.2.m.0.cv2.conv.weight"]
    np.testing.assert_array_equal(leaves["/params/model_2/m_0/cv2/conv/kernel"], kernel.transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(leaves["/params/model_4/cv1/bn/scale"], state["model.4.cv1.bn.weight"])
    np.testing.assert_array_equal(leaves["/batch_stats/model_0/bn/var"], state["model.0.bn.running_var"])
    np.testing.assert_array_equal(leaves["/params/model_9/m_1/bias"], state["model.9.m.1.bias"])


def test_an_unstripped_checkpoint_gives_its_average(builder, tmp_path):
    model, average = builder.model(seed=1), builder.model(seed=2)
    momentum = {"state": {0: {"momentum_buffer": builder.torch.ones(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    model.hyp = {"lr0": np.float64(0.01), "anchor_t": 4.0}
    path = builder.save(
        tmp_path / "last.pt",
        model,
        ema=average,
        updates=12,
        optimizer=momentum,
        best_fitness=np.array([0.3]),
        opt={"save_dir": pathlib.PosixPath("runs/train/exp"), "freeze": [10], "classes": {1, 2}},
        git={"branch": None},
        date="2023-01-01",
        license="AGPL-3.0",
    )
    weights = read_checkpoint(path)
    bias = average.state_dict()["model.9.m.0.bias"].numpy()
    np.testing.assert_array_equal(weights.variables["params"]["model_9"]["m_0"]["bias"], bias)
    assert (weights.source["taken_from"], weights.source["licence"]) == ("ema", "AGPL-3.0")


def test_anchors_come_from_the_buffer(builder, tmp_path):
    model = builder.model()
    model.yaml = {**model.yaml, "anchors": 2}  # what hyp['anchors'] leaves there
    model.model[9].anchors[0, 1] = builder.torch.tensor([3.3125, 5.5])
    weights = read_checkpoint(builder.save(tmp_path / "auto.pt", model.half()))
    assert weights.spec.anchors == (((10, 13), (13.25, 22)), ((30, 61), (62, 45)))


def break_extra(torch, model):
    model.model[0].register_buffer("ghost", torch.zeros(3))


def break_missing(torch, model):
    del model.model[2].m[0].cv1.bn.running_mean


def break_shape(torch, model):
    model.model[9].m[0].bias = torch.nn.Parameter(torch.zeros(9))


def break_unknown_layer(torch, model):
    model.model.add_module("10", torch.nn.Conv2d(3, 4, 1))


def break_dtype(torch, model):
    weight = model.model[1].conv.weight.detach().int()
    model.model[1].conv.weight = torch.nn.Parameter(weight, requires_grad=False)


def break_finite(torch, model):
    model.model[1].conv.weight.data[0, 0, 0, 0] = float("nan")


def break_epsilon(torch, model):
    model.model[1].bn.eps = 1e-5


def break_groups(torch, model):
    model.model[1].conv.dilation = (2, 2)


def break_fused(torch, model):
    model.model[0].conv.bias = torch.nn.Parameter(torch.zeros(16))
    del model.model[0].bn


def break_names(torch, model):
    model.names = ["one"]


def break_module(torch, model):
    model.yaml = {**model.yaml, "backbone": [[-1, 1, "GhostConv", [64]], *model.yaml["backbone"][1:]]}


def break_strides(torch, model):
    model.model[9].stride = torch.tensor([8.0, 16.0])


def break_yaml(torch, model):
    del model.yaml


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (break_extra, r"unknown: model\.0\.ghost"),
        (break_missing, r"missing: model\.2\.m\.0\.cv1\.bn\.running_mean"),
        (break_shape, r"other shape: model\.9\.m\.0\.bias \(9,\) instead of \(16,\)"),
        (break_unknown_layer, r"unknown: model\.10\.weight, model\.10\.bias"),
        (break_dtype, r"model\.1\.conv\.weight has dtype int32 instead of float32"),
        (break_finite, r"model\.1\.conv\.weight is not finite"),
        (break_epsilon, r"model\.1\.bn has epsilon 1e-05"),
        (break_groups, r"model\.1\.conv is a dilated or grouped convolution"),
        (break_fused, "fused for inference"),
        (break_names, "1 class names for 3 classes"),
        (break_module, "layer 0: module 'GhostConv' is unknown"),
        (break_strides, r"strides \[8.0, 16.0\] in the file"),
        (break_yaml, "not built as YOLOv5 builds it"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_written(builder, tmp_path, capsys, spoil, match):
    model = builder.model()
    spoil(builder.torch, model)
    path = builder.save(tmp_path / "bad.pt", model)
    before = path.read_bytes(), path.stat().st_mtime_ns
    assert main([str(path), str(tmp_path / "converted")]) == 2
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    assert [file.name for file in tmp_path.iterdir()] == ["bad.pt"]
    error = capsys.readouterr().err
    assert re.search(match, error)
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("cls", "match"),
    [
        ("models.common.Focus", "v5.0 or older"),
        ("models.common.BottleneckCSP", "v5.0 or older"),
        ("models.yolo.SegmentationModel", "segmentation checkpoint"),
        ("models.yolo.ClassificationModel", "classification checkpoint"),
        ("ultralytics.nn.tasks.DetectionModel", "YOLOv8"),
        ("models.common.C3TR", r"refused, because it asks for models\.common\.C3TR"),
        ("torch.nn.modules.activation.ReLU", r"refused, because it asks for torch\.nn\.modules\.activation\.ReLU"),
    ],
)
def test_other_networks_are_told_apart(builder, tmp_path, cls, match):
    model = builder.model()
    model.model[0].act = builder.torch.nn.ReLU() if "ReLU" in cls else builder.named(cls)()
    with pytest.raises(UserError, match=match):
        read_checkpoint(builder.save(tmp_path / "other.pt", model))


def test_a_file_without_a_model(builder, tmp_path):
    path = tmp_path / "state.pt"
    for content, match in [
        (builder.model().state_dict(), r"only model\.0\.conv\.weight"),
        ({"model": builder.model().state_dict()}, "but OrderedDict"),
        ([1, 2], "but list"),
        (builder.model(), r"but models\.yolo\.DetectionModel"),
    ]:
        builder.torch.save(content, path)
        with pytest.raises(UserError, match=match):
            read_checkpoint(path)


def test_missing_torch_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "some.pt").write_bytes(b"PK\x03\x04")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=r"pip install 'yolojax\[torch\]'"):
        load_weights(tmp_path / "some.pt")


def test_command(builder, tmp_path, capsys):
    path = builder.save(tmp_path / "best.pt", builder.model(names=dict(enumerate(NAMES))))
    assert main([str(path), str(tmp_path / "converted")]) == 0
    out = capsys.readouterr().out
    assert "best, 49,728 parameters, 3 classes" in out
    assert "licence of the weights: not stated in the file" in out
    converted, direct = load_weights(tmp_path / "converted"), load_weights(path)
    assert (converted.spec, converted.names, converted.source) == (direct.spec, direct.names, direct.source)
    expected = arrays(direct)
    assert {name: leaf.tobytes() for name, leaf in arrays(converted).items()} == {
        name: leaf.tobytes() for name, leaf in expected.items()
    }


def test_command_keeps_an_existing_checkpoint(builder, tmp_path, capsys):
    path = builder.save(tmp_path / "best.pt", builder.model())
    content = path.read_bytes()
    assert main([str(path), str(path)]) == 2
    assert "best.pt: exists" in capsys.readouterr().err
    assert path.read_bytes() == content


def test_command_keeps_the_users_folder(builder, tmp_path, capsys):
    path = builder.save(tmp_path / "best.pt", builder.model())
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
    assert main([str(path), str(tmp_path / "photos")]) == 2
    assert "exists and is not a weights directory" in capsys.readouterr().err
    assert [file.name for file in (tmp_path / "photos").iterdir()] == ["cat.jpg"]


def test_real_checkpoint(shared_data):
    pytest.importorskip("torch")
    weights = read_checkpoint(shared_data / "weights" / "yolov5n.pt")
    assert sum(leaf.size for name, leaf in arrays(weights).items() if name.startswith("/params")) == 1_872_157
    assert weights.source["sha256"] == "edd2e5cc4e3caa4b508168b51d9dc529da58b37813e0d2c8b49aba06aa3472dc"
    assert (weights.source["licence"], weights.source["precision"]) == ("unknown", "float16")
    assert (weights.spec.name, weights.spec.classes, weights.spec.strides) == ("yolov5n", 80, (8, 16, 32))
    assert weights.spec.anchors[2] == ((116, 90), (156, 198), (373, 326))
    assert (weights.names[0], weights.names[79]) == ("person", "toothbrush")


@pytest.mark.parametrize("ours", ["expected_state", "ModelSpec.from_dict", "to_variables"])
def test_a_mistake_of_ours_is_not_blamed_on_the_file(builder, tmp_path, monkeypatch, ours):
    path = builder.save(tmp_path / "a.pt", builder.model())

    def broken(*arguments):
        raise ValueError("a mistake of ours")

    monkeypatch.setattr(f"convert.checkpoint.{ours}", broken)
    with pytest.raises(ValueError, match="a mistake of ours"):
        read_checkpoint(path)
