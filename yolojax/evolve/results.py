"""What an evolution leaves behind: the table of its generations, the best hyperparameters, and the plot."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from yolojax.evolve.space import FREEZE
from yolojax.files import write_file
from yolojax.hyperparameters import Hyperparameters

TABLE, BEST, PLOT = "evolve.csv", "hyp_evolve.yaml", "evolve.png"
FIGURES = ("fitness", "precision", "recall", "map50", "map50_95")


def generation_folder(folder: Path, number: int) -> Path:
    """Of a generation, counted from 0."""
    return folder / f"generation{number + 1:03d}"


def run_figures(run: Path) -> dict[str, Any]:
    """The final figures of a run."""
    return json.loads((run / "results.json").read_text(encoding="utf-8"))["final"]


def write_results(study: Any, base: Hyperparameters, folder: Path) -> None:
    """Write the table of all generations, the best hyperparameters, and the plot."""
    trials = [trial for trial in study.trials if trial.value is not None]
    figures = [run_figures(generation_folder(folder, trial.number)) for trial in trials]
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["generation", *FIGURES, *trials[0].params])
    for trial, values in zip(trials, figures, strict=True):
        table.writerow([trial.number + 1, *(f"{values[name]:.5g}" for name in FIGURES), *trial.params.values()])
    write_file(folder / TABLE, text.getvalue())
    best = study.best_trial
    best_figures = figures[trials.index(best)]
    freeze = f", --freeze {best.params[FREEZE]}" if FREEZE in best.params else ""
    shown = ", ".join(f"{name} {best_figures[name]:.4f}" for name in FIGURES)
    lines = [f"# Best of {len(trials)} generations (generation {best.number + 1}{freeze}): {shown}."]
    values = dataclasses.asdict(base) | best.params
    lines += [f"{key}: {value:.6g}" for key, value in values.items() if key != FREEZE and value is not None]
    write_file(folder / BEST, "\n".join([*lines, ""]))
    plot_evolution([(trial.params, trial.value) for trial in trials], folder / PLOT)


def plot_evolution(trials: Sequence[tuple[dict[str, Any], float]], path: Path) -> None:
    """Draw the fitness over every hyperparameter, later generations darker, the best one marked.

    Args:
      trials: hyperparameters and fitness of each generation, in order.
      path: PNG file to write.
    """
    from yolojax.figures import new_figure

    keys = list(trials[0][0])
    columns = 6
    rows = -(-len(keys) // columns)
    figure = new_figure(3 * columns, 2.4 * rows)
    fitness = [value for _, value in trials]
    best = fitness.index(max(fitness))
    for number, key in enumerate(keys, 1):
        axes = figure.add_subplot(rows, columns, number)
        values = [params[key] for params, _ in trials]
        axes.scatter(values, fitness, c=range(len(trials)), cmap="viridis_r", s=14, alpha=0.8)
        axes.plot(values[best], fitness[best], "+", color="tab:red", markersize=14, markeredgewidth=2)
        shown = values[best] if key == FREEZE else f"{values[best]:.3g}"
        axes.set_title(f"{key} = {shown}", fontsize=10)
        axes.tick_params(labelsize=8)
        if key != FREEZE:
            axes.locator_params(axis="x", nbins=5)
        axes.margins(0.08, 0.12)
        axes.grid(alpha=0.3)
        if number % columns == 1:
            axes.set_ylabel("fitness")
    figure.suptitle(f"{len(trials)} generations; best (+): {max(fitness):.4f}; later ones darker")
    figure.savefig(path, dpi=100)
