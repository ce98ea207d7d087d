"""The programs of a validation, compiled for a card that is not here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from yolojax.errors import UserError
from yolojax.model.spec import load_spec
from yolojax.plan.devices import load_target, open_device, target_environment
from yolojax.plan.validation import validation_programs

ROOT = Path(__file__).resolve().parents[2]


def print_temporaries() -> None:
    """Run in a process of its own: bytes of the temporary arrays of NMS at the sizes of VOC and COCO, and of the prediction of the first."""
    device, found = open_device(load_target("cuda:h100")), {}
    for name, classes, batch, side in (("voc", 20, 96, 512), ("coco", 80, 64, 640)):
        spec = load_spec("yolov5n", classes=classes)
        programs = validation_programs(spec, device, batch=batch, size=(side, side), dtype="bfloat16")
        found[name] = {part: program.memory_analysis().temp_size_in_bytes for part, program in programs.items()}
    print(json.dumps(found))


@pytest.mark.slow
def test_nms_of_a_whole_batch_needs_little_memory_on_an_h100():
    try:
        target = load_target("cuda:h100")
    except UserError as error:
        pytest.skip(str(error))
    done = subprocess.run(
        [sys.executable, "-c", "import test_validation; test_validation.print_temporaries()"],
        env=os.environ
        | target_environment(target)
        | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(ROOT)]), "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    # .16 and .25 GB, as compiled; a sort of every score of the batch would take .40 and 1.55.
    assert 0 < found["voc"]["nms"] < 0.2e9
    assert 0 < found["coco"]["nms"] < 0.4e9
    assert 0 < found["voc"]["predict"] < 1e9


def test_the_programs_are_those_of_a_validation_here(tiny_model):
    import jax

    spec = load_spec(str(tiny_model))
    programs = validation_programs(spec, jax.devices("cpu")[0], batch=2, size=(64, 96))
    predictions, _ = programs["predict"].out_info
    assert predictions.shape == (2, sum(3 * 64 * 96 // stride**2 for stride in spec.strides), 5 + spec.classes)
    assert [leaf.shape for leaf in programs["nms"].out_info] == [(2, 300, 6), (2,)]
