from pathlib import Path

import pytest

from yolojax.config import configs_root, find_config, load_data_config, load_hyperparameters, read_yaml
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
    with pytest.raises(UserError, match=r"finetun: no such file; did you mean 'finetune'"):
        find_config("hyps", "finetun")


def test_a_path_that_does_not_exist_is_not_taken_for_a_shipped_name():
    with pytest.raises(UserError, match="no such file"):
        find_config("hyps", "/elsewhere/finetune.yaml")


def test_every_shipped_hyperparameter_file_is_valid_and_differs():
    files = sorted((configs_root() / "hyps").glob("*.yaml"))
    assert len(files) == 9
    assert len({load_hyperparameters(file) for file in files}) == 9


def test_the_default_hyperparameters_are_scratch_low():
    assert load_hyperparameters("scratch-low") == load_hyperparameters("scratch-low").__class__()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr: 0.1\n", r"key 'lr' is unknown; did you mean 'lr[0f]'"),
        ("lr0: fast\n", r"key 'lr0': expected float, found 'fast'"),
        ("lr0: true\n", r"key 'lr0': expected float, found True"),
        ("lr0: .nan\n", r"key 'lr0': expected float, found nan"),
        ("mosaic: 1.5\n", r"key 'mosaic': 1.5 is no probability"),
        ("lr0: -1\n", r"key 'lr0': -1.0 is negative"),
        ("lr0: [\n", r"line 2: is not valid YAML"),
        ("just text\n", r"expected 'key: value' lines"),
    ],
)
def test_a_bad_hyperparameter_file_is_one_clear_sentence(tmp_path, text, message):
    file = write(tmp_path, text)
    with pytest.raises(UserError, match=message) as error:
        load_hyperparameters(file)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_data_file_in_the_form_of_yolov5_is_read(tmp_path):
    (tmp_path / "pets" / "images").mkdir(parents=True)
    file = write(tmp_path, "path: pets\ntrain: images\nval: [images, more.txt]\nnc: 2\nnames:\n  0: cat\n  1: dog\n")
    config = load_data_config(file)
    assert config.root == tmp_path / "pets"
    assert (config.train, config.val, config.test) == (("images",), ("images", "more.txt"), ())
    assert config.names == ("cat", "dog")
    assert config.format == "yolo"


def test_the_root_comes_from_the_flag_then_the_variable_then_the_file(tmp_path, monkeypatch):
    for folder in ("home/pets", "here/pets"):
        (tmp_path / folder).mkdir(parents=True)
    file = write(tmp_path / "here", f"path: pets\ntrain: a\nval: b\n{NAMES}")
    assert load_data_config(file).root == tmp_path / "here" / "pets"
    monkeypatch.setenv("YOLOJAX_DATA", str(tmp_path / "home"))
    assert load_data_config(file).root == tmp_path / "home" / "pets"
    assert load_data_config(file, root="elsewhere").root == Path("elsewhere")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"val: b\n{NAMES}", "key 'train' is missing"),
        (f"train: a\nval: b\nname: x\n{NAMES}", "key 'name' is unknown; did you mean 'names'"),
        ("train: a\nval: b\n", "key 'names': expected a list"),
        ("train: a\nval: b\nnames: {0: cat, 2: dog}\n", "indices must run from 0 to 1"),
        (f"train: a\nval: b\nnc: 3\n{NAMES}", "key 'nc' is 3, but 'names' lists 2 classes"),
        (f"train: 3\nval: b\n{NAMES}", "key 'train': expected a name or a list of names"),
        (f"train: a\nval: b\nformat: pascal\n{NAMES}", "key 'format': 'pascal' is none of 'yolo', 'voc'"),
        (f"train: a\nval: b\ndefaults: {{image: 3}}\n{NAMES}", "defaults: key 'image' is unknown"),
        (f"train: a\nval: b\ndefaults: {{hyp: 3}}\n{NAMES}", "defaults: key 'hyp': expected"),
    ],
)
def test_a_bad_data_file_is_one_clear_sentence(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        load_data_config(write(tmp_path, text))


def test_a_binary_file_is_no_yaml(tmp_path):
    file = tmp_path / "photo.yaml"
    file.write_bytes(b"\xff\xd8\xff\xe0\x00\x10JFIF")
    with pytest.raises(UserError, match="is not valid YAML"):
        read_yaml(file)
