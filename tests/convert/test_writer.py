import os
import pickletools
import sys
import zipfile

import jax
import numpy as np
import pytest

from convert.__main__ import main
from convert.checkpoint import read_checkpoint
from convert.writer import write_checkpoint
from yolojax.errors import UserError
from yolojax.model.network import abstract_variables, init_variables
from yolojax.model.spec import ModelSpec
from yolojax.weights.store import Weights, save_weights

torch = pytest.importorskip("torch")


def bits(weights):
    return {
        jax.tree_util.keystr(p): leaf.tobytes() for p, leaf in jax.tree_util.tree_leaves_with_path(weights.variables)
    }


def tensors(path, builder):
    """The tensors of a file this test wrote, bit for bit."""
    state = torch.load(path, weights_only=False)["model"].state_dict()
    return {name: (tensor.dtype, tensor.numpy().tobytes()) for name, tensor in state.items()}


@pytest.mark.parametrize("half", [True, False])
def test_there_and_back_keeps_every_bit(builder, tmp_path, half):
    model = builder.model(names={0: "a", 1: "b", 2: "c"})
    model.model[0].bn.bias.data[0] = -0.0
    source = builder.save(tmp_path / "source.pt", model.half() if half else model)
    weights = read_checkpoint(source)
    write_checkpoint(tmp_path / "back.pt", weights)
    assert tensors(tmp_path / "back.pt", builder) == tensors(source, builder)

    again = read_checkpoint(tmp_path / "back.pt")
    assert bits(again) == bits(weights)
    assert (again.names, again.spec.anchors, again.spec.layers) == (
        weights.names,
        weights.spec.anchors,
        weights.spec.layers,
    )
    assert again.source["precision"] == ("float16" if half else "float32")
    assert again.source["batches_tracked"] == 41


def test_the_file_names_the_originals_classes_only(builder, tmp_path):
    weights = read_checkpoint(builder.save(tmp_path / "source.pt", builder.model()))
    before = {name: sys.modules[name] for name in ("models", "models.yolo", "models.common")}
    write_checkpoint(tmp_path / "back.pt", weights)
    assert {name: sys.modules[name] for name in before} == before
    with zipfile.ZipFile(tmp_path / "back.pt") as archive:
        operations = pickletools.genops(archive.read(archive.namelist()[0]))
        names = {argument for code, argument, _ in operations if code.name == "GLOBAL" and "torch" not in argument}
    assert names == {
        *(f"models.common {name}" for name in ("Bottleneck", "C3", "Concat", "Conv", "SPPF")),
        *("models.yolo Detect", "models.yolo DetectionModel", "collections OrderedDict", "__builtin__ set"),
    }


def test_the_architecture_is_written_as_the_original_writes_it(builder, tmp_path):
    model = builder.model()
    write_checkpoint(tmp_path / "back.pt", read_checkpoint(builder.save(tmp_path / "source.pt", model)))
    back = torch.load(tmp_path / "back.pt", weights_only=False)["model"]
    upsample = [-1, 1, "nn.Upsample", [None, 2, "nearest"]]
    assert back.yaml == {**model.yaml, "head": [model.yaml["head"][0], upsample, *model.yaml["head"][2:]]}
    assert back.save == [2, 4, 8]
    for layer, mine in zip(back.model, model.model, strict=True):
        assert str(layer).replace("inplace=True", "") == str(mine)
    assert [layer.f for layer in back.model] == [-1, -1, -1, -1, -1, -1, -1, [-1, 2], -1, [8, 4]]
    assert (back.model[9].nc, back.model[9].no, back.model[9].na, back.model[9].nl) == (3, 8, 2, 2)
    assert (back.model[2].m[0].add, back.model[8].m[0].add) == (True, False)


def test_another_class_count(builder, tmp_path):
    weights = read_checkpoint(builder.save(tmp_path / "source.pt", builder.model().half()))
    spec = weights.spec.with_classes(7).with_anchors([[(10.1, 13), (16, 30)], [(30, 61), (62, 45)]])
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), abstract_variables(spec))
    tuned = Weights(spec=spec, names=tuple("abcdefg"), variables=variables, source={"licence": "GPL-3.0"})
    write_checkpoint(tmp_path / "tuned.pt", tuned)
    again = read_checkpoint(tmp_path / "tuned.pt")
    assert bits(again) == bits(tuned)
    assert again.names == tuple("abcdefg")
    np.testing.assert_allclose(again.spec.anchors, spec.anchors, rtol=1e-6)
    assert (again.source["licence"], again.source["precision"]) == ("GPL-3.0", "float32")


def test_a_failed_write_keeps_the_old_file(builder, tmp_path, monkeypatch):
    weights = read_checkpoint(builder.save(tmp_path / "source.pt", builder.model()))
    (tmp_path / "back.pt").write_bytes(b"old")

    def full(_, path):
        path.write_bytes(b"half")
        raise RuntimeError("No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match=r"back\.pt: cannot be written"):
        write_checkpoint(tmp_path / "back.pt", weights)
    assert sorted(os.listdir(tmp_path)) == ["back.pt", "source.pt"]
    assert (tmp_path / "back.pt").read_bytes() == b"old"


def test_real_checkpoint(shared_data, tmp_path, builder):
    source = shared_data / "weights" / "yolov5n.pt"
    save_weights(tmp_path / "n", read_checkpoint(source))
    assert main([str(tmp_path / "n"), str(tmp_path / "n.pt")]) == 0
    for module, name in [("yolo", "Model"), ("yolo", "DetectionModel"), ("yolo", "Detect")]:
        builder.named(f"models.{module}.{name}")
    for name in ("Conv", "Bottleneck", "C3", "SPPF", "Concat"):
        builder.named(f"models.common.{name}")
    original, back = tensors(source, builder), tensors(tmp_path / "n.pt", builder)
    assert original.keys() - back.keys() == {"model.24.anchor_grid"}  # which the original makes anew
    assert len(back) == 349
    assert {name: original[name] for name in back} == back


@pytest.mark.parametrize(("detected", "deepest"), [((3, 4), 5), ((2, 3, 4, 5), 5), ((3, 4, 5, 6, 7), 7)])
def test_any_levels_come_back(tmp_path, pyramid, detected, deepest):
    spec = ModelSpec.from_dict(pyramid(*detected, deepest=deepest), "odd")
    variables = jax.tree.map(np.asarray, init_variables(spec, jax.random.key(0)))
    write_checkpoint(tmp_path / "odd.pt", Weights(spec=spec, names=("a", "b"), variables=variables, source={}))
    weights = read_checkpoint(tmp_path / "odd.pt")
    assert weights.spec == spec
    jax.tree.map(np.testing.assert_array_equal, weights.variables, variables)
