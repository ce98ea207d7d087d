"""What a study leaves behind: CSV and Markdown tables, figures, and one page that opens anywhere, offline."""

from __future__ import annotations

import csv
import dataclasses
import html
import io
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from yolojax.files import write_file
from yolojax.study.comparison import Difference, difference_table, differences
from yolojax.study.measurements import FIGURES, Measurement, Summary, finished_figures, summarise_runs
from yolojax.study.plots import Plot, Style, make_plots, memory_figure, page_height, styles, to_png, to_svg
from yolojax.study.runner import LOG
from yolojax.study.scenarios import Reference, Study
from yolojax.training.settings import TrainSettings
from yolojax.version import __version__


@dataclass(frozen=True)
class Column:
    """A column of the tables.

    Attributes:
      key: of the figure.
      heading: with its unit.
      scale: from the figure to this unit.
      decimals: shown.
      help: what it is and where it comes from.
    """

    key: str
    heading: str
    scale: float
    decimals: int
    help: str

    def show(self, value: float | None) -> str:
        """A figure as text; a dash where there is none."""
        if value is None:
            return "–"
        text = f"{value * self.scale:,.{self.decimals}f}"
        return text.removeprefix("0") if "map50" in self.key and value > 0 else text


COLUMNS = (
    Column("map50", "mAP50", 1, 3, "on the validation images, of the epoch with the best fitness (0.1 mAP50 + 0.9 mAP50-95), as of YOLOv5's best.pt"),
    Column("map50_95", "mAP50-95", 1, 3, "of the same epoch, the mean over ten IoU thresholds from .5 to .95"),
    Column("test_map50", "test mAP50", 1, 3, "of the same epoch on the test images, which nothing was chosen on"),
    Column("test_map50_95", "test mAP50-95", 1, 3, "of the same epoch on the test images"),
    Column("old_map50_95_before", "old data before", 1, 3, "mAP50-95 of the initial weights on the second data set, which they know"),
    Column("old_map50_95_after", "old data after", 1, 3, "mAP50-95 there of their head on the trunk that was trained: what is left"),
    Column("wall_seconds", "wall, min", 1 / 60, 1, "from the start of the process to its end: reading, compiling, training, validating, saving"),
    Column("step_seconds", "step, ms", 1000, 0, "median over the epochs of the mean time of a training step, waiting included; ours without an epoch's first"),
    Column("images_per_second", "images/s", 1, 0, "images of a batch over the time of a step"),
    Column("compile_seconds", "compile, s", 1, 1, "all compilations of the training step, without a cache; a strategy in phases has one per phase"),
    Column("memory_bytes", "memory, MB", 1e-6, 0, "most memory on the device where it tells; else arguments and temporaries of the compiled step"),
    Column("step_peak_bytes", "steps, MB", 1e-6, 0, "most memory on the device before the first validation: what the steps of the first phase need"),
    Column("process_bytes", "process, MB", 1e-6, 0, "most main memory of the process and its workers, sampled every two seconds"),
    Column("utilisation", "use, %", 1, 0, "mean utilisation over the run: of the GPU by NVML, else of all processors"),
    Column("trainable", "trainable, M", 1e-6, 3, "millions of parameters that train, the most of any phase"),
    Column("step_flops", "step, GFLOP", 1e-9, 1, "floating-point operations of a training step as XLA counts them, mean over the epochs"),
)  # fmt: skip


def write_report(study: Study, measurements: Sequence[Measurement], output: Path) -> Path:
    """Write ``scenarios.csv``, ``runs.csv``, ``epochs.csv``, ``report.md``, ``plots/*.png`` and ``report.html``; ``differences.csv`` where means are compared.

    Args:
      study: the comparison.
      measurements: of all its runs, also of those that are missing.
      output: the study's folder.

    Returns:
      The page.
    """
    summaries = summarise_runs(study, measurements)
    plots = make_plots(study, measurements, summaries)
    (output / "plots").mkdir(parents=True, exist_ok=True)
    for plot in plots:
        write_file(output / "plots" / f"{plot.key}.png", to_png(plot))
    tables = {
        "scenarios.csv": _scenario_rows(summaries),
        "runs.csv": _run_rows(measurements),
        "epochs.csv": _epoch_rows(measurements),
    }
    found = differences(study.comparisons, finished_figures(measurements))
    if found:
        tables["differences.csv"] = [dataclasses.asdict(row) | {"equal": row.equal} for row in found]
    for name, rows in tables.items():
        write_file(output / name, _csv(rows))
    write_file(output / "report.md", _markdown(study, measurements, summaries, plots))
    page = output / "report.html"
    write_file(page, _page(study, measurements, summaries, plots, output))
    return page


def shown_columns(summaries: Sequence[Summary]) -> list[Column]:
    """The columns that have a figure."""
    return [column for column in COLUMNS if any(row.mean[column.key] is not None for row in summaries)]


def _scenario_rows(summaries: Sequence[Summary]) -> list[dict[str, Any]]:
    return [
        {
            "scenario": row.name, "framework": row.framework, "freeze": row.freeze, "frozen_bn": row.frozen_bn, "dtype": row.dtype, "runs": len(row.seeds),
            **{f"{name}{suffix}": values[name] for name in FIGURES for suffix, values in (("", row.mean), ("_std", row.spread))},
        }
        for row in summaries
    ]  # fmt: skip


def _run_rows(measurements: Sequence[Measurement]) -> list[dict[str, Any]]:
    return [
        {
            "scenario": measurement.run.scenario.name,
            "seed": measurement.run.seed,
            "status": measurement.status,
            "folder": str(measurement.run.folder),
            **measurement.figures,
        }
        for measurement in measurements
    ]


def _epoch_rows(measurements: Sequence[Measurement]) -> list[dict[str, Any]]:
    return [
        {"scenario": measurement.run.scenario.name, "seed": measurement.run.seed, **dataclasses.asdict(point)}
        for measurement in measurements
        for point in measurement.curve
    ]


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]) if rows else [], restval="")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def _with_spread(column: Column, row: Summary) -> str:
    spread = row.spread[column.key]
    shown = column.show(spread)
    return column.show(row.mean[column.key]) + (f" ± {shown}" if spread and shown.strip("0.") else "")


def _markdown(
    study: Study, measurements: Sequence[Measurement], summaries: Sequence[Summary], plots: Sequence[Plot]
) -> str:
    columns = shown_columns(summaries)
    head = ["scenario", "BN", "runs", *(column.heading for column in columns)]
    rows = [
        [
            summary.name,
            summary.frozen_bn,
            str(len(summary.seeds)),
            *(_with_spread(column, summary) for column in columns),
        ]
        for summary in summaries
    ]
    rows += [
        [
            f"{published.name} ({published.source or 'published'})",
            "",
            "",
            *(column.show(_published(published, column)) for column in columns),
        ]
        for published in study.reference
    ]
    lines = [f"# {study.title}", "", *([study.note, ""] if study.note else []), _progress(measurements), ""]
    lines += [_line(head), _line(["-"] * 3 + ["-:"] * len(columns)), *map(_line, rows), ""]
    head, rows = difference_table(differences(study.comparisons, finished_figures(measurements)))
    if rows:
        lines += [_line(head), _line(["-"] * 2 + ["-:"] * 3 + ["-"]), *map(_line, rows), ""]
    lines += [f"- **{column.heading}**: {column.help}" for column in columns]
    lines += ["", *(f"- {name}: {log}" for name, log in _failures(measurements)), ""]
    lines += [f"![{plot.title}](plots/{plot.key}.png)\n" for plot in plots]
    return "\n".join(lines)


def _line(cells: Iterable[str]) -> str:
    return "|" + "|".join(f" {cell} ".replace(" - ", "-") for cell in cells) + "|"


def _published(reference: Reference, column: Column) -> float | None:
    return {"map50": reference.map50, "map50_95": reference.map50_95, "wall_seconds": reference.seconds}.get(column.key)


def _progress(measurements: Sequence[Measurement]) -> str:
    """How much of the study is done, in words."""
    done = [measurement.run.seed for measurement in measurements if measurement.status == "finished"]
    failed, planned = sum(measurement.status == "failed" for measurement in measurements), len(measurements)
    told = f"{len(done)} runs" if len(done) == planned else f"{len(done)} of {planned} runs finished"
    told += f", {failed} failed" if failed else ""
    seeds = len(set(done))
    told += f"; mean ± standard deviation over {seeds} seeds." if seeds > 1 else "; one seed." if seeds else "."
    return told + _dtypes(measurements) + _sharing(measurements)


def _sharing(measurements: Sequence[Measurement]) -> str:
    """Which runs read the same views of images, and what that means for their figures."""
    runs = [measurement.run for measurement in measurements if measurement.run.record().get("shares_features")]
    if not runs:
        return ""
    names = ", ".join(dict.fromkeys(run.scenario.name for run in runs))
    return (
        f" Runs of one seed of {names} read kept features in one process: they share the views of their images, so that they differ by less chance "
        "than runs alone; the first of them computes the features and compiles, and memory of the process is that of all up to then."
    )


def _dtypes(measurements: Sequence[Measurement]) -> str:
    """What the scenarios computed in; where some did in 16 bits and others in 32, that their times and memory are not of one kind."""
    scenarios: dict[str, dict[str, None]] = {}
    for measurement in measurements:
        if measurement.dtype:
            scenarios.setdefault(measurement.dtype, {})[measurement.run.scenario.name] = None
    if len(scenarios) < 2:
        return "".join(f" Computed in {dtype}." for dtype in scenarios)
    told = "; ".join(f"{dtype}: {', '.join(names)}" for dtype, names in scenarios.items())
    mixed = " Times and memory of float32 and of 16 bits are not like with like." if "float32" in scenarios else ""
    return f" Computed in {told}.{mixed}"


def _failures(measurements: Sequence[Measurement]) -> list[tuple[str, str]]:
    return [
        (f"FAILED {measurement.run.name}", str(measurement.run.folder / LOG))
        for measurement in measurements
        if measurement.status == "failed"
    ]


def _page(
    study: Study, measurements: Sequence[Measurement], summaries: Sequence[Summary], plots: Sequence[Plot], output: Path
) -> str:
    template = Template((resources.files("yolojax.study") / "page.html").read_text(encoding="utf-8"))
    look, order = styles(study), [row.name for row in summaries]
    columns = shown_columns(summaries)
    return template.substitute(
        title=html.escape(study.title),
        note=f"<p class=note>{html.escape(study.note)}</p>" if study.note else "",
        progress=html.escape(_progress(measurements)),
        failures="".join(f"<li>{html.escape(name)}: <code>{html.escape(log)}</code></li>" for name, log in _failures(measurements)),
        tiles=_tiles(summaries),
        legend="".join(_legend_entry(number, name, look[name]) for number, name in enumerate(order)),
        table=_scenario_table(study, summaries, columns, look),
        differences=_difference_table(differences(study.comparisons, finished_figures(measurements))),
        plots="".join(
            f"<figure><figcaption><b>{html.escape(plot.title)}</b>{html.escape(plot.note)}</figcaption>{to_svg(plot, order, page_height(plots))}</figure>"
            for plot in plots
        ),
        runs=_run_table(measurements, columns),
        glossary="".join(f"<dt>{html.escape(column.heading)}<dd>{html.escape(column.help)}" for column in columns),
        settings=_settings(study),
        environment=_environment(measurements),
        command=html.escape(f"yolojax study {study.file} --output {output}"),
        version=__version__,
    )  # fmt: skip


def _tiles(summaries: Sequence[Summary]) -> str:
    """The best of three figures, as means."""
    tiles = []
    for key, heading, best in (
        ("map50", "highest mAP50", max), ("map50_95", "highest mAP50-95", max), ("wall_seconds", "shortest run", min),
        (memory_figure([row for row in summaries if row.seeds]), "least memory", min),
    ):  # fmt: skip
        measured = [row for row in summaries if row.mean[key] is not None]
        if measured:
            winner = best(measured, key=lambda row: row.mean[key] or 0.0)
            column = next(column for column in COLUMNS if column.key == key)
            unit = column.heading.partition(", ")[2]
            tiles.append(
                f"<div><span>{heading}</span><b>{column.show(winner.mean[key])}<small> {unit}</small></b><em>{html.escape(winner.name)}</em></div>"
            )
    return "".join(tiles)


def _difference_table(rows: Sequence[Difference]) -> str:
    if not rows:
        return ""
    head, lines = difference_table(rows)
    text = ["" if name in ("runs", "mean") or "interval" in name else "text" for name in head]
    headings = "".join(f'<th scope=col class="{style}">{name}' for style, name in zip(text, head, strict=True))
    cells = [
        "".join(f'<td class="{style}">{html.escape(cell)}' for style, cell in zip(text[1:], line[1:], strict=True))
        for line in lines
    ]
    body = "".join(
        f"<tr><th scope=row>{html.escape(line[0])}</th>{row}" for line, row in zip(lines, cells, strict=True)
    )
    return (
        f"<h2>Differences</h2><div class=scroll><table><thead><tr>{headings}</thead><tbody>{body}</tbody></table></div>"
    )


def _legend_entry(number: int, name: str, style: Style) -> str:
    dash = {"solid": "", "dashed": ' stroke-dasharray="6 3"', "dotted": ' stroke-dasharray="2 2.5"'}[style.line]
    line = f'<svg viewBox="0 0 28 8" aria-hidden="true"><path d="M1 4H27" stroke="var(--c{style.index})" stroke-width="2.5" fill="none"{dash}/></svg>'
    return f"<button type=button data-series={number}>{line}{html.escape(name)}</button>"


def _heading(column: Column) -> str:
    name, _, unit = column.heading.partition(", ")
    return f"{name}<small>{unit}</small>"


def _cell(value: float | None, text: str, extra: str = "") -> str:
    sort = "" if value is None or not math.isfinite(value) else f' data-v="{value:.6g}"'
    return f"<td{sort}>{html.escape(text)}{extra}</td>"


def _scenario_table(
    study: Study, summaries: Sequence[Summary], columns: Sequence[Column], look: dict[str, Style]
) -> str:
    head = "<th scope=col class=text>scenario<th scope=col class=text title='BatchNorm of frozen layers'>BN<th scope=col>runs"
    head += "".join(f'<th scope=col title="{html.escape(column.help)}">{_heading(column)}' for column in columns)
    rows = []
    for number, row in enumerate(summaries):
        cells = []
        for column in columns:
            spread = row.spread[column.key]
            shown = column.show(spread)
            extra = f"<i>± {shown}</i>" if spread and shown.strip("0.") else ""
            cells.append(_cell(row.mean[column.key], column.show(row.mean[column.key]), extra))
        swatch = f'<u style="--c:var(--c{look[row.name].index})" class={look[row.name].line}></u>'
        rows.append(
            f"<tr data-series={number}><th scope=row>{swatch}{html.escape(row.name)}</th><td class=text>{row.frozen_bn}</td>"
            f"{_cell(len(row.seeds), str(len(row.seeds)))}{''.join(cells)}</tr>"
        )
    for published in study.reference:
        source = html.escape(published.source or "published")
        cells = [_cell(value, column.show(value)) for column in columns for value in [_published(published, column)]]
        rows.append(
            f"<tr class=published><th scope=row>{html.escape(published.name)} <small>{source}, published</small></th>"
            f"<td class=text>–</td><td>–</td>{''.join(cells)}</tr>"
        )
    return f"<table class=sortable><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _run_table(measurements: Sequence[Measurement], columns: Sequence[Column]) -> str:
    head = "<th scope=col class=text>scenario<th scope=col>seed<th scope=col class=text>status<th scope=col>best epoch"
    head += "".join(f"<th scope=col>{_heading(column)}" for column in columns)
    rows = []
    for measurement in measurements:
        epoch = measurement.figures["best_epoch"]
        cells = [
            _cell(measurement.figures[column.key], column.show(measurement.figures[column.key])) for column in columns
        ]
        rows.append(
            f"<tr><th scope=row>{html.escape(measurement.run.scenario.name)}</th>{_cell(measurement.run.seed, str(measurement.run.seed))}"
            f"<td class=text>{measurement.status}</td>{_cell(epoch, f'{epoch:.0f}' if epoch else '–')}{''.join(cells)}</tr>"
        )
    return f"<table class=sortable><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _settings(study: Study) -> str:
    """What all scenarios have in common, where it is not the default; and what sets them apart."""
    every = [dataclasses.asdict(settings.settings) for settings in study.scenarios]
    default = dataclasses.asdict(TrainSettings())
    shared = {
        key: value
        for key, value in every[0].items()
        if all(settings[key] == value for settings in every) and value != default[key]
    }
    lines = [
        f"--{key.replace('_', '-')} {' '.join(value) if isinstance(value, tuple) else value}"
        for key, value in shared.items()
    ]
    return html.escape("\n".join(lines))


def _environment(measurements: Sequence[Measurement]) -> str:
    """On what the runs ran: of the first run of our own that says so."""
    for measurement in measurements:
        file = measurement.run.folder / "environment.json"
        if file.is_file():
            record = json.loads(file.read_text(encoding="utf-8"))
            packages = ", ".join(f"{name} {version}" for name, version in record["packages"].items() if version)
            commit = f"commit {record['git_commit'][:12]}" if record.get("git_commit") else ""
            lines = [
                ", ".join(record["devices"]),
                f"{record['cpu_threads']} processors, {record['platform']}",
                f"Python {record['python']}, {packages}",
                commit,
            ]
            return html.escape("\n".join(filter(None, lines)))
    return "–"
