"""``yolojax detect``: what is in images and videos, with the flags of YOLOv5's detect.py."""

from __future__ import annotations

import argparse
from pathlib import Path

from yolojax.errors import UserError
from yolojax.flags import add_fields, add_foreign, note_foreign, read_fields
from yolojax.inference.settings import DetectSettings

# Flags of detect.py that mean nothing here: taken, with a note, so that a command line can be carried over as it is.
IGNORED = {
    "data": "class names come with the weights",
    "dnn": "there is no OpenCV DNN here",
    "update": "weights need no update",
}
REFUSED = {
    "visualize": "feature maps are not drawn",
    "save_format": "only YOLO's own format is written",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add YOLOv5's flags and ours."""
    add_fields(parser, DetectSettings)
    add_foreign(parser, IGNORED, REFUSED)


def run(arguments: argparse.Namespace) -> int:
    """Detect; 1 if something had to be left out."""
    note_foreign(arguments, IGNORED, REFUSED)
    settings = read_fields(arguments, DetectSettings)

    from yolojax.files import new_run_folder, write_json
    from yolojax.inference.detection import Totals, detect_all
    from yolojax.inference.detector import make_detector
    from yolojax.inference.sinks import Sink
    from yolojax.inference.sources import example_sources, find_sources
    from yolojax.inference.window import open_window

    sources, problems = find_sources(settings.source) if settings.source is not None else ([], [])
    detector = make_detector(settings)
    sources = sources if settings.source is not None else example_sources(detector.names)
    totals = Totals()
    for problem in problems:
        totals.problem(problem)
    folder: Path | None = None
    window = open_window() if settings.view_img else None
    if settings.view_img and window is None:
        print(
            "--view-img has no effect: there is no display here, or no toolkit (such as Tk) that opens a window on it"
        )

    def make_sink() -> Sink:
        nonlocal folder
        folder = new_run_folder(settings.project, settings.name, settings.exist_ok)
        return Sink(settings, sources, folder, window)

    detect_all(detector, sources, make_sink, totals, settings.vid_stride)
    if folder is None:
        raise UserError(f"--source {settings.source}: nothing in it could be read")
    speed = detector.stopwatch.per_image()
    print(
        f"per image: {speed['preprocess']:.1f} ms pre-process, {speed['inference']:.1f} ms inference, {speed['nms']:.1f} ms NMS"
    )
    if totals.problems:
        print(f"left out or incomplete: {len(totals.problems)} of {len(sources) + len(problems)}, see above")
    print(f"results in {folder}")
    if arguments.json:
        content = {
            "images": totals.images,
            "frames": totals.frames,
            "detections": sum(totals.counts.values()),
            "per_class": dict(totals.counts),
            "problems": totals.problems,
            "speed_ms": speed,
            "folder": str(folder),
        }
        write_json(arguments.json, content)
    if window is not None and totals.images:
        print("close the window to end")
        window.wait()
    return 1 if totals.problems else 0
