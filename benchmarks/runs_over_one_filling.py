"""Wall time of a study whose runs read one set of kept features, beside that of a single run.

    python benchmarks/runs_over_one_filling.py --weights yolov5n.pt --data bccd --data-root FOLDER

The runs differ in their learning rate. The single run is the command line's, *cold* with an empty cache folder and *warm* with what that run left there; the
runs of a study compile without a cache, so cold is what compares with it.
"""

import argparse
import dataclasses
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import yaml
from train_against_torch import timed_run

from yolojax.hyperparameters import Hyperparameters

RATES = 0.0005, 0.05  # the lowest and the highest


def main() -> None:
    """Print the seconds of both, and their ratio."""
    parser = argparse.ArgumentParser(description="Time runs over one filling of kept features.")
    parser.add_argument("--weights", required=True, help="what all begin with")
    parser.add_argument("--data", default="bccd", help="data set (default: %(default)s)")
    parser.add_argument("--data-root", help="folder of the data set, instead of the YAML's path")
    parser.add_argument("--runs", type=int, default=20, help="of the study (default: %(default)s)")
    parser.add_argument("--freeze", type=int, default=24, help="(default: %(default)s)")
    parser.add_argument("--size", type=int, default=320, help="side of the images in pixels (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=15, help="of a run (default: %(default)s)")
    options = parser.parse_args()
    flags = {
        "weights": os.path.abspath(options.weights),
        "data": options.data,
        "freeze": options.freeze,
        "img": options.size,
        "batch": 16,
        "epochs": options.epochs,
        "cache": "features",
        "workers": 1,
    } | ({"data-root": options.data_root} if options.data_root else {})
    with tempfile.TemporaryDirectory(prefix="runs-over-one-filling-") as name:
        folder = Path(name)
        environment = os.environ | {"YOLOJAX_CACHE": str(folder / "cache")}
        command = [sys.executable, "-m", "yolojax", "train", "--noplots", "--project", str(folder / "single")]
        command += [word for flag, value in flags.items() for word in (f"--{flag}", str(value))]
        for side in ("cold", "warm"):
            print(f"single run, {side}: {timed_run(command, environment, folder / f'{side}.txt'):.1f} s", flush=True)
        file = write_study(folder, flags, np.geomspace(*RATES, options.runs))
        study = [sys.executable, "-m", "yolojax", "study", str(file), "--project", str(folder)]
        print(f"study of {options.runs} runs: {timed_run(study, environment, folder / 'study.txt'):.1f} s")


def write_study(folder: Path, flags: dict[str, object], rates: np.ndarray) -> Path:
    """A study with a scenario for each learning rate."""
    scenarios = []
    for number, rate in enumerate(rates, 1):
        hyp = folder / f"rate-{number}.yaml"
        hyp.write_text(yaml.safe_dump(dataclasses.asdict(Hyperparameters(lr0=float(rate)))), encoding="utf-8")
        scenarios.append({"name": f"rate {number}", "hyp": str(hyp)})
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump({"train": flags, "seeds": [0], "scenarios": scenarios}), encoding="utf-8")
    return file


if __name__ == "__main__":
    main()
