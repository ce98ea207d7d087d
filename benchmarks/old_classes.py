"""What becomes of old classes when a network learns new ones: without anything, with replay, with distillation, with both.

    python -m benchmarks.old_classes --out old_classes

The embedded weights know eight shapes; they are trained on images of eight others and measured on both.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from benchmarks.joined import call
from yolojax.data.convert import convert_data
from yolojax.data.sources import load_data

WEIGHTS = "yolov5n-shapes"
WAYS: dict[str, tuple[str, ...]] = {
    "nothing": (),
    "--replay": ("--replay", "{old}"),
    "--distil": ("--distil", WEIGHTS),
    "both": ("--replay", "{old}", "--distil", WEIGHTS),
}
IMAGES = {"train": 300, "val": 100}  # of each data set


def write_data(folder: Path) -> tuple[Path, Path]:
    """The folders of both data sets, with ``data.yaml`` of their own classes and ``all.yaml`` of all: in the VOC layout labels hold names, not numbers."""
    configs = [load_data(name) for name in ("shapes-pretraining", "shapes")]
    for config in configs:
        place = folder / config.options["variant"]
        if not place.exists():
            drawn = replace(config, options={**config.options, **IMAGES})
            convert_data(drawn, place, "voc", ("train", "val"))
        content = yaml.safe_load((place / "data.yaml").read_text(encoding="utf-8"))
        content["names"] = [name for each in configs for name in each.names]
        (place / "all.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return folder / configs[0].options["variant"], folder / configs[1].options["variant"]


def measured(weights: object, data: object, folder: Path, size: int) -> dict[str, Any]:
    """The figures of ``yolojax val``."""
    words = ("--img", size, "--noplots", "--project", folder / "val", "--json", folder / "val.json")
    call("val", "--weights", weights, "--data", data, *words)
    figures: dict[str, Any] = json.loads((folder / "val.json").read_text(encoding="utf-8"))
    return figures


def main() -> None:
    """Train, measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, help="folder; finished runs in it are not trained again")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--img", type=int, default=128)
    parser.add_argument("--freeze", default="10")
    options = parser.parse_args()
    old, new = write_data(options.out)
    flags = ["--data", new / "all.yaml", "--init-head", "names", "--freeze", options.freeze, "--noplots"]
    flags += ["--epochs", options.epochs, "--img", options.img, "--project", options.out / "runs"]
    before = measured(WEIGHTS, old / "data.yaml", options.out, options.img)
    rows = [f"| before | {before['map50']:.3f} | {before['map50_95']:.3f} | | |"]
    for name, words in WAYS.items():
        run = options.out / "runs" / name.strip("-")
        if not (run / "results.json").is_file():
            own = [word.format(old=old / "data.yaml") for word in words]
            call("train", *flags, "--name", run.name, "--exist-ok", *own)
        figures = [
            measured(run / "weights" / "last", data / "all.yaml", options.out, options.img) for data in (old, new)
        ]
        cells = (f"{value[key]:.3f}" for value in figures for key in ("map50", "map50_95"))
        rows.append(f"| {name} | {' | '.join(cells)} |")
    print("| | old: mAP50 | mAP50-95 | new: mAP50 | mAP50-95 |\n|-|-|-|-|-|", *rows, sep="\n")


if __name__ == "__main__":
    main()
