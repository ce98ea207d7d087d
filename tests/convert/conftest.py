"""Checkpoints as each generation of YOLOv5 wrote them, in miniature; built apart from the code under test."""

import sys
from types import ModuleType

import pytest

ARCHITECTURE = {
    "nc": 3,
    "depth_multiple": 0.33,
    "width_multiple": 0.25,
    "anchors": [[10, 13, 16, 30], [30, 61, 62, 45]],
    "backbone": [
        [-1, 1, "Conv", [64, 6, 2, 2]],
        [-1, 1, "Conv", [128, 3, 2]],
        [-1, 3, "C3", [128]],
        [-1, 1, "Conv", [256, 3, 2]],
        [-1, 1, "SPPF", [256, 5]],
    ],
    "head": [
        [-1, 1, "Conv", [128, 1, 1]],
        [-1, 1, "nn.Upsample", ["None", 2, "nearest"]],
        [[-1, 2], 1, "Concat", [1]],
        [-1, 3, "C3", [128, False]],
        [[8, 4], 1, "Detect", ["nc", "anchors"]],
    ],
    "ch": 3,
}


class Builder:
    """Makes modules and models whose classes carry the original's names."""

    def __init__(self, torch, monkeypatch):
        self.torch, self.monkeypatch = torch, monkeypatch

    def named(self, path, base=None):
        """A new class that pickle finds at ``path``, ``models.common.Conv``."""
        parent, _, name = path.rpartition(".")
        parts = parent.split(".")
        for end in range(1, len(parts) + 1):
            package = ".".join(parts[:end])
            if package not in sys.modules:
                self.monkeypatch.setitem(sys.modules, package, ModuleType(package))
        if hasattr(sys.modules[parent], name):
            return getattr(sys.modules[parent], name)
        cls = type(name, (base or self.torch.nn.Module,), {"__module__": parent})
        self.monkeypatch.setattr(sys.modules[parent], name, cls, raising=False)
        return cls

    def model(self, kind="models.yolo.DetectionModel", names=None, classes=3, anchor_grid=False, seed=0):
        nn = self.torch.nn
        self.torch.manual_seed(seed)
        prefix = kind.partition("models.")[0]
        made = {
            name: self.named(f"{prefix}models.common.{name}") for name in ("Conv", "Bottleneck", "C3", "SPPF", "Concat")
        }

        def module(cls, **children):
            result = cls()
            for name, child in children.items():
                setattr(result, name, child)
            return result

        def conv(inputs, outputs, k=1, s=1, p=None):
            bn = nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.03)
            for tensor in (bn.weight, bn.bias, bn.running_mean, bn.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
            bn.num_batches_tracked.fill_(41)
            kernel = nn.Conv2d(inputs, outputs, k, s, k // 2 if p is None else p, bias=False)
            return module(made["Conv"], conv=kernel, bn=bn, act=nn.SiLU())

        def c3(inputs, c, shortcut):
            inner = module(made["Bottleneck"], cv1=conv(c // 2, c // 2), cv2=conv(c // 2, c // 2, 3), add=shortcut)
            halves = {"cv1": conv(inputs, c // 2), "cv2": conv(inputs, c // 2), "cv3": conv(c, c)}
            return module(made["C3"], **halves, m=nn.Sequential(inner))

        detect = module(self.named(f"{prefix}models.yolo.Detect"), nc=classes, nl=2, na=2, no=classes + 5)
        detect.m = nn.ModuleList(nn.Conv2d(c, 2 * (classes + 5), 1) for c in (32, 64))
        detect.stride = self.torch.tensor([4.0, 8.0])
        anchors = self.torch.tensor(ARCHITECTURE["anchors"]).float().view(2, 2, 2)
        detect.register_buffer("anchors", anchors / detect.stride.view(2, 1, 1))
        if anchor_grid:
            detect.register_buffer("anchor_grid", anchors.view(2, 1, 2, 1, 1, 2))
        layers = [
            conv(3, 16, 6, 2, 2),
            conv(16, 32, 3, 2),
            c3(32, 32, True),
            conv(32, 64, 3, 2),
            module(made["SPPF"], cv1=conv(64, 32), cv2=conv(128, 64), m=nn.MaxPool2d(5, 1, 2)),
            conv(64, 32),
            nn.Upsample(None, 2, "nearest"),
            module(made["Concat"], d=1),
            c3(64, 32, False),
            detect,
        ]
        model = module(self.named(kind), model=nn.Sequential(*layers), save=[2, 4, 8], stride=detect.stride)
        model.yaml = {**ARCHITECTURE, "nc": classes}
        model.names = names or [f"thing {index}" for index in range(classes)]
        return model.eval()

    def save(self, path, model, **changes):
        """Write the file that train.py leaves after stripping the optimizer."""
        self.torch.save({"epoch": -1, "model": model, "ema": None, "optimizer": None, **changes}, path)
        return path


@pytest.fixture
def builder(monkeypatch):
    return Builder(pytest.importorskip("torch"), monkeypatch)
