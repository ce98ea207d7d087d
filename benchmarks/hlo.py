"""Optimised HLO, the text of a compiled program, as computations and their instructions."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

_BITS = {"pred": 8, "token": 0, "opaque": 0, "bf16": 16, "c64": 64, "c128": 128}


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
        return text_of(r'op_name="([^"]*)"', self.attributes)

    @property
    def target(self) -> str:
        """The library function of a custom call."""
        return text_of(r'custom_call_target="([^"]*)"', self.attributes)


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


def parse(text: str) -> Program:
    """Read optimised HLO, as ``compiled.astext_of()`` gives it.

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
            if new := _instruction(line):
                lines[new.name] = new
                root = new.name
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
        arrays.append(Shape(dtype, numbers(sizes), numbers(order), int(space[1]) if space else 0))
    return tuple(arrays)


def numbers(text: str) -> tuple[int, ...]:
    """Whole numbers between commas."""
    return tuple(int(number.lstrip("<=")) for number in text.split(",") if number)


def text_of(pattern: str, text: str) -> str:
    """What the group of a pattern matches first; nothing where it does not."""
    match = re.search(pattern, text)
    return match[1] if match else ""
