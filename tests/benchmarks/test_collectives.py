"""What devices tell each other in the guide's step (YOLOv5m, 20 classes, 512 px, 48 images per device, bfloat16), compiled for devices that are not here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.collectives import FABRICS, Fabric, donated, efficiency, reductions, scaling, table
from benchmarks.hlo import parse
from yolojax.errors import UserError
from yolojax.plan.devices import load_target

ROOT = Path(__file__).resolve().parents[2]

HEAD = (
    "HloModule jit_step, is_scheduled=true, input_output_alias={ {0}: (0, {}, may-alias), {1}: (1, {}, may-alias) }, "
    "entry_computation_layout={(f32[4]{0}, bf16[2,3]{1,0})->(f32[4]{0}, bf16[2,3]{1,0})}"
)
PROGRAM = (
    f"""{HEAD}
"""
    + """
%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

ENTRY %main (a: f32[4], b: bf16[2,3]) -> (f32[4], bf16[2,3]) {
  %a = f32[4]{0} parameter(0)
  %b = bf16[2,3]{1,0} parameter(1)
  %one = f32[4]{0} all-reduce(%a), replica_groups={{0,1}}, to_apply=%add
  %start = (bf16[2,3]{1,0}, f32[4]{0}) all-reduce-start(%b, %one), replica_groups={{0,1}}, to_apply=%add
  %done = (bf16[2,3]{1,0}, f32[4]{0}) all-reduce-done(%start)
  ROOT %all = (f32[4]{0}, bf16[2,3]{1,0}) tuple(%one, %b)
}
"""
)


def test_reductions_and_donated_arguments_are_read_from_a_program():
    found = reductions(parse(PROGRAM))
    assert [(one.opcode, one.bytes) for one in found] == [
        ("all-reduce", {"f32": 16}),
        ("all-reduce", {"bf16": 12, "f32": 16}),
    ]
    assert donated(PROGRAM) == 2


def test_what_reductions_cost_on_paper():
    fabric = Fabric(name="one host", devices=8, bandwidth=350e9, latency=10e-6)
    assert fabric.seconds(1e6) == pytest.approx(15e-6)  # 2 x 7 / 8 of a megabyte
    assert efficiency(1e-3, [], fabric) == 1
    assert efficiency(3e-4, [1e6] * 20, fabric) == pytest.approx(0.5)
    row = {"freeze": 10, "sync_bn": "on", "roofline_ms": 7.0, "bytes": [{"bf16": 17_500_000}, {"f32": 100}]}
    printed = scaling([row])
    assert "| 10 | on | 10.0 | 99% |" in printed
    assert all(f"{one.devices}, {one.name}: {one.bandwidth / 1e9:.0f} GB/s" in printed for one in FABRICS)


def test_a_program_that_is_refused_has_a_line():
    row = {"target": "tpu:v5e", "devices": "2x2", "freeze": 0, "sync_bn": "on", "compile_seconds": 1.0}
    assert "it does not fit" in table([row | {"refused": "it does not fit"}])


# --- The step -----------------------------------------------------------------------------------------------------------------------------------

MOST = {0: 165, 10: 58, 24: 3}
MEGABYTES = {0: 41.8, 10: 17.5, 24: 0.2}


def compiled(folder, target, *words):
    try:
        load_target(target)
    except UserError as error:
        pytest.skip(str(error))
    file = folder / "rows.json"
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.collectives", "--target", target, *words, "--json", str(file)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(file.read_text())


def check(row):
    freeze, narrow = row["freeze"], [one.get("bf16", 0) for one in row["bytes"]]
    assert 0 < row["all_reduces"] <= (MOST[freeze] if row["sync_bn"] == "on" else 3)
    assert row["other_collectives"] == 0
    # The gradients of kernels that train and of no other leaf.
    assert sum(narrow) == 2 * row["kernel_values"]
    assert sum(narrow) / 1e6 == pytest.approx(MEGABYTES[freeze], abs=0.06)
    assert row["donated"] == row["moving_leaves"] > 0


@pytest.mark.long
def test_eight_gpus_tell_each_other_the_gradients_of_what_trains(tmp_path):
    (row,) = compiled(tmp_path, "cuda:h100", "--freeze", "10", "--sync-bn", "on")
    check(row)


@pytest.mark.long
def test_four_tpus_tell_each_other_the_gradients_of_what_trains(tmp_path):
    # Small images, which compile in less time; what is reduced does not depend on their size.
    small = ("--size", "64", "--batch", "2", "--boxes", "16")
    (row,) = compiled(tmp_path, "tpu:v5e", "--devices", "2x2", "--freeze", "24", "--sync-bn", "on", *small)
    check(row)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "devices"), [("cuda:h100", "1x8"), ("cuda:h100", "2x8"), ("tpu:v5e", "2x2"), ("tpu:v4", "2x2x1")]
)
def test_the_guides_step_on_several_devices(tmp_path, target, devices):
    rows = compiled(tmp_path, target, "--devices", devices)
    assert [(row["freeze"], row["sync_bn"]) for row in rows] == [(f, s) for f in (0, 10, 24) for s in ("on", "off")]
    for row in rows:
        check(row)
