from pathlib import Path

import pytest

from yolojax.config import configs_root, find_config
from yolojax.errors import UserError

NAMES = "names: [cat, dog]\n"


def write(folder: Path, text: str, name: str = "pets.yaml") -> Path:
    file = folder / name
    file.write_text(text)
    return file


@pytest.mark.parametrize(
    "name", ["finetune", "hyp.finetune.yaml", "data/hyps/hyp.finetune.yaml", "hyps/finetune.yaml", "FINETUNE.yaml"]
)
def test_the_names_of_yolov5_find_the_shipped_file(name):
    assert find_config("hyps", name) == configs_root() / "hyps" / "finetune.yaml"


def test_a_missing_file_is_named_with_the_nearest_one():
    with pytest.raises(UserError, match=r"finetun: no such file; did you mean 'finetune'\? Shipped hyps: "):
        find_config("hyps", "finetun")
    with pytest.raises(UserError, match=r"tfds:voc: no such file; shipped models: yolov5"):
        find_config("models", "tfds:voc")


def test_a_path_that_does_not_exist_is_not_taken_for_a_shipped_name():
    with pytest.raises(UserError, match="no such file"):
        find_config("hyps", "/elsewhere/finetune.yaml")
