"""``yolojax train``: YOLOv5's train.py, with functional freezing."""

from __future__ import annotations

import argparse
from pathlib import Path

from yolojax.cli.arguments import add_fields, add_foreign, note_foreign, read_fields
from yolojax.training.settings import TrainSettings

# Flags of YOLOv5 that mean nothing here: taken, with a note, so that a command line can be carried over as it is.
IGNORED = {
    "sync_bn": "BatchNorm statistics are always taken over the global batch",
    "local_rank": "one program runs on all devices",
    "bbox_interval": "only for Weights & Biases",
    "upload_dataset": "only for Weights & Biases",
    "entity": "only for Weights & Biases",
    "artifact_alias": "only for Weights & Biases",
    "evolve_population": "a study of evolution keeps its own history",
    "resume_evolve": "a study of evolution goes on with the same command and --resume",
}
# Flags that would change what is trained and do not exist here.
REFUSED = {
    "quad": "the quad loader is not part of yolojax",
    "bucket": "download the data with your cloud's own tool and name its folder",
    "evolve": "hyperparameter evolution is not part of this version",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add YOLOv5's flags and ours."""
    add_fields(parser, TrainSettings)
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the final figures here")
    add_foreign(parser, IGNORED, REFUSED)


def run(arguments: argparse.Namespace) -> int:
    """Train; the results stand in the run folder."""
    note_foreign(arguments, IGNORED, REFUSED)
    settings = read_fields(arguments, TrainSettings)

    from yolojax.training.loop import train
    from yolojax.training.records import write_json

    results = train(settings)
    if arguments.json:
        write_json(arguments.json, results)
    return 0
