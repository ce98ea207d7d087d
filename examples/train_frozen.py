"""Fine-tune with the backbone frozen, and prove that nothing frozen moved.

python examples/train_frozen.py            # embedded weights and data; a few minutes on two CPU cores
"""

from __future__ import annotations

from typing import Any

from yolojax.freezing.audit import compare, moved_paths
from yolojax.freezing.selectors import select
from yolojax.training.loop import train
from yolojax.training.settings import TrainSettings
from yolojax.tree import flatten
from yolojax.weights.find import load_weights


def main(weights: str = "yolov5n-shapes", freeze: str = "10", **flags: Any) -> None:
    """Train and compare; ``flags`` are further settings, as in ``main(data="my-data.yaml", epochs=30)``."""
    result = train(TrainSettings(weights=weights, freeze=(freeze,), name="frozen", **flags))

    before, after = load_weights(weights), load_weights(result["weights"])
    paths = tuple(flatten(before.variables["params"]))
    frozen = select(freeze, paths)
    moved = moved_paths(compare(before.variables, after.variables), frozen, paths)
    print(f"mAP50 {result['best']['map50']:.3f}; {len(frozen)} of {len(paths)} parameters frozen, {len(moved)} moved")


if __name__ == "__main__":
    main()
