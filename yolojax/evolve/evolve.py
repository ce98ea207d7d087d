"""Hyperparameters that suit a data set, found by training many times: ``yolojax train --evolve N``.

Every generation is a run in a process of its own, without validation but the last one. The first have the given hyperparameters and changes of them; what
is tried then is decided by Optuna (tree-structured Parzen estimator). Its journal in the folder lets an interrupted evolution go on.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import logging
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from yolojax.data.sources import load_data
from yolojax.errors import UserError
from yolojax.files import new_run_folder, write_file, write_yaml
from yolojax.hyperparameters import Hyperparameters, load_hyperparameters
from yolojax.interrupts import Interrupt, interruptible
from yolojax.study.runner import alone, last_line, start_process, train_flags, wait_for
from yolojax.training.settings import TrainSettings

log = logging.getLogger(__name__)

JOURNAL, TABLE, BEST, PLOT = "evolve.journal", "evolve.csv", "hyp_evolve.yaml", "evolve.png"
FREEZE = "freeze"
_BEGINNING = 10  # generations before the estimator decides
_SHARE, _SPREAD = 0.8, 0.2  # share of the keys that a change concerns, and its standard deviation
FIGURES = ("fitness", "precision", "recall", "map50", "map50_95")
# Where YOLOv5 looks for each key, smallest and largest value; those that it does not evolve either (iou_t, fl_gamma, perspective, fliplr) stay as they are.
RANGES = {
    "lr0": (1e-5, 0.1),
    "lrf": (0.01, 1.0),
    "momentum": (0.6, 0.98),
    "weight_decay": (0.0, 0.001),
    "warmup_epochs": (0.0, 5.0),
    "warmup_momentum": (0.0, 0.95),
    "warmup_bias_lr": (0.0, 0.2),
    "box": (0.02, 0.2),
    "cls": (0.2, 4.0),
    "cls_pw": (0.5, 2.0),
    "obj": (0.2, 4.0),
    "obj_pw": (0.5, 2.0),
    "anchor_t": (2.0, 8.0),
    "hsv_h": (0.0, 0.1),
    "hsv_s": (0.0, 0.9),
    "hsv_v": (0.0, 0.9),
    "degrees": (0.0, 45.0),
    "translate": (0.0, 0.9),
    "scale": (0.0, 0.9),
    "shear": (0.0, 10.0),
    "flipud": (0.0, 1.0),
    "mosaic": (0.0, 1.0),
    "mixup": (0.0, 1.0),
    "copy_paste": (0.0, 1.0),
}


def evolve(settings: TrainSettings, generations: int, freezes: Sequence[str] = ()) -> Path:
    """Train ``generations`` times, each time with other hyperparameters; fitness is that of YOLOv5, .1 mAP50 + .9 mAP50-95.

    Args:
      settings: of every run; ``resume`` names a folder of an evolution that goes on, with the settings that it began with.
      generations: runs in all, those of an interrupted evolution included.
      freezes: freeze selectors to choose from, instead of that of ``settings``.

    Returns:
      The file of the best hyperparameters. Its folder holds ``evolve.csv``, ``evolve.png`` and what the runs left behind, but for their weights.

    Raises:
      UserError: Optuna is not installed, there is nothing to resume, or the first run fails.
      SystemExit: a signal asked to stop; the current run has saved what it has.
    """
    folder, study = _open(settings, freezes)
    from optuna.trial import TrialState

    content = study.user_attrs["settings"]
    settings = TrainSettings(**{**content, "freeze": tuple(content["freeze"])})
    base = Hyperparameters(**study.user_attrs["base"])
    space = _space(base, study.user_attrs["freezes"])
    with alone(folder) as lock, interruptible() as interrupt:
        while (done := sum(trial.state.is_finished() for trial in study.trials)) < generations:
            running = study.get_trials(states=[TrialState.RUNNING])
            trial = running[0] if running else study.ask(space)
            run, name = _run_folder(folder, trial.number), f"generation {trial.number + 1}/{generations}"
            status = _train(settings, base, trial.params, run, interrupt, lock)
            if interrupt:
                log.info("stopped; continue with: python train.py --evolve %d --resume %s", generations, folder)
                raise SystemExit(interrupt.status)
            if status and not done:
                study.tell(trial.number, state=TrialState.FAIL)
                raise UserError(f"--evolve: the first run failed: {last_line(_log_file(run))} ({_log_file(run)})")
            if status:
                log.warning("%s failed: %s (%s)", name, last_line(_log_file(run)), _log_file(run))
                study.tell(trial.number, state=TrialState.FAIL)
                continue
            fitness = _figures(run)["fitness"]
            study.tell(trial.number, fitness)
            best = study.best_trial
            log.info("%s: fitness %.4f; best %.4f (generation %d)", name, fitness, best.value, best.number + 1)
            _write(study, base, folder)
    return folder / BEST


def _open(settings: TrainSettings, freezes: Sequence[str]) -> tuple[Path, Any]:
    """The folder of a new evolution, or of the one to resume, and its study."""
    try:
        import optuna
        from optuna.storages.journal import JournalFileBackend, JournalStorage
    except ImportError as error:
        raise UserError("--evolve needs Optuna: pip install 'yolojax[evolve]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    project = Path(settings.project if settings.project != TrainSettings().project else "runs/evolve")
    if settings.resume:
        found = sorted(project.glob(f"*/{JOURNAL}"), key=lambda file: file.stat().st_mtime)
        folder = Path(settings.resume) if settings.resume != "latest" else found[-1].parent if found else project
        if not (folder / JOURNAL).is_file():
            raise UserError(f"--resume {folder}: holds no {JOURNAL}, so there is no evolution to go on with")
    else:
        settings = settings.with_defaults(load_data(settings.data, settings.data_root))
        base = dataclasses.asdict(load_hyperparameters(settings.hyp or "scratch-low"))
        folder = new_run_folder(project, settings.name, settings.exist_ok)
        if (folder / JOURNAL).exists():
            raise UserError(
                f"{folder}: holds an evolution; go on with it by --resume {folder}, or choose another --name"
            )
    storage = JournalStorage(JournalFileBackend(str(folder / JOURNAL)))
    study = optuna.create_study(storage=storage, study_name="evolve", direction="maximize", load_if_exists=True)
    if not settings.resume:
        study.set_user_attr("settings", dataclasses.asdict(settings))
        study.set_user_attr("base", base)
        study.set_user_attr("freezes", list(freezes))
        for values in _beginning(base, freezes, settings.seed):
            study.enqueue_trial(values)
    seed = study.user_attrs["settings"]["seed"] + len(study.trials)
    study.sampler = optuna.samplers.TPESampler(n_startup_trials=_BEGINNING, seed=seed)
    return folder, study


def _beginning(base: dict[str, Any], freezes: Sequence[str], seed: int) -> Iterator[dict[str, Any]]:
    """The first generations: the given hyperparameters, then changes of them as YOLOv5 makes them."""
    rng = np.random.default_rng(seed)
    for number in range(_BEGINNING):
        changed = (rng.random(len(RANGES)) < _SHARE) & (number > 0)
        gains = np.where(changed, (1 + _SPREAD * rng.standard_normal(len(RANGES))).clip(0.3, 3), 1.0)
        values = {
            key: float(np.clip(base[key] * gain, min(low, base[key]), max(high, base[key])))
            for (key, (low, high)), gain in zip(RANGES.items(), gains, strict=True)
        }
        yield values | ({FREEZE: freezes[number % len(freezes)]} if freezes else {})


def _space(base: Hyperparameters, freezes: Sequence[str]) -> dict[str, Any]:
    """Distributions by key: YOLOv5's ranges, widened where the first value lies outside."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    space: dict[str, Any] = {
        key: FloatDistribution(min(low, value), max(high, value), log=key == "lr0" and value > 0)
        for key, (low, high) in RANGES.items()
        for value in [getattr(base, key)]
    }
    return space | ({FREEZE: CategoricalDistribution(freezes)} if freezes else {})


def _train(
    settings: TrainSettings, base: Hyperparameters, params: dict[str, Any], run: Path, interrupt: Interrupt, lock: int
) -> int:
    """Train once in a process of its own, or go on with a run that was interrupted; its exit status."""
    command = [sys.executable, "-m", "yolojax.cli.main", "train"]
    if (run / "settings.yaml").is_file():
        command += ["--resume", str(run)]
    else:
        values = {key: value for key, value in params.items() if key != FREEZE}
        hyp = run.with_suffix(".yaml")
        write_yaml(hyp, dataclasses.asdict(dataclasses.replace(base, **values)))
        command += train_flags(
            dataclasses.replace(
                settings,
                hyp=str(hyp),
                freeze=(params[FREEZE],) if FREEZE in params else settings.freeze,
                project=str(run.parent),
                name=run.name,
                exist_ok=True,
                resume=None,
                noval=True,
                nosave=True,
                noplots=True,
            )
        )
    status = wait_for(start_process(command, _log_file(run), lock), interrupt)
    if status == 0:
        for large in ("checkpoints", "weights"):
            shutil.rmtree(run / large, ignore_errors=True)
    return status


def _run_folder(folder: Path, number: int) -> Path:
    return folder / f"generation{number + 1:03d}"


def _log_file(run: Path) -> Path:
    return Path(f"{run}.log")


def _figures(run: Path) -> dict[str, Any]:
    return json.loads((run / "results.json").read_text(encoding="utf-8"))["final"]


def _write(study: Any, base: Hyperparameters, folder: Path) -> None:
    """Write the table of all generations, the best hyperparameters, and the plot."""
    trials = [trial for trial in study.trials if trial.value is not None]
    figures = [_figures(_run_folder(folder, trial.number)) for trial in trials]
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["generation", *FIGURES, *trials[0].params])
    for trial, found in zip(trials, figures, strict=True):
        table.writerow([trial.number + 1, *(f"{found[name]:.5g}" for name in FIGURES), *trial.params.values()])
    write_file(folder / TABLE, text.getvalue())
    best = study.best_trial
    found = figures[trials.index(best)]
    freeze = f", --freeze {best.params[FREEZE]}" if FREEZE in best.params else ""
    shown = ", ".join(f"{name} {found[name]:.4f}" for name in FIGURES)
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
    from yolojax.figures import COLOURS, new_figure

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
        axes.plot(values[best], fitness[best], "+", color=COLOURS[9], markersize=14, markeredgewidth=2)
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
