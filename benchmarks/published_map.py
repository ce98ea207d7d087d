"""``yolojax val`` of an official checkpoint on COCO, with the published mAP next to it.

    python benchmarks/published_map.py --weights yolov5m.pt --data-root FOLDER        # FOLDER holds COCO's val2017 and its annotations
    python benchmarks/published_map.py --weights yolov5n.pt --data coco128 --data-root FOLDER      # a rehearsal: other images, another figure

The published figures are those of the table of YOLOv5 v7.0 (640 px, one model, one scale, confidence .001, NMS IoU .65, by COCO's own code on val2017), so
ours is COCO's too where the extra ``coco`` is installed; all other flags go to ``yolojax val``.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# mAP50-95 in per cent. Source: README of YOLOv5 v7.0, "Pretrained Checkpoints".
PUBLISHED = {"yolov5n": 28.0, "yolov5s": 37.4, "yolov5m": 45.4, "yolov5l": 49.0, "yolov5x": 50.7}
IMAGES = 5000  # of val2017


def sentence(model: str, figures: Mapping[str, Any]) -> str:
    """Ours beside the published figure, and whether they may be compared.

    Args:
      model: of ``PUBLISHED``.
      figures: as ``yolojax val --save-json --json`` writes them.
    """
    by = figures.get("official_tool", "the rules of COCO")
    ours = 100 * figures.get("official_map50_95", figures["coco_map50_95"])
    published = PUBLISHED[model]
    words = f"{model}: mAP50-95 {ours:.1f} by {by}, published {published:.1f}"
    if figures["images"] != IMAGES:
        return f"{words}; not to be compared: {figures['images']} images, not the {IMAGES} of COCO's val2017"
    return f"{words}, difference {ours - published:+.1f}"


def main() -> None:
    """Validate, and print one line more."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--weights", type=Path, required=True, help="official .pt of YOLOv5 v7.0, or what was converted from it"
    )
    parser.add_argument("--model", choices=PUBLISHED, help="which one it is (default: by the name of the file)")
    parser.add_argument("--data", default="coco", help="data set (default: %(default)s)")
    options, others = parser.parse_known_args()
    model = options.model or options.weights.stem
    if model not in PUBLISHED:
        parser.error(f"--weights {options.weights}: say with --model which of {', '.join(PUBLISHED)} it is")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "figures.json"
        command = [sys.executable, "-m", "yolojax", "val", "--weights", str(options.weights), "--data", options.data]
        command += ["--img", "640", "--conf-thres", "0.001", "--iou-thres", "0.65", "--save-json", "--json", str(file)]
        status = subprocess.run([*command, *others]).returncode
        if status:
            sys.exit(status)
        print(sentence(model, json.loads(file.read_text())))


if __name__ == "__main__":
    main()
