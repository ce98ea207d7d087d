"""Where a run stands, and what a person sees of it: a bar with losses and speed on a terminal, a line per epoch everywhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, cast

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from yolojax.freezing.phases import History

LOSSES = ("box", "obj", "cls")
DISTILLATION = "distil"  # the part of a loss that a teacher adds


class EpochMeter:
    """Sums of one epoch: losses, images, and the time that the step waited for data.

    The first batch is left out of the times: it compiles, and it fills the pipeline.
    """

    def __init__(self, batch_size: int, sums: dict[str, float] | None = None, batches: int = 0) -> None:
        """Start at zero, or where an interrupted epoch stopped."""
        self.sums = dict(sums or dict.fromkeys(LOSSES, 0.0))
        self.batches = batches
        self._batch_size = batch_size
        self._timed = 0
        self._started: float | None = None
        self._ended = 0.0
        self._waited = 0.0

    def add(self, figures: Mapping[str, Any]) -> None:
        """Count finished batches, a number per batch and figure; ``overflows`` tells those that were left out because their gradient left float16."""
        count = len(figures[LOSSES[0]])
        for name in (*LOSSES, DISTILLATION):
            for value in figures.get(name, ()):
                self.sums[name] = self.sums.get(name, 0.0) + float(value)
        self.sums["overflows"] = self.overflows + sum(map(bool, figures.get("overflows", ())))
        self.batches += count
        self._ended = time.perf_counter()
        if self._started is None:
            self._started, self._waited = self._ended, 0.0
        else:
            self._timed += count

    def restart(self) -> None:
        """Leave what was counted so far, and the next batch, out of the times: it compiles."""
        self._timed, self._started = 0, None

    def waited_for(self, seconds: float) -> None:
        """Count a wait for data."""
        self._waited += seconds

    @property
    def losses(self) -> dict[str, float]:
        """Mean of each loss part."""
        return {name: self.sums[name] / max(self.batches, 1) for name in (*LOSSES, DISTILLATION) if name in self.sums}

    @property
    def overflows(self) -> int:
        """Batches that were left out because their gradient left float16."""
        return int(self.sums.get("overflows", 0))

    def figures(self) -> dict[str, float | None]:
        """What ``results.json`` has of the epoch."""
        return {"images_per_second": self.images_per_second, "waiting": self.waited, "overflows": self.overflows}

    @property
    def seconds(self) -> float:
        """Time of the timed batches."""
        return 0.0 if self._started is None else self._ended - self._started

    @property
    def images_per_second(self) -> float | None:
        """Speed of the timed batches; None where there are too few to tell."""
        return self._timed * self._batch_size / self.seconds if self._timed > 1 and self.seconds else None

    @property
    def waited(self) -> float:
        """Fraction of that time that was spent waiting for data."""
        return self._waited / self.seconds if self.seconds else 0.0


class ProgressBar:
    """A bar for the batches of an epoch; silent where the output is no terminal."""

    def __init__(self, console: Console, epoch: int, epochs: int, batches: int, done: int) -> None:
        """Describe the epoch; ``done`` batches of it are behind us."""
        self._progress = Progress(
            TextColumn("[bold]epoch {task.fields[epoch]}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn(
                "box {task.fields[box]:.4f}  obj {task.fields[obj]:.4f}  cls {task.fields[cls]:.4f}  {task.fields[speed]}"
            ),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        fields: dict[str, Any] = {"epoch": f"{epoch + 1}/{epochs}", "speed": "", **dict.fromkeys(LOSSES, 0.0)}
        self._task = self._progress.add_task("", total=batches, completed=done, **fields)

    def update(self, meter: EpochMeter) -> None:
        """Show the state of the epoch."""
        speed = "" if meter.images_per_second is None else f"{meter.images_per_second:.1f} images/s"
        self._progress.update(self._task, completed=meter.batches, speed=speed, **cast(Any, meter.losses))

    def __enter__(self) -> ProgressBar:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()


@dataclass
class Position:
    """Where a run stands, beside its arrays; saved with every checkpoint.

    Attributes:
      epoch: the next epoch to train, or the one that was interrupted.
      history: what strategies decide from.
      batch: the next batch of the epoch.
      sums: loss sums of its finished batches.
      best_fitness: of all validations so far.
      best_epoch: where it was reached.
      best: figures of the best validation, as ``results.json`` has them.
      final: those of the last validation.
      seconds: time of training and validation so far.
      programs: a row for every compiled step: epoch, phase, parameters that train, compile time, operations, memory, the layer that it starts with.
      timings: a row for every finished epoch: seconds, images per second, the part spent waiting for data, steps left out for an overflow of float16.
      stopped: whether the run ended early, for want of improvement.
      features_start: the layer that steps start with, where features of those before it are kept; else 0.
      steps_per_dispatch: where the devices make the batches and it was found out; see ``step.Pace``.
      step_peak_bytes: the most memory that steps held on a device, seen before the first validation; None where the device does not say (CPU).
    """

    epoch: int
    history: History
    batch: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    best_fitness: float = 0.0
    best_epoch: int = 0
    best: dict[str, Any] = field(default_factory=dict)
    final: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    programs: list[dict[str, Any]] = field(default_factory=list)
    timings: list[dict[str, Any]] = field(default_factory=list)
    stopped: bool = False
    step_peak_bytes: int | None = None
    steps_per_dispatch: int | None = None
    features_start: int = 0

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Position:
        """Read what ``dataclasses.asdict`` made."""
        return cls(**{**content, "history": History.from_dict(content["history"])})


def program_record(lowered: Any) -> dict[str, Any]:
    """The cost of a program as XLA counts it.

    Args:
      lowered: what ``jitted.lower(...)`` gives; a program that was just called is not compiled again.

    Returns:
      ``flops`` of one call and its ``argument_bytes``, ``temporary_bytes``; None where the platform does not say.
    """
    compiled = lowered.compile()
    costs = compiled.cost_analysis() or lowered.cost_analysis() or {}
    memory = compiled.memory_analysis()
    return {
        "flops": costs.get("flops"),
        "argument_bytes": None if memory is None else memory.argument_size_in_bytes,
        "temporary_bytes": None if memory is None else memory.temp_size_in_bytes,
    }
