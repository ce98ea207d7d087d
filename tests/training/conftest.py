"""A network small enough to train in a test, and batches for it."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from yolojax.model.spec import ModelSpec

Batch = dict[str, np.ndarray]


@pytest.fixture(scope="session")
def small_model() -> str:
    """The text of a model YAML with one level and four layers, for runs that are resumed: each compiles a step of its own."""
    return """
nc: 2
anchors: [[8, 8, 16, 12, 20, 20]]
backbone:
  - [-1, 1, Conv, [8, 3, 2]]
  - [-1, 1, Conv, [8, 3, 2]]
  - [-1, 1, Conv, [8, 3, 2]]
head:
  - [[2], 1, Detect, []]
"""


@pytest.fixture(scope="session")
def mini_spec() -> ModelSpec:
    """Two levels and six layers, with every kind of block but the ones without parameters."""
    return ModelSpec.from_dict(
        {
            "nc": 3,
            "depth_multiple": 1.0,
            "width_multiple": 1.0,
            "anchors": [[5, 6, 8, 15, 17, 12], [15, 30, 31, 23, 30, 60]],
            "backbone": [
                [-1, 1, "Conv", [8, 6, 2, 2]],
                [-1, 1, "Conv", [16, 3, 2]],
                [-1, 1, "C3", [16]],
                [-1, 1, "Conv", [16, 3, 2]],
                [-1, 1, "SPPF", [16, 5]],
            ],
            "head": [[[2, 4], 1, "Detect", ["nc", "anchors"]]],
        }
    )


@pytest.fixture(scope="session")
def make_batch() -> Callable[..., Batch]:
    """``make_batch(seed, images=2, size=64, most=8, classes=3)``: noise, and at least one box in every image but the second."""

    def make(seed: int, images: int = 2, size: int = 64, most: int = 8, classes: int = 3) -> Batch:
        rng = np.random.default_rng(seed)
        boxes = np.zeros((images, most, 5), np.float32)
        mask = np.zeros((images, most), bool)
        for image in range(images):
            count = 0 if image == 1 else rng.integers(2, most + 1)
            boxes[image, :count, 0] = rng.integers(0, classes, count)
            boxes[image, :count, 1:3] = rng.uniform(0, 1, (count, 2))
            boxes[image, :count, 3:] = rng.uniform(0.1, 0.8, (count, 2))
            mask[image, :count] = True
        return {"images": rng.integers(0, 256, (images, size, size, 3), np.uint8), "boxes": boxes, "mask": mask}

    return make


@pytest.fixture
def on_devices() -> Callable[[int, str], None]:
    """``on_devices(count, "module.function")``: calls a function of a test module here with the mini network, in a process with so many devices."""

    def run(count: int, function: str) -> None:
        folder = Path(__file__).resolve().parent
        module = function.partition(".")[0]
        code = f"import conftest, {module}; {function}(conftest.mini_spec.__wrapped__(), conftest.make_batch.__wrapped__()); print('equal')"
        environment = os.environ | {
            "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={count}",
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": os.pathsep.join([str(folder), str(folder.parents[1])]),
        }
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        assert done.stdout.strip() == "equal", done.stderr[-3000:]

    return run
