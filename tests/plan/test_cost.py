"""What a step costs: operations against a count by hand, what freezing takes away, how the largest batch is found."""

import dataclasses
import math
from collections import Counter

import jax
import pytest

from yolojax.config import configs_root
from yolojax.freezing.labels import FROZEN
from yolojax.freezing.load import load_strategy, rehearse
from yolojax.freezing.phases import make_phase
from yolojax.freezing.selectors import layer_of
from yolojax.model.network import abstract_variables
from yolojax.model.spec import load_spec
from yolojax.plan.cost import StepShape, largest_batch, step_cost, step_flops, weight_gradients
from yolojax.tree import flatten

SHAPE = StepShape(batch=4, size=160, dtype="float32", boxes=16, frozen_bn="fixed")


def shapes_of(spec):
    return {path: leaf.shape for path, leaf in flatten(abstract_variables(spec)["params"]).items()}


def phase_of(spec, freeze):
    return make_phase(tuple(shapes_of(spec)), freeze=freeze)


# --- Operations, counted by hand -------------------------------------------------------------------------------------------------------------

# Per element of a BatchNorm with SiLU, from the formulas in model/normalisation.py: a reduction counts one per element, a logistic function three.
FORWARD = {"batch": 11, "fixed": 7}
BACKWARD = {"batch": 18, "fixed": 12}


class Count:
    """Goes through the network as it is computed and adds up; a value is ``(height, channels, whether a gradient flows into it)``."""

    def __init__(self, spec, phase, shape):
        self.spec, self.shape, self.labels = spec, shape, dict(phase.labels)
        self.adapters, self.total = phase.adapters, 0.0
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
        adapter = self.adapters.get(f"{path}/kernel")
        learns = self.trains(f"{path}/kernel")
        self.total += product * (1 + learns + flows)
        if adapter:
            # Down, once more in the backward pass, its gradient and that of its input; up with both gradients, one of them down's; and the sum of both.
            self.total += product / outputs * adapter.rank * (3 + flows)
            self.total += 2 * self.elements((out, outputs)) * adapter.rank * 3 + self.elements((out, outputs))
        return out, outputs, flows or learns or bool(adapter)

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
                    value = (
                        value[0],
                        sum(level_input[1] for level_input in entering),
                        any(level_input[2] for level_input in entering),
                    )
                case "Detect":
                    for level, level_input in enumerate(entering):
                        head = self.convolution(f"{path}/m_{level}", level_input)
                        flows = head[2] or self.trains(f"{path}/m_{level}/bias")
                        # Logits, and the cross-entropy of objectness on one in 5 + classes of them.
                        self.total += self.elements(head) * (1 + flows + 20 / (5 + self.spec.classes))
            # Gradients of several users are added.
            self.total += self.elements(value) * (users[layer.index] - 1) * value[2] if users[layer.index] else 0
            outputs.append(value)
        trained = sum(math.prod(self.sizes[path]) for path in self.sizes if self.trains(path))
        return self.total + 20 * trained  # norm, clip, decay, momentum, update, average


STRATEGIES = sorted(file.stem for file in (configs_root() / "freezing").glob("*.yaml"))


def check_strategies(spec, shape, strategies):
    counted = {}
    for name in strategies:
        for start, phase in rehearse(load_strategy(name), tuple(shapes_of(spec)), 20, spec.name):
            trained = frozenset(path for path, label in phase.labels.items() if label != FROZEN)
            if trained not in counted:
                counted[trained] = step_flops(spec, phase, shape) / Count(spec, phase, shape).run()
            assert abs(counted[trained] - 1) < 0.05, (name, start, counted[trained])


@pytest.mark.long
def test_every_phase_of_every_strategy_costs_what_a_count_by_hand_says(tiny_model):
    assert len(STRATEGIES) >= 13
    check_strategies(load_spec(tiny_model), SHAPE, STRATEGIES)


def test_batch_statistics_of_frozen_layers_are_counted(tiny_model):
    check_strategies(load_spec(tiny_model), dataclasses.replace(SHAPE, frozen_bn="track"), ["backbone", "neck_only"])


@pytest.mark.slow
@pytest.mark.parametrize("frozen_bn", ["fixed", "track"])
def test_every_phase_of_every_strategy_on_yolov5n(frozen_bn):
    shape = dataclasses.replace(SHAPE, size=320, frozen_bn=frozen_bn)
    check_strategies(load_spec("yolov5n", classes=20), shape, STRATEGIES)


# --- What freezing takes away ----------------------------------------------------------------------------------------------------------------


def check_prefixes(spec, shape, depths):
    """Operations and temporary memory at every prefix, and which gradients are computed: less at every layer that has parameters."""
    device = jax.devices("cpu")[0]
    sizes = shapes_of(spec)
    owned = {layer_of(path) for path in sizes}
    before = None
    for depth in depths:
        if depth and depth - 1 not in owned:
            continue  # the same labels, so the same step
        cost = step_cost(spec, phase_of(spec, depth), shape, device)
        kernels = {path for path in sizes if path.endswith("/kernel") and layer_of(path) >= depth}
        assert set(cost.weight_gradients) == kernels
        assert cost.trainable == sum(math.prod(shape) for path, shape in sizes.items() if layer_of(path) >= depth)
        assert cost.optimizer_bytes == 8 * cost.trainable  # momentum, and the sum over the batches of an update
        if before is not None:
            assert cost.flops < before.flops, depth
            assert cost.memory.temporary < before.memory.temporary, depth
            assert cost.memory.peak < before.memory.peak, depth
        before = cost


@pytest.mark.long
def test_frozen_layers_save_operations_and_memory(tiny_model):
    check_prefixes(load_spec(tiny_model), SHAPE, (0, 3, 6))


@pytest.mark.slow
def test_every_frozen_layer_of_yolov5n_saves_operations_and_memory():
    check_prefixes(load_spec("yolov5n", classes=20), dataclasses.replace(SHAPE, batch=8, size=320), range(25))


def test_a_block_in_the_middle_saves_its_weight_gradients_alone(tiny_model):
    spec = load_spec(tiny_model)
    shape = dataclasses.replace(SHAPE, frozen_bn="track")
    everything, block = (step_flops(spec, phase_of(spec, freeze), shape) for freeze in ("0", "[3]"))
    height, inputs, outputs = shape.size // 8, 16, 24
    gradient = 2 * (3 * height - 1) ** 2 * inputs * outputs * shape.batch
    assert 0.95 < (everything - block) / gradient < 1.1


# --- Reading a program -----------------------------------------------------------------------------------------------------------------------

PROGRAM = """
  %a = bf16[8] custom-call(%x, %y), metadata={op_name="jit(step)/transpose(jvp(Network))/model_3/conv/cond/branch_0_fun/kernel_gradient/transpose()/conv"}
  %b = bf16[8] convolution(%x, %y), metadata={op_name="jit(step)/transpose(jvp(Network))/model_3/conv/cond/branch_0_fun/images_gradient/conv"}
  %c = bf16[8] convolution(%x, %y), metadata={op_name="jit(step)/jvp(Network)/model_3/conv/cond/branch_0_fun/conv"}
  %d = f32[8] dot(%x, %y), metadata={op_name="jit(step)/transpose(jvp(Network))/model_24/m_0/cond/branch_1_fun/kernel_gradient/dot"}
  %e = f32[8] dot(%x, %y), metadata={op_name="jit(step)/transpose(jvp(Network))/model_24/m_0/cond/branch_1_fun/kernel_gradient/dot"}
  %f = f32[8] copy(%e), metadata={op_name="jit(step)/transpose(jvp(Network))/model_24/m_0/cond/branch_1_fun/kernel_gradient/copy"}
  %g = f32[8] copy(%x), metadata={op_name="jit(step)/transpose(jvp(Network))/model_9/cv2/conv/cond/branch_1_fun/kernel_gradient/copy"}
"""


def test_remat_computes_more(tiny_model):
    spec = load_spec(tiny_model)
    plain, again = (
        step_flops(spec, phase_of(spec, "0"), dataclasses.replace(SHAPE, remat=remat)) for remat in (False, True)
    )
    assert plain < again < 1.1 * plain


def test_weight_gradients_are_counted_by_kernel():
    assert weight_gradients(PROGRAM) == {
        "model_3/conv/kernel": 1,
        "model_24/m_0/kernel": 2,
        "model_9/cv2/conv/kernel": 1,
    }


# --- The largest batch -----------------------------------------------------------------------------------------------------------------------


def search(peak, limit, first, **options):
    asked = []

    def measured(batch):
        asked.append(batch)
        return peak(batch)

    largest = largest_batch(measured, limit, {first: peak(first)}, **options)
    return largest, asked


@pytest.mark.parametrize("first", [1, 16, 48, 600])
@pytest.mark.parametrize("limit", [1_000, 10_000, 63_123])
def test_on_a_line_it_is_found_at_once(limit, first):
    largest, asked = search(lambda batch: 300 + 120 * batch, limit, first)
    best = (limit - 300) / 120
    assert best - 8 - limit / 5000 < largest <= best
    assert largest < 8 or largest % 8 == 0
    assert len(asked) <= 3


def test_whatever_is_given_fits_and_was_asked_for():
    def peak(batch):  # a full memory grows slower, because more is computed again
        return 500 * batch if batch < 100 else 50_000 + 300 * (batch - 100)

    largest, asked = search(peak, 64_000, 16)
    assert largest in asked
    assert 0.95 * 64_000 < peak(largest) <= 64_000


def test_small_batches_may_mislead():
    peak = {48: 1_392, 96: 1_505}.get  # measured on a TPU; from there on the slope is ten times as steep

    def measured(batch):
        return peak(batch) or 1_200 + 10 * batch

    largest, _ = search(measured, 16_911, 48)
    assert 0.9 * 16_911 < measured(largest) <= 16_911


def test_a_compiler_that_refuses_gives_no_figure():
    largest, asked = search(lambda batch: 10 * batch if batch <= 100 else None, 5_000, 64, tries=8)
    assert largest == 96
    assert len(asked) <= 5


def test_a_batch_that_is_given_may_be_the_largest():
    assert search(lambda batch: 100 * batch, 1_219, 12) == (12, [])


def test_nothing_fits():
    assert search(lambda batch: 100 + batch, 50, 16, tries=8)[0] == 0
    assert search(lambda batch: None, 50, 16, tries=8)[0] == 0
