"""What a run tells and writes down: its beginning, every epoch, its end."""

from __future__ import annotations

import csv
import dataclasses
import json
import logging
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from yolojax.data.sample import samples_record
from yolojax.evaluation.evaluator import Evaluation
from yolojax.evaluation.plots import plot_evaluation
from yolojax.files import write_file, write_json, write_yaml
from yolojax.freezing.summary import BN_MODES, summarise
from yolojax.hosts.agreement import decided, gathered, is_first
from yolojax.runtime import device_peak_bytes
from yolojax.scores import SCORES, known_scores, shown_score
from yolojax.training import plots
from yolojax.training.checkpoints import RESULTS
from yolojax.training.progress import EpochMeter
from yolojax.training.run import Run, write_settings
from yolojax.training.setup import HYPERPARAMETERS, STRATEGY, Job
from yolojax.training.trackers import Trackers, open_trackers
from yolojax.training.validator import Validator
from yolojax.tree import flatten
from yolojax.weights.find import load_weights
from yolojax.weights.record import NETWORK, NetworkRecord

log = logging.getLogger(__name__)

TABLE = "results.csv"
COLUMNS = (
    "epoch",
    "train/box_loss",
    "train/obj_loss",
    "train/cls_loss",
    "metrics/precision",
    "metrics/recall",
    "metrics/mAP_0.5",
    "metrics/mAP_0.5:0.95",
    "val/box_loss",
    "val/obj_loss",
    "val/cls_loss",
    "x/lr0",
    "x/lr1",
    "x/lr2",
)
SCORE_COLUMNS = dict(
    zip(SCORES, ("metrics/precision", "metrics/recall", "metrics/mAP_0.5", "metrics/mAP_0.5:0.95"), strict=True)
)
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "opencv-python-headless", "pillow")


def trainable_parameters(run: Run) -> tuple[int, int]:
    """How many parameters train, and how many there are."""
    sizes = {path: leaf.size for path, leaf in flatten(run.state.params).items()}
    return sum(size for path, size in sizes.items() if run.phase.trains(path)), sum(sizes.values())


def _share(run: Run) -> str:
    trainable, total = trainable_parameters(run)
    return f"{trainable:,} of {total:,} parameters train ({trainable / total:.1%})"


def beginning(run: Run) -> Trackers:
    """Say what is trained on what, write it down if the run is new, and open its trackers."""
    job = run.job
    if is_first() and run.is_new:
        _write_beginning(run)
    devices = job.mesh.devices.ravel()
    log.info(
        "%s, %d px, batch %d on %d x %s, %s; %d training and %d validation images, %d classes",
        job.spec.name,
        job.image_size,
        job.batch_size,
        devices.size,
        devices[0].device_kind,
        job.settings.dtype,
        len(job.stream.images.samples),
        len(job.validation.images.samples),
        len(job.names),
    )
    if job.settings.multi_scale:
        log.info("--multi-scale: %s px, each compiled once", ", ".join(map(str, job.image_sizes)))
    if job.replay.images:
        again, images = job.replay.images, len(job.replay.samples)
        shares = (job.batch_size, again, images, job.settings.replay, job.batch_size - again)
        log.info("--replay: of the %d images of a batch %d are of the %d of %s, and %d of --data", *shares)
    if job.teacher:
        log.info("--distil: %s teaches %s", job.settings.distil, ", ".join(job.teacher.names))
    log.info("freeze %s: %s", job.strategy.name, _share(run))
    if not any(len(sample.boxes) for sample in job.validation.images.samples):
        log.warning(
            "no box to validate with: weights/best follows the newest weights, and --patience %d never ends the run",
            job.settings.patience,
        )
    if run.phase.frozen:
        log.info(BN_MODES[job.settings.frozen_bn])
    log.info("run folder: %s", run.folder)
    return open_trackers(job.settings, run.folder, run.position.epoch) if is_first() else Trackers()


def _write_beginning(run: Run) -> None:
    """Write settings, network, strategy, environment, what is frozen, and the figure of the labels: all that resuming needs, and what people ask for."""
    job, folder = run.job, run.folder
    write_json(folder / NETWORK, NetworkRecord(job.spec, job.names, job.source).to_dict())
    write_yaml(folder / HYPERPARAMETERS, dataclasses.asdict(job.hyperparameters))
    shutil.rmtree(folder / STRATEGY, ignore_errors=True)
    if job.strategy.origin:
        file = Path(job.strategy.origin)
        (folder / STRATEGY).mkdir()
        write_file(folder / STRATEGY / file.name, file.read_bytes())
    record: dict[str, Any] = {"data": {split: samples_record(samples) for split, samples in job.samples.items()}}
    if job.teacher:
        record["teacher"] = {"arrays_sha256": job.teacher.arrays_sha256, "classes": list(job.teacher.names)}
    write_json(folder / "environment.json", {**environment(), **record})
    modules = [layer.module for layer in job.spec.layers]
    freeze = summarise(run.state.params, run.phase, modules, job.settings.frozen_bn)
    write_json(folder / "freeze.json", {"freeze": job.strategy.name, "frozen_bn": job.settings.frozen_bn, **freeze})
    write_settings(job.settings, folder)  # last: a folder that has it can be resumed
    if not job.settings.noplots:
        boxes = np.concatenate([sample.boxes for sample in job.samples["train"]])
        plots.plot_labels(boxes, job.names, folder / "labels.jpg")


def phase(run: Run) -> None:
    """Say which phase begins."""
    log.info("epoch %d: phase '%s': %s", run.position.epoch + 1, run.phase.name, _share(run))


def epoch(run: Run, trackers: Trackers, meter: EpochMeter, evaluation: Evaluation | None) -> None:
    """Tell the epoch that was just counted, and add it to ``results.csv``, to the trackers and to ``results.png``."""
    job, number = run.job, run.position.epoch - 1
    log.info("%s", _epoch_line(run, meter, evaluation))
    if not is_first():
        return
    row = _epoch_row(job, number, meter, evaluation)
    columns = (*COLUMNS, "train/distil_loss") if job.teacher else COLUMNS
    table = ResultsTable(run.folder / TABLE, keep_epochs=number, columns=columns)
    table.append(row)
    trackers.write(row)
    if not job.settings.noplots:
        title = f"{job.spec.name} on {job.data.file.stem}, freeze {job.strategy.name}"
        plots.plot_results(read_results(table.path), run.folder / "results.png", title)


def _epoch_row(job: Job, number: int, meter: EpochMeter, evaluation: Evaluation | None) -> dict[str, float]:
    rates = job.schedule.rates((number + 1) * job.schedule.batches_per_epoch - 1)
    row: dict[str, float] = {"epoch": number, **{f"train/{name}_loss": value for name, value in meter.losses.items()}}
    if evaluation is not None:
        row |= {f"val/{name}_loss": value for name, value in evaluation.losses.items()}
        scores = known_scores(evaluation.figures())
        row |= {column: scores[name] for name, column in SCORE_COLUMNS.items() if scores[name] is not None}
    return row | {
        "x/lr0": float(rates.bias_learning_rate),
        "x/lr1": float(rates.learning_rate),
        "x/lr2": float(rates.learning_rate),
    }


def _epoch_line(run: Run, meter: EpochMeter, evaluation: Evaluation | None) -> str:
    """An epoch in one line: losses, metrics, speed, and the part of the time that was spent waiting for data."""
    losses = "  ".join(f"{name} {value:.4f}" for name, value in meter.losses.items())
    parts = [f"epoch {run.position.epoch:>3}/{run.job.epochs}  {losses}"]
    if evaluation is not None:
        scores = known_scores(evaluation.figures())
        names = zip(("P", "R", "mAP50", "mAP50-95"), SCORES, strict=True)
        parts.append("  ".join(f"{name} {shown_score(scores[key], 3)}" for name, key in names))
    speed = f"{run.position.timings[-1]['seconds']:.0f} s"
    if meter.images_per_second is not None:
        speed = f"{meter.images_per_second:.1f} images/s, {meter.waited:.1%} waiting for data, {speed}"
    if meter.overflows:
        speed += f", {meter.overflows} steps left out (overflow of float16)"
    return "  |  ".join([*parts, speed])


def end(run: Run, trackers: Trackers, validate: Validator) -> dict[str, Any]:
    """Show the best epoch and write ``results.json``.

    Returns:
      Its content.
    """
    run.checkpoints.wait()
    position, job = run.position, run.job
    if position.stopped:
        log.info("no improvement in %d epochs: stopped", job.settings.patience)
    weights = run.folder / "weights" / decided("weights", lambda: _best_weights(run.folder))
    if weights.name == "best" and run.best is None and position.best:  # it was reached before the run was resumed
        run.best = validate(load_weights(weights).variables, job.validation)
    if run.best is not None and is_first():
        _show_best(run, run.best)
    trackers.close(run.folder)
    by_process = gathered("unreadable", json.dumps([*job.stream.unreadable, *job.validation.unreadable]))
    unreadable = list(dict.fromkeys(name for names in by_process for name in json.loads(names)))
    if unreadable:
        log.warning("%d images could not be decoded and were left out: results.json names them", len(unreadable))
    best = position.best or position.final  # without a box to find the newest weights are the best ones
    results = {
        "run": str(run.folder),
        "weights": str(weights),
        "model": job.spec.name,
        "freeze": job.strategy.name,
        "frozen_bn": job.settings.frozen_bn,
        "kept_views": job.settings.kept_views,
        "dtype": job.settings.dtype,
        "deterministic": job.settings.deterministic or job.mesh.devices.flat[0].platform != "gpu",
        "epochs": position.epoch,
        "stopped_early": position.stopped,
        "seconds": position.seconds,
        "train_images": len(job.stream.images.samples),
        "batch_size": job.batch_size,
        "step_peak_bytes": position.step_peak_bytes,
        "device_peak_bytes": device_peak_bytes(job.mesh.local_devices[0]),
        "programs": position.programs,
        "timings": position.timings,
        "best_epoch": best["epoch"],
        "unreadable_images": unreadable,
        "best": best,
        "final": position.final,
    }
    if is_first():
        write_json(run.folder / RESULTS, results)
    return results


def _best_weights(folder: Path) -> str:
    """The name of the best weights that are there: with ``--nosave`` the last ones, unless the last epoch was the best."""
    return "best" if (folder / "weights" / "best").is_dir() else "last"


def _show_best(run: Run, evaluation: Evaluation) -> None:
    """Print the best epoch class by class, and draw its curves."""
    table = Table(title=f"best epoch ({run.position.best_epoch + 1}), averaged weights", box=box.SIMPLE_HEAD)
    for column in ("class", "instances", "precision", "recall", "mAP50", "mAP50-95"):
        table.add_column(column, justify="left" if column == "class" else "right")
    table.columns[0].overflow = "fold"
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
    if not run.job.settings.noplots:
        plot_evaluation(evaluation, run.folder)
        log.info("plots: %s", run.folder / "results.png")


class ResultsTable:
    """``results.csv`` in YOLOv5's form: right-aligned columns of 20 characters, five significant digits."""

    def __init__(self, path: Path, keep_epochs: int = 0, columns: Sequence[str] = COLUMNS) -> None:
        """Open the table and keep the rows of the first ``keep_epochs`` epochs (a resumed run writes the others again)."""
        self.path, self.columns = path, columns
        rows = (
            [row for row in read_results(path) if row["epoch"] < keep_epochs] if keep_epochs and path.is_file() else []
        )
        text = "".join(f"{line}\n" for line in [_line(columns), *map(self._row_line, rows)])
        write_file(path, text)

    def append(self, row: Mapping[str, float]) -> None:
        """Add one epoch; a column that is missing (no validation) is written as nan."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(self._row_line(row) + "\n")

    def _row_line(self, row: Mapping[str, float]) -> str:
        return _line([f"{row.get(column, float('nan')):.5g}" for column in self.columns])


def _line(cells: Sequence[str]) -> str:
    return ",".join(f"{cell:>20s}" for cell in cells)


def read_results(path: Path) -> list[dict[str, float]]:
    """Rows of a ``results.csv``, ours or YOLOv5's."""
    with path.open(encoding="utf-8-sig") as file:
        reader = csv.reader(file)
        columns = [cell.strip() for cell in next(reader)]
        return [dict(zip(columns, (float(cell) for cell in row), strict=False)) for row in reader if row]


def environment() -> dict[str, Any]:
    """Versions, devices and the commit of the working tree, for the record."""
    devices = jax.devices()
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_threads": os.cpu_count(),
        "devices": [f"{device.platform}: {device.device_kind}" for device in devices],
        "device_memory_bytes": (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit"),
        "packages": {name: _version(name) for name in _PACKAGES},
        "git_commit": _git_commit(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None
