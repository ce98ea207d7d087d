"""Plans: the real step, compiled but never run."""

import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from yolojax.cli.main import main
from yolojax.errors import UserError
from yolojax.freezing.phases import make_phase
from yolojax.freezing.selectors import layer_of
from yolojax.model.network import abstract_variables
from yolojax.model.spec import load_spec
from yolojax.plan.cost import StepShape, compile_step, step_cost
from yolojax.plan.devices import Target, dtype_on, load_target, open_device, target_environment
from yolojax.plan.plan import plan
from yolojax.plan.settings import PlanSettings
from yolojax.runtime import exclude_nondeterminism
from yolojax.tree import flatten

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.long
def test_a_plan_counts_what_each_freeze_costs(tiny_model, tmp_path, capsys):
    file = tmp_path / "plan.json"
    words = ["plan", "--cfg", str(tiny_model), "--img", "64", "--batch", "2", "--freeze", "0", "5", "--quick"]
    assert main([*words, "--images", "10", "--json", str(file)]) == 0
    content = json.loads(file.read_text())
    everything, detect = content["rows"]
    assert content["device_cache_bytes"] == 10 * 4 * 65**2
    assert everything["features"] is None
    kept = detect["features"]
    assert kept["start"] == 5
    assert kept["image_bytes"] == 4 * 8 * 8 * 24  # the outputs of layer 4, at an eighth of 64 px
    assert 0 < kept["flops"] < detect["flops"] - 0.9 * kept["view_flops"]
    printed = " ".join(capsys.readouterr().out.split())
    assert "--cache features, freeze 5, float32: a step takes 0.0" in printed
    assert "491.5 kB for 8 views of 10 images" in printed
    assert [everything["freeze"], detect["freeze"]] == ["0", "5"]
    assert everything["parameters"] == everything["trainable"] > detect["trainable"] > 0
    # Layer 5 is one convolution, layer 6 (Detect) has one per level.
    assert everything["weight_gradient_ops"] > detect["weight_gradient_ops"] >= 3
    for key in ("flops", "peak_bytes", "temp_bytes", "optimizer_bytes"):
        assert everything[key] > detect[key] > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"weights": ""}, "--weights '': names no network"),
        ({"cfg": "yolov5n", "batch_size": 0}, "--batch-size 0: must be at least 1"),
    ],
)
def test_what_no_step_can_have_is_refused(words, message):
    with pytest.raises(UserError, match=message):
        PlanSettings(**words)


@pytest.mark.long
def test_the_embedded_weights_are_planned_where_no_network_is_named(tmp_path):
    assert (
        main(["plan", "--img", "32", "--batch", "1", "--freeze", "24", "--quick", "--json", str(tmp_path / "p")]) == 0
    )
    content = json.loads((tmp_path / "p").read_text())
    assert content["network"] == "yolov5n"
    # Detect of the eight classes of the embedded weights: three convolutions of 64, 128 and 256 channels.
    assert content["rows"][0]["trainable"] == (64 + 128 + 256 + 3) * 3 * (5 + 8)


def test_an_unknown_target_is_a_users_mistake(tiny_model, capsys):
    assert main(["plan", "--cfg", str(tiny_model), "--img", "64", "--target", "cuda:rtx9999"]) == 2
    assert "cuda:rtx9999" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("platform", "facts", "dtype"),
    [
        ("cuda", {"compute_capability": "9.0a"}, "bfloat16"),
        ("cuda", {"compute_capability": 8.0}, "bfloat16"),  # as a YAML file gives it
        ("cuda", {"compute_capability": 7.5}, "float16"),
        ("tpu", {}, "bfloat16"),
    ],
)
def test_a_plan_computes_in_what_a_training_would(platform, facts, dtype):
    target = Target(name="x", title="X", platform=platform, memory=1, facts=facts)
    assert dtype_on(target, SimpleNamespace(platform="cpu"), "auto") == dtype
    assert dtype_on(target, SimpleNamespace(platform="cpu"), "float32") == "float32"


# --- Devices that are not here; these need the extra ``aot`` ----------------------------------------------------------------------------------

GUIDE = {"cfg": "yolov5m", "nc": 20, "batch_size": 48, "imgsz": 512, "dtype": "bfloat16", "quick": True}


def available(target):
    try:
        return load_target(target)
    except UserError as error:
        pytest.skip(str(error))


def planned(target, *freezes, **options):
    """Rows by freeze for the guide's comparison, or for what is given instead."""
    available(target)
    settings = PlanSettings(**{**GUIDE, **options}, freeze=freezes, target=(target,))
    return {row.freeze: row for row in plan(settings, load_spec(settings.cfg, settings.nc))}


def print_costs(target, freezes):
    """Weight gradients by kernel and the peak for every freeze of the guide's comparison; run in a process that was started for the target."""
    spec, device = load_spec("yolov5m", 20), open_device(load_target(target))
    paths = tuple(flatten(abstract_variables(spec)["params"]))
    shape = StepShape(batch=48, size=512, dtype="bfloat16", boxes=64, frozen_bn="fixed")
    costs = [step_cost(spec, make_phase(paths, freeze=freeze), shape, device) for freeze in freezes]
    print(json.dumps([(cost.weight_gradients, cost.memory.peak) for cost in costs]))


def on_the_h100(call):
    """What a call of this file prints, as JSON, in a process that was started for an H100."""
    run = subprocess.run(
        [sys.executable, "-c", f"import test_plan; test_plan.{call}"],
        env=os.environ
        | target_environment(available("cuda:h100"))
        | {"PYTHONPATH": f"{Path(__file__).parent}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout)


@pytest.mark.long
def test_the_guides_step_on_an_h100_has_one_gradient_per_kernel_that_trains():
    peaks = {0: 6.42e9, 10: 2.06e9, 24: 0.8105e9}
    costs = on_the_h100(f"print_costs('cuda:h100', {list(peaks)})")
    kernels = [
        path for path in flatten(abstract_variables(load_spec("yolov5m", 20))["params"]) if path.endswith("/kernel")
    ]
    assert len(kernels) == 82
    for (freeze, limit), (gradients, peak) in zip(peaks.items(), costs, strict=True):
        assert gradients == {path: 1 for path in kernels if layer_of(path) >= freeze}
        assert peak < limit


@pytest.mark.long
def test_the_guides_step_fits_a_tpu():
    row = planned("tpu:v5e", "10")["10"]
    assert row.weight_gradient_ops == 35
    assert row.temp_bytes < row.peak_bytes < 16e9
    assert row.fits


@pytest.mark.long
def test_the_step_compiles_in_float16_for_a_card_without_bfloat16():
    row = planned("cuda:t4", "24", cfg="yolov5n", imgsz=320, batch_size=16, dtype="auto")["24"]
    assert row.dtype == "float16"
    assert row.weight_gradient_ops == 3
    assert row.fits


def print_float_scatters():
    """How many sums of floats by threads side by side a step has, whose order nobody fixes; run in a process that was started for the target."""
    spec, device = load_spec("yolov5n", 20), open_device(load_target("cuda:h100"))
    shape = StepShape(batch=16, size=320, dtype="bfloat16", boxes=64, frozen_bn="fixed")
    phase = make_phase(tuple(flatten(abstract_variables(spec)["params"])), freeze=24)
    scatters = [
        line for line in compile_step(spec, phase, shape, device)[1].as_text().splitlines() if " scatter(" in line
    ]
    floats = [line for line in scatters if re.search(r"= \(?(?:f|bf)\d+\[", line)]
    print(json.dumps([len(floats), sum("unique_indices=true" not in line for line in floats)]))


@pytest.mark.long
@pytest.mark.parametrize("deterministic", [False, True])
def test_a_step_on_an_h100_adds_in_any_order_but_where_it_is_deterministic(monkeypatch, deterministic):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    if deterministic:
        exclude_nondeterminism()
    floats, in_any_order = on_the_h100("print_float_scatters()")
    assert in_any_order == (0 if deterministic else 3)  # one per level, in the gradient of the loss
    assert floats >= in_any_order


@pytest.mark.slow
def test_a_step_that_is_too_large_for_a_tpu_is_told():
    row = planned("tpu:v5e", "0", batch_size=512)["0"]
    assert not row.fits
    assert row.peak_bytes > row.memory_bytes
    assert row.weight_gradient_ops is None


@pytest.mark.slow
@pytest.mark.parametrize("target", ["cuda:h100", "cuda:a100", "tpu:v5e"])
def test_the_largest_batch_fits_and_a_tenth_more_does_not(target):
    row = planned(target, "24", quick=False)["24"]
    assert row.largest_batch > row.batch
    assert planned(target, "24", batch_size=row.largest_batch)["24"].fits
    assert not planned(target, "24", batch_size=int(1.1 * row.largest_batch))["24"].fits


@pytest.mark.slow
def test_every_frozen_layer_saves_memory_on_an_h100():
    depths = [
        depth for depth in range(25) if depth - 1 not in (11, 12, 15, 16, 19, 22)
    ]  # not behind layers without parameters
    rows = list(planned("cuda:h100", *map(str, depths), cfg="yolov5n").values())
    assert len(rows) == len(depths)
    for before, after in itertools.pairwise(rows):
        assert after.flops < before.flops
        assert after.temp_bytes <= before.temp_bytes
        assert after.peak_bytes < before.peak_bytes
        assert after.weight_gradient_ops < before.weight_gradient_ops
