"""Both trainings from the same first weights on the same batches: what is left between them is the step, the average and the validation.

The original is PyPI ``yolov5==7.0.14`` in an interpreter of its own (``tests/goldens/make_goldens.py`` says how to make one):

    python benchmarks/same_batches_against_torch.py --torch-python PYTHON --weights yolov5n.pt --data bccd --data-root FOLDER

Our loader makes the batches of a whole run and writes them down (some 5 MB each). The original trains on them, having drawn a new Detect, and leaves the
weights that it began with; our training begins with those. The original gives up suppressing boxes after some seconds for a batch of validation, which
costs it recall early in training on a slow machine; ``--time-limit`` leaves it so, else its clock stands still there.
"""

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

COLUMNS = ("train/box_loss", "train/obj_loss", "train/cls_loss", "metrics/mAP_0.5", "metrics/mAP_0.5:0.95")


def torch_worker(folder: Path, time_limit: bool) -> None:
    """Train the original on the batches in a folder, and leave its first weights there; runs in its interpreter."""
    import torch
    import yolov5.train as original
    from yolov5.utils import general

    make_loader, make_average = original.create_dataloader, original.ModelEMA

    class SameBatches:
        """The original's loader, with the batches of the folder."""

        def __init__(self, loader: Any) -> None:
            self.loader, self.dataset, self.sampler, self.num_workers = loader, loader.dataset, None, 0
            self.files = iter(sorted(folder.glob("batch-*.npz")))

        def __len__(self) -> int:
            return len(self.loader)

        def __iter__(self) -> Any:
            for _ in range(len(self)):
                batch = np.load(next(self.files))
                yield torch.from_numpy(batch["images"]), torch.from_numpy(batch["labels"]), None, None

    def loader_of(*words: Any, **settings: Any) -> Any:
        loader, dataset = make_loader(*words, **settings)
        return (SameBatches(loader) if settings.get("augment") else loader), dataset

    def average_of(model: Any, *words: Any, **settings: Any) -> Any:
        torch.save({"model": model, "epoch": -1, "optimizer": None, "ema": None}, folder / "first.pt")
        return make_average(model, *words, **settings)

    original.create_dataloader, original.ModelEMA = loader_of, average_of
    if not time_limit:
        general.time = SimpleNamespace(time=lambda: 0.0)
    sys.argv = [sys.argv[0], *json.loads((folder / "original.json").read_text(encoding="utf-8"))]
    original.main(original.parse_opt())


def write_batches(settings: Any, folder: Path) -> None:
    """Write the batches of our run as the original takes them: ``(B, 3, S, S)`` uint8, and rows of image, class, x, y, width, height."""
    from yolojax.training.setup import prepare

    job, _ = prepare(settings)
    total = job.epochs * job.stream.batches_per_epoch
    for number, made in zip(range(total), job.stream.iterate(), strict=False):
        batch = made.batch
        image, place = np.nonzero(batch.mask)
        labels = np.concatenate([image[:, None], batch.boxes[image, place]], 1).astype(np.float32)
        np.savez(folder / f"batch-{number:06d}.npz", images=batch.images.transpose(0, 3, 1, 2), labels=labels)
    job.stream.close()


def read_results(run: Path) -> list[dict[str, float]]:
    """What a run of either side wrote down of its epochs."""
    with (run / "results.csv").open(encoding="utf-8", newline="") as file:
        return [{key.strip(): float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def compare(options: argparse.Namespace, folder: Path) -> None:
    """Train both and print their epochs side by side."""
    import dataclasses

    from yolojax.data.sources import load_data
    from yolojax.study.original import original_command, original_environment, write_inputs
    from yolojax.study.scenarios import Scenario
    from yolojax.training.settings import TrainSettings, train_command

    settings = TrainSettings(
        weights=options.weights,
        data=options.data,
        data_root=options.data_root,
        imgsz=options.size,
        batch_size=options.batch,
        epochs=options.epochs,
        freeze=(str(options.freeze),),
        frozen_bn="track",
        cache="ram",
        workers=1,
        seed=options.seed,
        noplots=True,
    ).with_defaults(load_data(options.data, options.data_root))
    scenario = Scenario(name="same", settings=settings, framework="torch", python=options.torch_python)
    inputs = folder / "inputs"
    write_inputs(scenario, inputs)
    write_batches(settings, folder)
    _, _, _, *flags = original_command(
        scenario, options.seed, folder / "theirs", inputs
    )  # PYTHON -m yolov5.train FLAGS
    (folder / "original.json").write_text(json.dumps(flags), encoding="utf-8")
    words = [options.torch_python, __file__, "--worker", str(folder), *(["--time-limit"] if options.time_limit else [])]
    with (folder / "theirs.txt").open("wb") as log:
        subprocess.run(words, check=True, stdout=log, stderr=log, env=original_environment(inputs), cwd=folder)
    own = dataclasses.replace(settings, weights=str(folder / "first.pt"))
    with (folder / "ours.txt").open("wb") as log:
        subprocess.run(train_command(own, folder / "ours"), check=True, stdout=log, stderr=log)
    print(f"| epoch | {' | '.join(f'{name}: ours, theirs' for name in COLUMNS)} |\n|-|{'-|' * len(COLUMNS)}")
    for epoch, (mine, other) in enumerate(
        zip(read_results(folder / "ours"), read_results(folder / "theirs"), strict=True), 1
    ):
        print(f"| {epoch} | {' | '.join(f'{mine[name]:.4f}, {other[name]:.4f}' for name in COLUMNS)} |")


def main() -> None:
    """Print a row per epoch."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--torch-python", help="interpreter that has yolov5==7.0.14 and torch")
    parser.add_argument("--weights", default="yolov5n.pt", help="a .pt of the original (default: %(default)s)")
    parser.add_argument("--data", default="bccd", help="data set (default: %(default)s)")
    parser.add_argument("--data-root", help="its folder")
    parser.add_argument("--size", type=int, default=320, help="side of the images in pixels (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=16, help="images per step (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=15, help="passes over the images (default: %(default)s)")
    parser.add_argument("--freeze", type=int, default=10, help="layers that are frozen (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of both sides (default: %(default)s)")
    parser.add_argument("--time-limit", action="store_true", help="let the original give up suppressing boxes")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        torch_worker(options.worker, options.time_limit)
        return
    if not options.torch_python:
        sys.exit("--torch-python is needed")
    with tempfile.TemporaryDirectory() as folder:
        compare(options, Path(folder))


if __name__ == "__main__":
    main()
