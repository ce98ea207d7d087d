"""``yolojax study`` end to end."""

import json
from types import SimpleNamespace

import pytest

import yolojax.cli.study as command
from yolojax.cli.main import main
from yolojax.study import runner


@pytest.fixture
def study(write_study):
    return write_study(scenarios=[{"name": f"freeze {depth}", "freeze": depth} for depth in (0, 2)])


def test_check_lists_the_runs_and_trains_nothing(study, tmp_path, capsys):
    assert main(["study", str(study), "--output", str(tmp_path / "out"), "--check", "--only", "freeze 2"]) == 0
    assert "freeze 2, seed 0" in (printed := capsys.readouterr().out)
    assert "freeze 0, seed 0" not in printed
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "folder"),
    [
        (["--project", "studies", "--name", "mine"], "studies/mine"),
        (["--project", "studies"], "studies/study"),
        (["--output", "here", "--name", "mine"], "here"),
        ([], "runs/study/study"),
    ],
)
def test_the_folder_of_a_study_is_named_as_that_of_a_run(study, tmp_path, monkeypatch, flags, folder):
    monkeypatch.chdir(tmp_path)
    assert main(["study", str(study.rename(study.with_name("study.yaml"))), "--report", *flags]) == 0
    assert (tmp_path / folder / "report.html").is_file()


def test_a_mistake_is_one_line_and_exit_status_2(study, tmp_path, capsys):
    study.write_text(study.read_text().replace("freeze: 2", "freeze: 30"))
    assert main(["study", str(study), "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "scenario 'freeze 2'" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_reports_of_an_unfinished_study_are_drawn_now_and_then(study, tmp_path, monkeypatch, capsys):
    """Quick runs do not wait for the report of each."""
    clock, seconds = iter((0, 20, 59, 61, 100, 122)), []
    monkeypatch.setattr(command, "time", SimpleNamespace(monotonic=lambda: seconds[-1]))

    def run_study(_study, _output, _extents, after_run, _cluster):
        for second in clock:
            seconds.append(second)
            after_run()
        return []

    monkeypatch.setattr(runner, "run_study", run_study)
    assert main(["study", str(study), "--output", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.count("report: ") == 3 + 1  # after 0, 61 and 122 seconds, and at the end


@pytest.mark.slow
def test_two_scenarios_are_trained_and_compared(study, tmp_path, capsys):
    words = ["study", str(study), "--output", str(tmp_path / "out"), "--json", str(tmp_path / "figures.json")]
    assert main(words) == 0
    whole, frozen = json.loads((tmp_path / "figures.json").read_text())
    assert (whole["name"], whole["seeds"], frozen["freeze"]) == ("freeze 0", [0], "2")
    measured = (
        "wall_seconds",
        "step_seconds",
        "compile_seconds",
        "memory_bytes",
        "process_bytes",
        "utilisation",
        "step_flops",
    )
    assert all(min(whole["mean"][name], frozen["mean"][name]) > 0 for name in measured)
    assert frozen["mean"]["trainable"] < whole["mean"]["trainable"] == whole["mean"]["parameters"]
    assert frozen["mean"]["step_flops"] < whole["mean"]["step_flops"]
    assert "map50-over-epochs" in (tmp_path / "out" / "report.md").read_text()
    before = (tmp_path / "out" / "freeze-2-seed0" / "results.json").stat().st_mtime_ns
    assert main(words) == 0
    assert (tmp_path / "out" / "freeze-2-seed0" / "results.json").stat().st_mtime_ns == before
