"""``yolojax val``: precision, recall and mAP of weights on a data set, as YOLOv5's val.py measures them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolojax.errors import UserError
from yolojax.flags import add_fields, add_foreign, note_foreign, read_fields
from yolojax.inference.settings import ValSettings

if TYPE_CHECKING:
    from yolojax.evaluation.evaluator import Evaluation
    from yolojax.inference.validation import Recorder, Validation

STUDY_SIZES = range(256, 1536 + 1, 128)
MANY_CLASSES = 50  # from here on the table per class is shown with --verbose only
IGNORED = {"dnn": "there is no OpenCV DNN here"}
REFUSED = {"save_hybrid": "mixes labels into the predictions, so that mAP means nothing; it does not exist here"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add YOLOv5's flags and ours."""
    add_fields(parser, ValSettings)
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the figures here")
    add_foreign(parser, IGNORED, REFUSED)


def run(arguments: argparse.Namespace) -> int:
    """Measure, print, and leave the files in the run folder."""
    note_foreign(arguments, IGNORED, REFUSED)
    settings = read_fields(arguments, ValSettings)

    from yolojax.files import new_run_folder, write_json
    from yolojax.inference.validation import Recorder, prepare
    from yolojax.runtime import select_devices

    annotations = _read_annotations(settings)
    validation = prepare(settings, select_devices(settings.device))
    folder = new_run_folder(settings.project, settings.name, settings.exist_ok)
    if settings.task == "study":
        figures = _study(validation, folder)
    else:
        recorder = Recorder(validation, folder)
        evaluation = validation.run(observe=recorder)
        figures = {**evaluation.figures(), "settings": validation.described()}
        _show(evaluation, validation)
        if settings.save_json:
            figures |= _coco(validation, recorder, annotations, folder)
        if not settings.noplots:
            from yolojax.evaluation.plots import plot_evaluation

            plot_evaluation(evaluation, folder)
    write_json(folder / "results.json", figures)
    if arguments.json:
        write_json(arguments.json, figures)
    print(f"results in {folder}")
    return 0


def _show(evaluation: Evaluation, validation: Validation) -> None:
    """The table, and what it depends on."""
    from rich.console import Console
    from rich.table import Table

    from yolojax.evaluation.metrics import CONFIDENCES

    table = Table("class", *("images", "instances", "P", "R", "mAP50", "mAP50-95"))
    for column in table.columns[1:]:
        column.justify = "right"
    all_figures = (evaluation.precision, evaluation.recall, evaluation.map50, evaluation.map50_95)
    table.add_row("all", f"{evaluation.images}", f"{evaluation.instances}", *(f"{value:.4f}" for value in all_figures))
    classes = len(validation.names)
    if classes > 1 and (classes < MANY_CLASSES or validation.settings.verbose):
        table.add_section()
        for row in evaluation.per_class():
            values = (row["precision"], row["recall"], row["map50"], row["map50_95"])
            table.add_row(row["name"], "", f"{row['instances']}", *(f"{value:.4f}" for value in values))
    Console(highlight=False, markup=False).print(table)
    print(_settings_line(validation.described()))
    print(f"P and R at confidence {CONFIDENCES[evaluation.curves.best]:.3f}, where the mean F1 score is highest")
    speed = evaluation.speed_ms
    print(
        f"per image: {speed['preprocess']:.1f} ms pre-process, {speed['inference']:.1f} ms inference, "
        f"{speed['nms']:.1f} ms NMS"
    )


def _settings_line(known: Mapping[str, Any]) -> str:
    """What figures depend on, as ``Validation.described`` gives it."""
    sizes = known["image_size"]
    options = [
        f"{sizes} px" if isinstance(sizes, int) else f"{sizes[0]} to {sizes[-1]} px",
        "rectangular" if known["rectangular"] else "square",
        f"batch {known['batch_size']}",
        f"confidence > {known['confidence']:g}",
        f"NMS IoU {known['iou']:g}",
        f"at most {known['max_detections']} detections",
        *(["all classes as one"] if known["single_class"] else []),
        *(["test-time augmentation"] if known["augment"] else []),
        known["dtype"],
    ]
    return f"{' + '.join(known['weights'])} on {known['data']} ({known['split']}), {', '.join(options)}"


def _read_annotations(settings: ValSettings) -> dict[str, Any] | None:
    if settings.annotations is None:
        return None
    try:
        found = json.loads(Path(settings.annotations).read_text(encoding="utf-8"))
        complete = {"images", "annotations", "categories"} <= found.keys()
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"--annotations {settings.annotations}: cannot be read as JSON ({error})") from error
    if not complete:
        raise UserError(
            f"--annotations {settings.annotations}: no COCO file: images, annotations or categories are missing"
        )
    return found


def _coco(
    validation: Validation, recorder: Recorder, annotations: dict[str, Any] | None, folder: Path
) -> dict[str, Any]:
    """Write ``predictions.json`` and measure AP as COCO defines it."""
    import numpy as np

    from yolojax.evaluation.coco import against, average_precision, coco_files, official_figures

    truth, results = coco_files(recorder.pictures, validation.names)
    if annotations is not None:
        truth, results = against(annotations, truth, results)
    rounded = [
        {**result, "bbox": [round(side, 3) for side in result["bbox"]], "score": round(result["score"], 5)}
        for result in results
    ]
    (folder / "predictions.json").write_text(json.dumps(rounded), encoding="utf-8")
    ap = average_precision(recorder.pictures, len(validation.names))
    measured = ~np.isnan(ap[:, 0])
    figures = {
        "coco_map50": float(ap[measured, 0].mean()) if measured.any() else 0.0,
        "coco_map50_95": float(ap[measured].mean()) if measured.any() else 0.0,
    }
    print(
        f"AP as COCO defines it: mAP50 {figures['coco_map50']:.4f}, mAP50-95 {figures['coco_map50_95']:.4f}",
    )
    official = official_figures(truth, results)
    if official is None:
        print("for COCO's own code install the extra coco: pip install 'yolojax[coco]'")
        return figures
    print(f"by {official['tool']}: mAP50 {official['map50']:.4f}, mAP50-95 {official['map50_95']:.4f}")
    return figures | {f"official_{name}": value for name, value in official.items()}


def _study(validation: Validation, folder: Path) -> dict[str, Any]:
    """Measure at many image sizes; ``study.csv`` and ``study.png``."""
    import csv

    from yolojax.evaluation.plots import plot_study

    rows: list[dict[str, float]] = []
    for size in STUDY_SIZES:
        evaluation = validation.run(image_size=size)
        rows.append(
            {
                "image_size": size,
                "precision": evaluation.precision,
                "recall": evaluation.recall,
                "map50": evaluation.map50,
                "map50_95": evaluation.map50_95,
                **{f"{part}_ms": value for part, value in evaluation.speed_ms.items()},
            }
        )
        print("  ".join(f"{name} {value:.4g}" for name, value in rows[-1].items()))
    with (folder / "study.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    known = validation.described() | {"image_size": list(STUDY_SIZES)}
    if not validation.settings.noplots:
        plot_study(rows, _settings_line(known), folder / "study.png")
    return {"study": rows, "settings": known}
