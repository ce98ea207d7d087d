"""Wall time of a whole validation beside the original's: two commands in turns, from their start to their end.

The original is PyPI ``yolov5==7.0.14`` in an interpreter of its own (``tests/goldens/make_goldens.py`` says how to make one):

    python benchmarks/val_against_torch.py --torch-python PYTHON --weights yolov5n.pt \\
        --data coco128 --data-root FOLDER

Both read the same copy of the photos (the original writes into its data set), in rectangular batches, and draw nothing. A first run of each is not counted:
it fills the compile cache of one and the label cache of the other. The original drops what its suppression does not reach in time, and says so; such runs are
counted in the last column.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from turns import cell, spread

LATE = "NMS time limit"
ORIGINAL = """
import json, sys
from yolov5.val import run
weights, data, size, batch, device = sys.argv[1:]
figures = run(data=data, weights=weights, imgsz=int(size), batch_size=int(batch), device=device, plots=False, project="runs")[0]
print(json.dumps({"map50": float(figures[2]), "map50_95": float(figures[3])}))
"""


def main() -> None:
    """Print a row per side."""
    parser = argparse.ArgumentParser(description="Time a whole validation beside the original's.")
    parser.add_argument("--torch-python", required=True, help="interpreter that has yolov5==7.0.14 and torch")
    parser.add_argument("--weights", type=Path, required=True, help="a .pt that both read")
    parser.add_argument("--data", required=True, help="data set with its images in files; its val split is used")
    parser.add_argument("--data-root", help="folder of the data set, instead of the YAML's path")
    parser.add_argument("--images", type=int, help="only so many of them")
    parser.add_argument("--size", type=int, default=640, help="side of the images in pixels (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=32, help="images of a batch (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each side (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="val-against-torch-") as name:
        folder = Path(name)
        data = copy_data(options.data, options.data_root, options.images, folder)
        weights, size, batch = str(options.weights.resolve()), str(options.size), str(options.batch)
        ours = [
            sys.executable,
            "-m",
            "yolojax",
            "val",
            "--weights",
            weights,
            "--data",
            str(data),
            "--img",
            size,
        ]
        ours += ["--batch", batch, "--device", "cpu", "--noplots", "--json", "figures.json"]
        theirs = [options.torch_python, "-c", ORIGINAL, weights, str(data), size, batch, "cpu"]
        seconds: dict[str, list[float]] = {"yolojax": [], "original": []}
        late = dict.fromkeys(seconds, 0)
        figures = {}
        for turn in range(1 + options.rounds):
            for side, command in (("yolojax", ours), ("original", theirs)):
                taken, output = timed_run(command, folder)
                text = (folder / "figures.json").read_text() if side == "yolojax" else output.splitlines()[-1]
                figures[side] = json.loads(text)
                if turn:
                    seconds[side].append(taken)
                    late[side] += LATE in output
    rows = {
        side: spread(np.array(seconds[side]))
        | {"map50": figures[side]["map50"], "map50_95": figures[side]["map50_95"], "late_runs": late[side]}
        for side in seconds
    }
    print("| | seconds (quartiles) | mAP50 | mAP50-95 | runs with images dropped |\n|-|-|-|-|-|")
    for side, row in rows.items():
        print(f"| {side} | {cell(row, '.1f')} | {row['map50']:.4f} | {row['map50_95']:.4f} | {row['late_runs']} |")
    print(f"ratio of the medians: {rows['yolojax']['median'] / rows['original']['median']:.2f}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


def copy_data(data: str, root: str | None, images: int | None, folder: Path) -> Path:
    """The val split in YOLO layout, as both sides read it; a data YAML with an absolute path, which the original needs."""
    from yolojax.data.config import load_data_config
    from yolojax.data.sources import open_split

    config = load_data_config(data, root)
    for part in ("images", "labels"):
        (folder / part).mkdir()
    for sample in open_split(config, "val").samples[:images]:
        photo = Path(sample.name)
        (folder / "images" / photo.name).write_bytes(photo.read_bytes())
        lines = [f"{int(label)} {x:.8g} {y:.8g} {w:.8g} {h:.8g}\n" for label, x, y, w, h in sample.boxes]
        (folder / "labels" / f"{photo.stem}.txt").write_text("".join(lines))
    file = folder / "data.yaml"
    file.write_text(f"path: {folder}\ntrain: images\nval: images\nnames: {json.dumps(config.names)}\n")
    return file


def timed_run(command: Sequence[str], folder: Path) -> tuple[float, str]:
    """Seconds that a command takes, and what it prints; an exception where it fails."""
    environment = os.environ | {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1", "JAX_PLATFORMS": "cpu"}
    start = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    taken = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"{' '.join(command[:4])} … failed:\n{done.stderr}")
    return taken, done.stderr + done.stdout


if __name__ == "__main__":
    main()
