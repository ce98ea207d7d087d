"""A folder or file is there complete, or nothing is."""

import pytest

from yolojax.data.folder import complete_file, complete_folder


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
