from pathlib import Path

import pytest

from yolojax.config import configs_root, read_yaml
from yolojax.data.config import load_data_config
from yolojax.errors import UserError

NAMES = "names: [cat, dog]\n"


def write(folder: Path, text: str, name: str = "pets.yaml") -> Path:
    file = folder / name
    file.write_text(text)
    return file


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


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("[yes, no, on]", ("yes", "no", "on")),
        ("{'0': a, '1': b}", ("a", "b")),
        ("[1, 2]", ("1", "2")),
        ("[1e3, 007, 1.50]", ("1e3", "007", "1.50")),
        ("{a: 0, b: 1}", ("a", "b")),
        ("classes.txt", ("cat", "dog")),
    ],
)
def test_names_are_the_words_that_stand_there(tmp_path, names, expected):
    (tmp_path / "classes.txt").write_text("\ufeffcat\ndog\u200b\n\n", encoding="utf-8")
    assert load_data_config(write(tmp_path, f"train: a\nval: b\nnames: {names}\n")).names == expected


def test_keys_of_other_tools_are_noted_once_and_keypoints_refused(tmp_path, caplog):
    file = write(tmp_path, f"train: a\nval: b\nroboflow: {{version: 1}}\nchannels: 3\n{NAMES}")
    with caplog.at_level("INFO"):
        load_data_config(file)
    assert [message for message in caplog.messages if "not used" in message] == [
        f"{file}: keys 'roboflow', 'channels' not used here"
    ]
    with pytest.raises(UserError, match="kpt_shape"):
        load_data_config(write(tmp_path, f"train: a\nval: b\nkpt_shape: [4, 2]\n{NAMES}"))


def test_a_folder_says_which_yaml_is_in_it(tmp_path):
    with pytest.raises(UserError, match="is a folder without a data YAML; write one"):
        load_data_config(tmp_path)
    write(tmp_path, NAMES)
    with pytest.raises(UserError, match=r"is a folder; give the data YAML in it: pets\.yaml"):
        load_data_config(tmp_path)


def test_a_folder_of_photos_does_not_hide_the_shipped_data_set_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bccd").mkdir()
    assert load_data_config("bccd").file == configs_root() / "data" / "bccd.yaml"
    (tmp_path / "bccd" / "data.yaml").touch()
    with pytest.raises(UserError, match=r"is a folder; give the data YAML in it: data\.yaml"):
        load_data_config("bccd")


@pytest.mark.parametrize("text", ["\ufefftrain: a\nval:\u00a0b\nnames:\n\u00a0 0: cat\n\u00a0 1: dog\u200b\nnc: 2e0\n"])
def test_yaml_with_spaces_that_are_none_is_read(tmp_path, text):
    config = load_data_config(write(tmp_path, text))
    assert (config.val, config.names) == (("b",), ("cat", "dog"))
