"""Time and memory of checking a data set and of one epoch of its input stream, at several sizes.

    python benchmarks/data_at_scale.py                      # 5,000, 10,000 and 20,000 images, about ten minutes on two cores

A set of JPEG images of 160x120 pixels with one to five boxes each is drawn into a temporary folder; smaller sets are lists of its first images.
Every figure comes from a process of its own: ``check`` is ``yolojax data check`` with nothing remembered, ``check again`` the same once more,
``epoch`` opens the data set and takes all training batches of one epoch (mosaic, batch 16, workers as ``--workers`` says), from the files and from a
RAM cache. Memory is the most that the process and its workers held together, pages that they share counted once (PSS), every tenth of a second.

Expected: twice the images take twice the time, and memory grows by a few KB an image, and by the cache where one is asked for.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SIDES = 120, 160  # height, width in pixels
BOXES = 5  # of an image, at most
IMAGE_SIZE, BATCH = 160, 16
TASKS = ("check", "check again", "epoch", "epoch, RAM cache")


def draw_set(folder: Path, counts: list[int]) -> None:
    """Write images and labels in YOLO layout, and a list ``<count>.txt`` for each size."""
    import cv2
    import numpy as np

    for part in ("images", "labels"):
        (folder / part).mkdir()
    rng = np.random.default_rng(0)
    for number in range(max(counts)):
        noise = rng.integers(0, 256, (SIDES[0] // 8, SIDES[1] // 8, 3)).astype(np.uint8)
        cv2.imwrite(str(folder / "images" / f"{number:06d}.jpg"), cv2.resize(noise, SIDES[::-1]))
        rows = rng.uniform(0.2, 0.4, (rng.integers(1, BOXES + 1), 4)) + (0.3, 0.3, 0, 0)
        text = "".join(f"{label % 4} {' '.join(f'{value:.6f}' for value in row)}\n" for label, row in enumerate(rows))
        (folder / "labels" / f"{number:06d}.txt").write_text(text)
    for count in counts:
        listing = "".join(f"./images/{number:06d}.jpg\n" for number in range(count))
        (folder / f"{count}.txt").write_text(listing)
        (folder / f"{count}.yaml").write_text(f"path: .\ntrain: {count}.txt\nval: {count}.txt\nnames: [a, b, c, d]\n")


def work(task: str, data: str, workers: int) -> dict[str, float]:
    """Do one task in this process; its seconds, and the bytes of the cache that it made."""
    from yolojax.data.batches import StreamSettings
    from yolojax.data.check import check_data
    from yolojax.data.sources import load_data, open_split
    from yolojax.data.stream import training_stream
    from yolojax.hyperparameters import Hyperparameters

    start, cached = time.perf_counter(), 0.0
    config = load_data(data)
    if task.startswith("check"):
        assert check_data(config).clean
    else:
        samples = open_split(config, "train").samples
        settings = StreamSettings(image_size=IMAGE_SIZE, batch_size=BATCH, cache="ram" if "RAM" in task else None)
        stream = training_stream(samples, Hyperparameters(), settings)
        batches = sum(1 for _ in stream.iterate(workers=workers))
        assert batches == stream.batches_per_epoch
        stream.close()
        cache = stream.images.cache
        cached = float(cache.shapes.prod(1, dtype=float).sum() * 3) if cache else 0.0
    return {"seconds": time.perf_counter() - start, "cache_bytes": cached}


def measure(task: str, data: Path, workers: int, cache: Path) -> dict[str, float]:
    """Do one task in a process of its own; also gives the most memory in bytes that it and its workers held."""
    import psutil

    command = [sys.executable, __file__, "--task", task, "--data", str(data), "--workers", str(workers)]
    environment = os.environ | {"YOLOJAX_CACHE": str(cache)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        peak = 0
        while process.poll() is None:
            held = 0
            try:
                parent = psutil.Process(process.pid)
                for member in (parent, *parent.children(recursive=True)):
                    held += member.memory_full_info().pss
            except psutil.Error:  # it has just ended
                continue
            peak = max(peak, held)
            time.sleep(0.1)
        assert process.stdout is not None
        figures = json.loads(process.stdout.read().splitlines()[-1])
    return figures | {"peak_bytes": peak}


def main() -> None:
    """Print a row for each task and size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[5000, 10_000, 20_000], help="images of each set")
    parser.add_argument("--workers", type=int, default=2, help="data loading processes")
    parser.add_argument("--task", choices=TASKS, help=argparse.SUPPRESS)
    parser.add_argument("--data", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        print(json.dumps(work(options.task, options.data, options.workers)))
        return
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        draw_set(folder, options.counts)
        print("| | images | seconds | images per second | memory, MB | of it the cache, MB |")
        print("|-|-|-|-|-|-|")
        for task in TASKS:
            for count in options.counts:
                remembered = folder / f"cache-{count}"  # the second check finds what the first one remembered
                row = measure(task, folder / f"{count}.yaml", options.workers, remembered)
                seconds, cached = row["seconds"], row["cache_bytes"]
                figures = (
                    f"{seconds:.1f}",
                    f"{count / seconds:.0f}",
                    f"{row['peak_bytes'] / 1e6:.0f}",
                    f"{cached / 1e6:.0f}",
                )
                print(f"| {task} | {count:,} | {' | '.join(figures)} |", flush=True)


if __name__ == "__main__":
    main()
