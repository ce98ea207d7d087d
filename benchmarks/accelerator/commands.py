"""Parts that run what a user runs: the machine, the original's step, feeding, validation, suppression of boxes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args, get_type_hints

import cv2
import numpy as np

from benchmarks.accelerator.bench import AbsentError, half_precision, network_of, row
from benchmarks.accelerator.parts import PREALLOCATE

BENCHMARKS = Path(__file__).resolve().parents[1]


def environment(case: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What the figures were measured with."""
    from yolojax.doctor import examine

    facts = examine()
    devices = ", ".join(f"{device['kind']}" for device in facts["devices"])
    versions = ", ".join(f"{name} {facts[name]}" for name in ("python", "yolojax", "jax", "jaxlib", "flax", "optax"))
    yield row("devices", f"{devices}; driver {facts['nvidia_driver']}", devices=facts["devices"])
    yield row("versions", versions, facts=facts)
    shared = shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else 0
    memory = facts["memory_bytes"] / 2**30
    yield row(
        "machine", f"{facts['processors']} processors, {memory:.0f} GiB, {shared / 2**30:.1f} GiB of /dev/shm free"
    )


def original(case: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The original's step with automatic mixed precision on the same device, in turns with ours."""
    python = case["torch_python"] or sys.executable
    probe = subprocess.run([python, "-c", "import torch, yolov5.models.yolo"], capture_output=True, text=True)
    if probe.returncode:
        last = (probe.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise AbsentError(f"{python} has no torch with yolov5==7.0.14 ({last})")
    file = Path(case["folder"]) / "original.json"
    command = [sys.executable, str(BENCHMARKS / "step_against_torch.py"), "--torch-python", python, "--json", str(file)]
    for name in ("model", "size", "batch", "freeze"):
        command += [f"--{name}", str(case[name])]
    command += ["--device", case["device"], "--dtype", half_precision(), "--rounds", str(case["blocks"])]
    _command([*command, "--steps", str(case["steps"])])
    for measured in json.loads(file.read_text()):
        ours, theirs = measured["yolojax"]["median"], measured["original"]["median"]
        peaks = [measured[side].get("peak_bytes") for side in ("yolojax", "original")]
        memory = "" if None in peaks else f"; peak {peaks[0] / 1e9:.2f} and {peaks[1] / 1e9:.2f} GB"
        yield row(
            f"{case['model']}, {case['size']} px, batch {case['batch']}, freeze {measured['freeze']}, {measured['frozen_bn']}",
            f"yolojax {ours:.2f} ms, the original {theirs:.2f} ms, ratio {measured['ratio']:.2f}{memory}",
            model=case["model"],
            **measured,
        )


def write_images(folder: Path, images: int) -> Path:
    """A data set of photo-like JPEGs, 500 x 375 with one to six coloured rectangles; its YAML. Made once."""
    file = folder / "rectangles.yaml"
    if file.is_file():
        return file
    rng = np.random.default_rng(0)
    grain = rng.integers(-20, 20, (375, 500, 3))
    for split, count in (("train", images), ("val", max(images // 20, 8))):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            small = rng.integers(40, 200, (6, 8, 3)).astype(np.uint8)
            image = np.clip(cv2.resize(small, (500, 375), interpolation=cv2.INTER_CUBIC) + grain, 0, 255).astype(
                np.uint8
            )
            lines = []
            for _ in range(rng.integers(1, 7)):
                label, (width, height) = rng.integers(3), rng.integers(40, 150, 2)
                x, y = rng.integers(0, 500 - width), rng.integers(0, 375 - height)
                image[y : y + height, x : x + width] = np.roll([230, 40, 40], label) + rng.integers(-15, 15, 3)
                lines.append(f"{label} {(x + width / 2) / 500} {(y + height / 2) / 375} {width / 500} {height / 375}")
            cv2.imwrite(str(folder / "images" / split / f"{number}.jpg"), image, [cv2.IMWRITE_JPEG_QUALITY, 92])
            (folder / "labels" / split / f"{number}.txt").write_text("\n".join(lines), encoding="utf-8")
    text = f"path: {folder.resolve()}\ntrain: images/train\nval: images/val\nnames: [red, green, blue]\n"
    file.write_text(text, encoding="utf-8")
    return file


def feeding(case: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A short training on JPEG files: images per second, and how long the device waited for them."""
    from yolojax.training.settings import TrainSettings

    cache = case["cache"]
    if cache and cache not in str(get_args(get_type_hints(TrainSettings)["cache"])):
        raise AbsentError(f"'yolojax train' has no --cache {cache} here")
    data = write_images(Path(case["folder"]) / "images", case["images"])
    network_of(case)  # writes the small one's YAML
    architecture = str(Path(case["folder"]) / "small.yaml") if case["model"] == "small" else case["model"]
    runs = Path(case["folder"]) / "runs"
    name = f"{case['model']}-{case['freeze']}-{cache or 'files'}"
    command = [sys.executable, "-m", "yolojax", "train", "--weights", "", "--cfg", architecture, "--data", str(data)]
    command += ["--img", str(case["size"]), "--batch", str(case["batch"]), "--freeze", str(case["freeze"])]
    command += ["--epochs", str(case["epochs"]), "--workers", str(case["workers"]), "--hyp", "finetune"]
    command += ["--noval", "--nosave", "--noplots", "--noautoanchor", "--dtype", half_precision()]
    command += ["--project", str(runs), "--name", name, "--exist-ok", *(["--cache", cache] if cache else [])]
    _command(command)
    timings = json.loads((runs / name / "results.json").read_text())["timings"]
    last = timings[-1]
    speed, waiting = last["images_per_second"], last["waiting"]
    yield row(
        f"training from {'files' if not cache else f'--cache {cache}'}, {case['model']}, {case['size']} px, freeze {case['freeze']}, "
        f"{case['workers']} workers",
        f"{speed or 0:,.0f} images/s, {waiting or 0:.0%} of the time waiting for data",
        limit="waiting 5 %" if cache == "device" else "",
        passes=(waiting or 0) <= 0.05 if cache == "device" else None,
        images_per_second=speed,
        waiting=waiting,
        cache=cache,
        freeze=case["freeze"],
    )


def validation(case: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """``yolojax val`` with the embedded weights on the embedded data."""
    file = Path(case["folder"]) / "val.json"
    command = [sys.executable, "-m", "yolojax", "val", "--img", str(case["size"]), "--batch", str(case["batch"])]
    command += ["--noplots", "--project", str(Path(case["folder"]) / "runs"), "--name", "val", "--exist-ok"]
    started = time.perf_counter()
    _command([*command, "--json", str(file)])
    seconds, figures = time.perf_counter() - started, json.loads(file.read_text())
    speed = figures["speed_ms"]
    yield row(
        f"yolojax val, embedded weights and data, {case['size']} px",
        f"mAP50 {figures['map50']:.3f}; {figures['images']} images in {seconds:.0f} s with the start; per image "
        + ", ".join(f"{name} {value:.2f} ms" for name, value in speed.items()),
        seconds=seconds,
        figures=figures,
    )


def suppression(case: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """NMS on the device and on the host: the same boxes, but where an IoU is within one unit of the threshold; and the time of each."""
    import dataclasses

    import jax

    from yolojax.evaluation.nms import NmsSettings, suppress, suppress_batch
    from yolojax.inference.predictor import make_predict
    from yolojax.inference.settings import ValSettings
    from yolojax.inference.validation import prepare_validation
    from yolojax.mesh import place_images

    asked = ValSettings(imgsz=case["size"], batch_size=case["batch"], workers=0)
    prepared = prepare_validation(asked, jax.devices()[:1])
    predict, settings = make_predict(prepared.weights), NmsSettings()
    on_device = jax.jit(suppress_batch, static_argnums=1)
    near = [
        dataclasses.replace(settings, iou=float(np.nextafter(np.float32(settings.iou), np.float32(end))))
        for end in (0, 1)
    ]
    images = equal = within = 0
    device_seconds, host_seconds = [], []
    for number, batch in enumerate(prepared.batches().iterate(0)):
        if number == case["batches"]:
            break
        predictions, _ = predict(place_images(batch["images"], prepared.mesh))
        jax.block_until_ready(on_device(predictions, settings))
        start = time.perf_counter()
        boxes, counts = jax.device_get(on_device(predictions, settings))
        device_seconds.append(time.perf_counter() - start)
        start = time.perf_counter()
        host = [suppress(image, settings) for image in np.asarray(predictions)]
        host_seconds.append(time.perf_counter() - start)
        for place, image in enumerate(np.asarray(predictions)):
            detections = boxes[place, : counts[place]]
            images += 1
            equal += _same_boxes(detections, host[place])
            within += any(_same_boxes(detections, suppress(image, other)) for other in (settings, *near))
    device, other = (1e3 * sum(times) / max(images, 1) for times in (device_seconds, host_seconds))
    yield row(
        f"boxes of {images} images, {case['size']} px",
        f"{equal} the same, {within} but for IoUs at the threshold; {device:.2f} ms per image on the device, {other:.2f} on the host",
        limit="all",
        passes=images > 0 and within == images,
        images=images,
        equal=equal,
        device_ms=device,
        host_ms=other,
    )


def _same_boxes(first: np.ndarray, second: np.ndarray) -> bool:
    """The same detections; coordinates and scores may differ in their last digits, as products are rounded."""
    return len(first) == len(second) and bool(np.allclose(first, second, rtol=1e-5, atol=1e-3))


def _command(words: list[str]) -> None:
    """Run a command of a user; its last lines are the reason where it fails."""
    variables = {name: value for name, value in os.environ.items() if name != PREALLOCATE}
    run = subprocess.run(words, capture_output=True, text=True, env=variables)
    if run.returncode:
        raise RuntimeError(f"{' '.join(words[2:6])} …: {(run.stderr or run.stdout).strip()[-1500:]}")
