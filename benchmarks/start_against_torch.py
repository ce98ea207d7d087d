"""How soon commands give their first result: seconds from their start, with an empty cache folder (cold) and once more (warm).

The original is PyPI ``yolov5==7.0.14`` in an interpreter of its own (``tests/goldens/make_goldens.py`` says how to make one):

    python benchmarks/start_against_torch.py --torch-python PYTHON --weights yolov5n.pt --data bccd --data-root FOLDER --photos FOLDER

``train`` is timed until the first step is done, ``detect`` to its end: on the first photo of a folder, and on all of them. Ours and the original's take turns.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
from train_against_torch import timed_run
from turns import cell, spread

# Runs ``yolojax train`` and ends it when the first step is done. The process is prepared first, as the command does before it imports JAX: that starts it anew.
FIRST_STEP = """
import os, sys
from yolojax.runtime import prepare_process
prepare_process()
import jax
from yolojax.training import step
run = step.Dispatch.__call__
def first(*arguments, **more):
    jax.block_until_ready(run(*arguments, **more))
    os._exit(0)
step.Dispatch.__call__ = first
from yolojax.cli.main import main
sys.exit(main() or "no step was made")
"""


def main() -> None:
    """Print a row per command."""
    parser = argparse.ArgumentParser(description="Time how soon commands give their first result.")
    parser.add_argument("--torch-python", required=True, help="interpreter that has yolov5==7.0.14 and torch")
    parser.add_argument("--weights", type=Path, required=True, help="a .pt that both read")
    parser.add_argument("--data", default="bccd", help="data set of the trainings (default: %(default)s)")
    parser.add_argument("--data-root", help="folder of the data set, instead of the YAML's path")
    parser.add_argument("--photos", type=Path, required=True, help="folder of photos to detect on")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each kind (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    options = parser.parse_args()
    seconds: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory(prefix="start-against-torch-") as name:
        folder, log = Path(name), Path(name, "log.txt")
        environment = os.environ | {
            "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1",
            "JAX_PLATFORMS": "cpu",
            "YOLOJAX_CACHE": str(folder / "cache"),
        }
        for _ in range(options.rounds):
            for case, (ours, theirs) in commands(options, folder).items():
                shutil.rmtree(folder / "cache", ignore_errors=True)
                row = seconds.setdefault(case, {"cold": [], "warm": [], "original": []})
                row["cold"].append(timed_run(ours, environment, log))
                row["warm"].append(timed_run(ours, environment, log))
                if theirs:
                    row["original"].append(timed_run(theirs, environment, log))
                print(case, {side: round(values[-1], 1) for side, values in row.items() if values}, flush=True)
    rows = {
        case: {side: spread(np.array(values)) for side, values in sides.items() if values}
        for case, sides in seconds.items()
    }
    print("\n| | cold, s | warm, s | original, s |\n|-|-|-|-|")
    for case, sides in rows.items():
        print(
            f"| {' | '.join([case, *(cell(sides[side], '.1f') if side in sides else '' for side in ('cold', 'warm', 'original'))])} |"
        )
    if options.json:
        options.json.write_text(json.dumps({"seconds": seconds, "rows": rows}, indent=2) + "\n", encoding="utf-8")


def commands(options: argparse.Namespace, folder: Path) -> dict[str, tuple[list[str], list[str]]]:
    """What is timed: a command of ours and one of the original's (empty where there is none) for each row."""
    weights = str(options.weights.resolve())
    project = ["--project", str(folder / "runs"), "--device", "cpu"]
    train = [sys.executable, "-c", FIRST_STEP, "train", "--weights", weights, "--data", options.data, "--img", "320"]
    train += ["--batch", "16", "--epochs", "1", "--workers", "1", "--cache", "ram", "--noplots", *project]
    if options.data_root:
        train += ["--data-root", str(Path(options.data_root).resolve())]
    photos = options.photos.resolve()
    first = min(file for file in photos.iterdir() if file.suffix.lower() in (".jpg", ".jpeg", ".png"))

    def detect(source: Path) -> tuple[list[str], list[str]]:
        ours = [sys.executable, "-m", "yolojax", "detect", "--weights", weights, "--source", str(source), *project]
        theirs = [options.torch_python, "-m", "yolov5.detect", "--weights", weights, "--source", str(source), *project]
        return [*ours, "--img", "640"], [*theirs, "--imgsz", "640"]

    return {
        "train --freeze 0, first step": ([*train, "--freeze", "0"], []),
        "train --freeze 10, first step": ([*train, "--freeze", "10"], []),
        "detect, one photo": detect(first),
        f"detect, {len(list(photos.iterdir()))} photos": detect(photos),
    }


if __name__ == "__main__":
    main()
