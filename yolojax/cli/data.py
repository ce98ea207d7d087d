"""``yolojax data check DATA``: look at a data set before training on it."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the action and the data set."""
    parser.add_argument("action", choices=["check"], help="check = decode every image and read every label")
    parser.add_argument("data", help="data set YAML or name, or tfds:NAME")
    parser.add_argument(
        "--data-root", "--data_root", metavar="DIR", help="folder of the data set, instead of the YAML's path"
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write everything that was found here")


def run(arguments: argparse.Namespace) -> int:
    """Print what is in the data set; 1 if something has to be left out or is in two splits."""
    from rich.progress import Progress

    from yolojax.data.check import check_data
    from yolojax.data.sources import load_data
    from yolojax.training.records import write_json

    config = load_data(arguments.data, arguments.data_root)
    with Progress(transient=True) as progress:
        tasks = {name: progress.add_task(name, total=None) for name in ("train", "val", "test")}
        check = check_data(config, lambda name, done, total: progress.update(tasks[name], completed=done, total=total))
    print("\n".join(check.lines()))
    print(
        "nothing is left out, and no image is in two splits"
        if check.clean
        else "see above for what is left out or doubled"
    )
    if arguments.json:
        write_json(arguments.json, check.figures())
    return 0 if check.clean else 1
