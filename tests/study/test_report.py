"""Tables, figures and the page of a study."""

import csv
import re
from html.parser import HTMLParser

import pytest
from matplotlib.figure import Figure

from yolojax.figures import COLOURS
from yolojax.study.measurements import measure_study, summarise_runs
from yolojax.study.plots import make_plots, memory_figure, styles
from yolojax.study.report import write_report

SCENARIOS = [
    {"name": "freeze 2", "freeze": 2},
    {"name": "freeze 2 (track)", "freeze": 2, "frozen_bn": "track"},
    {"name": "never <run>", "freeze": 1},
]


@pytest.fixture
def written(make_runs, record_run, tmp_path):
    """The folder of a report on two scenarios, two seeds, and one scenario that failed."""
    study, runs = make_runs(
        title="Squares & circles",
        seeds=[0, 1],
        scenarios=SCENARIOS,
        reference=[{"name": "freeze 2", "source": "a book", "map50": 0.75}],
    )
    for run in runs:
        top = 0.3 + 0.02 * run.seed
        record_run(run, [(top / 2, top / 4), (top, top / 2)], status="failed" if "never" in run.name else "finished")
    write_report(study, measure_study(study, runs), tmp_path / "out")
    return tmp_path / "out"


def read(file):
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


def test_tables_hold_every_scenario_run_and_epoch(written):
    scenarios, runs, epochs = (read(written / f"{name}.csv") for name in ("scenarios", "runs", "epochs"))
    assert [row["scenario"] for row in scenarios] == [scenario["name"] for scenario in SCENARIOS]
    assert (float(scenarios[0]["map50"]), scenarios[0]["runs"], scenarios[2]["map50"]) == (pytest.approx(0.31), "2", "")
    assert float(scenarios[0]["map50_std"]) == pytest.approx(0.0141421, rel=1e-4)
    assert [(row["seed"], row["status"]) for row in runs] == [
        (s, t) for t in ("finished", "finished", "failed") for s in "01"
    ]
    assert len(epochs) == 12
    assert float(epochs[1]["map50"]) == 0.3


@pytest.mark.parametrize(
    ("done", "told"),
    [
        (0, "0 of 3 runs finished."),
        (1, "1 of 3 runs finished; one seed."),
        (2, "2 of 3 runs finished; mean ± standard deviation over 2 seeds."),
    ],
)
def test_only_seeds_that_have_been_run_are_counted(done, told, make_runs, record_run, tmp_path):
    study, runs = make_runs(seeds=[0, 1, 2], scenarios=SCENARIOS[:1])
    for run in runs[:done]:
        record_run(run, [(0.5, 0.25)])
    write_report(study, measure_study(study, runs), tmp_path / "out")
    assert told in (tmp_path / "out" / "report.md").read_text()


def test_markdown_has_the_figures_the_published_ones_and_the_failed_runs(written):
    text = (written / "report.md").read_text()
    assert "4 of 6 runs finished, 2 failed; mean ± standard deviation over 2 seeds." in text
    assert "| freeze 2 | fixed | 2 | .310 ± .014 | .155 ± .007 | 0.4 |" in text
    assert "| freeze 2 (a book) |  |  | .750 | – |" in text
    assert "- FAILED never <run>, seed 0: " in text
    figures = re.findall(r"\((plots/.*?\.png)\)", text)
    assert {
        "plots/map50-over-epochs.png",
        "plots/map50_95-over-epochs.png",
        "plots/memory.png",
        "plots/utilisation.png",
    } < set(figures)
    assert all((written / figure).read_bytes().startswith(b"\x89PNG") for figure in figures)


def test_the_report_says_what_was_computed_in_which_dtype(make_runs, record_run, tmp_path):
    original = {"name": "original", "freeze": 2, "framework": "torch", "python": "python", "weights": "n.pt", "cfg": ""}
    study, (own, other) = make_runs(scenarios=[SCENARIOS[0], original])
    record_run(own, [(0.2, 0.1)], dtype="bfloat16")
    assert "one seed. Computed in bfloat16." in report_of(study, [own, other], tmp_path)
    record_run(other, [(0.2, 0.1)])
    (other.folder / "log.txt").write_text("AMP: checks passed")
    text = report_of(study, [own, other], tmp_path)
    assert "Computed in bfloat16: freeze 2; float16: original.\n" in text
    (other.folder / "log.txt").write_text("no GPU")
    text = report_of(study, [own, other], tmp_path)
    assert "float32: original. Times and memory of float32 and of 16 bits are not like with like." in text


def report_of(study, runs, folder):
    write_report(study, measure_study(study, runs), folder)
    return (folder / "report.md").read_text()


class Page(HTMLParser):
    """Notes what a page would load, and that its elements are closed as they were opened."""

    def __init__(self):
        super().__init__()
        self.loads, self.open, self.rows = [], [], 0

    def handle_starttag(self, tag, attrs):
        self.loads += [
            value for name, value in attrs if name in ("src", "href", "xlink:href") and not value.startswith("#")
        ]
        self.rows += tag == "tr"
        if tag in ("svg", "g", "table", "tbody", "thead", "tr", "figure", "details", "main", "script", "style"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in ("svg", "g", "table", "tbody", "thead", "tr", "figure", "details", "main", "script", "style"):
            assert self.open.pop() == tag


def test_the_page_needs_nothing_but_itself(written):
    text = (written / "report.html").read_text()
    page = Page()
    page.feed(text)
    assert page.loads == []
    assert page.open == []
    assert page.rows == 2 + 4 + 6
    assert set(re.findall(r"https?://[^\s\"'<]+", text)) <= {
        "http://www.w3.org/1999/xlink",
        "http://www.w3.org/2000/svg",
    }
    assert not re.search(r"@import|url\((?!#)|fetch\(|XMLHttpRequest", text)


def test_the_page_escapes_names_and_marks_every_scenario_in_the_figures(written):
    text = (written / "report.html").read_text()
    assert "never <run>" not in text
    assert "Squares &amp; circles" in text
    assert "$" not in text.replace("${", "")
    # Lines, bands, bars and points carry the number of their scenario; the one without a finished run has none.
    assert min(text.count(f'class="series series-{number}"') for number in (0, 1)) >= 8
    assert 'class="series series-2"' not in text
    assert not re.search(r"#[0-9a-f]{6}", text[text.index("<main>") : text.index("<script>")]), (
        "a colour that does not follow the theme"
    )


def test_the_page_has_every_colour_of_a_scenario_by_day_and_by_night(written):
    style = (written / "report.html").read_text().partition("</style>")[0]
    themes = style.split("prefers-color-scheme: dark")
    for theme in themes:
        colours = dict(re.findall(r"(--c\d+): (#[0-9a-f]{6});", theme))
        assert list(colours) == [f"--c{number}" for number in range(len(COLOURS))]
        assert len(set(colours.values())) == len(COLOURS)
    assert len(themes) == 2


def test_cards_fill_their_grid_and_show_nothing_twice(written):
    text = (written / "report.html").read_text()
    figures = text[text.index("<div class=plots>") : text.index("<h2>Details")]
    sizes = set(re.findall(r'viewBox="0 0 [\d.]+ [\d.]+"', figures))
    assert len(re.findall("<figure>", figures)) == 6  # rows of one, two or three
    assert len(sizes) == 1
    titles = re.findall(r"<figcaption><b>(.*?)</b>", figures)
    assert sum("memory" in title.lower() for title in titles) == 2  # a bar for each, and accuracy against it
    assert sum("utilisation" in title.lower() for title in titles) == 1


def test_memory_is_compared_by_what_every_scenario_tells(make_runs, record_run):
    """The original tells no memory of its program on a CPU, so that the process is all that can be compared."""
    original = {"name": "original", "freeze": 2, "framework": "torch", "python": "python", "weights": "n.pt", "cfg": ""}
    study, runs = make_runs(scenarios=[SCENARIOS[0], original])
    for run in runs:
        record_run(run, [(0.1, 0.1), (0.2, 0.1)])
    measurements = measure_study(study, runs)
    assert memory_figure(summarise_runs(study, measurements)) == "process_bytes"
    titles = {plot.key: plot.title for plot in make_plots(study, measurements, summarise_runs(study, measurements))}
    assert titles["memory"] == "Memory of the process"
    own = study.only([SCENARIOS[0]["name"]])
    measurements = measure_study(own, runs[:1])
    assert memory_figure(summarise_runs(own, measurements)) == "memory_bytes"
    titles = {plot.key: plot.title for plot in make_plots(own, measurements, summarise_runs(own, measurements))}
    assert titles["map50-against-memory"] == "mAP50 against memory of the compiled step"


def test_scenarios_that_freeze_the_same_share_a_colour(make_runs):
    original = {"name": "original", "freeze": 2, "framework": "torch", "python": "python", "weights": "n.pt", "cfg": ""}
    look = styles(make_runs(scenarios=[*SCENARIOS, original])[0])
    assert (
        look["freeze 2"].index == look["freeze 2 (track)"].index == look["original"].index != look["never <run>"].index
    )
    assert [style.line for style in look.values()] == ["solid", "dashed", "solid", "dotted"]
    alike = styles(make_runs(scenarios=[{"name": "slow", "freeze": 2}, {"name": "fast", "freeze": 2}])[0])
    assert alike["slow"] != alike["fast"]


def test_a_study_without_a_finished_run_has_a_page_too(make_runs, tmp_path):
    study, runs = make_runs()
    page = write_report(study, measure_study(study, runs), tmp_path / "out")
    assert "0 of 1 runs finished" in page.read_text()


def test_losses_of_training_are_drawn_where_they_are_told(make_runs, record_run, tmp_path):
    study, runs = make_runs(seeds=[0, 1], scenarios=SCENARIOS[:2])
    for run in runs:
        record_run(run, [(0.4, 0.1), (0.5, 0.2)])
        head = "epoch,train/box_loss,train/obj_loss,train/cls_loss,metrics/mAP_0.5,metrics/mAP_0.5:0.95"
        rows = [f"{epoch},{0.3 - 0.1 * epoch + 0.01 * run.seed},0.2,0.1,0.5,0.2" for epoch in (0, 1)]
        (run.folder / "results.csv").write_text("\n".join([head, *rows]) + "\n")
    measurements = measure_study(study, runs)
    plots = {plot.key: plot for plot in make_plots(study, measurements, summarise_runs(study, measurements))}
    axes = Figure().subplots()
    plots["loss-over-epochs"].draw(axes)
    line = axes.get_lines()[0]
    assert list(line.get_xdata()) == [1, 2]
    assert list(line.get_ydata()) == pytest.approx([0.605, 0.505])  # the three parts together, a mean over the seeds
    write_report(study, measurements, tmp_path / "out")
    assert [float(read(tmp_path / "out" / "epochs.csv")[1][part]) for part in ("box", "obj", "cls")] == pytest.approx(
        [0.2, 0.2, 0.1]
    )


def test_without_losses_there_is_no_figure_of_them(written):
    assert not (written / "plots" / "loss-over-epochs.png").exists()


@pytest.mark.parametrize("key", ["map50-over-epochs", "map50-against-time", "map50-against-memory"])
def test_marks_at_the_ends_of_a_figure_have_room(make_runs, record_run, key):
    study, runs = make_runs(scenarios=SCENARIOS[:2])
    for run in runs:
        record_run(run, [(0.49, 0.1), (0.50, 0.1)])
    measurements = measure_study(study, runs)
    plots = {plot.key: plot for plot in make_plots(study, measurements, summarise_runs(study, measurements))}
    axes = Figure().subplots()
    plots[key].draw(axes)
    for (low, high), data in (
        (axes.get_xlim(), axes.dataLim.intervalx),
        (axes.get_ylim(), axes.dataLim.intervaly),
    ):
        assert low == 0
        assert high - max(data) >= 0.05 * high
