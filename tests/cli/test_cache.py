import io
import json

import pytest

from yolojax.cli.main import main


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("YOLOJAX_CACHE", str(tmp_path / "cache"))
    for name in ("compiled/jit_a-1-cache", "checks/1.json", "images/mine.txt"):
        (tmp_path / "cache" / name).parent.mkdir(parents=True)
        (tmp_path / "cache" / name).write_text("12345")
    return tmp_path / "cache"


def files_in(folder):
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


def answer(monkeypatch, text, is_terminal=True):
    stream = io.StringIO(text)
    stream.isatty = lambda: is_terminal
    monkeypatch.setattr("sys.stdin", stream)


def test_show_names_every_folder_with_its_size_and_deletes_nothing(root, tmp_path, capsys):
    assert main(["cache", "--json", str(tmp_path / "cache.json")]) == 0
    printed = capsys.readouterr().out
    for name in ("compiled", "checks", "images"):
        assert str(root / name) in printed
    assert f"not ours, left alone: {root / 'images' / 'mine.txt'}" in printed
    assert f"10 B  in {root}" in printed
    rows = json.loads((tmp_path / "cache.json").read_text())
    assert [(row["name"], row["bytes"], row["files"]) for row in rows] == [
        ("checks", 5, 1),
        ("compiled", 5, 1),
        ("images", 0, 0),
    ]
    assert len(files_in(root)) == 3


@pytest.mark.parametrize(("reply", "status", "left"), [("y\n", 0, ["images/mine.txt"]), ("\n", 1, None)])
def test_clear_asks_first(root, monkeypatch, capsys, reply, status, left):
    before = files_in(root)
    answer(monkeypatch, reply)
    assert main(["cache", "clear"]) == status
    assert files_in(root) == (before if left is None else left)
    assert ("nothing was deleted" in capsys.readouterr().out) == bool(status)


def test_clear_of_one_folder_without_asking(root):
    assert main(["cache", "clear", "checks", "--yes"]) == 0
    assert files_in(root) == ["compiled/jit_a-1-cache", "images/mine.txt"]


def test_without_a_terminal_nothing_is_deleted_unasked(root, monkeypatch, capsys):
    answer(monkeypatch, "y\n", is_terminal=False)
    assert main(["cache", "clear"]) == 2
    assert "--yes" in capsys.readouterr().err
    assert len(files_in(root)) == 3


def test_a_name_that_is_not_there_is_refused(root, capsys):
    assert main(["cache", "clear", "../photos", "--yes"]) == 2
    assert "it holds checks, compiled, images" in capsys.readouterr().err
