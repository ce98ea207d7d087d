"""The figures of a study: accuracy over epochs, against time and against memory; memory and utilisation.

PNG files, and SVG for the page.
"""

from __future__ import annotations

import io
import re
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from yolojax.figures import COLOURS, INK, LINE, MUTED, new_figure, quiet_axes
from yolojax.study.measurements import Measurement, Summary
from yolojax.study.scenarios import Study

_DASHES: dict[str, Any] = {"solid": "-", "dashed": (0, (4, 2)), "dotted": (0, (1, 1.4))}
_MARKERS = {"solid": "o", "dashed": "D", "dotted": "s"}


@dataclass(frozen=True)
class Style:
    """How a scenario looks: a colour by what is frozen; the line says whether it is our own run, a twin with ``track``, or the original."""

    index: int
    line: Literal["solid", "dashed", "dotted"]

    @property
    def colour(self) -> str:
        """On white."""
        return COLOURS[self.index]


@dataclass(frozen=True)
class Plot:
    """One figure.

    Attributes:
      key: its file's name.
      title: what it shows.
      note: how to read it.
      draw: draws it into axes.
      rows: how many bars it has; 0 for lines and points.
    """

    key: str
    title: str
    note: str
    draw: Callable[[Any], None]
    rows: int = 0


def styles(study: Study) -> dict[str, Style]:
    """A style for every scenario, by name; scenarios that freeze the same share a colour."""
    fixed = {
        scenario.freeze
        for scenario in study.scenarios
        if scenario.framework == "yolojax" and scenario.settings.frozen_bn == "fixed"
    }
    lines: dict[str, Literal["solid", "dashed", "dotted"]] = {
        scenario.name: "dotted"
        if scenario.framework == "torch"
        else "dashed"
        if scenario.settings.frozen_bn == "track" and scenario.freeze in fixed
        else "solid"
        for scenario in study.scenarios
    }
    twins = Counter((scenario.freeze, lines[scenario.name]) for scenario in study.scenarios)
    told_apart = max(twins.values()) == 1
    keys = {scenario.name: scenario.freeze if told_apart else scenario.name for scenario in study.scenarios}
    order = list(dict.fromkeys(keys.values()))
    return {name: Style(order.index(key) % len(COLOURS), lines[name]) for name, key in keys.items()}


def make_plots(study: Study, measurements: Sequence[Measurement], summaries: Sequence[Summary]) -> list[Plot]:
    """The figures that the finished runs allow; none shows what another one shows."""
    look = styles(study)
    done = [run for run in measurements if run.status == "finished" and run.curve]
    finished = [row for row in summaries if row.seeds]
    if not done:
        return []
    repeated = any(len(row.seeds) > 1 for row in finished)
    band = "; the band is one standard deviation over the seeds" if repeated else ""
    lines = "; lines are one standard deviation" if repeated else ""

    def curves(key: str, y: str, x: str = "epoch") -> Callable[[Any], None]:
        rows = {row.name: _mean_curve(done, row.name, key, over_time=x != "epoch") for row in finished}
        return lambda axes: _draw_curves(axes, rows, look, x, y)

    def measured(key: str) -> list[Summary]:
        return [row for row in finished if row.mean[key]]

    def bars(key: str, scale: float, unit: str) -> Callable[[Any], None]:
        return lambda axes: _draw_bars(axes, measured(key), look, key, scale, unit)

    def scatter(key: str) -> Callable[[Any], None]:
        return lambda axes: _draw_scatter(axes, measured(key), look, key, 1e-6, "MB")

    memory = memory_figure(finished)
    title, memory_note = _MEMORY[memory if memory == "process_bytes" else done[0].memory_source]
    use = done[0].utilisation_source
    plots = [
        Plot("map50-over-epochs", "mAP50 over epochs", f"Validation after every epoch{band}.", curves("map50", "mAP50")),
        Plot("map50_95-over-epochs", "mAP50-95 over epochs", f"Validation after every epoch{band}.", curves("map50_95", "mAP50-95")),
        Plot("loss-over-epochs", "Training loss over epochs", f"Box, objectness and class, the mean of an epoch's batches{band}.",
             curves("loss", "loss")),
        Plot("map50-against-time", "mAP50 against time", "From the start of the process, compilation included; a mark is the end.",
             curves("map50", "mAP50", "minutes")),
        Plot("map50-against-memory", f"mAP50 against {title[0].lower()}{title[1:]}", f"Best epoch{lines}.",
             scatter(memory)),
        Plot("memory", title, memory_note, bars(memory, 1e-6, "MB"), len(measured(memory))),
        Plot("utilisation", f"{use} utilisation", "Mean over the whole run, start-up and validation included.",
             bars("utilisation", 1, "%"), len(measured("utilisation"))),
    ]  # fmt: skip
    empty = {"memory", "map50-against-memory"} if not measured(memory) else set()
    empty |= {"loss-over-epochs"} if all(point.loss is None for run in done for point in run.curve) else set()
    empty |= {"utilisation"} if not measured("utilisation") else set()
    return [plot for plot in plots if plot.key not in empty]


_MEMORY = {
    "device": ("Device memory", "The most that the device ever held."),
    "compiled program": (
        "Memory of the compiled step",
        "Arguments and temporaries of the training step as XLA plans them; the largest phase.",
    ),
    "process_bytes": ("Memory of the process", "Main memory of the process and its workers; the most at any time."),
}


def memory_figure(summaries: Sequence[Summary]) -> Literal["memory_bytes", "process_bytes"]:
    """The figure by which all scenarios can be compared: that of the step or device, unless one of them does not tell it."""
    return "memory_bytes" if all(row.mean["memory_bytes"] for row in summaries) else "process_bytes"


def _mean_curve(
    runs: Sequence[Measurement], name: str, key: str, over_time: bool = False
) -> list[tuple[float, float, float]]:
    """``(x, mean, standard deviation)`` at every epoch over the runs of a scenario; x is the epoch or minutes."""
    by_epoch: dict[int, list[tuple[float, float]]] = {}
    for run in runs:
        if run.run.scenario.name == name:
            for point in run.curve:
                x = point.epoch + 1 if not over_time else None if point.seconds is None else point.seconds / 60
                if x is not None and (y := getattr(point, key)) is not None:
                    by_epoch.setdefault(point.epoch, []).append((x, y))
    rows = []
    for _, points in sorted(by_epoch.items()):
        xs, ys = zip(*points, strict=True)
        rows.append((statistics.fmean(xs), statistics.fmean(ys), statistics.stdev(ys) if len(ys) > 1 else 0.0))
    return rows


def _draw_curves(
    axes: Any, curves: Mapping[str, Sequence[tuple[float, float, float]]], look: Mapping[str, Style], x: str, y: str
) -> None:
    over_time = x != "epoch"
    for name, rows in curves.items():
        if not rows:
            continue
        style = look[name]
        xs, means, spreads = (list(column) for column in zip(*rows, strict=True))
        axes.plot(
            xs,
            means,
            color=style.colour,
            linestyle=_DASHES[style.line],
            linewidth=1.7,
            gid=f"series-{name}",
            label=name,
        )
        if over_time or len(rows) == 1:
            axes.plot(
                xs[-1:],
                means[-1:],
                marker=_MARKERS[style.line],
                markersize=4.5,
                color=style.colour,
                gid=f"series-{name}",
            )
        if any(spreads) and not over_time:
            low, high = ([m + sign * s for m, s in zip(means, spreads, strict=True)] for sign in (-1, 1))
            axes.fill_between(xs, low, high, color=style.colour, alpha=0.10, linewidth=0, gid=f"series-{name}")
    axes.set(xlabel=x, ylabel=y)
    if y == "loss":  # which ends far above 0
        axes.set_xlim(0, 1.06 * axes.dataLim.x1 or 1)
    else:
        _from_zero(axes)


def _from_zero(axes: Any) -> None:
    """Both axes from 0 to a little beyond the data, where the marks at their ends have room."""
    axes.set_xlim(0, 1.06 * axes.dataLim.x1 or 1)
    axes.set_ylim(0, 1.08 * axes.dataLim.y1 or 1)


def _draw_bars(
    axes: Any, rows: Sequence[Summary], look: Mapping[str, Style], key: str, scale: float, unit: str
) -> None:
    for place, row in enumerate(rows):
        style, value, spread = look[row.name], (row.mean[key] or 0.0) * scale, (row.spread[key] or 0.0) * scale
        alpha = {"solid": 0.95, "dashed": 0.5, "dotted": 0.28}[style.line]
        axes.barh(place, value, 0.64, color=style.colour, alpha=alpha, linewidth=0, gid=f"series-{row.name}")
        if spread:
            axes.plot([value - spread, value + spread], [place, place], color=INK, linewidth=1)
        axes.annotate(f"{value:,.0f}", (value + spread, place), xytext=(4, 0), textcoords="offset points", va="center",
                      color=MUTED, fontsize=8.5)  # fmt: skip
    axes.set_yticks(range(len(rows)), [row.name for row in rows])
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.invert_yaxis()
    axes.set_xlabel(unit)
    axes.margins(x=0.14, y=0.02)
    axes.grid(False)


def _draw_scatter(
    axes: Any, rows: Sequence[Summary], look: Mapping[str, Style], key: str, scale: float, unit: str
) -> None:
    for row in rows:
        style, x, y = look[row.name], (row.mean[key] or 0.0) * scale, row.mean["map50"] or 0.0
        axes.plot([x], [y], marker=_MARKERS[style.line], markersize=7.5, linestyle="none", color=style.colour,
                  markerfacecolor=style.colour if style.line == "solid" else "none", markeredgewidth=1.7,
                  gid=f"series-{row.name}", label=row.name)  # fmt: skip
        for spread, ends in (
            (row.spread["map50"] or 0, lambda s, x=x, y=y: ([x, x], [y - s, y + s])),
            ((row.spread[key] or 0) * scale, lambda s, x=x, y=y: ([x - s, x + s], [y, y])),
        ):
            if spread:
                axes.plot(*ends(spread), color=style.colour, linewidth=1, alpha=0.7, gid=f"series-{row.name}")
    axes.set(xlabel=unit, ylabel="mAP50")
    _from_zero(axes)


def to_png(plot: Plot) -> bytes:
    """The figure on white, with a legend where it has lines."""
    height = 1.0 + 0.27 * plot.rows if plot.rows else 4.6
    figure, axes = _figure(8.2, height)
    plot.draw(axes)
    axes.set_title(plot.title, loc="left", fontsize=12, color=INK)
    if not plot.rows and len(axes.get_legend_handles_labels()[0]) > 1:
        axes.legend(
            frameon=False, fontsize=8.5, loc="center left", bbox_to_anchor=(1.01, 0.5), handlelength=2.6, labelcolor=INK
        )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, facecolor="white")
    return buffer.getvalue()


def page_height(plots: Sequence[Plot]) -> float:
    """Inches that every figure of a page has, so that its cards fill their grid: enough for the one with the most bars."""
    return max([3.25, *(0.75 + 0.235 * plot.rows for plot in plots)])


def to_svg(plot: Plot, order: Sequence[str], height: float) -> str:
    """The figure for the page: no background, colours by name, every scenario's marks in a class ``series-NUMBER`` of its own.

    Args:
      plot: the figure.
      order: names of scenarios; their places are the numbers.
      height: in inches; see ``page_height``.
    """
    import matplotlib

    figure, axes = _figure(4.9, height)
    plot.draw(axes)
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": plot.key}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg [^>]*?) (?:width="[^"]*" )?height="[^"]*"', r"\1", svg)
    svg = re.sub(r' (?:width|height)="[\d.]+pt"', "", svg, count=2)
    for number, name in enumerate(order):
        svg = re.sub(rf'id="series-{re.escape(_escaped(name))}"', f'class="series series-{number}"', svg)
    svg = re.sub(
        r' id="(?:figure|axes|patch|line2d|text|matplotlib\.axis|xtick|ytick|legend|FillBetween\w*|PolyCollection)_\d+"',
        "",
        svg,
    )
    svg = re.sub(r"font: [\d.]+px [^;\"]*", lambda style: re.sub(r"px .*", "px var(--font)", style.group()), svg)
    for number, colour in enumerate(COLOURS):
        svg = svg.replace(colour, f"var(--c{number})")
    for colour, name in ((INK, "ink"), (MUTED, "muted"), (LINE, "line")):
        svg = svg.replace(colour, f"var(--{name})")
    return svg.replace("<svg ", f'<svg role="img" aria-label="{_escaped(plot.title)}" ', 1)


def _escaped(text: str) -> str:
    import html

    return html.escape(text)


def _figure(width: float, height: float) -> tuple[Any, Any]:
    """A figure that needs no display and no global state, and its axes."""
    figure = new_figure(width, height)
    axes = figure.add_subplot()
    axes.set_facecolor("none")
    quiet_axes(axes)
    return figure, axes
