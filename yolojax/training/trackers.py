"""Where the figures of a run go beside its folder: TensorBoard, where it is installed, and Weights & Biases, where it is asked for."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yolojax.errors import UserError
from yolojax.files import write_file
from yolojax.training.settings import TrainSettings

_PROJECT = "yolojax"  # of runs in the default folder


@dataclass(frozen=True)
class Trackers:
    """The open trackers of a run; without any, writing does nothing.

    Attributes:
      events: a ``tensorboardX.SummaryWriter``.
      board: a run of ``wandb``.
    """

    events: Any = None
    board: Any = None

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

    def close(self, run: Path) -> None:
        """Hand over the figures of the run folder, and finish."""
        if self.events is not None:
            self.events.close()
        if self.board is not None:
            import wandb

            figures = sorted(file for file in run.iterdir() if file.suffix in (".png", ".jpg"))
            if figures:
                self.board.log({file.stem: wandb.Image(str(file)) for file in figures})
            self.board.finish()


def open_trackers(settings: TrainSettings, run: Path, epoch: int) -> Trackers:
    """Open what there is.

    Args:
      settings: of the run; ``wandb`` and ``entity`` ask for Weights & Biases.
      run: the run folder, where both keep their files.
      epoch: the first epoch to be written; TensorBoard's events of it and later ones, of an interrupted run, no longer count.

    Raises:
      UserError: Weights & Biases is asked for and not installed, or does not let us in.
    """
    return Trackers(_open_tensorboard(run, epoch), _open_wandb(settings, run) if settings.wandb else None)


def _open_tensorboard(run: Path, epoch: int) -> Any | None:
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(logdir=str(run), purge_step=epoch or None, filename_suffix=f".{epoch}")


def _open_wandb(settings: TrainSettings, run: Path) -> Any:
    try:
        import wandb
    except ImportError as error:
        raise UserError("--wandb needs Weights & Biases: pip install 'yolojax[wandb]'") from error
    identity = run / "wandb.id"  # a resumed run goes on under it
    if not identity.is_file():
        write_file(identity, secrets.token_hex(4))
    project = Path(settings.project)
    try:
        return wandb.init(
            project=_PROJECT if project == Path(TrainSettings().project) else project.name,
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
