"""A folder or file is there complete, or nothing is."""

import json
from pathlib import Path

import pytest

from yolojax import files
from yolojax.errors import UserError
from yolojax.files import complete_file, complete_folder, find_run_folder, new_run_folder, write_json, write_yaml


def test_the_folder_appears_at_the_end(tmp_path):
    target = tmp_path / "new" / "set"
    with complete_folder(target) as place:
        (place / "a.txt").write_text("a")
        assert not target.exists()
    assert [file.name for file in target.iterdir()] == ["a.txt"]
    assert list(target.parent.iterdir()) == [target]


def test_nothing_is_left_of_one_that_failed(tmp_path):
    def fail() -> None:
        with complete_folder(tmp_path / "set") as place:
            (place / "a.txt").write_text("a")
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_already_is_left_alone(tmp_path):
    target = tmp_path / "set"
    target.mkdir()
    (target / "mine.txt").write_text("mine")
    with pytest.raises(OSError), complete_folder(target) as place:
        (place / "a.txt").write_text("a")
    assert [file.name for file in target.iterdir()] == ["mine.txt"]
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("replaces", [True, False])
def test_an_empty_folder_gives_way_on_any_system(tmp_path, monkeypatch, replaces):
    rename = Path.replace

    def on_windows(unfinished, target):
        if target.exists():
            raise PermissionError(target)
        return rename(unfinished, target)

    if not replaces:
        monkeypatch.setattr(files, "replaces_folders", lambda: False)
        monkeypatch.setattr(Path, "replace", on_windows)
    target = tmp_path / "set"
    target.mkdir()
    with complete_folder(target) as place:
        (place / "a.txt").write_text("a")
    assert [file.name for file in target.iterdir()] == ["a.txt"]


def test_a_file_takes_its_place_at_the_end(tmp_path):
    target = tmp_path / "new" / "a.txt"
    for text in ("first", "second"):
        with complete_file(target) as file:
            file.write_text(text)
        assert target.read_text() == text
    with pytest.raises(FileNotFoundError), complete_file(target) as file:
        file.with_name("other").rename(target)
    assert target.read_text() == "second"
    assert list(target.parent.iterdir()) == [target]


def test_run_folders_count_up(tmp_path):
    names = [new_run_folder(tmp_path, "exp").name for _ in range(3)]
    assert names == ["exp", "exp2", "exp3"]
    assert new_run_folder(tmp_path, "exp", exist_ok=True).name == "exp"


def test_a_run_folder_that_cannot_be_made_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="the run folder cannot be created"):
        new_run_folder(tmp_path / "file", "exp")


def test_the_latest_run_and_a_run_by_any_path_inside_it_are_found(tmp_path):
    first, second = new_run_folder(tmp_path, "exp"), new_run_folder(tmp_path, "exp")
    for folder in (first, second):
        write_yaml(folder / "settings.yaml", {"epochs": 3})
    assert find_run_folder("latest", tmp_path) == second
    assert find_run_folder(str(first / "weights" / "last"), tmp_path) == first
    with pytest.raises(UserError, match="not a run folder"):
        find_run_folder(str(tmp_path / "weights"), tmp_path)
    with pytest.raises(UserError, match="no run in"):
        find_run_folder("latest", tmp_path / "none")


def test_json_is_replaced_whole(tmp_path):
    file = tmp_path / "results.json"
    write_json(file, {"map50": 0.5})
    with pytest.raises(TypeError):
        write_json(file, {("a",): 1})
    assert json.loads(file.read_text()) == {"map50": 0.5}
    assert [entry.name for entry in tmp_path.iterdir()] == ["results.json"]
