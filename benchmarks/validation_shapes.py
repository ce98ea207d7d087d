"""What fewer shapes of validation batches change in mAP, and how many programs they save.

    python benchmarks/validation_shapes.py --weights yolov5n.pt --data coco128 --data-root FOLDER --batch 16

On a CPU every batch has the smallest rectangle of whole strides that holds its images. An accelerator, which takes seconds to compile for a shape, gets
at most three shapes: some images have wider grey borders there. Where all images of a data set have one shape, nothing changes.
"""

import argparse
import dataclasses
import json
from pathlib import Path

from yolojax.inference.settings import ValSettings
from yolojax.inference.validation import prepare_validation
from yolojax.runtime import select_devices


def main() -> None:
    """Print a row for each number of shapes."""
    parser = argparse.ArgumentParser(description="Measure what fewer shapes of validation batches change.")
    parser.add_argument("--weights", required=True, help="as for yolojax val")
    parser.add_argument("--data", required=True, help="as for yolojax val")
    parser.add_argument("--data-root", help="folder of the data set, instead of the YAML's path")
    parser.add_argument("--size", type=int, help="side of the images in pixels; default: the data set's, else 640")
    parser.add_argument("--batch", type=int, default=32, help="images of a batch (default: %(default)s)")
    parser.add_argument("--most", type=int, nargs="+", default=[3], help="shapes at most (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    options = parser.parse_args()
    settings = ValSettings(
        weights=(options.weights,),
        data=options.data,
        data_root=options.data_root,
        imgsz=options.size,
        batch_size=options.batch,
    )
    validation = prepare_validation(settings, select_devices("cpu"))
    rows = []
    print("| shapes | mAP50 | mAP50-95 | pixels, of the smallest rectangles' |\n|-|-|-|-|")
    smallest = 0
    for most in (None, *options.most):
        measured = dataclasses.replace(validation, most_shapes=most)
        evaluation, shapes = measured.run(), measured.batches().shapes
        pixels = sum(height * width for height, width in shapes)
        smallest = smallest or pixels
        row = {
            "most": most,
            "shapes": evaluation.shapes,
            "map50": evaluation.map50,
            "map50_95": evaluation.map50_95,
            "pixels": pixels / smallest,
        }
        rows.append(row)
        print(f"| {row['shapes']} | {row['map50']:.4f} | {row['map50_95']:.4f} | {row['pixels']:.3f} |", flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
