"""What a step costs: operations against a count by hand, what freezing takes away, how the largest batch is found."""

import dataclasses
import math
from collections import Counter

import pytest

from yolojax.config import configs_root
from yolojax.freezing.labels import FROZEN
from yolojax.freezing.phases import make_phase
from yolojax.freezing.strategies import load_strategy, rehearse
from yolojax.freezing.tree import flatten
from yolojax.model.network import abstract_variables
from yolojax.model.spec import load_spec
from yolojax.study.cost import StepShape, step_flops

SHAPE = StepShape(batch=4, size=160, dtype="float32", boxes=16, frozen_bn="fixed")


def shapes_of(spec):
    return {path: leaf.shape for path, leaf in flatten(abstract_variables(spec)["params"]).items()}


def phase_of(spec, freeze):
    return make_phase(tuple(shapes_of(spec)), freeze=freeze)


# --- Operations, counted by hand -------------------------------------------------------------------------------------------------------------

# Per element of a BatchNorm with SiLU, from the formulas in model/normalisation.py; a reduction counts one per element, an exponential none.
FORWARD = {"batch": 8, "fixed": 4}
BACKWARD = {"batch": 15, "fixed": 9}


class Count:
    """Goes through the network as it is computed and adds up; a value is ``(height, channels, whether a gradient flows into it)``."""

    def __init__(self, spec, phase, shape):
        self.spec, self.shape, self.labels = spec, shape, dict(phase.labels)
        self.rank, self.total = phase.adapter_rank, 0.0
        self.sizes = shapes_of(spec)

    def trains(self, path):
        return self.labels.get(path, FROZEN) != FROZEN

    def elements(self, value):
        return self.shape.batch * value[0] ** 2 * value[1]

    def convolution(self, path, value, stride=1, padding=0):
        side, _, inputs, outputs = self.sizes[f"{path}/kernel"]
        height, _, flows = value
        out = (height + 2 * padding - side) // stride + 1
        # Pairs of a place of the kernel and a place of the output that meet inside the image, along one axis.
        met = sum(0 <= place * stride + tap - padding < height for place in range(out) for tap in range(side))
        product = 2 * met**2 * inputs * outputs * self.shape.batch
        folder = path
        adapted = self.trains(f"{folder}/adapter/down")
        learns = self.trains(f"{path}/kernel") or adapted
        self.total += product * (1 + learns + flows)
        if adapted:
            self.total += 3 * 2 * side * side * inputs * outputs * self.rank
        return out, outputs, flows or learns

    def conv(self, path, value, stride=1, padding=0):
        out, channels, flows = self.convolution(f"{path}/conv", value, stride, padding)
        bn = [f"{path}/bn/{leaf}" for leaf in ("scale", "bias")]
        mode = "batch" if self.shape.frozen_bn == "track" or any(map(self.trains, bn)) else "fixed"
        flows = flows or any(map(self.trains, bn))
        result = (out, channels, flows)
        self.total += self.elements(result) * (FORWARD[mode] + BACKWARD[mode] * flows)
        return result

    def c3(self, path, value, layer):
        y = self.conv(f"{path}/cv1", value)
        for index in range(layer.repeats):
            z = self.conv(f"{path}/m_{index}/cv1", y)
            z = self.conv(f"{path}/m_{index}/cv2", z, padding=1)
            if layer.shortcut:
                self.total += self.elements(y) * (1 + y[2])  # the sum, and that of the two gradients of what enters
            y = (*z[:2], y[2] or z[2]) if layer.shortcut else z
        other = self.conv(f"{path}/cv2", value)
        self.total += self.elements(value) * value[2]
        return self.conv(f"{path}/cv3", (y[0], y[1] + other[1], y[2] or other[2]))

    def run(self):
        outputs, users = [], Counter(source for layer in self.spec.resolved for source in layer.sources)
        self.total += 2 * self.shape.batch * self.shape.size**2 * 3  # to 0…1
        for layer in self.spec.resolved:
            path = f"model_{layer.index}"
            entering = [outputs[source] if source >= 0 else (self.shape.size, 3, False) for source in layer.sources]
            value = entering[0]
            match layer.module:
                case "Conv":
                    value = self.conv(path, value, layer.stride, layer.padding)
                case "C3":
                    value = self.c3(path, value, layer)
                case "SPPF":
                    value = self.conv(f"{path}/cv1", value)
                    # Eight maxima each; their gradients are comparisons, selections and sums.
                    self.total += 3 * self.elements(value) * 8 * (1 + 8 * value[2])
                    value = self.conv(f"{path}/cv2", (value[0], 4 * value[1], value[2]))
                case "Upsample":
                    value = (value[0] * layer.stride, *value[1:])
                    self.total += self.elements(value) * value[2]
                case "Concat":
                    value = (value[0], sum(one[1] for one in entering), any(one[2] for one in entering))
                case "Detect":
                    for level, one in enumerate(entering):
                        head = self.convolution(f"{path}/m_{level}", one)
                        flows = head[2] or self.trains(f"{path}/m_{level}/bias")
                        # Logits, and the cross-entropy of objectness on one in 5 + classes of them.
                        self.total += self.elements(head) * (1 + flows + 20 / (5 + self.spec.classes))
            # Gradients of several users are added.
            self.total += self.elements(value) * (users[layer.index] - 1) * value[2] if users[layer.index] else 0
            outputs.append(value)
        trained = sum(math.prod(self.sizes[path]) for path in self.sizes if self.trains(path))
        return self.total + 20 * trained  # norm, clip, decay, momentum, update, average


@pytest.mark.parametrize("frozen_bn", ["fixed", "track"])
def test_every_phase_of_every_strategy_costs_what_a_count_by_hand_says(frozen_bn):
    spec = dataclasses.replace(load_spec("yolov5n", classes=20), depth_multiple=0.1)
    shape = dataclasses.replace(SHAPE, batch=8, size=320, frozen_bn=frozen_bn)
    strategies = sorted(file.stem for file in (configs_root() / "freezing").glob("*.yaml"))
    assert len(strategies) >= 13
    counted = {}
    for name in strategies:
        for start, phase in rehearse(load_strategy(name), tuple(shapes_of(spec)), 20, spec.name):
            trained = frozenset(path for path, label in phase.labels if label != FROZEN)
            if trained not in counted:
                counted[trained] = step_flops(spec, phase, shape) / Count(spec, phase, shape).run()
            assert abs(counted[trained] - 1) < 0.05, (name, start, counted[trained])
    print({len(trained): round(ratio, 4) for trained, ratio in counted.items()})
