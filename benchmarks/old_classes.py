"""What becomes of old classes when a network learns new ones: without anything, with replay, with distillation, with both.

    python -m benchmarks.old_classes --out old_classes

The embedded weights know eight shapes; they are trained on images of eight others and measured on both.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import yaml

from benchmarks.joined import call
from yolojax.data.sources import load_data

OLD, NEW, WEIGHTS = "shapes-pretraining", "shapes", "yolov5n-shapes"
WAYS: dict[str, tuple[str, ...]] = {
    "nothing": (),
    "--replay": ("--replay", OLD),
    "--distil": ("--distil", WEIGHTS),
    "both": ("--replay", OLD, "--distil", WEIGHTS),
}


def write_data(folder: Path) -> tuple[Path, Path]:
    """Both data sets under the names of all classes; in the VOC layout labels hold names, and so need no other numbers."""
    names = [*load_data(OLD).names, *load_data(NEW).names]
    files = []
    for data, splits in ((OLD, ("val",)), (NEW, ("train", "val"))):
        place = folder / data
        if not place.exists():
            call("data", "convert", data, place, "--format", "voc", "--split", *splits)
        files.append(place / "data.yaml")
        content = yaml.safe_load(files[-1].read_text(encoding="utf-8"))
        files[-1].write_text(yaml.safe_dump({**content, "names": names}, sort_keys=False), encoding="utf-8")
    return files[0], files[1]


def measured(weights: object, data: object, folder: Path, size: int) -> dict[str, Any]:
    """The figures of ``yolojax val``."""
    words = ("--img", size, "--noplots", "--project", folder / "val", "--json", folder / "val.json")
    call("val", "--weights", weights, "--data", data, *words)
    figures: dict[str, Any] = json.loads((folder / "val.json").read_text(encoding="utf-8"))
    return figures


def main() -> None:
    """Train, measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="folder of data sets and runs; finished runs in it are not trained again",
    )
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--img", type=int, default=128)
    parser.add_argument("--freeze", default="10")
    options = parser.parse_args()
    old, new = write_data(options.out)
    before = measured(WEIGHTS, OLD, options.out, options.img)
    rows = [f"| before | {before['map50']:.3f} | {before['map50_95']:.3f} | | |"]
    for name, words in WAYS.items():
        run = options.out / "runs" / name.strip("-")
        if not (run / "results.json").is_file():
            flags = ("--epochs", options.epochs, "--img", options.img, "--freeze", options.freeze, "--noplots")
            places = ("--project", run.parent, "--name", run.name, "--exist-ok")
            call("train", "--data", new, "--init-head", "names", *flags, *places, *words)
        figures = [measured(run / "weights" / "last", data, options.out, options.img) for data in (old, new)]
        cells = (f"{value[key]:.3f}" for value in figures for key in ("map50", "map50_95"))
        rows.append(f"| {name} | {' | '.join(cells)} |")
    print("| | old: mAP50 | mAP50-95 | new: mAP50 | mAP50-95 |\n|-|-|-|-|-|", *rows, sep="\n")


if __name__ == "__main__":
    main()
