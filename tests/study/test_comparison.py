"""Differences of means, their intervals, and what they allow to be said."""

import csv

import pytest

from yolojax.errors import UserError
from yolojax.study.comparison import Comparison, differences, interval
from yolojax.study.measurements import finished_figures, measure_study
from yolojax.study.report import write_report
from yolojax.study.scenarios import load_study

SCENARIOS = [{"name": "left", "freeze": 1}, {"name": "right", "freeze": 2}]


def test_the_interval_is_welchs():
    # By SciPy 1.17: stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.9)
    a, b = [0.664, 0.653, 0.682, 0.697, 0.679], [0.61, 0.67, 0.65, 0.66]
    mean, low, high = interval(a, b)
    assert mean == pytest.approx(0.0275, abs=1e-12)
    assert (low, high) == (pytest.approx(-0.003204065298, abs=1e-9), pytest.approx(0.058204065298, abs=1e-9))
    assert interval(b, a) == (pytest.approx(-mean), pytest.approx(-high), pytest.approx(-low))


def test_without_spread_the_interval_is_the_difference():
    assert interval([0.5, 0.5], [0.25, 0.25, 0.25]) == (0.25, 0.25, 0.25)


@pytest.fixture
def compared(make_runs, record_run, tmp_path):
    """``compared(left, right, within)``: the differences of two scenarios with these mAP50, and the folder of their report."""

    def make(left, right, within=None):
        pair = {"scenarios": ["left", "right"]} | ({} if within is None else {"within": within})
        study, runs = make_runs(seeds=list(range(max(len(left), len(right)))), scenarios=SCENARIOS, compare=[pair])
        scores = {"left": left, "right": right}
        for run in runs:
            own = scores[run.scenario.name]
            status = "finished" if run.seed < len(own) else "failed"
            record_run(run, [(own[run.seed % len(own)], 0.2)], status=status)
        measurements = measure_study(study, runs)
        write_report(study, measurements, tmp_path / "out")
        return differences(study.comparisons, finished_figures(measurements)), tmp_path / "out"

    return make


@pytest.mark.parametrize(
    ("within", "equal", "verdict"),
    [(0.1, True, "equal within ±0.1"), (0.011, False, "not shown to be equal within ±0.011"), (None, None, "")],
)
def test_equal_is_what_lies_within_as_a_whole(compared, within, equal, verdict):
    found, folder = compared([0.50, 0.52, 0.54], [0.51, 0.52, 0.53, 0.54], within)
    first, second = found
    assert (first.figure, second.figure) == ("map50", "map50_95")
    assert (first.first_runs, first.second_runs, first.equal, first.verdict) == (3, 4, equal, verdict)
    assert second.equal is None  # the claim is about mAP50
    assert first.low < first.mean < first.high
    assert abs(first.mean) < 0.011 < max(-first.low, first.high) < 0.1
    text, page = ((folder / name).read_text() for name in ("report.md", "report.html"))
    assert f"| left − right | mAP50 | 3, 4 | −0.005 | −0.035 to +0.025 | {verdict} |" in text
    assert '<th scope=row>left − right</th><td class="text">mAP50<td class="">3, 4<td class="">−0.005' in page
    with (folder / "differences.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["equal"] for row in rows] == ["" if equal is None else str(equal), ""]
    assert float(rows[0]["low"]) == first.low


def test_one_run_has_no_interval(compared):
    found, folder = compared([0.5], [0.4, 0.6])
    assert found == []
    assert not (folder / "differences.csv").exists()
    assert "Differences" not in (folder / "report.html").read_text()


def test_a_part_of_a_study_compares_what_is_left_of_it(write_study):
    pair = {"scenarios": ["right", "left"], "within": 0.02}
    study = load_study(write_study(scenarios=SCENARIOS, compare=[pair]))
    assert study.comparisons == (Comparison("right", "left", 0.02),)
    assert study.only(["left"]).comparisons == ()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"scenarios": ["left", "up"]}, "key 'compare': no scenario is named 'up'; there are: left, right"),
        ({"scenarios": ["left"]}, "key 'compare': key 'scenarios': expected two names, found ['left']"),
        ({"scenarios": ["left", "left"]}, "expected two names"),
        ({"scenarios": ["left", "right"], "within": 0}, "key 'within': expected a number above 0, found 0"),
        ({"scenarios": ["left", "right"], "within": True}, "expected a number above 0"),
        ({"scenarios": ["left", "right"], "withing": 1}, "withing"),
        ("left", "expected 'key: value' lines, found 'left'"),
    ],
)
def test_a_comparison_that_cannot_be_made_is_one_clear_error(write_study, row, message):
    with pytest.raises(UserError) as error:
        load_study(write_study(scenarios=SCENARIOS, compare=[row]))
    assert message in str(error.value)
