"""What one training step costs on one device, read from the program that the compiler makes of it; no array is ever made."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from yolojax.exchange import WHOLE_BATCH, Exchange
from yolojax.features.front import feature_bytes, feature_shapes, front_end
from yolojax.freezing.phases import Phase
from yolojax.hyperparameters import Hyperparameters
from yolojax.mesh import make_mesh, replicated, split
from yolojax.model.convolution import KERNEL_GRADIENT
from yolojax.model.network import Network, abstract_variables
from yolojax.model.spec import ModelSpec
from yolojax.plan.validation import compile_quickly, validation_programs
from yolojax.training.loss import LossSettings
from yolojax.training.optimizer import OptimizerSettings
from yolojax.training.schedule import Schedule
from yolojax.training.state import TrainState, abstract_state, enter_phase
from yolojax.training.step import TrainStep, fixed_modules, make_train_step
from yolojax.training.validator import validation_batch
from yolojax.tree import flatten


@dataclass(frozen=True, kw_only=True)
class StepShape:
    """All that a compiled step depends on besides network and phase.

    Attributes:
      batch: images per step over all devices.
      size: side of an image in pixels.
      dtype: of the computation; ``float32`` or ``bfloat16``.
      boxes: rows of the box array per image, labelled or not.
      frozen_bn: ``fixed`` or ``track``.
      optimizer: ``SGD``, ``Adam`` or ``AdamW``.
      exchange: what devices tell each other where they are several.
      remat: see ``Network``.
    """

    batch: int
    size: int
    dtype: str
    boxes: int
    frozen_bn: str
    optimizer: Any = "SGD"
    exchange: Exchange = WHOLE_BATCH
    remat: bool = False


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of a compiled program.

    Attributes:
      peak: all that it needs at once: arguments, results that take no argument's place, temporary arrays, and its code where that lies beside them.
        The workspace of cuDNN is not counted, because it is chosen on the card.
      temporary: activations, gradients and whatever else lives inside one step.
    """

    peak: int
    temporary: int


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """What one step costs.

    Attributes:
      parameters: of the network, adapters included.
      trainable: how many of them train.
      flops: floating-point operations, as XLA counts them before it optimises; the same for every device.
      optimizer_bytes: of the optimizer's state.
      memory: of the program; where the compiler refuses to make it, because it does not fit (TPU), what it says that would be needed, else None.
      weight_gradients: operations by convolution kernel whose gradient is computed; None where there is no program.
      compile_seconds: what compiling took here.
    """

    parameters: int
    trainable: int
    flops: float
    optimizer_bytes: int
    memory: Memory | None
    weight_gradients: Mapping[str, int] | None
    compile_seconds: float


def step_cost(spec: ModelSpec, phase: Phase, shape: StepShape, device: jax.Device) -> StepCost:
    """Compile the training step of a phase for a device, which may be absent, and read what it costs."""
    started = time.perf_counter()
    state, compiled, memory = compile_step(spec, phase, shape, device)
    seconds = time.perf_counter() - started
    sizes = {path: leaf.size for path, leaf in flatten(state.params).items()}
    return StepCost(
        parameters=sum(sizes.values()),
        trainable=sum(size for path, size in sizes.items() if phase.trains(path)),
        flops=step_flops(spec, phase, shape),
        optimizer_bytes=_bytes(state.moving.opt_state),
        memory=memory,
        weight_gradients=weight_gradients(compiled.as_text()) if compiled else None,
        compile_seconds=seconds,
    )


def training_peak(spec: ModelSpec, phase: Phase, shape: StepShape, device: jax.Device) -> int | None:
    """Bytes that a training needs at once, in its step or in its validation; None where the compiler refuses one and does not say what it would need."""
    memory = compile_step(spec, phase, shape, device)[2]
    validating = validation_bytes(spec, phase, shape, device)
    return None if memory is None or validating is None else max(memory.peak, validating)


def validation_bytes(spec: ModelSpec, phase: Phase, shape: StepShape, device: jax.Device) -> int | None:
    """What a validation between two epochs needs at once, the state of the training included, with batches of ``validator.validation_batch``.

    It predicts and, on an accelerator, suppresses. None where the compiler refuses it for its memory.
    """
    state = _abstract_step(spec, phase, shape, device)[1]
    on_cpu = device.platform == "cpu"
    count = validation_batch(shape.batch, shape.size, on_cpu=on_cpu)
    try:
        programs = validation_programs(
            spec, device, batch=count, size=(shape.size, shape.size), dtype=shape.dtype, with_nms=not on_cpu
        )
    except jax.errors.JaxRuntimeError as error:
        if not _is_too_large(error):
            raise
        return None
    memory: dict[str, Any] = {name: program.memory_analysis() for name, program in programs.items()}
    # Predictions stay while the next program runs; the averages that are validated are a part of the state already.
    own = (
        memory["predict"].temp_size_in_bytes,
        *(nms.temp_size_in_bytes + nms.output_size_in_bytes for nms in [memory.get("nms")] if nms),
    )
    images = count * shape.size**2 * 3
    return _bytes(state) + images + memory["predict"].output_size_in_bytes + max(own)


def step_flops(spec: ModelSpec, phase: Phase, shape: StepShape, start: int = 0) -> float:
    """Floating-point operations of a step, counted by XLA in the program as it is lowered for CPU; nothing is compiled.

    Positions of a kernel outside the image are not counted, elementwise operations are. (GPU programs do not tell their operations.) With ``start`` those
    of a step that reads the features of the layers before it.
    """
    with jax.default_device(jax.devices("cpu")[0]):
        step, state, batch = _abstract_step(spec, phase, shape, start=start)
        return (step.lower(state, batch, phase.factors).cost_analysis() or {})["flops"]


@dataclass(frozen=True, kw_only=True)
class FeatureCost:
    """What keeping features saves and takes.

    Attributes:
      start: the layer that follows the front part.
      image_bytes: of one view of an image.
      flops: of a step that reads features.
      view_flops: of computing the features of as many images as a batch has.
    """

    start: int
    image_bytes: int
    flops: float
    view_flops: float


def feature_cost(spec: ModelSpec, phase: Phase, shape: StepShape) -> FeatureCost | None:
    """The cost of a phase whose features are kept, counted as ``step_flops`` does; None where it has no front part."""
    start = front_end(spec, phase, fixed_modules(phase, shape.frozen_bn))
    if not start:
        return None
    dtype = jnp.dtype(shape.dtype)
    network = Network(spec, dtype=dtype, end=start)
    images = jax.ShapeDtypeStruct((shape.batch, shape.size, shape.size, 3), jnp.float32)
    with jax.default_device(jax.devices("cpu")[0]):
        front = jax.jit(network.apply).lower(abstract_variables(spec), images)
    return FeatureCost(
        start=start,
        image_bytes=feature_bytes(spec, start, (shape.size, shape.size), dtype.itemsize),
        flops=step_flops(spec, phase, shape, start),
        view_flops=(front.cost_analysis() or {})["flops"],
    )


def _abstract_step(
    spec: ModelSpec, phase: Phase, shape: StepShape, *devices: jax.Device, start: int = 0
) -> tuple[TrainStep, Any, Any]:
    """The step that a run would compile, and the shapes of its state and batch, placed on the devices that share it."""
    hyp = Hyperparameters()
    mesh = make_mesh(devices) if devices else None
    optimizer = OptimizerSettings.from_hyperparameters(hyp, batch_size=shape.batch, name=shape.optimizer)
    fixed_bn = fixed_modules(phase, shape.frozen_bn)
    step = make_train_step(
        Network(spec, dtype=jnp.dtype(shape.dtype), fixed_bn=fixed_bn, start=start, remat=shape.remat),
        phase.tree(),
        LossSettings.from_hyperparameters(hyp, spec, shape.size),
        optimizer,
        Schedule.from_hyperparameters(hyp, epochs=100, batches_per_epoch=100, batch_size=shape.batch),
        mesh,
        shape.exchange,
    )
    variables = jax.eval_shape(lambda plain: enter_phase(plain, phase, jax.random.key(0)), abstract_variables(spec))
    state = abstract_state(variables, phase.tree(), optimizer, fixed_bn, scaled=shape.dtype == "float16")
    features = [
        jax.ShapeDtypeStruct((shape.batch, *feature), jnp.dtype(shape.dtype))
        for feature in feature_shapes(spec, start, (shape.size, shape.size))
    ]
    images = jax.ShapeDtypeStruct((shape.batch, shape.size, shape.size, 3), jnp.uint8)
    batch = {
        **({"features": tuple(features)} if start else {"images": images}),
        "boxes": jax.ShapeDtypeStruct((shape.batch, shape.boxes, 5), jnp.float32),
        "mask": jax.ShapeDtypeStruct((shape.batch, shape.boxes), jnp.bool_),
    }
    if mesh is None:
        return step, state, batch
    return step, _placed(state, replicated(mesh)), _placed(batch, split(mesh))


def _placed(tree: Any, sharding: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def compile_step(
    spec: ModelSpec, phase: Phase, shape: StepShape, *devices: jax.Device
) -> tuple[TrainState, Any, Memory | None]:
    """The abstract state, the step compiled for devices that share it, and the memory of each; without a step where the compiler refuses it for its memory."""
    step, state, batch = _abstract_step(spec, phase, shape, *devices)
    try:
        compiled = compile_quickly(step.lower(state, batch, phase.factors), devices[0])
    except jax.errors.JaxRuntimeError as error:
        if not _is_too_large(error):
            raise
        temporary = needed_temporaries(str(error))
        arguments = _bytes((state, batch))
        return state, None, None if temporary is None else Memory(peak=arguments + temporary, temporary=temporary)
    sizes: Any = compiled.memory_analysis()
    own_results = sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    # The peak that programs report leaves out temporary arrays on CPU.
    peak = sizes.argument_size_in_bytes + own_results + sizes.temp_size_in_bytes + sizes.generated_code_size_in_bytes
    return state, compiled, Memory(peak=peak, temporary=sizes.temp_size_in_bytes)


def _is_too_large(error: Exception) -> bool:
    return "RESOURCE_EXHAUSTED" in str(error) or "Ran out of memory" in str(error)


def needed_temporaries(refusal: str) -> int | None:
    """Bytes of temporary arrays that a TPU's compiler would have needed, from its message; None where it does not say.

    >>> needed_temporaries("total memory required for HLO temporaries (31.50G) exceeds available HBM (15.75G)")
    33822867456
    """
    size = re.search(r"HLO temporaries \(([\d.]+)([KMG])\)", refusal)
    return int(float(size[1]) * 1024 ** (1 + "KMG".index(size[2]))) if size else None


_GRADIENT = re.compile(rf'op_name="[^"]*?/(model_\d+(?:/\w+)*?)(?:/cond/branch_\d+_fun)?/{KERNEL_GRADIENT}/')
_PRODUCT = re.compile(r" (?:convolution|dot|custom-call)\(")


def weight_gradients(program: str) -> dict[str, int]:
    """The convolution kernels whose gradient a compiled program computes.

    Args:
      program: optimised HLO as text.

    Returns:
      Number of convolutions and matrix products by path of the kernel (``model_0/conv/kernel``), at least 1. For GPU and TPU there is exactly one; on
      CPU the gradient of a kernel with a stride may take several, and the one of a 3×3 kernel stands in a fused operation.
    """
    counts: dict[str, int] = {}
    for line in program.splitlines():
        if match := _GRADIENT.search(line):
            path = f"{match[1]}/kernel"
            counts[path] = counts.get(path, 0) + bool(_PRODUCT.search(line))
    return {path: max(count, 1) for path, count in counts.items()}


def largest_batch(
    peak: Callable[[int], int | None], limit: int, asked: Mapping[int, int | None], tries: int = 4
) -> int:
    """The largest batch that fits, by two per cent of the memory or so, from a line that is drawn through the batches that are known.

    Args:
      peak: bytes that a batch needs; None where that is not known and too much.
      limit: bytes that there are.
      asked: what is known of at least one batch.
      tries: how often ``peak`` may be called.

    Returns:
      A batch whose need is known and fits, a multiple of 8 where it was not given in ``asked`` and is 8 or more; 0 where none is known to fit.
    """
    asked = dict(asked)
    for _ in range(tries):
        batch = _guess(asked, limit)
        if batch in asked or batch == 0:
            break
        asked[batch] = peak(batch)
    return max((batch for batch, needed in asked.items() if needed is not None and needed <= limit), default=0)


def _guess(asked: Mapping[int, int | None], limit: int) -> int:
    """The batch to ask for next; one that is known, or 0, where there is nothing to gain."""
    measured = {batch: needed for batch, needed in asked.items() if needed is not None}
    fitting = [batch for batch, needed in measured.items() if needed <= limit]
    low, high = max(fitting, default=0), min((batch for batch in asked if batch not in fitting), default=None)
    if low and measured[low] >= 0.98 * limit:
        return low
    # The line goes through the two on either side of the limit, else through the two that are nearest to it.
    sides = (
        [low, high]
        if low and high in measured
        else sorted(measured, key=lambda batch: abs(measured[batch] - limit))[:2]
    )
    if len(sides) == 2 and measured[sides[0]] != measured[sides[1]]:
        low_side, high_side = sides
        # A little less than the limit, because a program that just does not fit was compiled for nothing.
        slope = (high_side - low_side) / (measured[high_side] - measured[low_side])
        guess = low_side + (0.99 * limit - measured[low_side]) * slope
    else:
        guess = 2 * low or (high or 0) / 2
    if high is not None and guess >= high:
        guess = (low + high) / 2
    whole = int(guess) if guess < 8 else int(guess) // 8 * 8
    return max(whole, low)
