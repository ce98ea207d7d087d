"""Time of a training step beside the original's, interleaved in one run on the same machine.

A step is forward pass, loss, backward pass, clip, update and moving average. The original is PyPI ``yolov5==7.0.14`` in an
interpreter of its own (``tests/goldens/make_goldens.py`` says how to make one):

    python benchmarks/step_against_torch.py --torch-python PYTHON
    python benchmarks/step_against_torch.py --alone                                   # ours, without the other side
    python benchmarks/step_against_torch.py --torch-python PYTHON --device gpu --dtype bfloat16 --model yolov5m --size 512 --batch 48

Both sides train the same architecture from random weights on the same batch, and take turns of a few steps, so that a
machine that is slow for a while is slow for both. Only ratios mean anything. On a GPU the original computes as its training does there: channels last, TF32
where the card has it, automatic mixed precision for a narrow type, with a scaled loss for float16; both sides wait for the card after every step.
"""

import argparse
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from batch import batch_of
from turns import answer, cell, report, spread, take_turns, timed

ROWS = ((0, "track"), (10, "track"), (10, "fixed"), (24, "track"), (24, "fixed"))


def torch_worker(options: argparse.Namespace) -> None:
    """Run as many steps of the original as each line of the input says, and print their times; runs in its interpreter."""
    channel, sys.stdout = sys.stdout, sys.stderr  # what its packages print, when they are imported too
    import torch
    import yolov5
    from yolov5.models.yolo import DetectionModel
    from yolov5.utils.loss import ComputeLoss
    from yolov5.utils.torch_utils import ModelEMA, smart_optimizer

    logging.getLogger("yolov5").setLevel(logging.ERROR)
    model = DetectionModel(str(Path(yolov5.__file__).parent / "models" / f"{options.model}.yaml"), nc=options.classes)
    model.hyp = {
        "box": 0.05, "cls": 0.5 * options.classes / 80, "obj": (options.size / 640) ** 2, "cls_pw": 1.0, "obj_pw": 1.0,
        "anchor_t": 4.0, "fl_gamma": 0.0, "label_smoothing": 0.0,
    }  # fmt: skip
    frozen = tuple(f"model.{index}." for index in range(options.freeze))
    for name, parameter in model.named_parameters():
        parameter.requires_grad = not name.startswith(frozen)
    device = torch.device("cuda" if options.device == "gpu" else options.device)
    torch.backends.cudnn.benchmark = True  # choose algorithms by timing them, as XLA does
    model.to(device, memory_format=torch.channels_last if device.type == "cuda" else torch.preserve_format).train()
    optimizer, average, compute_loss = (
        smart_optimizer(model, "SGD", 0.01, 0.937, 0.0005),
        ModelEMA(model),
        ComputeLoss(model),
    )
    batch = batch_of(options.batch, options.size, options.classes)
    pixels = torch.from_numpy(batch["images"]).to(device).permute(0, 3, 1, 2)  # channels last
    if device.type == "cpu":
        pixels = pixels.contiguous()
    image, place = np.nonzero(batch["mask"])
    labels = torch.from_numpy(np.hstack([image[:, None], batch["boxes"][image, place]]).astype(np.float32)).to(device)
    narrow = getattr(torch, options.dtype)
    scaler = torch.amp.GradScaler(device.type, enabled=narrow is torch.float16)

    def step() -> None:
        with torch.autocast(device.type, narrow, enabled=narrow is not torch.float32):
            total, _ = compute_loss(model(pixels.float() / 255), labels)
        scaler.scale(total).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=10.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        average.update(model)
        if device.type == "cuda":
            torch.cuda.synchronize()

    answer(step, channel, last=lambda: torch.cuda.max_memory_allocated() if device.type == "cuda" else None)


def jax_step(
    options: argparse.Namespace, freeze: int, mode: str
) -> tuple[Callable[[], None], Callable[[], int | None]]:
    """A step of this project that updates after each batch, as the other side does; and what tells its peak of memory, in bytes."""
    import jax
    import jax.numpy as jnp

    from yolojax.freezing.labels import fixed_bn
    from yolojax.freezing.phases import make_phase
    from yolojax.hyperparameters import Hyperparameters
    from yolojax.model.network import Network, init_variables
    from yolojax.model.spec import load_spec
    from yolojax.runtime import device_peak_bytes, select_devices
    from yolojax.training.loss import LossSettings
    from yolojax.training.optimizer import OptimizerSettings
    from yolojax.training.schedule import Schedule
    from yolojax.training.state import create_state
    from yolojax.training.step import make_train_step
    from yolojax.tree import flatten

    device = select_devices(options.device)[0]  # where the other side runs
    hyp, spec = Hyperparameters(), load_spec(options.model, classes=options.classes)
    variables = init_variables(spec, jax.random.key(0))
    labels = make_phase(tuple(flatten(variables["params"])), freeze=freeze).tree()
    network = Network(
        spec, dtype=jnp.dtype(options.dtype), fixed_bn=fixed_bn(labels) if mode == "fixed" else frozenset()
    )
    optimizer = OptimizerSettings(accumulates=False)
    schedule = Schedule(epochs=100, batches_per_epoch=1000, batch_size=64)
    step = make_train_step(
        network, labels, LossSettings.from_hyperparameters(hyp, spec, options.size), optimizer, schedule
    )
    batch = jax.device_put(batch_of(options.batch, options.size, options.classes), device)
    state = create_state(variables, labels, optimizer, fixed_bn=network.fixed_bn, scaled=options.dtype == "float16")

    def run() -> None:
        nonlocal state
        state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))

    return run, lambda: device_peak_bytes(device)


def compare(options: argparse.Namespace, freeze: int, mode: str) -> dict[str, Any]:
    """Both sides in turns; times in milliseconds."""
    script = [options.torch_python, __file__, "--worker", "--freeze", str(freeze)]
    for name in ("model", "classes", "batch", "size", "device", "dtype"):
        script += [f"--{name}", str(getattr(options, name))]
    work, peak = jax_step(options, freeze, mode)
    ours, theirs, their_peak = take_turns(work, script, options.rounds, options.steps, pause=0.3)
    times: dict[str, Any] = {"yolojax": spread(1e3 * ours), "original": spread(1e3 * theirs)}
    if their_peak is not None:
        times["yolojax"]["peak_bytes"], times["original"]["peak_bytes"] = peak(), their_peak
    ratio = times["yolojax"]["median"] / times["original"]["median"]
    return {"freeze": freeze, "frozen_bn": mode, **times, "ratio": ratio}


def alone(options: argparse.Namespace) -> None:
    """Print our own times, and what the system does for them: its processor time, and the pages of memory that it has to make."""
    import resource

    print("| freeze | frozen_bn | ms (quartiles) | of the system, ms | pages |\n|-|-|-|-|-|", flush=True)
    for freeze, mode in ROWS:
        if options.freeze not in (None, freeze):
            continue
        work, _ = jax_step(options, freeze, mode)
        timed(work, 3)
        count = options.rounds * options.steps
        before = resource.getrusage(resource.RUSAGE_SELF)
        times = 1e3 * np.array(timed(work, count))
        after = resource.getrusage(resource.RUSAGE_SELF)
        system, pages = 1e3 * (after.ru_stime - before.ru_stime) / count, (after.ru_minflt - before.ru_minflt) / count
        print(f"| {freeze} | {mode} | {cell(spread(times))} | {system:.0f} | {pages:.0f} |", flush=True)


def main() -> None:
    """Print a row per freezing depth."""
    parser = argparse.ArgumentParser(description="Time a training step beside the original's.")
    parser.add_argument("--torch-python", help="interpreter that has yolov5==7.0.14 and torch")
    parser.add_argument("--alone", action="store_true", help="time our own step only")
    parser.add_argument("--model", default="yolov5n", help="architecture (default: %(default)s)")
    parser.add_argument("--classes", type=int, default=20, help="number of classes (default: %(default)s)")
    parser.add_argument("--size", type=int, default=320, help="side of the images in pixels (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=8, help="images per step (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=3, help="steps per turn (default: %(default)s)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "gpu"), help="of both sides (default: %(default)s)")
    parser.add_argument(
        "--dtype",
        default="float32",
        choices=("float32", "bfloat16", "float16"),
        help="of the computation; the original's by automatic mixed precision (default: %(default)s)",
    )
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--freeze", type=int, help="only this depth")
    options = parser.parse_args()
    if options.worker:
        torch_worker(options)
        return
    if not (options.torch_python or options.alone):
        parser.error("--torch-python is needed, or --alone")
    from yolojax.runtime import use_huge_pages

    use_huge_pages()  # as the commands do
    # The other side needs a part of the card's memory too, and a peak that is reserved in advance says nothing.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if options.alone:
        alone(options)
        return
    print("milliseconds per step\n", flush=True)
    rows = (compare(options, freeze, mode) for freeze, mode in ROWS if options.freeze in (None, freeze))
    report(("freeze", "frozen_bn"), rows, options.json)


if __name__ == "__main__":
    main()
