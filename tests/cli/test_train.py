"""The command line of ``yolojax train``: every flag of YOLOv5 is taken, noted or refused."""

from pathlib import Path

import pytest

from yolojax.cli import train
from yolojax.cli.main import build_parser, main, with_dashes
from yolojax.errors import UserError
from yolojax.flags import read_fields
from yolojax.training.settings import TrainSettings

# docs/yolov5.md §1.14, with its values where a flag takes one.
YOLOV5 = """--weights yolov5s.pt --cfg yolov5s.yaml --data coco128.yaml --hyp hyp.scratch-low.yaml --epochs 100 --batch-size 16 --batch 16 --imgsz 640
--img 640 --img-size 640 --rect --resume runs/train/exp --resume --nosave --noval --noautoanchor --noplots --evolve 300 --evolve --evolve_population data/hyps
--resume_evolve a.csv --bucket gs://b --cache --cache ram --cache disk --cache val --image-weights --device 0,1 --multi-scale --single-cls --optimizer AdamW
--sync-bn --workers 8 --project runs/train --name exp --exist-ok --quad --cos-lr --label-smoothing 0.1 --patience 100 --freeze 10 --freeze 0 1 2
--save-period 5 --seed 1 --local_rank -1 --entity me --upload_dataset --upload_dataset val --bbox_interval 2 --artifact_alias latest"""


def words_of(text: str) -> list[list[str]]:
    return [f"--{flag}".split() for flag in " ".join(text.split()).removeprefix("--").split(" --")]


def parse(words: list[str]):
    return build_parser("train").parse_args(["train", *with_dashes(words)])


@pytest.mark.parametrize("words", words_of(YOLOV5), ids=" ".join)
def test_every_flag_of_yolov5_is_known(words):
    name = words[0].removeprefix("--").replace("-", "_")
    given, plain = vars(parse(words)), vars(parse([]))
    changed = {key for key in plain if given[key] != plain[key]}
    fields = {"batch": "batch_size", "img": "imgsz", "img_size": "imgsz"}
    defaults = {"workers", "project", "name", "patience", "sync_bn"}  # the value above is the default
    assert changed == ({fields.get(name, name)} if name not in defaults else set())


def test_abbreviations_and_underscores_are_taken():
    settings = read_fields(
        parse(["--batch", "8", "--img", "320", "--multi", "--label_smoothing", ".1", "--exist", "--cos"]), TrainSettings
    )
    assert (settings.batch_size, settings.imgsz, settings.multi_scale) == (8, 320, True)
    assert (settings.label_smoothing, settings.exist_ok, settings.cos_lr) == (0.1, True, True)


@pytest.mark.parametrize(("words", "sync_bn"), [([], "on"), (["--sync-bn"], "on"), (["--sync_bn", "off"], "off")])
def test_batchnorm_is_synchronised_unless_it_is_switched_off(words, sync_bn):
    assert read_fields(parse(words), TrainSettings).sync_bn == sync_bn


@pytest.mark.parametrize("name", [*train.IGNORED, *train.REFUSED])
def test_what_is_not_done_is_said(name, capsys):
    arguments = parse([f"--{name}"])
    if name in train.REFUSED:
        with pytest.raises(UserError, match=name):
            train.note_foreign(arguments, train.IGNORED, train.REFUSED)
    else:
        train.note_foreign(arguments, train.IGNORED, train.REFUSED)
        assert f"--{name.replace('_', '-')} has no effect" in capsys.readouterr().out


def test_the_page_lists_what_is_noted_and_refused():
    page = (Path(__file__).resolve().parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    for name in [*train.IGNORED, *train.REFUSED, "evolve-freeze", "data-root", "strict", "frozen-bn", "dtype", "json"]:
        assert f"`--{name}" in page or f"`--{name.replace('_', '-')}" in page, name


def test_a_mistake_is_one_line_and_status_two(capsys):
    assert main(["train", "--data", "nowhere.yaml"]) == 2
    assert capsys.readouterr().err.startswith("yolojax train: nowhere.yaml: no such file")
