"""The roofline: of kernels by hand, and of the guide's step for a card that is not here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from benchmarks.hlo import parse
from benchmarks.kernels import Kernel
from benchmarks.roofline import CHIPS, CONVOLUTIONS, GROUPS, chip_of, group, seconds, summary, tables
from yolojax.config import configs_root, read_yaml
from yolojax.errors import UserError
from yolojax.freezing.load import load_strategy, rehearse
from yolojax.freezing.selectors import select
from yolojax.model.convolution import KERNEL_GRADIENT
from yolojax.model.network import abstract_variables
from yolojax.model.spec import load_spec
from yolojax.plan.cost import StepShape, compile_step
from yolojax.plan.devices import load_target
from yolojax.tree import flatten

ROOT = Path(__file__).resolve().parents[2]
STEP = "jit(step)"


def kernel(*, flop=0.0, dtype="", read=0.0, times=1, at="", opcode="fusion"):
    return Kernel(name="k", opcode=opcode, op_name=at, flop=flop, dtype=dtype, bytes=read, times=times)


def test_a_kernel_takes_the_longer_of_computing_and_moving():
    chip = CHIPS["cuda:h100"]
    assert seconds(kernel(flop=989e9, dtype="bf16", read=1.0), chip) == pytest.approx(1e-3)
    assert seconds(kernel(flop=1.0, dtype="bf16", read=3.35e9), chip) == pytest.approx(1e-3)
    assert seconds(kernel(flop=494e9, dtype="f32", times=8), chip) == pytest.approx(8e-3)
    # A T4 has no bfloat16.
    assert seconds(kernel(flop=8.1e9, dtype="bf16"), CHIPS["cuda:t4"]) == pytest.approx(1e-3)


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("jvp(Network)/model_0/bn/convert_element_type", "BatchNorm + SiLU, forward"),
        ("transpose(jvp(Network))/model_2/cv1/bn/reduce_sum", "BatchNorm + SiLU, backward"),
        ("jvp(Network)/model_2/concatenate", "concatenate, add, split, copy"),
        ("transpose(jvp(Network))/model_5/conv/add_any", "concatenate, add, split, copy"),
        ("jvp(Network)/model_7/conv/convert_element_type", "other"),
        ("transpose(jvp())/pad", "loss"),
        ("jvp(vmap())/scatter-max", "loss"),
        ("jit(_where)/select_n", "optimizer and averages"),
    ],
)
def test_kernels_are_grouped_by_their_place_in_the_step(place, name):
    assert group(kernel(at=f"{STEP}/{place}")) == name
    assert group(kernel(at=f"{STEP}/{place}", flop=1.0)) == CONVOLUTIONS


def test_groups_add_up_to_the_whole():
    places = ["jvp(Network)/model_0/bn/add", "jvp()/mul", "add", "transpose(jvp(Network))/model_1/split"]
    listed = [kernel(at=f"{STEP}/{place}", read=1e6 * (number + 1)) for number, place in enumerate(places)]
    whole = summary([*listed, kernel(flop=1e12, dtype="bf16", at=f"{STEP}/conv")], CHIPS["cuda:a100"])
    assert set(whole["groups"]) == set(GROUPS)
    for figure in ("roofline_ms", "tensor_ms", "gflop", "gbytes", "kernels"):
        assert whole[figure] > 0
        assert whole[figure] == pytest.approx(sum(part[figure] for part in whole["groups"].values()))


def test_every_target_has_its_peaks_and_is_known_by_its_own_name():
    targets = read_yaml(configs_root() / "targets.yaml")
    assert set(targets) <= set(CHIPS)
    for name, content in targets.items():
        if bandwidth := content.get("cuda", {}).get("bandwidth"):
            assert CHIPS[name].bandwidth == pytest.approx(bandwidth, rel=0.01)
    assert chip_of("NVIDIA H100 80GB HBM3") is CHIPS["cuda:h100"]
    assert chip_of("TPU v5 lite") is CHIPS["tpu:v5e"]
    assert chip_of("cpu") is None


# --- The guide's comparison: YOLOv5m, 20 classes, 512 px, batch 48, bfloat16 -----------------------------------------------------------------

LIMITS = {"0": (16.3, 6.42e9, 82), "10": (8.3, 2.06e9, 35), "24": (4.7, 0.81e9, 3)}  # ms, bytes at the peak, gradients


def compiled(folder, *words):
    try:
        load_target("cuda:h100")
    except UserError as error:
        pytest.skip(str(error))
    file = folder / "rows.json"
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.roofline", *words, "--json", str(file)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(file.read_text()), run.stdout


def check(row):
    milliseconds, peak, gradients = LIMITS[row["freeze"]]
    assert row["roofline_ms"] <= milliseconds
    assert row["peak_bytes"] <= peak
    assert row["weight_gradient_ops"] == gradients
    # Nothing is lost on the way: the convolutions are there, and most of the time is memory traffic.
    assert 0.2 < row["tensor_ms"] / row["roofline_ms"] < 0.4


@pytest.mark.long
def test_the_guides_step_keeps_to_its_roofline_with_all_but_the_head_frozen(tmp_path):
    (row,), printed = compiled(tmp_path, "--freeze", "24")
    check(row)
    # The forward pass of all convolutions, and the gradients of the three kernels of Detect.
    assert row["gflop"] == pytest.approx(1487.5, abs=0.1)
    assert f"| 24 | plain | 1,487 | {row['kernels']} | {row['roofline_ms']:.2f} |" in printed


@pytest.mark.slow
def test_the_guides_step_keeps_to_its_roofline(tmp_path):
    rows, _ = compiled(tmp_path, "--freeze", "0", "10")
    assert len(rows) == 2
    for row in rows:
        check(row)


@pytest.mark.slow
def test_a_folded_stem_computes_as_much(tmp_path):
    (plain, folded), _ = compiled(tmp_path, "--freeze", "24", "--stem", "plain", "folded")
    assert folded["gflop"] == pytest.approx(plain["gflop"])
    assert folded["roofline_ms"] < 1.02 * plain["roofline_ms"]
    assert folded["weight_gradient_ops"] == plain["weight_gradient_ops"] == 3


def test_a_program_that_is_refused_has_a_row():
    row = {"freeze": 0, "stem": "plain", "peak_bytes": 33e9, "compile_seconds": 1.0, "refused": "it does not fit"}
    assert "it does not fit" in tables([row])


# --- Adapters: two convolutions beside the frozen one, so that no gradient of its kernel's size is ever made -----------------------------------------


def frozen_kernels(spec):
    """The kernels of the backbone by path, their sizes ascending, without ones."""
    leaves = flatten(abstract_variables(spec)["params"])
    backbone = [path for path in select("backbone", tuple(leaves)) if path.endswith("/kernel")]
    return {path: plain(leaves[path].shape) for path in backbone}


def plain(sizes):
    return tuple(sorted(size for size in sizes if size > 1))


def kernel_gradients(text):
    """The sizes of all that stands in a program under the name of a kernel's gradient."""
    lines = [line for part in parse(text).computations.values() for line in part.instructions.values()]
    named = [line for line in lines if KERNEL_GRADIENT in line.op_name or "BackwardFilter" in line.target]
    return {plain(shape.sizes) for line in named for shape in line.shapes}


def check_adapters(spec, everything, adapters):
    frozen, made = frozen_kernels(spec), kernel_gradients(everything)
    assert all(sizes in made for sizes in frozen.values())  # what is looked for is found where they train
    made = kernel_gradients(adapters)
    assert [path for path, sizes in frozen.items() if sizes in made] == []
    return made


@pytest.mark.long
def test_no_gradient_of_a_frozen_kernels_shape_is_computed_for_an_adapter(tiny_model):
    spec, device = load_spec(tiny_model), jax.devices("cpu")[0]
    shape = StepShape(batch=2, size=64, dtype="float32", boxes=4, frozen_bn="fixed")
    paths = tuple(flatten(abstract_variables(spec)["params"]))
    programs = []
    for freeze in ("0", "adapters"):
        ((_, phase),) = rehearse(load_strategy(freeze), paths, 2)
        programs.append(compile_step(spec, phase, shape, device)[1].as_text())
    assert (3, 3, 4, 8) in check_adapters(spec, *programs)  # the one of the adapter in its place


@pytest.mark.slow
def test_adapters_save_the_operations_of_frozen_kernels_on_an_h100(tmp_path):
    (everything, adapters), _ = compiled(tmp_path, "--freeze", "0", "adapters", "--hlo", str(tmp_path))
    assert adapters["gflop"] <= 0.72 * everything["gflop"]
    assert adapters["peak_bytes"] < 0.85 * everything["peak_bytes"]
    programs = [(tmp_path / f"cuda-h100-{freeze}-plain.hlo").read_text() for freeze in ("0", "adapters")]
    assert (3, 3, 4, 48) in check_adapters(load_spec("yolov5m", 20), *programs)
