"""What programs share that compile the training step for accelerators which are not here: their flags, and a process for each step."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Of a step, as rows of figures repeat them.
STEP = ("target", "model", "size", "batch", "dtype", "frozen_bn", "classes", "boxes")


def add_step_flags(parser: argparse.ArgumentParser) -> None:
    """The step that is compiled, and where to leave what is found."""
    parser.add_argument("--target", default="cuda:h100", help="as for 'yolojax plan' (default: %(default)s)")
    parser.add_argument("--model", default="yolov5m", help="architecture (default: %(default)s)")
    parser.add_argument("--classes", type=int, default=20, help="number of classes (default: %(default)s)")
    parser.add_argument("--size", type=int, default=512, help="side of the images in pixels (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=48, help="images per step and device (default: %(default)s)")
    parser.add_argument("--boxes", type=int, default=64, help="rows of boxes per image (default: %(default)s)")
    parser.add_argument("--dtype", default="bfloat16", help="of the computation (default: %(default)s)")
    parser.add_argument("--frozen-bn", default="fixed", choices=("fixed", "track"), help="(default: %(default)s)")
    parser.add_argument("--hlo", type=Path, metavar="FOLDER", help="leave the programs there")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)


def step_facts(options: argparse.Namespace) -> dict[str, Any]:
    """The flags of the step, for a row of figures."""
    return {name: getattr(options, name) for name in STEP}


def row_of_process(module: str, target: str, words: Sequence[str]) -> dict[str, Any]:
    """The row that ``python -m MODULE WORDS --worker`` prints last, in a process that is started as the target's compiler asks.

    Raises:
      SystemExit: it failed; the message has its last words.
    """
    from yolojax.plan.devices import load_target, target_environment

    variables = os.environ | target_environment(load_target(target))
    command = [sys.executable, "-m", module, *words, "--worker"]
    run = subprocess.run(command, env=variables, capture_output=True, text=True)
    if run.returncode:
        raise SystemExit(f"{target}, {' '.join(words)}: {run.stderr.strip()[-2000:]}")
    row: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return row
