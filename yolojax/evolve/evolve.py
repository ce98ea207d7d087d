"""Hyperparameters that suit a data set, found by training many times: ``yolojax train --evolve N``.

Every generation is a run in a process of its own, without validation but the last one. The first have the given hyperparameters and changes of them; what
is tried then is decided by Optuna (tree-structured Parzen estimator). Its journal in the folder lets an interrupted evolution go on.
"""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from yolojax.data.sources import load_data, read_split
from yolojax.errors import UserError
from yolojax.evolve.results import BEST, generation_folder, run_figures, write_results
from yolojax.evolve.space import BEGINNING, FREEZE, first_generations, search_space
from yolojax.files import new_run_folder, write_yaml
from yolojax.freezing.load import load_strategy
from yolojax.freezing.selectors import SHARE
from yolojax.hyperparameters import Hyperparameters, load_hyperparameters
from yolojax.interrupts import Interrupt, interruptible
from yolojax.processes import last_line, locked_folder, start_process, wait_for
from yolojax.training.settings import TrainSettings, train_command

log = logging.getLogger(__name__)

JOURNAL = "evolve.journal"


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
    values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in content.items()}
    settings = TrainSettings(**values)
    base = Hyperparameters(**study.user_attrs["base"])
    space = search_space(base, study.user_attrs["freezes"])
    with locked_folder(folder, "evolution") as lock, interruptible() as interrupt:
        while (done := sum(trial.state.is_finished() for trial in study.trials)) < generations:
            running = study.get_trials(states=[TrialState.RUNNING])
            trial = running[0] if running else study.ask(space)
            run, name = generation_folder(folder, trial.number), f"generation {trial.number + 1}/{generations}"
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
            fitness = run_figures(run)["fitness"]
            study.tell(trial.number, fitness)
            best = study.best_trial
            log.info("%s: fitness %.4f; best %.4f (generation %d)", name, fitness, best.value, best.number + 1)
            write_results(study, base, folder)
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
        journals = sorted(project.glob(f"*/{JOURNAL}"), key=lambda file: file.stat().st_mtime)
        folder = Path(settings.resume) if settings.resume != "latest" else journals[-1].parent if journals else project
        if not (folder / JOURNAL).is_file():
            raise UserError(f"--resume {folder}: holds no {JOURNAL}, so there is no evolution to go on with")
    else:
        data = load_data(settings.data, settings.data_root)
        if not read_split(data, "val").report.boxes:
            raise UserError(f"{data.file}: key 'val': not one box, so that --evolve has nothing to choose by")
        for words in freezes:  # what none of the runs could begin with is told before there is a folder
            if not SHARE.fullmatch(words):
                load_strategy(words, "--evolve-freeze")
        settings = settings.with_defaults(data)
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
        for values in first_generations(base, freezes, settings.seed):
            study.enqueue_trial(values)
    seed = study.user_attrs["settings"]["seed"] + len(study.trials)
    study.sampler = optuna.samplers.TPESampler(n_startup_trials=BEGINNING, seed=seed)
    return folder, study


def _train(
    settings: TrainSettings, base: Hyperparameters, params: dict[str, Any], run: Path, interrupt: Interrupt, lock: int
) -> int:
    """Train once in a process of its own, or go on with a run that was interrupted; its exit status."""
    values = {key: value for key, value in params.items() if key != FREEZE}
    hyp = run.with_suffix(".yaml")
    write_yaml(hyp, dataclasses.asdict(dataclasses.replace(base, **values)))
    freeze = (params[FREEZE],) if FREEZE in params else settings.freeze
    command = train_command(
        dataclasses.replace(settings, hyp=str(hyp), freeze=freeze, resume=None, noval=True, nosave=True, noplots=True),
        run,
    )
    ended = (run / "results.json").is_file()  # and the evolution was stopped before it noted that
    status = 0 if ended else wait_for(start_process(command, _log_file(run), lock), interrupt)
    if status == 0:
        for large in ("checkpoints", "weights"):
            shutil.rmtree(run / large, ignore_errors=True)
    return status


def _log_file(run: Path) -> Path:
    return Path(f"{run}.log")
