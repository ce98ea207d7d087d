"""What a run tells and writes down: its beginning, every epoch, its end."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from yolojax.data.sample import samples_record
from yolojax.evaluation.evaluator import Evaluation
from yolojax.evaluation.plots import plot_evaluation
from yolojax.files import write_json, write_yaml
from yolojax.freezing.labels import FROZEN
from yolojax.freezing.phases import Phase
from yolojax.freezing.summary import BN_MODES, summarise
from yolojax.training import plots, records
from yolojax.training.progress import EpochMeter
from yolojax.training.setup import Job
from yolojax.training.state import TrainState
from yolojax.training.trackers import Trackers
from yolojax.tree import flatten

log = logging.getLogger(__name__)


def trainable_parameters(state: TrainState, phase: Phase) -> tuple[int, int]:
    """How many parameters train, and how many there are."""
    sizes = {path: leaf.size for path, leaf in flatten(state.params).items()}
    labels = dict(phase.labels)
    total = sum(sizes.values())
    return total - sum(size for path, size in sizes.items() if labels.get(path, FROZEN) == FROZEN), total


def count(state: TrainState, phase: Phase) -> str:
    """How many parameters train, in words."""
    trainable, total = trainable_parameters(state, phase)
    return f"{trainable:,} of {total:,} parameters train ({trainable / total:.1%})"


def describe(job: Job, run: Path, state: TrainState, phase: Phase, sizes: Sequence[int]) -> None:
    """Say what is trained on what, at which sizes, and what the BatchNorm of frozen layers does."""
    devices = job.mesh.devices.ravel()
    log.info(
        "%s, %d px, batch %d on %d x %s, %s; %d training and %d validation images, %d classes",
        job.spec.name,
        job.settings.imgsz,
        job.schedule.batch_size,
        devices.size,
        devices[0].device_kind,
        job.settings.dtype,
        len(job.stream.images.samples),
        len(job.validation.images.samples),
        len(job.names),
    )
    if job.settings.multi_scale:
        log.info("--multi-scale: %s px, each compiled once", ", ".join(map(str, sizes)))
    log.info("freeze %s: %s", job.strategy.name, count(state, phase))
    if phase.frozen:
        log.info(BN_MODES[job.settings.frozen_bn])
    log.info("run folder: %s", run)


def write_beginning(job: Job, run: Path, phase: Phase, params: Any) -> None:
    """Write settings, hyperparameters, environment, what is frozen, and the picture of the labels."""
    settings = {**dataclasses.asdict(job.settings), "resume": None, "freeze": list(job.settings.freeze)}
    write_yaml(run / "settings.yaml", settings)
    write_yaml(run / "hyp.yaml", dataclasses.asdict(job.hyperparameters))
    data = {
        "train": samples_record(job.stream.images.samples),
        "val": samples_record(job.validation.images.samples),
    }
    write_json(run / "environment.json", {**records.environment(), "data": data})
    modules = [layer.module for layer in job.spec.layers]
    freeze = summarise(params, phase, modules, job.settings.frozen_bn)
    write_json(run / "freeze.json", {"freeze": job.strategy.name, "frozen_bn": job.settings.frozen_bn, **freeze})
    if not job.settings.noplots:
        boxes = np.concatenate([sample.boxes for sample in job.stream.images.samples])
        plots.plot_labels(boxes, job.names, run / "labels.jpg")


def write_epoch(
    job: Job, run: Path, trackers: Trackers, epoch: int, meter: EpochMeter, evaluation: Evaluation | None
) -> None:
    """Add an epoch to ``results.csv``, to the trackers and to ``results.png``."""
    rates = job.schedule.rates((epoch + 1) * job.schedule.batches_per_epoch - 1)
    row: dict[str, float] = {"epoch": epoch, **{f"train/{name}_loss": value for name, value in meter.losses.items()}}
    if evaluation is not None:
        row |= {
            "metrics/precision": evaluation.precision,
            "metrics/recall": evaluation.recall,
            "metrics/mAP_0.5": evaluation.map50,
            "metrics/mAP_0.5:0.95": evaluation.map50_95,
            **{f"val/{name}_loss": value for name, value in evaluation.losses.items()},
        }
    row |= {
        "x/lr0": float(rates.bias_learning_rate),
        "x/lr1": float(rates.learning_rate),
        "x/lr2": float(rates.learning_rate),
    }
    table = records.ResultsTable(run / "results.csv", keep_epochs=epoch)
    table.append(row)
    trackers.write(row)
    if not job.settings.noplots:
        title = f"{job.spec.name} on {job.data.file.stem}, freeze {job.strategy.name}"
        plots.plot_results(records.read_results(table.path), run / "results.png", title)


def epoch_line(job: Job, epoch: int, meter: EpochMeter, evaluation: Evaluation | None, seconds: float) -> str:
    """An epoch in one line: losses, metrics, speed, and the part of the time that was spent waiting for data."""
    losses = "  ".join(f"{name} {value:.4f}" for name, value in meter.losses.items())
    line = f"epoch {epoch + 1:>3}/{job.epochs}  {losses}"
    if evaluation is not None:
        line += f"  |  P {evaluation.precision:.3f}  R {evaluation.recall:.3f}  mAP50 {evaluation.map50:.3f}  mAP50-95 {evaluation.map50_95:.3f}"
    return line + f"  |  {meter.images_per_second:.1f} images/s, {meter.waited:.1%} waiting for data, {seconds:.0f} s"


def show_best(job: Job, run: Path, epoch: int, evaluation: Evaluation) -> None:
    """Print the best epoch class by class, and draw its curves."""
    table = Table(title=f"best epoch ({epoch + 1}), averaged weights", box=box.SIMPLE_HEAD)
    for column in ("class", "instances", "precision", "recall", "mAP50", "mAP50-95"):
        table.add_column(column, justify="left" if column == "class" else "right")
    whole = {
        "name": "all",
        "instances": evaluation.instances,
        "precision": evaluation.precision,
        "recall": evaluation.recall,
    }
    for row in [{**whole, "map50": evaluation.map50, "map50_95": evaluation.map50_95}, *evaluation.per_class()]:
        figures = (f"{row[key]:.3f}" for key in ("precision", "recall", "map50", "map50_95"))
        table.add_row(row["name"], f"{row['instances']:,}", *figures)
    Console().print(table)
    if not job.settings.noplots:
        plot_evaluation(evaluation, run)
        log.info("plots: %s", run / "results.png")
