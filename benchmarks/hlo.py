"""What the kernels of a compiled program compute and move, read from its optimised HLO as text.

A kernel is an instruction of the entry computation that does something: it reads its operands from the memory of the device and writes its results to it.
Inside a fusion nothing is written, so a fusion counts by what goes in and out of it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

_BITS = {"pred": 8, "token": 0, "opaque": 0, "bf16": 16, "c64": 64, "c128": 128}
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


@dataclass(frozen=True)
class Shape:
    """An array: its type, its sizes, its dimensions from the fastest in memory to the slowest, and the memory (0 is the large one)."""

    dtype: str
    sizes: tuple[int, ...]
    order: tuple[int, ...] = ()
    space: int = 0

    @property
    def elements(self) -> int:
        """Numbers in it."""
        return math.prod(self.sizes)

    @property
    def item(self) -> float:
        """Bytes of a number."""
        if self.dtype in _BITS:
            return _BITS[self.dtype] / 8
        return int(re.sub(r"\D*(\d+).*", r"\1", self.dtype)) / 8

    @property
    def bytes(self) -> int:
        """Bytes of it in the large memory of the device; what lies in a small one costs none of its bandwidth."""
        return 0 if self.space else math.ceil(self.elements * self.item)


@dataclass(frozen=True)
class Instruction:
    """A line of HLO; ``attributes`` is all that stands behind the operands."""

    name: str
    shapes: tuple[Shape, ...]
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    number: int | None = None

    @property
    def op_name(self) -> str:
        """Where in the Python program it comes from."""
        return _text(r'op_name="([^"]*)"', self.attributes)

    @property
    def target(self) -> str:
        """The library function of a custom call."""
        return _text(r'custom_call_target="([^"]*)"', self.attributes)


@dataclass(frozen=True)
class Computation:
    """Instructions by name, in order."""

    instructions: Mapping[str, Instruction]
    root: str
    users: Mapping[str, list[Instruction]] = field(default_factory=dict)


@dataclass(frozen=True)
class Program:
    """A whole program."""

    computations: Mapping[str, Computation]
    entry: str


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


def parse(text: str) -> Program:
    """Read optimised HLO, as ``compiled.as_text()`` gives it.

    Raises:
      ValueError: there is no entry computation.
    """
    computations: dict[str, Computation] = {}
    lines: dict[str, Instruction] = {}
    entry = name = root = ""
    for line in text.splitlines():
        if name and line.startswith("}"):
            users: dict[str, list[Instruction]] = {}
            for instruction in lines.values():
                for operand in dict.fromkeys(instruction.operands):
                    users.setdefault(operand, []).append(instruction)
            computations[name] = Computation(lines, root, users)
            name = ""
        elif name:
            if found := _instruction(line):
                lines[found.name] = found
                root = found.name
        elif match := re.match(r"(ENTRY )?%?([^\s(]+) \(.*\{$", line):
            name, lines = match[2], {}
            entry = name if match[1] else entry
    if not entry:
        raise ValueError("this HLO has no entry computation")
    return Program(computations, entry)


_HEAD = re.compile(r"\s+(ROOT )?%?(\S+) = ")


def _instruction(line: str) -> Instruction | None:
    head = _HEAD.match(line)
    if not head:
        return None
    # Shapes: one, without spaces, or several in parentheses.
    start = head.end()
    end = _closing(line, start) if line[start] == "(" else line.index(" ", start)
    opening = line.index("(", end)
    closing = _closing(line, opening)
    inside = line[opening + 1 : closing - 1]
    opcode = line[end:opening].strip()
    return Instruction(
        name=head[2],
        shapes=shapes(line[start:end]),
        opcode=opcode,
        operands=tuple(re.findall(r"%([^\s,()]+)", inside)),
        attributes=line[closing:],
        number=int(inside) if opcode == "parameter" else None,
    )


def _closing(line: str, start: int) -> int:
    """The place behind the parenthesis that closes the one at ``start``."""
    depth = 0
    for place in range(start, len(line)):
        depth += {"(": 1, ")": -1}.get(line[place], 0)
        if depth == 0:
            return place + 1
    raise ValueError(f"a parenthesis stays open in HLO: {line.strip()[:80]}")


def shapes(text: str) -> tuple[Shape, ...]:
    """The arrays of a shape.

    >>> shapes("(bf16[2,3]{1,0:T(8,128)S(1)}, u8[])")
    (Shape(dtype='bf16', sizes=(2, 3), order=(1, 0), space=1), Shape(dtype='u8', sizes=(), order=(), space=0))
    """
    arrays = []
    for dtype, sizes, layout in re.findall(r"([a-z]\w*)\[([\d,<=]*)\](?:\{([^}]*)\})?", text):
        order, _, tiles = layout.partition(":")
        space = re.search(r"S\((\d+)\)", tiles)
        arrays.append(Shape(dtype, _numbers(sizes), _numbers(order), int(space[1]) if space else 0))
    return tuple(arrays)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number.lstrip("<=")) for number in text.split(",") if number)


def _text(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    return match[1] if match else ""


def kernels(program: Program) -> list[Kernel]:
    """The kernels of a program in their order; those of a loop with a known number of rounds count so many times, else once."""
    return list(_kernels(program, program.entry, 1))


def _kernels(program: Program, name: str, times: int) -> Iterator[Kernel]:
    computation = program.computations[name]
    for instruction in computation.instructions.values():
        if instruction.opcode in _FREE:
            continue
        if instruction.opcode in ("call", "async-start"):
            yield from _kernels(program, _text(r"(?:to_apply|calls)=%?([^\s,]+)", instruction.attributes), times)
        elif instruction.opcode == "while":
            rounds = _text(r"known_trip_count\D*?(\d+)", instruction.attributes)
            body = _text(r"body=%?([^\s,]+)", instruction.attributes)
            yield from _kernels(program, body, times * int(rounds or 1))
        elif instruction.opcode == "conditional":
            branches = [list(_kernels(program, branch, times)) for branch in _branches(instruction)]
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
    listed = _text(r"branch_computations=\{([^}]*)\}", instruction.attributes)
    if listed:
        return [name.strip().lstrip("%") for name in listed.split(",")]
    return re.findall(r"(?:true|false)_computation=%?([^\s,]+)", instruction.attributes)


def _called(program: Program, instruction: Instruction) -> Computation | None:
    """What a fusion computes."""
    if instruction.opcode != "fusion":
        return None
    return program.computations[_text(r"calls=%?([^\s,]+)", instruction.attributes)]


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
        sizes = _numbers(_text(r"slice_sizes=\{([^}]*)\}", instruction.attributes))
        return result.elements / max(math.prod(sizes), 1) * _sectors(operand, sizes, item)
    steps = re.findall(r"\[\d+:\d+(?::(\d+))?\]", _text(r"slice=\{(.*?)\}", instruction.attributes))
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
    window = _numbers(_text(r"update_window_dims=\{([^}]*)\}", instruction.attributes))
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
    kind = instruction.opcode if instruction.opcode in ("convolution", "dot") else instruction.target
    count = _COUNTS.get(kind.removeprefix("__cudnn$").split("$matmul")[0])
    if count is None:
        return 0, ""
    operands = [computation.instructions[name].shapes[0] for name in instruction.operands[:2]]
    return count(instruction, operands[0], operands[1]), operands[0].dtype


def _dot(instruction: Instruction, left: Shape, right: Shape) -> float:
    found = _text(r'lhs_contracting_dim\w*"?[=:][{\[]([^}\]]*)', instruction.attributes).replace('"', "")
    return 2 * instruction.shapes[0].elements * math.prod(left.sizes[place] for place in _numbers(found))


def _convolution(instruction: Instruction, left: Shape, right: Shape) -> float:
    """As XLA writes convolutions and their gradients alike: a window over the left side."""
    window = _text(r"window=\{([^}]*)\}", instruction.attributes)
    sizes = _text(r"size=(\S+)", window)
    spread = _text(r"lhs_dilate=(\S+)", window)
    groups = int(_text(r"batch_group_count=(\d+)", instruction.attributes) or 1)
    kernel = _text(r"dim_labels=[^_]+_([^-]+)->", instruction.attributes)
    inputs = right.sizes[kernel.index("i")]
    # Of an image spread out with zeros between its pixels, the zeros are not multiplied.
    return 2 * instruction.shapes[0].elements * inputs * _product(sizes) / _product(spread) / groups


def _product(text: str) -> int:
    return math.prod(int(number) for number in text.split("x") if number)


def _library(images: int, kernel: int, outputs: int):  # type: ignore[no-untyped-def]
    """cuDNN names a convolution and its gradients by the dimensions of the forward pass: which of (result, left, right) is which."""

    def count(instruction: Instruction, left: Shape, right: Shape) -> float:
        arrays = (instruction.shapes[0], left, right)
        labels = _text(r"dim_labels=[^_]+_([^-]+)->", instruction.attributes)
        return 2 * arrays[outputs].elements * arrays[kernel].elements / arrays[kernel].sizes[labels.index("o")]

    return count


_COUNTS = {
    "dot": _dot,
    "__cublas$gemm": _dot,
    "__cublas$lt": _dot,
    "convolution": _convolution,
    "convForward": _library(1, 2, 0),
    "convBiasActivationForward": _library(1, 2, 0),
    "convBackwardFilter": _library(1, 0, 2),
    "convBackwardInput": _library(0, 2, 1),
}
