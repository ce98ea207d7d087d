"""``yolojax train``: YOLOv5's train.py, with functional freezing."""

from __future__ import annotations

import argparse
import logging

from yolojax.errors import UserError
from yolojax.flags import add_fields, add_foreign, given_fields, note_foreign, read_fields
from yolojax.training.settings import LARGEST, TrainSettings

# Flags of YOLOv5 that mean nothing here: taken, with a note, so that a command line can be carried over as it is.
IGNORED = {
    "local_rank": "one program runs on all devices",
    "bbox_interval": "Weights & Biases gets the figures of the run folder, no boxes",
    "upload_dataset": "data sets and weights are not uploaded",
    "artifact_alias": "data sets and weights are not uploaded",
    "evolve_population": "an evolution begins with the --hyp file",
    "resume_evolve": "--evolve N --resume FOLDER goes on with an evolution",
}
# Flags that would change what is trained and do not exist here.
REFUSED = {
    "quad": "the quad loader is not part of yolojax",
    "bucket": "download the data with your cloud's own tool and name its folder",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add YOLOv5's flags and ours."""
    add_fields(parser, TrainSettings)
    parser.add_argument(
        "--evolve",
        nargs="?",
        type=int,
        const=300,
        metavar="N",
        help="runs in which better hyperparameters are looked for; 300 without a value; default: none",
    )
    parser.add_argument(
        "--evolve-freeze",
        nargs="+",
        default=(),
        metavar="SELECTOR",
        help="with --evolve: freezes to choose among too; default: that of --freeze",
    )
    add_foreign(parser, IGNORED, REFUSED)


def run(arguments: argparse.Namespace) -> int:
    """Train; the results stand in the run folder."""
    note_foreign(arguments, IGNORED, REFUSED)
    if arguments.debug:
        logging.getLogger("yolojax").setLevel(logging.DEBUG)
    settings = read_fields(arguments, TrainSettings)

    from yolojax.hosts.agreement import is_first, process_count

    if process_count() > 1:
        alone = {"--batch-size -1": settings.batch_size == LARGEST, "--evolve": arguments.evolve is not None}
        for name in (name for name, asked in alone.items() if asked):
            raise UserError(
                f"{name}: is looked for by one process; run it alone first, and give all of them what it finds"
            )
    if settings.batch_size == LARGEST and not settings.resume:
        from yolojax.plan.autobatch import with_fitting_batch

        settings = with_fitting_batch(settings)

    if arguments.evolve is not None:
        if arguments.evolve < 1:
            raise UserError(f"--evolve {arguments.evolve}: must be at least 1")
        from yolojax.evolve.evolve import evolve

        print(f"best hyperparameters: {evolve(settings, arguments.evolve, arguments.evolve_freeze)}")
        return 0

    from yolojax.files import write_json
    from yolojax.training.loop import train

    results = train(settings, given_fields(arguments))
    if arguments.json and is_first():
        write_json(arguments.json, results)
    return 0
