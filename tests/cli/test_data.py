"""``yolojax data``: its actions from the command line."""

import cv2
import numpy as np
import pytest

from yolojax.cli.main import main


def test_convert_writes_a_data_set_that_checks_clean(tiny_data, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["data", "convert", str(tiny_data), str(out), "--format", "coco"]) == 0
    assert "train: 10 images" in capsys.readouterr().out
    assert main(["data", "check", str(out / "data.yaml")]) == 0
    assert main(["data", "convert", str(tiny_data), str(out), "--format", "voc"]) == 2
    assert "left as it is" in capsys.readouterr().err


def test_convert_says_which_split_stands_in_for_another(tiny_data, tmp_path, capsys):
    assert main(["data", "convert", str(tiny_data), str(tmp_path / "out"), "--format", "voc", "--split", "val"]) == 0
    assert "'train' was not asked for" in capsys.readouterr().out


def test_show_draws_every_image_twice(tiny_data, tmp_path):
    out = tmp_path / "new" / "sheet.jpg"
    arguments = ["data", "show", str(tiny_data), "--count", "4", "--img", "96", "--out", str(out)]
    assert main(arguments) == 0
    first = cv2.imread(str(out))
    assert first.shape[1] > 2 * 96
    assert main([*arguments, "--hyp", "no-augmentation", "--seed", "0"]) == 0
    assert (cv2.imread(str(out)) != first).any()
    assert main([*arguments, "--seed", "0"]) == 0
    np.testing.assert_array_equal(cv2.imread(str(out)), first)


@pytest.mark.parametrize("wrong", [["--count", "0"], ["--img", "8"], ["--out", "sheet.png"], ["--seed", "-1"]])
def test_show_refuses_what_it_cannot_draw(tiny_data, wrong):
    assert main(["data", "show", str(tiny_data), *wrong]) == 2
