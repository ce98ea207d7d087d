"""What is wrong with a command is one sentence and status 2, and nothing is written."""

import hashlib
import os
import shlex
from pathlib import Path

import pytest

from yolojax.cli.main import main

# A line: what is typed, and a part of the answer.
CASES = """
train --data nowhere.yaml | nowhere.yaml: no such file
train --data folder | folder: is a folder without a data YAML
train --data broken.yaml | broken.yaml, line 2: is not valid YAML
train --data photo.jpg | photo.jpg: is not valid YAML
train --cfg yolov5z | did you mean 'yolov5x'?
train --cfg folder | folder: is a folder, not a YAML file
train --hyp folder | folder: is a folder, not a YAML file
train --hyp finetun | did you mean 'finetune'?
train --freeze backbon | did you mean 'backbone'?
train --epochs nan | argument --epochs: invalid int value: 'nan'
train --epochs -1 | --epochs -1: must be at least 1
train --batch 0 | --batch-size 0: must be at least 1
train --img 31 | --imgsz 31: must be at least 32
train --img 10000000 | --imgsz 10000000: must be at most 16384
train --seed -1 | --seed -1: must be at least 0
train --seed 99999999999999999999 | --seed 99999999999999999999: must be at most 4294967295
train --label-smoothing nan | --label-smoothing nan: must be at least 0 and below 1
train --optimizer sdg | invalid choice: 'sdg'
train --weigths yolov5n.pt | --weigths: no such flag; did you mean '--weights'?
train --replay nowhere.yaml | nowhere.yaml: no such file
train --replay shapes --replay-share 1.5 | --replay-share 1.5: must be above 0 and below 1
train --distil-gain 2 | --distil-gain: belongs to --distil, which is not given
train --evolve 0 | --evolve 0: must be at least 1
train --json folder | --json folder: is no place for a file
train --resume nowhere | --resume nowhere: not a run folder
val --weights nowhere.pt | nowhere.pt: no such weights
val --weights folder | folder: is neither a weights directory nor a run folder
val --weights '' | --weights '': names no weights here
val --conf-thres nan | --conf-thres nan: must be from 0 to 1
val --max-det -5 | --max-det -5: must be at least 1
val --save-json --annotations folder | --annotations folder: cannot be read (Is a directory)
val --save-json --annotations list.json | --annotations list.json: no COCO file
detect --source nowhere.jpg | --source nowhere.jpg: no such file or folder
detect --source folder | --source folder: holds no image and no video
detect --source broken.yaml | is neither an image nor a video
detect --weights '' | --weights '': names no weights here
detect --classes gaer | --classes gaer: no such class
detect --img 64 64 64 | --imgsz 64 64 64: one side, or height and width, of 32 to 16384 pixels
detect --line-thickness 0 | --line-thickness 0: must be at least 1
export --weights '' | --weights '': names no weights here
export --include onxn | --include onxn: choose from
export --include tflite | --include tflite: export torch
export --opset 3 | --opset 3: must be at least 18
bench --include flota32 | --include flota32: choose from
bench --data nowhere.yaml | nowhere.yaml: no such file
freeze --nc 0 | --nc 0: must be at least 1
freeze --weights '' | --weights '': names no network
freeze --freeze 30 | --freeze 30: yolov5n has layers 0 to 24
audit nowhere.pt yolov5n-shapes | nowhere.pt: no such weights
audit | the following arguments are required: A, B
plan --cfg yolov5z | did you mean 'yolov5x'?
plan --weights '' | --weights '': names no network
plan --batch -1 | --batch-size -1: must be at least 1
study nowhere.yaml | nowhere.yaml: no such file
study folder | folder: is a folder, not a YAML file
study photo.jpg | photo.jpg: is not valid YAML
data check nowhere.yaml | nowhere.yaml: no such file
data check folder | folder: is a folder without a data YAML
data check shapes --plot figure.gif | --plot figure.gif: give it one of the endings
data convert shapes out --format yoloo | invalid choice: 'yoloo'
data show shapes --count 0 | --count 0
data show shapes --out sheet.png | --out sheet.png: is a JPEG file
data download nowhere.yaml | nowhere.yaml: no such file
data chek shapes | invalid choice: 'chek'
doctor --json folder | --json folder: is no place for a file
doctor --jsno x | --jsno: no such flag; did you mean '--json'?
freeze 10 | '10' belongs to no flag
"""


def contents() -> dict[str, str]:
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in Path().rglob("*")
    }


@pytest.mark.parametrize("case", CASES.strip().splitlines())
def test_a_mistake_is_one_sentence_and_nothing_is_written(case, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("broken.yaml").write_text("a: [\n")
    Path("photo.jpg").write_bytes(b"\xff\xd8\x00\x01")
    Path("list.json").write_text("[]")
    words, _, answer = case.rpartition(" | ")
    before = contents()
    try:
        status = main(shlex.split(words))
    except SystemExit as stopped:  # argparse ends the process itself
        status = stopped.code
    error = capfd.readouterr().err
    assert status == 2, error
    assert error.startswith("yolojax "), error
    assert answer in error
    assert error.strip().count(os.linesep) == 0, error
    assert contents() == before


def test_memory_that_is_not_there_is_a_sentence(monkeypatch, capsys):
    def run(arguments):
        raise MemoryError("Unable to allocate 2 TiB")

    monkeypatch.setattr("yolojax.cli.doctor.run", run)
    assert main(["doctor"]) == 2
    assert "there is not enough memory (Unable to allocate 2 TiB)" in capsys.readouterr().err
