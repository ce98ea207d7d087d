"""``yolojax val``: precision, recall and mAP of weights on a data set, as YOLOv5's val.py measures them."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolojax.flags import add_fields, add_foreign, note_foreign, read_fields
from yolojax.inference.settings import ValSettings

if TYPE_CHECKING:
    from yolojax.evaluation.evaluator import Evaluation
    from yolojax.inference.validation import Validation

STUDY_SIZES = range(256, 1536 + 1, 128)
MANY_CLASSES = 50  # from here on the table per class is shown with --verbose only
IGNORED = {"dnn": "there is no OpenCV DNN here"}
REFUSED = {"save_hybrid": "mixes labels into the predictions, so that mAP means nothing; it does not exist here"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add YOLOv5's flags and ours."""
    add_fields(parser, ValSettings)
    add_foreign(parser, IGNORED, REFUSED)


def run(arguments: argparse.Namespace) -> int:
    """Measure, print, and leave the files in the run folder."""
    note_foreign(arguments, IGNORED, REFUSED)
    settings = read_fields(arguments, ValSettings)

    from yolojax.data.sample import samples_record
    from yolojax.files import new_run_folder, write_json
    from yolojax.hosts.agreement import check_alike, is_first, meet, process_count
    from yolojax.hosts.membership import run_folder
    from yolojax.inference.recorder import Recorder, read_annotations, write_coco
    from yolojax.inference.validation import prepare_validation
    from yolojax.runtime import all_digits, select_devices
    from yolojax.scores import known_scores

    annotations = read_annotations(settings.annotations) if settings.annotations else None
    validation = prepare_validation(settings, select_devices(settings.device))
    if process_count() > 1:
        meet(validation.mesh)
        check_alike(
            {"the images": samples_record(validation.samples)["sha256"], "the flags": dataclasses.asdict(settings)}
        )
    folder = run_folder(lambda: new_run_folder(settings.project, settings.name, settings.exist_ok))
    if settings.task == "study":
        with all_digits():
            figures = _study(validation, folder)
    else:
        recorder = Recorder(validation, folder)
        with nullcontext() if settings.task == "speed" else all_digits():
            evaluation = validation.run(observe=recorder)
        figures = {**known_scores(evaluation.figures()), "settings": validation.described()}
        if is_first():
            _show(evaluation, validation)
        images = recorder.images if settings.save_json else []
        if settings.save_json and is_first():
            coco = write_coco(images, validation.names, annotations, folder / "predictions.json")
            _show_coco(coco)
            figures |= coco
        if not settings.noplots and is_first():
            from yolojax.evaluation.plots import plot_evaluation

            plot_evaluation(evaluation, folder)
    if not is_first():
        return 0
    write_json(folder / "results.json", figures)
    if arguments.json:
        write_json(arguments.json, figures)
    print(f"results in {folder}")
    return 0


def _study(validation: Validation, folder: Path) -> dict[str, Any]:
    """Measure at many image sizes; ``study.csv`` and ``study.png``."""
    from yolojax.evaluation.plots import plot_study
    from yolojax.hosts.agreement import is_first
    from yolojax.inference.recorder import write_table
    from yolojax.inference.validation import describe_settings, measure_sizes

    rows = []
    for row in measure_sizes(validation, STUDY_SIZES):
        rows.append(row)
        if not is_first():
            continue
        print("  ".join(f"{name} {'-' if value is None else format(value, '.4g')}" for name, value in row.items()))
    described = validation.described() | {"image_size": list(STUDY_SIZES)}
    if not is_first():
        return {}
    write_table(folder / "study.csv", rows)
    if not validation.settings.noplots:
        plot_study(rows, describe_settings(described), folder / "study.png")
    return {"study": rows, "settings": described}


def _show(evaluation: Evaluation, validation: Validation) -> None:
    """The table, and what it depends on."""
    from rich.console import Console
    from rich.table import Table

    from yolojax.evaluation.metrics import CONFIDENCES
    from yolojax.inference.validation import describe_settings
    from yolojax.scores import SCORES, known_scores, shown_score

    table = Table("class", *("images", "instances", "P", "R", "mAP50", "mAP50-95"))
    table.columns[0].overflow = "fold"
    for column in table.columns[1:]:
        column.justify, column.no_wrap = "right", True
    figures = known_scores(evaluation.figures())
    scores = (shown_score(figures[name], 4) for name in SCORES)
    table.add_row("all", f"{evaluation.images}", f"{evaluation.instances}", *scores)
    classes = len(validation.names)
    if classes > 1 and (classes < MANY_CLASSES or validation.settings.verbose):
        table.add_section()
        for row in evaluation.per_class():
            values = (row["precision"], row["recall"], row["map50"], row["map50_95"])
            table.add_row(row["name"], "", f"{row['instances']}", *(f"{value:.4f}" for value in values))
    Console(highlight=False, markup=False).print(table)
    print(describe_settings(validation.described()))
    if evaluation.instances:
        print(f"P and R at confidence {CONFIDENCES[evaluation.curves.best]:.3f}, where the mean F1 score is highest")
    else:
        print("not one of these images has a box: nothing to measure precision, recall and mAP with")
    speed = evaluation.speed_ms
    print(
        f"per image: {speed['preprocess']:.1f} ms pre-process, {speed['inference']:.1f} ms inference, "
        f"{speed['nms']:.1f} ms NMS"
    )


def _show_coco(figures: Mapping[str, Any]) -> None:
    """AP as COCO defines it, and what tells the images of ``predictions.json`` apart."""
    from yolojax.scores import shown_score

    scores = (shown_score(figures[name], 4) for name in ("coco_map50", "coco_map50_95"))
    print("AP as COCO defines it: mAP50 {}, mAP50-95 {}".format(*scores))
    if "official_tool" in figures:
        official = f"mAP50 {figures['official_map50']:.4f}, mAP50-95 {figures['official_map50_95']:.4f}"
        print(f"by {figures['official_tool']}: {official}")
    elif figures["coco_map50"] is not None:
        print("for COCO's own code install the extra coco: pip install 'yolojax[coco]'")
    if not figures["numbered"]:
        print("predictions.json: not every name is a number of its own, so image_id counts from 1; see file_name")
