"""``results.csv``, in YOLOv5's form."""

from yolojax.training.report import COLUMNS, ResultsTable, read_results


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
    table.path.write_text(table.path.read_text(), encoding="utf-8-sig")  # saved by a program for tables
    resumed = ResultsTable(tmp_path / "results.csv", keep_epochs=2)
    resumed.append({"epoch": 2, "x/lr0": 0.3})
    assert [(row["epoch"], row["x/lr0"]) for row in read_results(tmp_path / "results.csv")] == [
        (0, 0.1),
        (1, 0.1),
        (2, 0.3),
    ]
