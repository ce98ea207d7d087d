"""What making a batch costs on an accelerator that is not here: read from its compiled program."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from yolojax.augmentation.cost import batch_traffic, compile_batch
from yolojax.augmentation.draws import DeviceAugmentation
from yolojax.errors import UserError
from yolojax.hyperparameters import Hyperparameters, load_hyperparameters
from yolojax.plan.devices import load_target, open_device, target_environment

BATCH, SIZE = 48, 512
VOC = 16551  # images


def settings(**changes) -> DeviceAugmentation:
    fixed = {"hyperparameters": load_hyperparameters("finetune"), "count": VOC, "image_size": SIZE, "batch_size": BATCH}
    return DeviceAugmentation(**{**fixed, **changes})


def print_program(target: str, count: int) -> None:
    """The text and the bytes of temporary arrays of the program; run in a process that was started for the target."""
    compiled = compile_batch(settings(count=count), 42, open_device(load_target(target)))
    print(json.dumps({"text": compiled.as_text(), "temporary": compiled.memory_analysis().temp_size_in_bytes}))


def compiled_for(target: str, count: int = VOC) -> dict:
    try:
        variables = target_environment(load_target(target))
    except UserError as error:
        pytest.skip(str(error))
    root, folder = Path(__file__).resolve().parents[2], Path(__file__).resolve().parent
    run = subprocess.run(
        [sys.executable, "-c", f"import test_cost; test_cost.print_program('{target}', {count})"],
        env=os.environ | variables | {"PYTHONPATH": f"{folder}{os.pathsep}{root}"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout)


@pytest.mark.slow
def test_on_an_h100_one_program_reads_the_images_and_no_canvas_is_made():
    program = compiled_for("cuda:h100")
    entry = program["text"][program["text"].index("\nENTRY") :].splitlines()[2:]
    images = f"u32[{VOC},{SIZE + 1},{SIZE + 1}]"
    name = next(re.match(r"\s*%(\S+) =", line)[1] for line in entry if f"= {images}" in line)
    readers = [line for line in entry if re.search(rf"fusion\([^)]*%{re.escape(name)}[,)]", line)]
    assert len(readers) == 1
    assert "kind=kLoop" in readers[0]
    made = [
        (kind, [int(side) for side in sides.split(",")])
        for kind, sides in re.findall(r"(\w+)\[([\d,]+)\]", "\n".join(entry))
    ]
    assert not any(sides.count(2 * SIZE) >= 2 for _, sides in made)
    # float32 holds positions, two numbers for a pixel of a view; never colours.
    assert not any(kind == "f32" and sides[-1] == 3 and len(sides) > 3 for kind, sides in made)
    assert sum(kind == "f32" for kind, sides in made if SIZE in sides) <= 16
    assert program["temporary"] <= 0.35e9


@pytest.mark.slow
def test_it_compiles_for_a_tpu():
    assert compiled_for("tpu:v5e", 1000)["temporary"] < 8e9


def test_on_an_h100_what_is_read_and_written_takes_less_than_four_tenths_of_a_millisecond():
    few = batch_traffic(settings(batch_size=4))
    least, most = (1e3 * seconds * BATCH / 4 for seconds in few.seconds(3.35e12))
    assert 0.2 < least < most < 0.4


def test_an_image_that_only_moves_reads_each_of_its_sectors_once():
    still = Hyperparameters(mosaic=0, scale=0, translate=0, fliplr=0)
    traffic = batch_traffic(settings(hyperparameters=still, batch_size=1, image_size=64))
    # 48 rows of 64 words, and the border's two columns, row and corner, whose sectors are all the same ones.
    assert 48 * 64 * 4 <= traffic.once <= 1.25 * 48 * 64 * 4
    assert traffic.once < traffic.together < 4 * 1.5 * traffic.once * 64 / 48
