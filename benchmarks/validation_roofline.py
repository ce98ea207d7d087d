"""The least time that a validation can take on an accelerator, beside an epoch of training; no card is needed.

    python -m benchmarks.validation_roofline                       # the guide's network and data set, on an H100; needs the extra aot

What every batch of a validation runs, prediction and suppression, is compiled ahead of time and read as ``benchmarks.roofline`` reads a step. How often the
loop of the suppression goes round is known only when it runs: it settles 256 candidates of all images at once, and ``--candidates`` says of how many the
worst image has. The step is compiled too, with nothing frozen.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from typing import Any

from benchmarks.ahead import add_step_flags, row_of_process
from benchmarks.hlo import parse
from benchmarks.kernels import kernels
from benchmarks.roofline import compiled_row, listed_chip, summary


def compiled_validation(options: argparse.Namespace) -> dict[str, float]:
    """Milliseconds per batch at the roofline: of prediction, suppression, and a training step that freezes nothing."""
    from yolojax.evaluation.nms import BLOCK
    from yolojax.model.spec import load_spec
    from yolojax.plan.devices import load_target, open_device
    from yolojax.plan.validation import validation_programs

    device = open_device(load_target(options.target))
    chip = listed_chip(options.target, device.device_kind)
    spec = load_spec(options.model, classes=options.classes)
    size = (options.size, options.size)
    programs = validation_programs(spec, device, batch=2 * options.batch, size=size, dtype=options.dtype)
    rounds = math.ceil(options.candidates / BLOCK)
    row = {
        name: summary(kernels(parse(program.as_text()), rounds), chip)["roofline_ms"]
        for name, program in programs.items()
    }
    return {**row, "step": compiled_row(options, "0", "plain")["roofline_ms"]}


def table(row: dict[str, float], options: argparse.Namespace) -> str:
    """Markdown: seconds of a whole validation and of an epoch."""
    batches, steps = math.ceil(options.val / (2 * options.batch)), math.ceil(options.train / options.batch)
    parts = {
        f"prediction of {options.val:,} images": row["predict"] * batches / 1e3,
        "suppression of their boxes": row["nms"] * batches / 1e3,
    }
    device, epoch = sum(parts.values()), row["step"] * steps / 1e3
    parts |= {"both, on the device": device, f"an epoch of {options.train:,} images, freeze 0": epoch}
    lines = ["| at the roofline | s |", "|-|-|", *(f"| {name} | {seconds:.2f} |" for name, seconds in parts.items())]
    return "\n".join([*lines, f"| validation, of the epoch | {device / epoch:.2f} |"])


def main() -> None:
    """Compile and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add_step_flags(parser)
    parser.add_argument(
        "--train", type=int, default=16_551, help="training images (default: %(default)s, those of VOC)"
    )
    parser.add_argument("--val", type=int, default=4_952, help="validation images (default: %(default)s, those of VOC)")
    parser.add_argument(
        "--candidates", type=int, default=4096, help="of an image, above the threshold (default: %(default)s)"
    )
    parser.set_defaults(optimizer="SGD", top=0)
    words = sys.argv[1:]
    options = parser.parse_args(words)
    if options.worker:
        print(json.dumps(compiled_validation(options)))
        return
    row: dict[str, Any] = row_of_process("benchmarks.validation_roofline", options.target, words)
    print(table(row, options))
    if options.json:
        options.json.write_text(json.dumps(row) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
