"""Training images per second and core beside the original's loader, interleaved in one run on the same machine.

An image is what training sees: a mosaic, warped, recoloured and flipped (``scratch-low``), with its boxes, in a batch. The original is PyPI
``yolov5==7.0.14`` in an interpreter of its own (``tests/goldens/make_goldens.py`` says how to make one):

    python benchmarks/loader_against_torch.py --torch-python PYTHON --data coco128 --data-root FOLDER

Both sides read the same copy of the photos (the original writes into its data set), make batches without worker processes, and are timed by the
processor time of their whole process, so that helping threads count and other work on the machine does not.
"""

import argparse
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from turns import answer, report, spread, take_turns

SIZES = (320, 640)
SOURCES = ("ram", "jpeg")


def torch_worker(options: argparse.Namespace) -> None:
    """Make as many batches of the original as each line of the input says, and print their times; runs in its interpreter."""
    channel, sys.stdout = sys.stdout, sys.stderr
    import torch
    from yolov5.utils.dataloaders import create_dataloader

    torch.set_num_threads(1)
    hyp = json.loads(options.hyp)
    loader, _ = create_dataloader(
        str(options.images),
        options.size,
        options.batch,
        32,
        hyp=hyp,
        augment=True,
        cache="ram" if options.source == "ram" else False,
        workers=0,
        shuffle=True,
    )
    batches = itertools.chain.from_iterable(itertools.repeat(loader))
    answer(lambda: next(batches), channel, time.process_time)


def our_batches(options: argparse.Namespace, data: Path, source: str, size: int) -> Callable[[], object]:
    """Makes the next batch of this project in this thread."""
    import cv2

    from yolojax.data.batches import StreamSettings
    from yolojax.data.sources import load_data, open_split
    from yolojax.data.stream import training_stream
    from yolojax.hyperparameters import Hyperparameters

    samples = open_split(load_data(str(data)), "train").samples
    cache: Any = "ram" if source == "ram" else None
    settings = StreamSettings(image_size=size, batch_size=options.batch, epochs=1000, cache=cache)
    stream = training_stream(samples, Hyperparameters(), settings)
    cv2.setNumThreads(1)
    numbers = itertools.count()
    return lambda: stream.batches[next(numbers)]


def compare(options: argparse.Namespace, data: Path, source: str, size: int) -> dict[str, Any]:
    """Both sides in turns; images per second of processor time."""
    from dataclasses import asdict

    from yolojax.hyperparameters import Hyperparameters

    hyp = {key: value for key, value in asdict(Hyperparameters()).items() if value is not None}
    words = {
        "images": data.parent / "images" / "train",
        "source": source,
        "size": size,
        "batch": options.batch,
        "hyp": json.dumps(hyp),
    }
    other = [
        options.torch_python,
        __file__,
        "--worker",
        *itertools.chain(*((f"--{key}", str(value)) for key, value in words.items())),
    ]
    work = our_batches(options, data, source, size)
    ours, theirs, _ = take_turns(work, other, options.rounds, options.batches, clock=time.process_time)
    speeds = {"yolojax": spread(options.batch / ours), "original": spread(options.batch / theirs)}
    return {
        "source": source,
        "size": size,
        **speeds,
        "ratio": speeds["yolojax"]["median"] / speeds["original"]["median"],
    }


def main() -> None:
    """Print a row per source of images and size."""
    parser = argparse.ArgumentParser(description="Compare the training pipeline with the original's.")
    parser.add_argument("--torch-python", help="interpreter that has yolov5==7.0.14 and torch")
    parser.add_argument("--data", default="coco128", help="data set YAML or name (default: %(default)s)")
    parser.add_argument("--data-root", help="its folder")
    parser.add_argument("--size", type=int, help="only this side of the images in pixels (default: 320 and 640)")
    parser.add_argument("--source", choices=SOURCES, help="only images from a cache in memory, or from their files")
    parser.add_argument("--batch", type=int, default=16, help="images of a batch (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=10, help="turns of each side (default: %(default)s)")
    parser.add_argument("--batches", type=int, default=2, help="batches per turn (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--images", help=argparse.SUPPRESS)
    parser.add_argument("--hyp", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        torch_worker(options)
        return
    if not options.torch_python:
        parser.error("--torch-python is needed")
    from yolojax.data.convert import convert_data
    from yolojax.data.sources import load_data

    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("YOLOV5_CONFIG_DIR", folder)  # where the original keeps its settings
        data = convert_data(load_data(options.data, options.data_root), Path(folder) / "data", "yolo", ("train",)).file
        print("images per second and core: median (quartiles)\n", flush=True)
        report(
            ("source", "size"),
            (
                compare(options, data, source, size)
                for source, size in itertools.product(SOURCES, SIZES)
                if options.size in (None, size) and options.source in (None, source)
            ),
            options.json,
        )


if __name__ == "__main__":
    main()
