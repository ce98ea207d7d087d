"""Wall time of whole trainings beside the original's: commands in turns, from their start to their end.

The original is PyPI ``yolov5==7.0.14`` in an interpreter of its own (``tests/goldens/make_goldens.py`` says how to make one):

    python benchmarks/train_against_torch.py --torch-python PYTHON --weights yolov5n.pt --data bccd --data-root FOLDER

Each of our trainings runs twice: *cold*, with an empty cache folder, and *warm*, with what that run left there (compiled programs; and features, where memory
had no room for them). Both frameworks read their images from memory and validate after every epoch; neither draws figures. The original freezes as its
``--freeze`` does (BatchNorm of frozen layers moves), ours as by default (``fixed``).
"""

import argparse
import dataclasses
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from turns import cell, spread

from yolojax.data.sources import load_data
from yolojax.study.original import original_command, original_environment, write_inputs
from yolojax.study.runner import StudyRun, own_command
from yolojax.study.scenarios import Scenario
from yolojax.training.settings import TrainSettings


class Case(NamedTuple):
    """A training of ours; the original's has the same depth and length."""

    freeze: str
    cache: str = "ram"
    longer: int = 1  # times the epochs


CASES = {
    "freeze-0": Case("0"),
    "freeze-10": Case("10"),
    "features-10": Case("10", "features"),
    "features-24": Case("24", "features"),
    "features-24-long": Case("24", "features", 4),
}


def main() -> None:
    """Print a row per case: seconds cold and warm, of the original, and the ratios."""
    parser = argparse.ArgumentParser(description="Time whole trainings beside the original's.")
    parser.add_argument("--torch-python", required=True, help="interpreter that has yolov5==7.0.14 and torch")
    parser.add_argument("--weights", required=True, help="a .pt that both read")
    parser.add_argument("--data", default="bccd", help="data set (default: %(default)s)")
    parser.add_argument("--data-root", help="folder of the data set, instead of the YAML's path")
    parser.add_argument("--size", type=int, default=320, help="side of the images in pixels (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=16, help="images of a batch (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=15, help="of a training (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=1, help="trainings of each kind (default: %(default)s)")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=tuple(CASES), help="only these")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    options = parser.parse_args()
    seconds: dict[str, dict[str, list[float]]] = {
        name: {"cold": [], "warm": [], "original": []} for name in options.cases
    }
    with tempfile.TemporaryDirectory(prefix="train-against-torch-") as name:
        folder = Path(name)
        for turn in range(options.rounds):
            known: dict[
                tuple[str, int], float
            ] = {}  # the original keeps no features: one run stands beside both of ours
            for case in options.cases:
                times = run_case(CASES[case], options, folder, turn, known)
                for side, value in times.items():
                    seconds[case][side].append(value)
                print(
                    f"round {turn + 1}, {case}: " + ", ".join(f"{side} {value:.1f} s" for side, value in times.items()),
                    flush=True,
                )
    rows = {case: {side: spread(np.array(values)) for side, values in sides.items()} for case, sides in seconds.items()}
    print("\n| | cold, s | warm, s | original, s | cold / original | warm / original |\n|-|-|-|-|-|-|")
    for case, sides in rows.items():
        ratios = [format(sides[side]["median"] / sides["original"]["median"], ".2f") for side in ("cold", "warm")]
        print(f"| {' | '.join([case, *(cell(values, '.1f') for values in sides.values()), *ratios])} |")
    if options.json:
        options.json.write_text(json.dumps({"seconds": seconds, "rows": rows}, indent=2) + "\n", encoding="utf-8")


def run_case(
    case: Case, options: argparse.Namespace, folder: Path, turn: int, known: dict[tuple[str, int], float]
) -> dict[str, float]:
    """Seconds of a training of ours, cold and warm, and of the original's, all with the seed of the turn."""
    epochs = options.epochs * case.longer
    settings = TrainSettings(
        weights=str(Path(options.weights).resolve()), data=options.data, data_root=options.data_root, imgsz=options.size,
        batch_size=options.batch, epochs=epochs, freeze=(case.freeze,), cache=case.cache, workers=1, noplots=True, device="cpu",
    )  # fmt: skip
    settings = settings.with_defaults(load_data(settings.data, settings.data_root))
    if (case.freeze, epochs) not in known:
        theirs = dataclasses.replace(settings, cache="ram", frozen_bn="track")
        original = Scenario(name="original", settings=theirs, framework="torch", python=options.torch_python)
        run = StudyRun(original, turn, folder / "runs" / "original")
        inputs = folder / "inputs"
        inputs.mkdir(exist_ok=True)
        write_inputs(original, inputs)
        command = original_command(original, turn, run.folder, inputs)
        known[case.freeze, epochs] = timed_run(command, original_environment(inputs), folder / "original.txt")
        shutil.rmtree(run.folder)
    cache = folder / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    times = {}
    for side in ("cold", "warm"):
        run = StudyRun(Scenario(name=side, settings=settings), turn, folder / "runs" / side)
        times[side] = timed_run(own_command(run), os.environ | {"YOLOJAX_CACHE": str(cache)}, folder / f"{side}.txt")
        shutil.rmtree(run.folder)
    return times | {"original": known[case.freeze, epochs]}


def timed_run(command: Sequence[str], environment: Mapping[str, str], log: Path) -> float:
    """Seconds that a command takes; its output goes to a file.

    Raises:
      SystemExit: it fails; with the end of its output.
    """
    with log.open("wb") as output:
        start = time.perf_counter()
        status = subprocess.run(command, env=environment, stdout=output, stderr=subprocess.STDOUT).returncode
        taken = time.perf_counter() - start
    if status:
        raise SystemExit(f"{' '.join(command[:4])} … failed:\n{log.read_text(errors='replace')[-2000:]}")
    return taken


if __name__ == "__main__":
    main()
