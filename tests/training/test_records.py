import json

import pytest

from yolojax.errors import UserError
from yolojax.training.records import (
    COLUMNS,
    ResultsTable,
    find_run_folder,
    new_run_folder,
    read_results,
    write_json,
    write_yaml,
)


def test_run_folders_count_up(tmp_path):
    names = [new_run_folder(tmp_path, "exp").name for _ in range(3)]
    assert names == ["exp", "exp2", "exp3"]
    assert new_run_folder(tmp_path, "exp", exist_ok=True).name == "exp"


def test_a_run_folder_that_cannot_be_made_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="the run folder cannot be created"):
        new_run_folder(tmp_path / "file", "exp")


def test_results_have_the_form_of_yolov5(tmp_path):
    table = ResultsTable(tmp_path / "results.csv")
    table.append(dict.fromkeys(COLUMNS, 0.123456789) | {"epoch": 0})
    header, row = (tmp_path / "results.csv").read_text().splitlines()
    assert header.split(",")[1] == "      train/box_loss"
    assert row.startswith("                   0,             0.12346,")


def test_a_resumed_table_drops_the_rows_that_are_written_again(tmp_path):
    table = ResultsTable(tmp_path / "results.csv")
    for epoch in range(4):
        table.append({"epoch": epoch, "x/lr0": 0.1})
    resumed = ResultsTable(tmp_path / "results.csv", keep_epochs=2)
    resumed.append({"epoch": 2, "x/lr0": 0.3})
    assert [(row["epoch"], row["x/lr0"]) for row in read_results(tmp_path / "results.csv")] == [
        (0, 0.1),
        (1, 0.1),
        (2, 0.3),
    ]


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
