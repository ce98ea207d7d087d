"""``yolojax export``: a network as a file that runs elsewhere, checked against the network that it came from."""

from __future__ import annotations

import argparse
from pathlib import Path

from yolojax.flags import add_fields, add_foreign, note_foreign, read_fields
from yolojax.inference.settings import ExportSettings

# Flags of export.py that mean nothing here: taken, with a note, so that a command line can be carried over as it is.
IGNORED = {
    "data": "class names come with the weights",
    "inplace": "nothing is changed in place",
    "simplify": "the graph is simplified in any case",
    "verbose": "there is nothing more to tell",
    "topk_per_class": "NMS has one limit, --max-det, over all classes",
}
_ELSEWHERE = "belongs to a format that YOLOv5 makes: --include torch, then its own export.py with this flag"
REFUSED = dict.fromkeys(("keras", "optimize", "int8", "per_tensor", "cache", "mlmodel", "workspace"), _ELSEWHERE)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add YOLOv5's flags and ours."""
    add_fields(parser, ExportSettings)
    add_foreign(parser, IGNORED, REFUSED)


def run(arguments: argparse.Namespace) -> int:
    """Write, read back, compare; 1 if a file gives something else than its network."""
    note_foreign(arguments, IGNORED, REFUSED)
    settings = read_fields(arguments, ExportSettings)

    from rich.console import Console
    from rich.table import Table

    from yolojax.evaluation.nms import NmsSettings
    from yolojax.files import new_run_folder, write_json
    from yolojax.inference.detector import choose_image_size
    from yolojax.inference.export import Form, check_installed, check_onnx_form
    from yolojax.inference.predictor import suppressed_parts
    from yolojax.inference.roundtrip import export_and_check
    from yolojax.runtime import select_devices
    from yolojax.weights.card import run_facts
    from yolojax.weights.find import EMBEDDED_WEIGHTS, find_weights, load_weights

    for name in settings.include:
        check_installed(name)
    select_devices(settings.device)
    source = EMBEDDED_WEIGHTS if settings.weights is None else settings.weights
    path = find_weights(source)
    weights = load_weights(path, settings.delta)
    nms = NmsSettings(
        confidence=settings.conf_thres,
        iou=settings.iou_thres,
        max_detections=settings.max_det,
        multi_label=False,
        agnostic=settings.agnostic_nms,
        parts=suppressed_parts((weights,), settings.agnostic_nms),
    )
    form = Form(
        image_size=choose_image_size(settings.imgsz, (weights,)),
        batch_size=None if settings.dynamic else settings.batch_size,
        dtype=settings.computation,
        nms=nms if settings.nms else None,
    )
    if "onnx" in settings.include:
        check_onnx_form(form)
    folder = new_run_folder(settings.project, settings.name, settings.exist_ok)
    stem = Path(source).name.removesuffix(".pt").removesuffix(".safetensors")
    rows = [
        export_and_check(name, folder / stem, weights, form, settings.opset, run_facts(path))
        for name in dict.fromkeys(settings.include)
    ]

    table = Table("format", "file", "MB", "boxes ± px", "scores ±", "")
    table.columns[1].overflow = "fold"
    for column in table.columns[2:5]:
        column.justify = "right"
    for row in rows:
        off = (
            "–" if value is None else f"{value:.2g}" for value in (row["box_difference_px"], row["score_difference"])
        )
        table.add_row(row["format"], row["file"], f"{row['size_mb']:.2f}", *off, "ok" if row["ok"] else "differs")
    Console(highlight=False, markup=False).print(table)
    height, width = form.image_size
    batch = form.batch_size or "any number of"
    print(f"{weights.spec.name}, {len(weights.names)} classes, {batch} images of {width}x{height} px, {form.dtype}")
    if form.nms is not None:
        print(f"the check compared {rows[0]['compared']} detections")
    print(f"files in {folder}")
    content = {"formats": rows, "image_size": list(form.image_size), "dtype": form.dtype, "folder": str(folder)}
    if arguments.json:
        write_json(arguments.json, content)
    return 0 if all(row["ok"] for row in rows) else 1
