"""What the kernels of a compiled program compute and move.

A kernel is an instruction of the entry computation that does something: it reads its operands from the memory of the device and writes its results to it.
Inside a fusion nothing is written, so a fusion counts by what goes in and out of it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from benchmarks.hlo import Computation, Instruction, Program, Shape, numbers, text_of

# A GPU reads its memory in pieces of this size.
SECTOR = 32
# fmt: off
_FREE = frozenset(
    {
        "parameter", "constant", "get-tuple-element", "tuple", "bitcast", "opt-barrier", "after-all", "iota",
        "partition-id", "replica-id", "copy-done", "async-done", "async-update", "all-reduce-done", "all-gather-done",
    }
)
_TAKES_A_PART = ("gather", "slice", "dynamic-slice")
_ONE_BY_ONE = frozenset(
    {
        "convert", "add", "subtract", "multiply", "divide", "maximum", "minimum", "select", "compare", "and", "or",
        "not", "negate", "abs", "sign", "floor", "ceil", "clamp", "power", "sqrt", "rsqrt", "exponential",
        "exponential-minus-one", "log", "log-plus-one", "logistic", "tanh",
    }
)
# fmt: on
_IN_PLACE = ("scatter", "dynamic-update-slice")


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """What one instruction costs.

    Attributes:
      name: of the instruction.
      opcode: likewise.
      op_name: where in the Python program it comes from.
      flop: operations of convolutions and matrix products, a multiplication and an addition counted as two.
      dtype: of their operands; empty without any.
      bytes: read and written.
      times: how often it runs.
    """

    name: str
    opcode: str
    op_name: str
    flop: float
    dtype: str
    bytes: float
    times: int = 1


def kernels(program: Program, rounds: int = 1) -> list[Kernel]:
    """The kernels of a program in their order; those of a loop count as often as it goes round, where that is not known ``rounds`` times."""
    return list(_kernels(program, program.entry, 1, rounds))


def _kernels(program: Program, name: str, times: int, unknown: int) -> Iterator[Kernel]:
    computation = program.computations[name]
    for instruction in computation.instructions.values():
        if instruction.opcode in _FREE:
            continue
        if instruction.opcode in ("call", "async-start"):
            called = text_of(r"(?:to_apply|calls)=%?([^\s,]+)", instruction.attributes)
            yield from _kernels(program, called, times, unknown)
        elif instruction.opcode == "while":
            rounds = text_of(r"known_trip_count\D*?(\d+)", instruction.attributes)
            body = text_of(r"body=%?([^\s,]+)", instruction.attributes)
            yield from _kernels(program, body, times * int(rounds or unknown), unknown)
        elif instruction.opcode == "conditional":
            branches = [list(_kernels(program, branch, times, unknown)) for branch in _branches(instruction)]
            yield from max(branches, key=lambda rows: sum(row.bytes * row.times for row in rows))
        else:
            flop, dtype = _flop(program, computation, instruction)
            yield Kernel(
                name=instruction.name,
                opcode=instruction.opcode,
                op_name=instruction.op_name,
                flop=flop,
                dtype=dtype,
                bytes=_written(program, instruction) + _read(program, computation, instruction),
                times=times,
            )


def _branches(instruction: Instruction) -> list[str]:
    listed = text_of(r"branch_computations=\{([^}]*)\}", instruction.attributes)
    if listed:
        return [name.strip().lstrip("%") for name in listed.split(",")]
    return re.findall(r"(?:true|false)_computation=%?([^\s,]+)", instruction.attributes)


def _called(program: Program, instruction: Instruction) -> Computation | None:
    """What a fusion computes."""
    if instruction.opcode != "fusion":
        return None
    return program.computations[text_of(r"calls=%?([^\s,]+)", instruction.attributes)]


# --- bytes -------------------------------------------------------------------------------------------------------------------------------------


def _read(program: Program, computation: Computation, instruction: Instruction) -> float:
    operands = dict.fromkeys(instruction.operands)
    return sum(_read_of(program, computation, instruction, operand) for operand in operands)


def _read_of(program: Program, computation: Computation, instruction: Instruction, operand: str) -> float:
    """What a kernel reads of one operand, at most all of it."""
    arrays = computation.instructions[operand].shapes
    whole = sum(array.bytes for array in arrays)
    if whole and (inside := _called(program, instruction)) is not None:
        places = {place for place, name in enumerate(instruction.operands) if name == operand}
        names = [line.name for line in inside.instructions.values() if line.number in places]
        return min(whole, sum(_read_inside(program, inside, name, whole, arrays[0].item) for name in names))
    if whole and len(arrays) == 1:
        return _taken(computation, instruction, operand, whole, arrays[0].item)
    return whole


def _read_inside(program: Program, fused: Computation, name: str, whole: float, item: float) -> float:
    """What a fusion reads of a parameter, or of numbers that are made of it one by one, whose parts are read alone."""
    if name == fused.root:
        return whole
    total = 0.0
    for user in fused.users.get(name, []):
        if user.opcode == "bitcast" or (user.opcode in _ONE_BY_ONE and len(user.shapes) == 1):
            total += _read_inside(program, fused, user.name, whole, item)
        elif user.opcode == "fusion":
            total += _read_of(program, fused, user, name)
        else:
            total += _taken(fused, user, name, whole, item)
    return min(whole, total)


def _taken(computation: Computation, user: Instruction, operand: str, whole: float, item: float) -> float:
    """Bytes that an instruction takes of an operand, ``item`` bytes for each of its numbers."""
    if user.operands[0] != operand or operand in user.operands[1:]:
        return whole
    array = computation.instructions[operand].shapes[0]
    if user.opcode in _TAKES_A_PART:
        return min(whole, _part(user, array, item))
    # What an update in place adds to is read where it is changed.
    return min(whole, _old_values(computation, user)) if user.opcode in _IN_PLACE else whole


def _part(instruction: Instruction, operand: Shape, item: float) -> float:
    """Bytes of the sectors that a gather or slice takes of its operand."""
    result = instruction.shapes[0]
    if instruction.opcode == "gather":
        sizes = numbers(text_of(r"slice_sizes=\{([^}]*)\}", instruction.attributes))
        return result.elements / max(math.prod(sizes), 1) * _sectors(operand, sizes, item)
    steps = re.findall(r"\[\d+:\d+(?::(\d+))?\]", text_of(r"slice=\{(.*?)\}", instruction.attributes))
    return _sectors(operand, result.sizes, item, tuple(int(step or 1) for step in steps))


def _sectors(operand: Shape, sizes: tuple[int, ...], item: float, steps: tuple[int, ...] = ()) -> float:
    """Bytes of the sectors that a part of these sizes lies in, where each of its runs starts at the border of one.

    Between its neighbours a part of every ``step``-th number may leave out whole sectors.
    """
    run, elements = item, 1
    for dimension in operand.order or tuple(reversed(range(len(operand.sizes)))):
        step = steps[dimension] if steps else 1
        if step > 1 and step * run >= SECTOR:
            break
        run *= sizes[dimension] * step
        elements *= sizes[dimension]
        if sizes[dimension] != operand.sizes[dimension]:
            break
    return math.prod(sizes) / max(elements, 1) * math.ceil(run / SECTOR) * SECTOR


def _old_values(computation: Computation, instruction: Instruction) -> float:
    """What an update in place reads of the array that it changes."""
    return 0 if instruction.opcode == "dynamic-update-slice" else _update(computation, instruction)


def _update(computation: Computation, instruction: Instruction) -> float:
    """Bytes of what an update in place writes; of scattered pieces, their sectors."""
    place = 1 if instruction.opcode == "dynamic-update-slice" else len(instruction.shapes) + 1
    update = computation.instructions[instruction.operands[place]].shapes[0]
    if instruction.opcode == "dynamic-update-slice":
        return update.elements * update.item
    window = numbers(text_of(r"update_window_dims=\{([^}]*)\}", instruction.attributes))
    run = math.prod(update.sizes[dimension] for dimension in window)
    return update.elements / max(run, 1) * math.ceil(run * update.item / SECTOR) * SECTOR * len(instruction.shapes)


def _written(program: Program, instruction: Instruction) -> float:
    if instruction.opcode in _IN_PLACE:
        return sum(shape.bytes for shape in instruction.shapes)
    if instruction.target.startswith("__cudnn"):
        return instruction.shapes[0].bytes  # the other is the workspace
    inside = _called(program, instruction)
    if inside is None:
        return sum(shape.bytes for shape in instruction.shapes)
    return _written_inside(inside, inside.root)


def _written_inside(fused: Computation, name: str) -> float:
    """What a fusion writes of one of its results, or of a tuple of them."""
    result = fused.instructions[name]
    if result.opcode == "tuple":
        return sum(_written_inside(fused, operand) for operand in result.operands)
    if result.opcode == "bitcast" and not any(shape.space for shape in result.shapes):
        return _written_inside(fused, result.operands[0])
    whole = sum(shape.bytes for shape in result.shapes)
    return min(whole, _update(fused, result)) if result.opcode in _IN_PLACE else whole


# --- operations --------------------------------------------------------------------------------------------------------------------------------


def _flop(program: Program, computation: Computation, instruction: Instruction) -> tuple[float, str]:
    """Operations of the convolutions and matrix products of a kernel, and the type that they multiply."""
    if (inside := _called(program, instruction)) is not None:
        counts = [_flop(program, inside, line) for line in inside.instructions.values()]
        return sum(flop for flop, _ in counts), next((dtype for flop, dtype in counts if flop), "")
    operation = instruction.opcode if instruction.opcode in ("convolution", "dot") else instruction.target
    count = _COUNTS.get(operation.removeprefix("__cudnn$").split("$matmul")[0])
    if count is None:
        return 0, ""
    operands = [computation.instructions[name].shapes[0] for name in instruction.operands[:2]]
    return count(instruction, operands[0], operands[1]), operands[0].dtype


def _dot(instruction: Instruction, left: Shape, right: Shape) -> float:
    contracted = text_of(r'lhs_contracting_dim\w*"?[=:][{\[]([^}\]]*)', instruction.attributes).replace('"', "")
    return 2 * instruction.shapes[0].elements * math.prod(left.sizes[place] for place in numbers(contracted))


def _convolution(instruction: Instruction, left: Shape, right: Shape) -> float:
    """As XLA writes convolutions and their gradients alike: a window over the left side."""
    window = text_of(r"window=\{([^}]*)\}", instruction.attributes)
    sizes = text_of(r"size=(\S+)", window)
    spread = text_of(r"lhs_dilate=(\S+)", window)
    groups = int(text_of(r"batch_group_count=(\d+)", instruction.attributes) or 1)
    kernel = text_of(r"dim_labels=[^_]+_([^-]+)->", instruction.attributes)
    inputs = right.sizes[kernel.index("i")]
    # Of an image spread out with zeros between its pixels, the zeros are not multiplied.
    return 2 * instruction.shapes[0].elements * inputs * _product(sizes) / _product(spread) / groups


def _product(text: str) -> int:
    return math.prod(int(number) for number in text.split("x") if number)


def _library(kernel: int, outputs: int) -> Callable[[Instruction, Shape, Shape], float]:
    """cuDNN names a convolution and its gradients by the dimensions of the forward pass: which of (result, left, right) is which."""

    def count(instruction: Instruction, left: Shape, right: Shape) -> float:
        arrays = (instruction.shapes[0], left, right)
        labels = text_of(r"dim_labels=[^_]+_([^-]+)->", instruction.attributes)
        return 2 * arrays[outputs].elements * arrays[kernel].elements / arrays[kernel].sizes[labels.index("o")]

    return count


_COUNTS = {
    "dot": _dot,
    "__cublas$gemm": _dot,
    "__cublas$lt": _dot,
    "convolution": _convolution,
    "convForward": _library(2, 0),
    "convBiasActivationForward": _library(2, 0),
    "convBackwardFilter": _library(0, 2),
    "convBackwardInput": _library(2, 1),
}
