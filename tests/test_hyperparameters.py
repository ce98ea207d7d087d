from pathlib import Path

import pytest

from yolojax.config import configs_root
from yolojax.errors import UserError
from yolojax.hyperparameters import load_hyperparameters

NAMES = "names: [cat, dog]\n"


def write(folder: Path, text: str, name: str = "pets.yaml") -> Path:
    file = folder / name
    file.write_text(text)
    return file


def test_every_shipped_hyperparameter_file_is_valid_and_differs():
    files = sorted((configs_root() / "hyps").glob("*.yaml"))
    assert len(files) == 11
    assert len({load_hyperparameters(file) for file in files}) == len(files)


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


def test_exponents_are_numbers_and_missing_keys_are_named_with_their_defaults(tmp_path, caplog):
    file = write(tmp_path, "lr0: 1e-3\n")
    with caplog.at_level("INFO"):
        assert load_hyperparameters(file).lr0 == 0.001
    assert "lrf 0.01, momentum 0.937" in caplog.text
    assert "lr0" not in caplog.text
