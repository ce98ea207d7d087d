"""Small data sets that the tests of this folder build."""

from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest

from yolojax.data.config import DataConfig
from yolojax.data.sample import Sample

Rows = Sequence[str]


def draw(height: int, width: int, seed: int = 0) -> np.ndarray:
    """An image with structure at every place."""
    noise = np.random.default_rng(seed).integers(0, 256, (height // 8 + 2, width // 8 + 2, 3)).astype(np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


@pytest.fixture
def yolo_folder(tmp_path: Path) -> Callable[..., DataConfig]:
    """Writes a data set in YOLO layout: ``{name: rows}``, None for an image without label file."""

    def write(labels: dict[str, Rows | None], names: tuple[str, ...] = ("cat", "dog"), size=(48, 64)) -> DataConfig:
        for number, (name, rows) in enumerate(labels.items()):
            image = tmp_path / "images" / "train" / name
            image.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(image), draw(*size, seed=number))
            if rows is not None:
                label = tmp_path / "labels" / "train" / Path(name).with_suffix(".txt")
                label.parent.mkdir(parents=True, exist_ok=True)
                label.write_text("\n".join(rows) + "\n")
        return DataConfig(
            file=Path("pets.yaml"), root=tmp_path, train=("images/train",), val=("images/train",), names=names
        )

    return write


@pytest.fixture(scope="session")
def samples() -> list[Sample]:
    """Eleven images of different shapes in memory, with 0 to 5 boxes each."""
    return [memory_sample(seed, *size) for seed, size in enumerate(_SIZES)]


_SIZES = [(48, 64), (64, 48), (40, 40), (30, 64), (64, 64), (20, 60), (60, 20), (48, 64), (64, 48), (33, 50), (50, 64)]


class Memory:
    """A reader of an image that is drawn anew each time; goes to worker processes with its sample."""

    def __init__(self, height: int, width: int, seed: int) -> None:
        self.arguments = height, width, seed

    def __call__(self) -> np.ndarray:
        noise = np.random.default_rng(self.arguments[2]).integers(0, 256, (*self.arguments[:2], 3))
        return noise.astype(np.uint8)


def memory_sample(seed: int, height: int, width: int) -> Sample:
    """A sample whose first box has the seed as its class, so that it can be known again."""
    rng = np.random.default_rng(seed)
    boxes = rng.uniform(0.3, 0.6, (seed % 6, 5)).astype(np.float32)
    boxes[:, 0] = seed
    return Sample(name=f"{seed}.png", size=(height, width), boxes=boxes, reader=Memory(height, width, seed))
