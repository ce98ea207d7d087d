"""Proof on photos that a joined network sees what each of its networks saw: old classes to the last digit, new ones too, and one ONNX file with the same boxes.

    python train.py --weights yolov5n.pt --data mine.yaml --freeze 10 --img 320
    python -m benchmarks.joined --old yolov5n.pt --new runs/train/exp --old-data coco128 --new-data mine.yaml --new-size 320

It joins, validates every network on the photos of its classes before and after, runs the ONNX file in ONNX Runtime, and calls the other commands that take
such a network. The exit status is 1 where a digit or a box is another one.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from yolojax.cli.main import main as yolojax
from yolojax.data.sources import load_data, open_split
from yolojax.evaluation.nms import NmsSettings, suppress
from yolojax.inference.detector import fit
from yolojax.inference.export import read_onnx
from yolojax.inference.predictor import make_predict, suppressed_parts
from yolojax.weights.store import read_weights

MOST_PIXELS, MOST_SCORE = 0.1, 1e-3  # between a network and its ONNX file, as 'yolojax export' has it


def call(*words: object) -> None:
    """A command of yolojax, which must succeed."""
    if status := yolojax([str(word) for word in words]):
        raise SystemExit(f"yolojax {' '.join(map(str, words))}: exit status {status}")


def validated(weights: object, data: Sequence[object], size: int, folder: Path) -> dict[str, Any]:
    """The figures of ``yolojax val``."""
    file = folder / "val.json"
    words = ["--weights", weights, *data, "--img", size, "--noplots", "--device", "cpu", "--project", folder / "val"]
    call("val", *words, "--json", file)
    figures: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return figures


def compared(name: str, before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """A row of the table: how many classes keep every digit, and what they reach."""
    same = sum(own == other for own, other in zip(before["per_class"], after["per_class"], strict=True))
    row = {"classes": name, "with_boxes": len(before["per_class"]), "same_digits": same}
    return row | {key: (before[key], after[key]) for key in ("map50", "map50_95")}


def boxes_of_onnx(joined: Path, file: Path, data: Sequence[tuple[str, str | None]], size: int) -> dict[str, Any]:
    """Boxes that ONNX Runtime finds with the file, beside those of the network, over the validation images of all data sets.

    Each branch is suppressed by itself in the network; the file's predictions also by one NMS over all, as a program for YOLOv5's files does.
    """
    weights = read_weights(joined)
    settings = {"confidence": 0.25, "iou": 0.45, "max_detections": 1000, "multi_label": False}
    apart = NmsSettings(**settings, parts=suppressed_parts([weights], False))
    predict, run = make_predict([weights]), read_onnx(file)
    figures = {"images": 0, "boxes": 0, "other": 0, "other_by_one_nms": 0, "pixels": 0.0, "scores": 0.0}
    for name, root in data:
        for sample in open_split(load_data(name, root), "val").samples:
            image = fit(sample.load(), (size, size), size)[0][None]
            expected = suppress(np.asarray(predict(image)[0])[0], apart)
            predictions = run(image)[0][0]
            figures["images"] += 1
            figures["boxes"] += len(expected)
            for key, nms in (("other", apart), ("other_by_one_nms", NmsSettings(**settings))):
                detections = suppress(predictions, nms)
                pixels, score = _differences(detections, expected)
                figures[key] += not (pixels <= MOST_PIXELS and score <= MOST_SCORE)
                if key == "other":
                    figures |= {"pixels": max(pixels, figures["pixels"]), "scores": max(score, figures["scores"])}
    return figures


def _differences(detections: np.ndarray, expected: np.ndarray) -> tuple[float, float]:
    """The largest of any coordinate (pixels) and score, boxes in the order of class and place; infinite where other classes are found."""
    detections, expected = (
        rows[np.lexsort((rows[:, 1].round(), rows[:, 0].round(), rows[:, 5]))] for rows in (detections, expected)
    )
    if detections.shape != expected.shape or not np.array_equal(detections[:, 5], expected[:, 5]):
        return np.inf, np.inf
    difference = np.abs(detections - expected)
    return float(difference[:, :4].max(initial=0)), float(difference[:, 4].max(initial=0))


def other_commands(joined: Path, data: Sequence[object], size: int, trunk: int, folder: Path) -> dict[str, Any]:
    """``detect``, ``bench``, ``freeze``, ``plan`` and ``export`` on it; what the second branch costs."""
    weights = ["--weights", joined, "--device", "cpu"]
    call("detect", *weights, "--source", Path(__file__).parents[1] / "docs" / "images", "--project", folder / "detect")
    call("bench", *weights, *data, "--img", size, "--include", "float32", "onnx", "--json", folder / "bench.json")
    call("freeze", "--weights", joined, "--freeze", trunk, "--json", folder / "freeze.json")
    words = ["--target", "cpu", "--img", size, "--batch", 16, "--quick", "--freeze", trunk]
    call("plan", "--weights", joined, *words, "--json", folder / "plan.json")
    words = ["--img", size, "--include", "stablehlo", "--nms", "--project", folder / "export"]
    call("export", *weights, *words, "--json", folder / "export.json")
    ways = json.loads((folder / "bench.json").read_text(encoding="utf-8"))["ways"]
    frozen = json.loads((folder / "freeze.json").read_text(encoding="utf-8"))
    return {"ways": ways, "parameters": frozen["parameters"], "trainable": frozen["trainable"]}


def main() -> int:
    """Print a table; 1 where something is not the same."""
    parser = argparse.ArgumentParser(description="Prove a joined network on photos.")
    parser.add_argument("--old", required=True, help="weights of the old classes")
    parser.add_argument("--new", required=True, nargs="+", help="runs that began from them, with frozen layers")
    parser.add_argument("--old-data", required=True, help="data set of the old classes")
    parser.add_argument("--old-root", help="its folder, instead of the YAML's path")
    parser.add_argument("--new-data", required=True, help="data set of the new classes")
    parser.add_argument("--new-root", help="its folder, instead of the YAML's path")
    parser.add_argument("--old-size", type=int, default=640, help="side of the images in pixels (default: %(default)s)")
    parser.add_argument("--new-size", type=int, default=640, help="side of the images in pixels (default: %(default)s)")
    parser.add_argument("--keep", type=Path, help="folder to leave the joined networks in")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    options = parser.parse_args()
    old_data = ["--data", options.old_data, *(["--data-root", options.old_root] if options.old_root else [])]
    new_data = ["--data", options.new_data, *(["--data-root", options.new_root] if options.new_root else [])]
    proofs = []
    with tempfile.TemporaryDirectory(prefix="joined-") as name:
        folder = Path(name)
        old = validated(options.old, old_data, options.old_size, folder)
        for number, new in enumerate(options.new):
            own = folder / str(number)
            joined = (options.keep or own) / f"joined-{number}"
            call("join", options.old, new, "--output", joined, "--json", folder / "join.json")
            trunk = json.loads((folder / "join.json").read_text(encoding="utf-8"))["trunk_layers"]
            rows = [
                compared("old", old, validated(joined, old_data, options.old_size, own)),
                compared(
                    "new",
                    validated(new, new_data, options.new_size, own),
                    validated(joined, new_data, options.new_size, own),
                ),
            ]
            words = ["--weights", joined, "--device", "cpu", "--img", options.old_size, "--include", "onnx"]
            call("export", *words, "--project", own / "onnx", "--name", "exp")
            (file,) = (own / "onnx").glob("*/*.onnx")
            sets = [(options.old_data, options.old_root), (options.new_data, options.new_root)]
            onnx = boxes_of_onnx(joined, file, sets, options.old_size)
            proof = {"network": str(new), "trunk_layers": trunk, "rows": rows, "onnx": onnx}
            proofs.append(proof | other_commands(joined, old_data, options.old_size, trunk, own))
    print(
        "| new network | trunk | classes | with boxes | every digit the same | mAP50 before, after | mAP50-95 before, after |"
    )
    print("|-|-|-|-|-|-|-|")
    for proof in proofs:
        for row in proof["rows"]:
            scores = " | ".join(f"{row[key][0]:.6f}, {row[key][1]:.6f}" for key in ("map50", "map50_95"))
            counts = f"{row['with_boxes']} | {row['same_digits']}"
            print(
                f"| {Path(proof['network']).name} | {proof['trunk_layers']} | {row['classes']} | {counts} | {scores} |"
            )
    for proof in proofs:
        onnx = proof["onnx"]
        print(
            f"{Path(proof['network']).name}: ONNX Runtime, {onnx['images']} images, {onnx['boxes']} boxes: other ones in {onnx['other']} images "
            f"(by one NMS over all branches in {onnx['other_by_one_nms']}), at most {onnx['pixels']:.2g} px and {onnx['scores']:.2g} of score off"
        )
    if options.json:
        options.json.write_text(json.dumps(proofs, indent=2) + "\n", encoding="utf-8")
    same = all(row["same_digits"] == row["with_boxes"] for proof in proofs for row in proof["rows"])
    return 0 if same and not any(proof["onnx"]["other"] for proof in proofs) else 1


if __name__ == "__main__":
    sys.exit(main())
