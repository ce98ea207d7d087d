"""``yolojax data ACTION DATA``: fetch a data set, look at it before training on it, or bring it into another layout."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from yolojax.errors import UserError
from yolojax.files import write_json
from yolojax.flags import add_shared

if TYPE_CHECKING:
    from rich.progress import TaskID

    from yolojax.data.check import DataCheck

_SPLITS = ("train", "val", "test")
_PLOT_SUFFIXES = (".png", ".svg", ".pdf")
_DISTRIBUTIONS = {
    "image_side_px": "image side, px",
    "box_side_px": "box side, px",
    "boxes_per_image": "boxes per image",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the actions and what each of them takes."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    def add(name: str, summary: str) -> argparse.ArgumentParser:
        child = actions.add_parser(name, help=summary, description=summary, formatter_class=parser.formatter_class)
        child.add_argument("data", metavar="DATA", help="data set YAML or name, or tfds:NAME")
        child.add_argument("--data-root", metavar="DIR", help="folder of the data set, instead of the YAML's path")
        add_shared(child, argparse.SUPPRESS)
        return child

    check = add("check", "decode every image and read every label; 1 if something has to be left out")
    check.add_argument(
        "--plot", metavar="FILE", type=Path, help="figure of classes and sizes to draw (.png, .svg or .pdf)"
    )

    convert = add("convert", "write the data set in another layout, with a data YAML to train with")
    convert.add_argument("out", metavar="OUT", type=Path, help="folder to write, which must not exist or be empty")
    convert.add_argument("--format", required=True, choices=["yolo", "voc", "coco"], help="layout to write")
    convert.add_argument("--split", nargs="+", choices=_SPLITS, default=[], help="splits to write; default: all")

    download = add("download", "fetch a data set that its YAML has addresses for, or official weights (yolov5n.pt)")
    download.add_argument("--out", type=Path, metavar="DIR", help="folder for weights; default: this one")

    show = add("show", "draw images with their boxes, as they are (left) and as training sees them (right)")
    show.add_argument("--split", choices=_SPLITS, default="train", help="split to draw from")
    show.add_argument("--count", type=int, default=16, metavar="N", help="number of images")
    show.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of the choice of images and of augmentation"
    )
    show.add_argument(
        "--imgsz",
        "--img",
        "--img-size",
        type=int,
        metavar="PIXELS",
        help="image side in pixels; default: the data set's, else 640",
    )
    show.add_argument(
        "--hyp",
        metavar="HYP",
        help="hyperparameter YAML or name, for augmentation; default: the data set's, else scratch-low",
    )
    show.add_argument("--out", type=Path, metavar="FILE", help="JPEG file to write; default: show-DATA-SPLIT.jpg")


def run(arguments: argparse.Namespace) -> int:
    """Run the action; 1 if a check found something."""
    actions: dict[str, Callable[[argparse.Namespace], int]] = {
        "check": _check,
        "convert": _convert,
        "download": _download,
        "show": _show,
    }
    return actions[arguments.action](arguments)


def _check(arguments: argparse.Namespace) -> int:
    """Print what is in the data set; 1 if something has to be left out or is in two splits."""
    from rich.progress import Progress

    from yolojax.data.check import check_data
    from yolojax.data.sources import load_data

    if arguments.plot and arguments.plot.suffix.lower() not in _PLOT_SUFFIXES:
        raise UserError(f"--plot {arguments.plot}: give it one of the endings {', '.join(_PLOT_SUFFIXES)}")
    config = load_data(arguments.data, arguments.data_root)
    with Progress(transient=True) as progress:
        tasks = {name: progress.add_task(name, total=None) for name in _SPLITS}
        check = check_data(
            config,
            progress=lambda name, done, total: progress.update(tasks[name], completed=done, total=total),
        )
    _print_tables(check)
    print("\n".join(check.lines()))
    print(
        "nothing is left out, and no image is in two splits"
        if check.clean
        else "see above for what is left out or doubled"
    )
    if arguments.json:
        write_json(arguments.json, check.figures())
    if arguments.plot:
        from yolojax.data.plots import plot_check

        arguments.plot.parent.mkdir(parents=True, exist_ok=True)
        plot_check(check, arguments.plot)
    return 0 if check.clean else 1


def _print_tables(check: DataCheck) -> None:
    """Boxes per class and how sizes are distributed, a column for each split."""
    import numpy as np
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from yolojax.data.check import QUANTILES

    splits = list(check.splits.values())
    classes = Table("class", box=SIMPLE_HEAD)
    sizes = Table("", "split", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    sizes.columns[0].no_wrap = True
    for name in check.splits:
        classes.add_column(name, justify="right")
    counts = np.array([split.classes(len(check.names)) for split in splits])
    for name, row in zip(check.names, counts.T, strict=True):
        classes.add_row(name, *(f"{count:,}" if count else "-" for count in row))
    for share in QUANTILES:
        sizes.add_column(f"{share:.0%}", justify="right")
    for key, title in _DISTRIBUTIONS.items():
        for name, split in check.splits.items():
            sizes.add_row(title if split is splits[0] else "", name, *map(_figure, split.distributions[key]))
    console = Console(highlight=False, markup=False)
    console.print(classes)
    console.print(sizes)


def _figure(value: float) -> str:
    """Three digits of a small number, all of those before the point of a large one."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _convert(arguments: argparse.Namespace) -> int:
    """Write the data set in another layout and print what changed."""
    from rich.progress import Progress

    from yolojax.data.convert import convert_data
    from yolojax.data.sources import load_data

    config = load_data(arguments.data, arguments.data_root)
    with Progress(transient=True) as progress:
        tasks = {name: progress.add_task(name, total=None) for name in _SPLITS}
        result = convert_data(
            config,
            arguments.out,
            arguments.format,
            arguments.split,
            lambda name, done, total: progress.update(tasks[name], completed=done, total=total),
        )
    for split, images in result.images.items():
        print(f"{split}: {images} images, {result.boxes[split]} boxes written")
    for change, count in (+result.changes).items():
        print(f"  {count} {change}")
    for needed in ("train", "val"):
        if needed not in (arguments.split or (needed,)):
            print(f"  '{needed}' was not asked for: in {result.file.name} it is the same as '{arguments.split[0]}'")
    print(f"train with --data {result.file}")
    if arguments.json:
        write_json(arguments.json, {**dataclasses.asdict(result), "changes": dict(+result.changes)})
    return 0


def _download(arguments: argparse.Namespace) -> int:
    """Fetch a data set or weights."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    from yolojax.data.download import download_data, download_weights, weights_download
    from yolojax.data.sources import load_data

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, transient=True) as bar:
        tasks: dict[str, TaskID] = {}

        def progress(name: str, done: int, total: int | None) -> None:
            if name not in tasks:
                tasks[name] = bar.add_task(name, total=total)
            bar.update(tasks[name], completed=done, total=total)

        if weights_download(arguments.data):
            where = download_weights(arguments.data, arguments.out or Path(), progress)
        else:
            where = download_data(load_data(arguments.data, arguments.data_root), progress)
    print(f"{where}: complete")
    if arguments.json:
        write_json(arguments.json, {"path": str(where)})
    return 0


def _show(arguments: argparse.Namespace) -> int:
    """Draw the contact sheet."""
    from yolojax.data.plots import draw_examples
    from yolojax.data.sources import load_data, open_split
    from yolojax.hyperparameters import load_hyperparameters

    config = load_data(arguments.data, arguments.data_root)
    size = arguments.imgsz or config.defaults.get("img", 640)
    if arguments.count < 1 or not 32 <= size <= 4096:
        raise UserError(f"--count {arguments.count} --img {size}: at least one image, of 32 to 4096 pixels")
    if arguments.seed < 0:
        raise UserError(f"--seed {arguments.seed}: is negative")
    out = arguments.out or Path(
        f"show-{Path(arguments.data.split('[')[0]).stem.replace(':', '-')}-{arguments.split}.jpg"
    )
    if out.suffix.lower() not in (".jpg", ".jpeg"):
        raise UserError(f"--out {out}: is a JPEG file; give it the ending .jpg")
    settings = load_hyperparameters(arguments.hyp or config.defaults.get("hyp", "scratch-low"))
    samples = open_split(config, arguments.split).samples
    count = min(arguments.count, len(samples))
    draw_examples(samples, config.names, settings, out, size=size, count=count, seed=arguments.seed)
    print(f"{out}: {count} of {len(samples)} images; left as they are, right as training sees them")
    if arguments.json:
        write_json(arguments.json, {"path": str(out), "images": count, "image_size": size})
    return 0
