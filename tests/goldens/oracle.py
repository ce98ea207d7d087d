"""The original, run as an oracle: models, losses and training loops whose figures become goldens.

Runs where PyPI ``yolov5==7.0.14`` is installed, never in the project's own environment. It calls the original's public
functions; the training loop is written from what the original is known to compute, and drives the original's own
optimizer, loss and moving average.
"""

import contextlib
import io
import logging
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import yolov5

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import seeding
from yolov5.models.yolo import DetectionModel
from yolov5.utils.general import one_cycle
from yolov5.utils.loss import ComputeLoss
from yolov5.utils.torch_utils import ModelEMA, smart_optimizer

from convert import names

logging.getLogger("yolov5").setLevel(logging.ERROR)
torch.set_num_threads(1)
Arrays = dict[str, np.ndarray]

SCRATCH_LOW = {
    "lr0": 0.01, "lrf": 0.01, "momentum": 0.937, "weight_decay": 0.0005,
    "warmup_epochs": 3.0, "warmup_momentum": 0.8, "warmup_bias_lr": 0.1,
    "box": 0.05, "cls": 0.5, "cls_pw": 1.0, "obj": 1.0, "obj_pw": 1.0, "anchor_t": 4.0, "fl_gamma": 0.0,
}  # fmt: skip
FINETUNE = SCRATCH_LOW | {
    "lr0": 0.0032, "lrf": 0.12, "momentum": 0.843, "weight_decay": 0.00036,
    "warmup_epochs": 2.0, "warmup_momentum": 0.5, "warmup_bias_lr": 0.05,
    "box": 0.0296, "cls": 0.243, "cls_pw": 0.631, "obj": 0.301, "obj_pw": 0.911, "anchor_t": 2.91,
}  # fmt: skip


@contextlib.contextmanager
def precision(dtype: torch.dtype) -> Iterator[None]:
    """The oracle creates its accumulators in the default dtype: float64 has to be the default to be float64 throughout."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def build(size: str, classes: int) -> DetectionModel:
    """A model of the original from the architecture file it ships, ``n`` to ``x`` and ``n6`` to ``x6``."""
    folder = Path(yolov5.__file__).parent / "models" / ("hub" if size.endswith("6") else ".")
    with contextlib.redirect_stdout(io.StringIO()):
        return DetectionModel(str(folder / f"yolov5{size}.yaml"), ch=3, nc=classes)


def seeded(size: str, classes: int, seed: int, dtype: torch.dtype = torch.float64) -> DetectionModel:
    """The same with the weights of ``seeding``."""
    model = build(size, classes)
    state = model.state_dict()
    for name, tensor in state.items():
        if not names.is_buffer(name):
            values = seeding.array(names.to_path(name)[1], names.to_jax(tensor.numpy()).shape, seed)
            state[name] = torch.from_numpy(names.to_torch(values))
    model.load_state_dict(state)
    return model.to(dtype)


def pretrained(file: Path, dtype: torch.dtype = torch.float64) -> DetectionModel:
    """The published yolov5n."""
    model = build("n", 80)
    state = torch.load(file, map_location="cpu")["model"].float().state_dict()
    model.load_state_dict({name: tensor for name, tensor in state.items() if not name.endswith("anchor_grid")})
    return model.to(dtype)


def paths(tensors: Mapping[str, torch.Tensor]) -> Arrays:
    """Tensors by PyTorch name as arrays by parameter path, buffers left out."""
    return {
        names.to_path(name)[1]: names.to_jax(tensor.detach().numpy())
        for name, tensor in tensors.items()
        if not names.is_buffer(name)
    }


def arrays(model: torch.nn.Module) -> Arrays:
    """Copies of all parameters and statistics by path."""
    return {path: values.copy() for path, values in paths(model.state_dict()).items()}


def tensor(images: np.ndarray, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """``(B, H, W, 3)`` uint8 as the network wants it."""
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).to(dtype) / 255


def heads(raw: list[torch.Tensor]) -> list[np.ndarray]:
    """Raw heads ``(B, anchor, y, x, 5 + nc)`` as ``(B, y, x, anchor, 5 + nc)``."""
    return [head.detach().permute(0, 2, 3, 1, 4).contiguous().numpy() for head in raw]


def loss_of(model: DetectionModel, hyp: Mapping[str, float], size: int, label_smoothing: float = 0.0) -> ComputeLoss:
    """The original's loss with the gains scaled as its training scales them."""
    detect = model.model[-1]
    gains = {
        "box": hyp["box"] * 3 / detect.nl,
        "cls": hyp["cls"] * detect.nc / 80 * 3 / detect.nl,
        "obj": hyp["obj"] * (size / 640) ** 2 * 3 / detect.nl,
        "label_smoothing": label_smoothing,
    }
    model.hyp = dict(hyp) | gains
    return ComputeLoss(model)


def targets_of(compute: ComputeLoss, raw: list[torch.Tensor], labels: torch.Tensor) -> Arrays:
    """The original's targets, per level: cells ``(n, 4)`` image, anchor, y, x; classes ``(n,)``; boxes; anchors."""
    classes, boxes, indices, anchors = compute.build_targets(raw, labels)
    result: Arrays = {}
    for level in range(len(raw)):
        result[f"cells{level}"] = torch.stack(indices[level], 1).numpy().astype(np.int32)
        result[f"classes{level}"] = classes[level].numpy().astype(np.int32)
        result[f"boxes{level}"] = boxes[level].numpy()
        result[f"anchors{level}"] = anchors[level].numpy()
    return result


def freeze(model: DetectionModel, layers: int) -> None:
    """What ``--freeze N`` does."""
    prefixes = [f"model.{index}." for index in range(layers)]
    for name, parameter in model.named_parameters():
        parameter.requires_grad = not any(prefix in name for prefix in prefixes)


@dataclass(frozen=True)
class Timetable:
    """Learning rates, momentum and accumulation of a run, set on an optimizer of the original iteration by iteration."""

    hyp: Mapping[str, float]
    epochs: int
    batches: int
    batch_size: int
    cosine: bool = False

    @property
    def warmup(self) -> int:
        return max(round(self.hyp["warmup_epochs"] * self.batches), 100)

    @property
    def accumulate(self) -> int:
        return max(round(64 / self.batch_size), 1)

    @property
    def weight_decay(self) -> float:
        return self.hyp["weight_decay"] * self.batch_size * self.accumulate / 64

    def factor(self) -> Callable[[float], float]:
        final = self.hyp["lrf"]
        if self.cosine:
            return one_cycle(1, final, self.epochs)
        return lambda epoch: (1 - epoch / self.epochs) * (1.0 - final) + final

    def optimizer(self, model: torch.nn.Module, name: str = "SGD") -> torch.optim.Optimizer:
        return smart_optimizer(model, name, self.hyp["lr0"], self.hyp["momentum"], self.weight_decay)

    def iterations(self, optimizer: torch.optim.Optimizer) -> Iterator[tuple[int, int, int]]:
        """Yields ``(iteration, index in the epoch, accumulation)`` with the optimizer's groups set."""
        factor = self.factor()
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lr_lambda=factor)
        scheduler.last_epoch = -1
        accumulate = self.accumulate
        for epoch in range(self.epochs):
            for index in range(self.batches):
                iteration = index + self.batches * epoch
                if iteration <= self.warmup:
                    span = [0, self.warmup]
                    accumulate = max(1, round(np.interp(iteration, span, [1, 64 / self.batch_size])))
                    for group, settings in enumerate(optimizer.param_groups):
                        first = self.hyp["warmup_bias_lr"] if group == 0 else 0.0
                        last = settings["initial_lr"] * factor(epoch)
                        settings["lr"] = np.interp(iteration, span, [first, last])
                        settings["momentum"] = np.interp(
                            iteration, span, [self.hyp["warmup_momentum"], self.hyp["momentum"]]
                        )
                yield iteration, index, accumulate
            scheduler.step()

    def table(self) -> Arrays:
        """Per iteration: rates of biases and of weights, momentum, accumulation and whether the optimizer steps."""
        parameters = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1), torch.nn.BatchNorm2d(1))
        optimizer = self.optimizer(parameters)
        rows, last = [], -1
        for iteration, _, accumulate in self.iterations(optimizer):
            steps = iteration - last >= accumulate
            last = iteration if steps else last
            bias, weight, norm = optimizer.param_groups
            assert weight["lr"] == norm["lr"]
            rows.append((bias["lr"], weight["lr"], weight["momentum"], accumulate, steps))
            optimizer.step()
        table = np.array(rows, np.float64)
        columns = ("bias_learning_rate", "learning_rate", "momentum", "accumulate", "steps")
        return dict(zip(columns, table.T, strict=True)) | {"weight_decay": np.float64(self.weight_decay)}


@dataclass(frozen=True)
class Trajectory:
    """A training run: loss parts per iteration ``(n, 4)`` box, obj, cls, total; final model and moving average."""

    losses: np.ndarray
    norms: np.ndarray
    model: Arrays
    average: Arrays
    updates: int


def train(
    model: DetectionModel, timetable: Timetable, batches: list[tuple[np.ndarray, np.ndarray]], layers: int
) -> Trajectory:
    """Trains on fixed batches of ``(images, rows of labels)``, one per place in the epoch, with ``layers`` frozen."""
    model = deepcopy(model)
    freeze(model, layers)
    optimizer = timetable.optimizer(model)
    average = ModelEMA(model)
    compute = loss_of(model, timetable.hyp, batches[0][0].shape[1])
    losses, norms, last = [], [], -1
    for iteration, index, accumulate in timetable.iterations(optimizer):
        if index == 0:
            model.train()
            optimizer.zero_grad()
        images, labels = batches[index]
        total, parts = compute(model(tensor(images)), torch.from_numpy(labels))
        total.backward()
        losses.append([*parts.tolist(), total.item()])
        if iteration - last >= accumulate:
            norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=10.0)))
            optimizer.step()
            optimizer.zero_grad()
            average.update(model)
            last = iteration
    assert math.isfinite(sum(map(sum, losses)))
    return Trajectory(np.array(losses), np.array(norms), arrays(model), arrays(average.ema), average.updates)
