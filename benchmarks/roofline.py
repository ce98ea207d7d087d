"""The least time that a compiled training step can take on an accelerator, kernel by kernel; no card is needed.

    python -m benchmarks.roofline                                  # the guide's step on an H100; needs the extra aot
    python -m benchmarks.roofline --target tpu:v5e --freeze 10
    python -m benchmarks.roofline --freeze 0 adapters              # names of strategies too
    python -m benchmarks.roofline --stem plain folded --freeze 0 24

The step is compiled ahead of time, and each of its kernels takes the longer of two times: its convolutions and matrix products at the peak of the tensor units,
its operands and results at the bandwidth of the memory. A gather or slice counts the sectors that it takes, not all of its operand. What a card adds to that
(launches, kernels that reach no peak, cuDNN's workspace) is not in it, nor what it saves because a result still lies in its cache: the figures
compare programs, they are no measurement.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from benchmarks.ahead import add_step_flags, row_of_process, step_facts
from benchmarks.hlo import parse
from benchmarks.kernels import Kernel, kernels


@dataclass(frozen=True, kw_only=True)
class Chip:
    """What an accelerator can do at most.

    Attributes:
      kinds: how its name begins in JAX.
      tensor: operations per second of its tensor units, by the type that they multiply; float32 as a GPU takes it by default, TF32 where it has that.
      bandwidth: bytes per second of its memory.
    """

    kinds: tuple[str, ...]
    tensor: Mapping[str, float]
    bandwidth: float


# From NVIDIA's data sheets, dense, boost clock: "H100 Tensor Core GPU" (SXM; it prints the double, with sparsity), "H200 Tensor Core GPU", "A100 80GB"
# (SXM), "T4 70W low profile PCIe GPU accelerator", "V100 Tensor Core GPU" (SXM2); from Google Cloud's pages "TPU v5e" and "TPU v4". T4 and V100
# have no bfloat16 and no TF32; a TPU multiplies float32 as bfloat16 by default.
CHIPS = {
    "cuda:h100": Chip(kinds=("NVIDIA H100",), tensor={"bf16": 989e12, "f16": 989e12, "f32": 494e12}, bandwidth=3.35e12),
    "cuda:h200": Chip(kinds=("NVIDIA H200",), tensor={"bf16": 989e12, "f16": 989e12, "f32": 494e12}, bandwidth=4.8e12),
    "cuda:a100": Chip(
        kinds=("NVIDIA A100",), tensor={"bf16": 312e12, "f16": 312e12, "f32": 156e12}, bandwidth=2.039e12
    ),
    "cuda:t4": Chip(kinds=("Tesla T4", "NVIDIA T4"), tensor={"f16": 65e12, "f32": 8.1e12}, bandwidth=320e9),
    "cuda:v100": Chip(kinds=("Tesla V100", "NVIDIA V100"), tensor={"f16": 125e12, "f32": 15.7e12}, bandwidth=900e9),
    "tpu:v4": Chip(kinds=("TPU v4",), tensor={"bf16": 275e12, "f32": 275e12}, bandwidth=1228e9),
    "tpu:v5e": Chip(kinds=("TPU v5 lite", "TPU v5e"), tensor={"bf16": 197e12, "f32": 197e12}, bandwidth=819e9),
}
CONVOLUTIONS = "convolutions"
FORWARD = "BatchNorm + SiLU, forward"
BACKWARD = "BatchNorm + SiLU, backward"
JOINS = "concatenate, add, split, copy"
LOSS = "loss"
OPTIMIZER = "optimizer and averages"
OTHER = "other"
GROUPS = (CONVOLUTIONS, FORWARD, BACKWARD, JOINS, LOSS, OPTIMIZER, OTHER)


def chip_of(kind: str) -> Chip | None:
    """The chip that JAX calls ``kind``; None for one that is not listed."""
    return next((chip for chip in CHIPS.values() if kind.startswith(chip.kinds)), None)


def listed_chip(target: str, kind: str) -> Chip:
    """The chip of a target that JAX calls ``kind``.

    Raises:
      SystemExit: its peaks are not listed here.
    """
    chip = CHIPS.get(target) or chip_of(kind)
    if chip is None:
        raise SystemExit(f"the peaks of {kind} are not listed in {__file__}")
    return chip


def seconds(kernel: Kernel, chip: Chip) -> float:
    """The least time of a kernel, all its rounds together. A type that the chip does not multiply counts as float32."""
    computing = kernel.flop / chip.tensor.get(kernel.dtype, chip.tensor["f32"])
    return kernel.times * max(computing, kernel.bytes / chip.bandwidth)


def group(kernel: Kernel) -> str:
    """The part of a training step that a kernel belongs to, by the place in the program that its last operation comes from."""
    place = kernel.op_name
    if kernel.flop:
        return CONVOLUTIONS
    if "/bn/" in place:
        return BACKWARD if "transpose(" in place else FORWARD
    if kernel.opcode.startswith("copy"):
        return JOINS
    if "Network" in place:
        # What is left of a convolution is the layout of its weights, and of its images where they are folded.
        arranged = place.endswith("convert_element_type") or ("/conv/" in place and not place.endswith("add_any"))
        return OTHER if arranged else JOINS
    return LOSS if "jvp(" in place else OPTIMIZER


def summary(listed: Iterable[Kernel], chip: Chip) -> dict[str, Any]:
    """Totals of a program and of its groups: times in milliseconds, operations in GFLOP, memory traffic in GB."""
    listed = list(listed)
    groups = {name: _totals([kernel for kernel in listed if group(kernel) == name], chip) for name in GROUPS}
    return {**_totals(listed, chip), "groups": groups}


def _totals(listed: list[Kernel], chip: Chip) -> dict[str, float]:
    computing = sum(k.times * k.flop / chip.tensor.get(k.dtype, chip.tensor["f32"]) for k in listed)
    return {
        "roofline_ms": 1e3 * sum(seconds(kernel, chip) for kernel in listed),
        "tensor_ms": 1e3 * computing,
        "gflop": sum(kernel.times * kernel.flop for kernel in listed) / 1e9,
        "gbytes": sum(kernel.times * kernel.bytes for kernel in listed) / 1e9,
        "kernels": sum(kernel.times for kernel in listed),
    }


# --- compiling, in a process that was started for the target ------------------------------------------------------------------------------------


def compiled_row(options: argparse.Namespace, freeze: str, stem: str) -> dict[str, Any]:
    """Compile one step and read it."""
    import time

    from yolojax.freezing.load import load_strategy, rehearse
    from yolojax.model.convolution import folded_stem
    from yolojax.model.network import abstract_variables
    from yolojax.model.spec import load_spec
    from yolojax.plan.cost import StepShape, compile_step, weight_gradients
    from yolojax.plan.devices import load_target, open_device
    from yolojax.tree import flatten

    device = open_device(load_target(options.target))
    chip = listed_chip(options.target, device.device_kind)
    spec = load_spec(options.model, classes=options.classes)
    paths = tuple(flatten(abstract_variables(spec)["params"]))
    (_, phase), *later = rehearse(load_strategy(freeze), paths, epochs=100, network=spec.name)
    if later:
        raise SystemExit(f"{freeze} has several phases, and one step is compiled")
    shape = StepShape(
        batch=options.batch,
        size=options.size,
        dtype=options.dtype,
        boxes=options.boxes,
        frozen_bn=options.frozen_bn,
        optimizer=options.optimizer,
        remat=options.remat,
    )
    started = time.perf_counter()
    with folded_stem() if stem == "folded" else nullcontext():
        _, compiled, memory = compile_step(spec, phase, shape, device)
    row = step_facts(options) | {"optimizer": options.optimizer, "remat": options.remat}
    row |= {"freeze": freeze, "stem": stem, "compile_seconds": time.perf_counter() - started}
    row |= {"peak_bytes": memory.peak if memory else None, "temp_bytes": memory.temporary if memory else None}
    if compiled is None:
        return row | {"refused": "the compiler makes no program that does not fit"}
    text = compiled.as_text()
    listed = kernels(parse(text))
    row |= {"weight_gradient_ops": sum(weight_gradients(text).values()), **summary(listed, chip)}
    if options.hlo:
        options.hlo.mkdir(parents=True, exist_ok=True)
        (options.hlo / f"{options.target.replace(':', '-')}-{freeze}-{stem}.hlo").write_text(text, encoding="utf-8")
    longest = sorted(listed, key=lambda kernel: -seconds(kernel, chip))[: options.top]
    row["longest"] = [
        {
            "kernel": k.name,
            "ms": 1e3 * seconds(k, chip),
            "gflop": k.flop / 1e9,
            "mbytes": k.bytes / 1e6,
            "at": k.op_name,
        }
        for k in longest
    ]
    return row


def measure(options: argparse.Namespace, words: list[str]) -> Iterator[dict[str, Any]]:
    """A row for every freeze and stem, each from a process of its own, which is started as the target's compiler asks."""
    for freeze in options.freeze:
        for stem in options.stem:
            yield row_of_process("benchmarks.roofline", options.target, [*words, "--freeze", freeze, "--stem", stem])


# --- what is printed ----------------------------------------------------------------------------------------------------------------------------


def tables(rows: list[dict[str, Any]]) -> str:
    """Markdown: a line per program, then one per group of kernels."""
    lines = [
        "| freeze | stem | GFLOP | kernels | roofline ms | at the tensor peak ms | peak GB | weight gradients | compile s |",
        "|-|-|-|-|-|-|-|-|-|",
    ]
    for row in rows:
        peak = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e9:.2f}"
        cells = [str(row["freeze"]), row["stem"]]
        if "refused" in row:
            cells += ["", "", row["refused"], "", peak, ""]
        else:
            cells += [f"{row['gflop']:,.0f}", f"{row['kernels']:,}", f"{row['roofline_ms']:.2f}"]
            cells += [f"{row['tensor_ms']:.2f}", peak, str(row["weight_gradient_ops"])]
        lines.append(f"| {' | '.join([*cells, format(row['compile_seconds'], '.0f')])} |")
    whole = [row for row in rows if "refused" not in row]
    heads = [f"{row['freeze']}, {row['stem']}" for row in whole]
    lines += ["", f"| ms (GB, kernels) at freeze, stem | {' | '.join(heads)} |", "|-|" + "-|" * len(heads)]
    for name in GROUPS:
        parts = [row["groups"][name] for row in whole]
        cells = [f"{part['roofline_ms']:.2f} ({part['gbytes']:.2f}, {part['kernels']:,})" for part in parts]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    for row in whole:
        if row["longest"]:
            lines += ["", f"Longest at freeze {row['freeze']}, {row['stem']} stem:", ""]
        for kernel in row["longest"]:
            lines.append(
                f"    {kernel['ms']:.3f} ms  {kernel['gflop']:7.1f} GFLOP  {kernel['mbytes']:7.1f} MB  {kernel['kernel']}  {kernel['at']}"
            )
    return "\n".join(lines)


def main() -> None:
    """Print tables, and write JSON where asked."""
    parser = argparse.ArgumentParser(description="The roofline of the compiled training step.")
    add_step_flags(parser)
    parser.add_argument("--optimizer", default="SGD", choices=("SGD", "Adam", "AdamW"), help="(default: %(default)s)")
    parser.add_argument("--freeze", nargs="+", default=["0", "10", "24"], help="as of 'train' (default: 0 10 24)")
    parser.add_argument("--remat", action="store_true", help="as of 'train'")
    parser.add_argument("--stem", nargs="+", default=["plain"], choices=("plain", "folded"), help="(default: plain)")
    parser.add_argument("--top", type=int, default=0, help="list so many of the longest kernels")
    words = sys.argv[1:]
    options = parser.parse_args(words)
    if options.worker:
        print(json.dumps(compiled_row(options, options.freeze[0], options.stem[0])))
        return
    rows = []
    for row in measure(options, words):
        rows.append(row)
        print(
            f"compiled freeze {row['freeze']}, {row['stem']} stem, in {row['compile_seconds']:.0f} s", file=sys.stderr
        )
    print(tables(rows))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
