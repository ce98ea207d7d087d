"""What devices tell each other in a compiled training step, and what that costs on many of them; no card is needed.

    python -m benchmarks.collectives                                      # the guide's step on eight H100; needs the extra aot
    python -m benchmarks.collectives --devices 2x8 --sync-bn on off
    python -m benchmarks.collectives --target tpu:v5e --devices 2x2 --freeze 10
    python -m benchmarks.collectives --scaling                            # and expected efficiency on 8, 64 and 512 H100

The step is compiled ahead of time for devices that share its batch, without augmentation and without a loop over steps, and its reductions are read from
the program. ``--scaling`` adds the time of each reduction, from assumptions that it prints, to the roofline of the kernels (``benchmarks/roofline.py``), as
if nothing overlapped. That is arithmetic, no measurement.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.ahead import add_step_flags, row_of_process, step_facts
from benchmarks.hlo import Program, parse
from benchmarks.kernels import kernels
from benchmarks.roofline import CHIPS, seconds

_REDUCTIONS = frozenset(
    {"all-reduce", "all-reduce-start", "reduce-scatter", "all-gather", "all-gather-start", "all-to-all"}
)


@dataclass(frozen=True, kw_only=True)
class Reduction:
    """A collective operation of a program.

    Attributes:
      opcode: such as ``all-reduce``.
      bytes: that each device puts in, by dtype.
    """

    opcode: str
    bytes: Mapping[str, int]


def reductions(program: Program) -> list[Reduction]:
    """The collective operations of a program, in all of its computations."""
    listed = []
    for computation in program.computations.values():
        for line in computation.instructions.values():
            if line.opcode not in _REDUCTIONS:
                continue
            sizes: dict[str, int] = {}
            for operand in line.operands:
                for shape in computation.instructions[operand].shapes:
                    sizes[shape.dtype] = sizes.get(shape.dtype, 0) + int(shape.elements * shape.item)
            listed.append(Reduction(opcode=line.opcode.removesuffix("-start"), bytes=sizes))
    return listed


def donated(text: str) -> int:
    """How many results of a program take the place of an argument."""
    head = text.partition("\n")[0]
    return len(
        re.findall(
            r"\{\d*\}: \(\d+, \{\d*\}",
            head.partition("input_output_alias=")[2].partition("entry_computation_layout")[0],
        )
    )


# --- scaling on paper ----------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Fabric:
    """What joins the devices.

    Attributes:
      name: for people.
      devices: all of them.
      bandwidth: bytes per second at which an all-reduce moves data, as NCCL counts it ("bus bandwidth").
      latency: seconds that the smallest reduction takes.
    """

    name: str
    devices: int
    bandwidth: float
    latency: float

    def seconds(self, size: float) -> float:
        """An all-reduce of so many bytes per device."""
        return self.latency + 2 * (self.devices - 1) / self.devices * size / self.bandwidth


# 370 GB/s: what a ring of NCCL reaches on eight H100 joined by NVLink, after the overhead of its protocol, says one of its authors
# (github.com/NVIDIA/nccl-tests, issue 212). Between hosts of eight cards: a link of 400 Gb/s for each card, or one for each host, at 90 %. Latencies are
# assumed.
FABRICS = (
    Fabric(name="one host", devices=8, bandwidth=370e9, latency=20e-6),
    Fabric(name="a link per card", devices=64, bandwidth=360e9, latency=40e-6),
    Fabric(name="a link per host", devices=64, bandwidth=45e9, latency=40e-6),
    Fabric(name="a link per card", devices=512, bandwidth=360e9, latency=60e-6),
    Fabric(name="a link per host", devices=512, bandwidth=45e9, latency=60e-6),
)
# Of its roofline, what the step alone is assumed to reach.
REACHED = 0.7


def efficiency(alone: float, sizes: Iterable[float], fabric: Fabric) -> float:
    """The share of its speed that a device keeps: its step alone takes ``alone`` seconds, and nothing overlaps with the reductions."""
    return alone / (alone + sum(map(fabric.seconds, sizes)))


# --- compiling, in a process that was started for the target ------------------------------------------------------------------------------------


def compiled_row(options: argparse.Namespace, freeze: int, sync_bn: str) -> dict[str, Any]:
    """Compile one step and read it."""
    import time

    import jax

    from yolojax.exchange import Exchange
    from yolojax.freezing.phases import make_phase
    from yolojax.model.network import abstract_variables
    from yolojax.model.spec import load_spec
    from yolojax.plan.cost import StepShape, compile_step
    from yolojax.plan.devices import load_target, open_devices
    from yolojax.tree import flatten

    devices = open_devices(load_target(options.target), [int(number) for number in options.devices.split("x")])
    spec = load_spec(options.model, classes=options.classes)
    sizes = {path: leaf.shape for path, leaf in flatten(abstract_variables(spec)["params"]).items()}
    phase = make_phase(tuple(sizes), freeze=freeze)
    shape = StepShape(
        batch=options.batch * len(devices),
        size=options.size,
        dtype=options.dtype,
        boxes=options.boxes,
        frozen_bn=options.frozen_bn,
        exchange=Exchange.of_flags(sync_bn, options.gradient_sum, options.dtype),
    )
    started = time.perf_counter()
    state, compiled, memory = compile_step(spec, phase, shape, *devices)
    row = step_facts(options) | {"devices": options.devices, "gradient_sum": options.gradient_sum}
    row |= {"freeze": freeze, "sync_bn": sync_bn, "compile_seconds": time.perf_counter() - started}
    if compiled is None:
        return row | {"refused": "the compiler makes no program that does not fit"}
    text = compiled.as_text()
    if options.hlo:
        options.hlo.mkdir(parents=True, exist_ok=True)
        name = f"{options.target.replace(':', '-')}-{options.devices}-{freeze}-{sync_bn}.hlo"
        (options.hlo / name).write_text(text, encoding="utf-8")
    program = parse(text)
    listed = reductions(program)
    trained = {path: size for path, size in sizes.items() if phase.trains(path)}
    row |= {
        "all_reduces": sum(reduction.opcode == "all-reduce" for reduction in listed),
        "other_collectives": sum(reduction.opcode != "all-reduce" for reduction in listed),
        "bytes": [dict(reduction.bytes) for reduction in listed],
        "kernel_values": sum(math.prod(size) for size in trained.values() if len(size) > 1),
        "vector_values": sum(math.prod(size) for size in trained.values() if len(size) < 2),
        "donated": donated(text),
        "moving_leaves": len(jax.tree.leaves(state.moving)),
        "peak_bytes": memory.peak if memory else None,
    }
    if (chip := CHIPS.get(options.target)) is not None:
        row["roofline_ms"] = 1e3 * sum(seconds(kernel, chip) for kernel in kernels(program))
    return row


def measure(options: argparse.Namespace, words: list[str]) -> Iterator[dict[str, Any]]:
    """A row for every freeze and ``--sync-bn``, each from a process of its own, which is started as the target's compiler asks."""
    for freeze in options.freeze:
        for sync_bn in options.sync_bn:
            yield row_of_process(
                "benchmarks.collectives",
                options.target,
                [*words, "--freeze", str(freeze), "--sync-bn", sync_bn],
            )


# --- what is printed ----------------------------------------------------------------------------------------------------------------------------


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a line per program."""
    lines = [
        "| target | devices | freeze | sync-bn | all-reduces | bfloat16 MB | float32 MB | largest MB | donated | compile s |",
        "|-|-|-|-|-|-|-|-|-|-|",
    ]
    for row in rows:
        start = f"| {row['target']} | {row['devices']} | {row['freeze']} | {row['sync_bn']} |"
        if "refused" in row:
            lines.append(f"{start} {row['refused']} ||||| {row['compile_seconds']:.0f} |")
            continue
        by_type = [sum(sizes.get(dtype, 0) for sizes in row["bytes"]) / 1e6 for dtype in ("bf16", "f32")]
        largest = max(sum(sizes.values()) for sizes in row["bytes"]) / 1e6
        lines.append(
            f"{start} {row['all_reduces']} | {by_type[0]:.2f} | {by_type[1]:.2f} | {largest:.2f} "
            f"| {row['donated']} of {row['moving_leaves']} | {row['compile_seconds']:.0f} |"
        )
    return "\n".join(lines)


def scaling(rows: list[dict[str, Any]]) -> str:
    """Markdown: expected efficiency of each program, were it run on more devices: the same reductions over more of them."""
    lines = [
        "| freeze | sync-bn | step alone, ms |" + "".join(f" {fabric.devices}, {fabric.name} |" for fabric in FABRICS)
    ]
    lines.append("|-|-|-|" + "-|" * len(FABRICS))
    for row in rows:
        alone = row["roofline_ms"] / 1e3 / REACHED
        sizes = [sum(one.values()) for one in row["bytes"]]
        cells = "".join(f" {efficiency(alone, sizes, fabric):.0%} |" for fabric in FABRICS)
        lines.append(f"| {row['freeze']} | {row['sync_bn']} | {1e3 * alone:.1f} |{cells}")
    said = "; ".join(
        f"{fabric.devices}, {fabric.name}: {fabric.bandwidth / 1e9:.0f} GB/s, {fabric.latency * 1e6:.0f} µs"
        for fabric in FABRICS
    )
    return "\n".join([*lines, "", f"Assumed: {REACHED:.0%} of the roofline alone; no overlap; {said}."])


def main() -> None:
    """Print tables, and write JSON where asked."""
    parser = argparse.ArgumentParser(description="The reductions of the compiled training step.")
    add_step_flags(parser)
    parser.add_argument(
        "--devices",
        default="1x8",
        help="hosts x cards, or the chips of a TPU slice along its axes (default: %(default)s)",
    )
    parser.add_argument(
        "--gradient-sum", default="auto", choices=("auto", "float32", "bfloat16"), help="(default: auto)"
    )
    parser.add_argument("--freeze", type=int, nargs="+", default=[0, 10, 24], help="depths (default: 0 10 24)")
    parser.add_argument("--sync-bn", nargs="+", default=["on", "off"], choices=("on", "off"), help="(default: on off)")
    parser.add_argument(
        "--scaling", action="store_true", help="expected efficiency on more devices, from stated assumptions"
    )
    words = sys.argv[1:]
    options = parser.parse_args(words)
    if options.worker:
        print(json.dumps(compiled_row(options, options.freeze[0], options.sync_bn[0])))
        return
    rows = []
    for row in measure(options, words):
        rows.append(row)
        print(
            f"compiled freeze {row['freeze']}, --sync-bn {row['sync_bn']}, in {row['compile_seconds']:.0f} s",
            file=sys.stderr,
        )
        if options.json:
            options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    print(table(rows))
    if options.scaling:
        print("", scaling([row for row in rows if "refused" not in row]), sep="\n")


if __name__ == "__main__":
    main()
