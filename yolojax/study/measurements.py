"""From the folders of a study's runs to figures: one row per run, and mean and spread per scenario."""

from __future__ import annotations

import csv
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from yolojax.evaluation.metrics import fitness
from yolojax.study.forgetting import Forgetting, measured_forgetting
from yolojax.study.held_out import measured_test
from yolojax.study.original import original_dtype, step_seconds
from yolojax.study.runner import LOG, SAMPLES, StudyRun
from yolojax.study.scenarios import Study
from yolojax.training.report import read_results

# Figures of a run; each is a mean and a spread for a scenario.
FIGURES = (
    "map50",
    "map50_95",
    "test_map50",
    "test_map50_95",
    "final_map50",
    "final_map50_95",
    "best_epoch",
    "wall_seconds",
    "step_seconds",
    "images_per_second",
    "compile_seconds",
    "memory_bytes",
    "step_peak_bytes",
    "process_bytes",
    "utilisation",
    "trainable",
    "parameters",
    "step_flops",
    "old_map50_before",
    "old_map50_after",
    "old_map50_95_before",
    "old_map50_95_after",
)


@dataclass(frozen=True, kw_only=True)
class Point:
    """Where a run stood after an epoch.

    Attributes:
      epoch: from 0.
      seconds: wall time, start-up included, where it was seen.
      map50: on the validation images.
      map50_95: on the validation images.
      box: mean loss of the epoch's training batches; None where it is not told.
      obj: likewise.
      cls: likewise.
    """

    epoch: int
    seconds: float | None
    map50: float
    map50_95: float
    box: float | None = None
    obj: float | None = None
    cls: float | None = None

    @property
    def loss(self) -> float | None:
        """The three parts together."""
        parts = [part for part in (self.box, self.obj, self.cls) if part is not None]
        return sum(parts) if len(parts) == 3 else None


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What a run tells.

    Attributes:
      run: whose figures.
      status: ``finished``, ``running``, ``failed``, ``interrupted`` or ``missing``.
      figures: by the names in ``FIGURES``; None where a run does not tell. ``map50`` and ``map50_95`` are those of the epoch with the best
        fitness, as of YOLOv5's best.pt, ``test_…`` those of that epoch on the test images, ``final_…`` those of the last one. ``utilisation`` is
        a percentage of the GPUs, else of all processors. ``step_flops`` is the mean over the epochs, ``memory_bytes`` and ``trainable`` the most
        of any phase. ``old_…`` are those of the initial weights on the study's second data set, and of their head on the trunk of this run.
      dtype: of the computation, where a run tells.
      memory_source: ``device`` or ``compiled program``.
      utilisation_source: ``GPU`` or ``CPU``.
      curve: a point per epoch.
      samples: ``(seconds, utilisation, process bytes)`` over the run.
    """

    run: StudyRun
    status: str
    figures: Mapping[str, float | None]
    dtype: str = ""
    memory_source: str = ""
    utilisation_source: str = "CPU"
    curve: tuple[Point, ...] = ()
    samples: tuple[tuple[float, float, float], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A scenario over its finished runs.

    Attributes:
      name: of the scenario.
      framework: of the scenario.
      freeze: of the scenario.
      frozen_bn: of the scenario.
      dtype: that its runs computed in, where they tell.
      seeds: of the finished runs.
      mean: by the names in ``FIGURES``; None where no run tells.
      spread: sample standard deviations; None for fewer than two runs.
    """

    name: str
    framework: str
    freeze: str
    frozen_bn: str
    dtype: str
    seeds: tuple[int, ...]
    mean: Mapping[str, float | None] = field(default_factory=dict)
    spread: Mapping[str, float | None] = field(default_factory=dict)


def measure_run(run: StudyRun, forgetting: Forgetting | None = None) -> Measurement:
    """Read the folder of a run; whatever it does not hold (yet) is left out. ``forgetting`` is that of the study."""
    record = run.record()
    if record["status"] == "missing":
        return Measurement(run=run, status="missing", figures=dict.fromkeys(FIGURES))
    extent = record["extent"]
    samples = _read_samples(run.folder / SAMPLES)
    curve = _curve(run.folder / "results.csv", samples)
    figures: dict[str, float | None] = dict.fromkeys(FIGURES)
    if curve:
        best = max(curve, key=lambda point: fitness(point.map50, point.map50_95))
        figures |= {"map50": best.map50, "map50_95": best.map50_95, "best_epoch": best.epoch + 1}
        figures |= {"final_map50": curve[-1].map50, "final_map50_95": curve[-1].map50_95}
    figures |= {"wall_seconds": record["seconds"] or None}
    figures |= {"trainable": extent["trainable"], "parameters": extent["parameters"]}
    watched = [row for row in samples if row["memory_bytes"]]
    figures["process_bytes"] = max((row["memory_bytes"] for row in watched), default=None)
    use, source = _utilisation(watched, record["cpus"])
    figures["utilisation"] = statistics.fmean(use) if use else None
    figures |= {**measured_test(run.folder), **measured_forgetting(run.folder, forgetting)}
    memory_source = dtype = ""
    if run.scenario.framework == "torch":
        figures |= _torch_figures(run, extent["batch"], watched)
        memory_source = "device" if figures["memory_bytes"] else ""
        dtype = original_dtype(_text(run.folder / LOG)) if curve else ""
    elif (file := run.folder / "results.json").is_file():
        results = json.loads(file.read_text(encoding="utf-8"))
        figures |= _own_figures(results)
        memory_source = "device" if results["device_peak_bytes"] else "compiled program"
        dtype = results.get("dtype", "")
    return Measurement(
        run=run,
        status=record["status"],
        figures=figures,
        dtype=dtype,
        memory_source=memory_source,
        utilisation_source=source,
        curve=curve,
        samples=tuple(
            (row["seconds"], percent, row["memory_bytes"]) for row, percent in zip(watched, use, strict=True)
        ),
    )


def _own_figures(results: Mapping[str, Any]) -> dict[str, float | None]:
    """What our own ``results.json`` tells."""
    programs = results["programs"]
    speeds = [row["images_per_second"] for row in results["timings"] if row["images_per_second"]]
    speed = statistics.median(speeds) if speeds else None
    in_force = [
        next((program for program in reversed(programs) if program["epoch"] <= epoch), programs[0])
        for epoch in range(results["epochs"])
    ]
    flops = [program["flops"] for program in in_force if program["flops"]]
    bytes_ = [
        program["argument_bytes"] + program["temporary_bytes"]
        for program in programs
        if program["temporary_bytes"] is not None
    ]
    return {
        "images_per_second": speed,
        "step_seconds": results["batch_size"] / speed if speed else None,
        "compile_seconds": sum(program["compile_seconds"] for program in programs),
        "memory_bytes": results["device_peak_bytes"] or max(bytes_, default=None),
        "step_peak_bytes": results.get("step_peak_bytes"),
        "trainable": max(program["trainable"] for program in programs),
        "parameters": max(program["parameters"] for program in programs),
        "step_flops": statistics.fmean(flops) if flops else None,
    }


def _torch_figures(run: StudyRun, batch: int, samples: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """What the log and the samples tell of a run of the original."""
    steps = step_seconds(_text(run.folder / LOG))
    step = statistics.median(steps) if steps else None
    gpu = [row["gpu_memory_bytes"] for row in samples if row["gpu_memory_bytes"] is not None]
    return {
        "step_seconds": step,
        "images_per_second": batch / step if step else None,
        "memory_bytes": max(gpu, default=None),
    }


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""


def _read_samples(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [{key: float(value) if value else None for key, value in row.items()} for row in rows]


def _curve(path: Path, samples: Sequence[Mapping[str, Any]]) -> tuple[Point, ...]:
    """Epochs with a validation, each at the time when its row was first seen."""
    if not path.is_file():
        return ()
    seen: dict[int, float] = {}
    for row in samples:
        seen.setdefault(int(row["epochs"]), row["seconds"])
    points = []
    for number, row in enumerate(read_results(path), 1):
        seconds = min((at for epochs, at in seen.items() if epochs >= number), default=None)
        scores = row["metrics/mAP_0.5"], row["metrics/mAP_0.5:0.95"]
        if all(map(math.isfinite, scores)):
            losses = {name: row.get(f"train/{name}_loss") for name in ("box", "obj", "cls")}
            points.append(
                Point(epoch=int(row["epoch"]), seconds=seconds, map50=scores[0], map50_95=scores[1], **losses)
            )
    return tuple(points)


def _utilisation(samples: Sequence[Mapping[str, Any]], cpus: int) -> tuple[list[float], str]:
    """Percentages over the run: of the GPUs if any was used, else of the processors; and which."""
    if any(row["gpu_percent"] is not None for row in samples):
        return [row["gpu_percent"] or 0.0 for row in samples], "GPU"
    return [row["cpu_percent"] / cpus for row in samples], "CPU"


def measure_study(study: Study, runs: Iterable[StudyRun]) -> list[Measurement]:
    """Every run of a study, in the order of its scenarios."""
    order = [scenario.name for scenario in study.scenarios]
    return sorted(
        (measure_run(run, study.forgetting) for run in runs),
        key=lambda measurement: (order.index(measurement.run.scenario.name), measurement.run.seed),
    )


def finished_figures(measurements: Sequence[Measurement]) -> dict[str, list[Mapping[str, float | None]]]:
    """The figures of all finished runs, by name of their scenario."""
    figures: dict[str, list[Mapping[str, float | None]]] = {}
    for measurement in measurements:
        if measurement.status == "finished":
            figures.setdefault(measurement.run.scenario.name, []).append(measurement.figures)
    return figures


def summarise_runs(study: Study, measurements: Sequence[Measurement]) -> list[Summary]:
    """Mean and spread of every scenario over its finished runs."""
    summaries = []
    for scenario in study.scenarios:
        own = [
            measurement
            for measurement in measurements
            if measurement.run.scenario.name == scenario.name and measurement.status == "finished"
        ]
        columns = {
            name: [value for measurement in own if (value := measurement.figures[name]) is not None] for name in FIGURES
        }
        summaries.append(
            Summary(
                name=scenario.name,
                framework=scenario.framework,
                freeze=scenario.freeze,
                frozen_bn=scenario.settings.frozen_bn,
                dtype=own[0].dtype if own else "",
                seeds=tuple(measurement.run.seed for measurement in own),
                mean={name: statistics.fmean(values) if values else None for name, values in columns.items()},
                spread={
                    name: statistics.stdev(values) if len(values) > 1 else None for name, values in columns.items()
                },
            )
        )
    return summaries
