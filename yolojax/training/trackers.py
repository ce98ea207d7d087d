"""Where the figures of a run go beside its folder: TensorBoard, where it is installed, and Weights & Biases and MLflow, where they are asked for."""

from __future__ import annotations

import dataclasses
import importlib
import os
import secrets
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yolojax.errors import UserError
from yolojax.files import write_file
from yolojax.training.settings import TrainSettings

_PROJECT = "yolojax"  # of runs in the default folder
_MLFLOW_NAME = str.maketrans(":", "_")  # what MLflow allows in no name, and what stands for it


@dataclass(frozen=True)
class Trackers:
    """The open trackers of a run; without any, writing does nothing.

    Attributes:
      events: a ``tensorboardX.SummaryWriter``.
      board: a run of ``wandb``.
      mlflow: an ``MlflowClient`` and the id of its run.
    """

    events: Any = None
    board: Any = None
    mlflow: tuple[Any, str] | None = None

    def write(self, row: Mapping[str, float]) -> None:
        """Add one row of ``results.csv``, under the same names."""
        epoch = int(row["epoch"])
        figures = {name: value for name, value in row.items() if name != "epoch"}
        if self.events is not None:
            for name, value in figures.items():
                self.events.add_scalar(name, value, epoch)
            self.events.flush()
        if self.board is not None:
            self.board.log(figures, step=epoch)
        if self.mlflow is not None:
            client, identity = self.mlflow
            for name, value in figures.items():
                client.log_metric(identity, name.translate(_MLFLOW_NAME), value, step=epoch)

    def close(self, run: Path) -> None:
        """Hand over the figures of the run folder, and finish."""
        if self.events is not None:
            self.events.close()
        figures = sorted(file for file in run.iterdir() if file.suffix in (".png", ".jpg"))
        if self.mlflow is not None:
            client, identity = self.mlflow
            for file in (*figures, *sorted(run.glob("*.yaml"))):
                client.log_artifact(identity, str(file))
            client.set_terminated(identity)
        if self.board is not None:
            import wandb

            if figures:
                self.board.log({file.stem: wandb.Image(str(file)) for file in figures})
            self.board.finish()


def require_trackers(settings: TrainSettings) -> None:
    """Import what is asked for, before a run folder is made or replaced.

    Raises:
      UserError: Weights & Biases or MLflow is asked for and not installed.
    """
    if settings.wandb:
        _package("wandb", "Weights & Biases")
    if settings.mlflow:
        _package("mlflow", "MLflow")


def _package(name: str, title: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"--{name} needs {title}: pip install 'yolojax[{name}]'") from error


def open_trackers(settings: TrainSettings, run: Path, epoch: int) -> Trackers:
    """Open what there is.

    Args:
      settings: of the run; ``wandb`` and ``entity`` ask for Weights & Biases, ``mlflow`` for MLflow.
      run: the run folder, where both keep their files.
      epoch: the first epoch to be written; TensorBoard's events of it and later ones, of an interrupted run, no longer count.

    Raises:
      UserError: Weights & Biases or MLflow is asked for and not installed, or does not let us in.
    """
    mlflow = _open_mlflow(settings, run) if settings.mlflow else None
    return Trackers(_open_tensorboard(run, epoch), _open_wandb(settings, run) if settings.wandb else None, mlflow)


def _open_tensorboard(run: Path, epoch: int) -> Any | None:
    try:
        with _without_torch():
            from tensorboardX import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(logdir=str(run), purge_step=epoch or None, filename_suffix=f".{epoch}")


@contextmanager
def _without_torch() -> Iterator[None]:
    """Hide PyTorch, unless it is imported already, from tensorboardX, which would take more than a second to import it, for tensors that are not used here."""
    absent = "torch" not in sys.modules
    if absent:
        sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if absent:
            del sys.modules["torch"]


def _open_wandb(settings: TrainSettings, run: Path) -> Any:
    wandb = _package("wandb", "Weights & Biases")
    identity = run / "wandb.id"  # a resumed run goes on under it
    if not identity.is_file():
        write_file(identity, secrets.token_hex(4))
    try:
        return wandb.init(
            project=_project(settings),
            entity=settings.entity,
            name=run.name,
            id=identity.read_text(encoding="utf-8"),
            resume="allow",
            dir=run,
            config={**dataclasses.asdict(settings), "freeze": list(settings.freeze)},
            settings=wandb.Settings(console="off", silent=True),
        )
    except wandb.errors.Error as error:
        raise UserError(f"--wandb: {error}; try 'wandb login', or WANDB_MODE=offline in the environment") from error


def _open_mlflow(settings: TrainSettings, run: Path) -> tuple[Any, str]:
    """A client, and the run of its store that has the name of ours: where ``MLFLOW_TRACKING_URI`` says, else a folder ``mlruns`` here."""
    mlflow = _package("mlflow", "MLflow")
    identity = run / "mlflow.id"  # a resumed run goes on under it
    try:
        store = os.environ.get("MLFLOW_TRACKING_URI")
        if not store:  # a folder is all that mlflow-skinny can write by itself; from 3.7 on MLflow wants to be told
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        client = mlflow.MlflowClient(store or Path("mlruns").absolute().as_uri())
        if identity.is_file():
            number = identity.read_text(encoding="utf-8")
            client.update_run(number, status="RUNNING")
            return client, number
        experiment = client.get_experiment_by_name(_project(settings))
        place = experiment.experiment_id if experiment else client.create_experiment(_project(settings))
        number = client.create_run(place, run_name=run.name).info.run_id
        for name, value in {**dataclasses.asdict(settings), "freeze": " ".join(settings.freeze)}.items():
            client.log_param(number, name, value)
    except (mlflow.exceptions.MlflowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--mlflow: {reason}; MLFLOW_TRACKING_URI in the environment names the store") from error
    write_file(identity, number)
    return client, number


def _project(settings: TrainSettings) -> str:
    project = Path(settings.project)
    return _PROJECT if project == Path(TrainSettings().project) else project.name
