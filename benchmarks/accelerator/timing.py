"""Parts about time and memory of the step: by freezing depth, with another stem, with several steps per dispatch, kernel by kernel."""

from __future__ import annotations

import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.accelerator.bench import AbsentError, Bench, half_precision, make_bench, row, title
from benchmarks.hlo import parse
from benchmarks.kernels import kernels
from benchmarks.roofline import chip_of, summary
from yolojax.model.convolution import folded_stem
from yolojax.runtime import device_peak_bytes
from yolojax.training.state import TrainState

WARM_UP = 5
PEAK_FACTOR = 1.5


def _typed(case: Mapping[str, Any]) -> dict[str, Any]:
    return {**case, "dtype": half_precision() if case["dtype"] == "narrow" else case["dtype"]}


def step(case: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Time per step and peak memory of a fresh process, beside the roofline of the program and the memory that it was compiled with."""
    case = _typed(case)
    bench = make_bench(case)
    started = time.perf_counter()
    program = bench.lower().compile()
    compile_seconds = time.perf_counter() - started
    jax.block_until_ready(bench.run(program, WARM_UP))
    times = bench.times(program, case["blocks"], case["steps"])
    milliseconds, peak, planned = 1e3 * statistics.median(times), device_peak_bytes(bench.device), _planned(program)
    chip, parts = chip_of(bench.device.device_kind), [f"{milliseconds:.2f} ms"]
    figures: dict[str, Any] = {}
    if chip is not None:
        figures = summary(kernels(parse(program.as_text() or "")), chip)
        parts.append(f"{milliseconds / figures['roofline_ms']:.2f} x roofline")
    passes = None
    if peak and planned:
        parts.append(f"peak {peak / 1e9:.2f} GB, {planned / 1e9:.2f} as compiled")
        passes = peak <= PEAK_FACTOR * planned
    parts.append(f"{case['batch'] / milliseconds * 1e3:,.0f} images/s, compiled in {compile_seconds:.0f} s")
    yield row(
        title(case),
        ", ".join(parts),
        limit=f"peak {PEAK_FACTOR} x as compiled" if passes is not None else "",
        passes=passes,
        milliseconds=milliseconds,
        low=1e3 * min(times),
        high=1e3 * max(times),
        compile_seconds=compile_seconds,
        peak_bytes=peak,
        planned_bytes=planned,
        roofline=figures,
        **{name: case[name] for name in ("model", "freeze", "dtype", "size", "batch")},
    )


def _planned(program: Any) -> int | None:
    """Bytes that a program needs at once, as its compiler counts them."""
    sizes = program.memory_analysis()
    if sizes is None:
        return None
    own = sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    return sizes.argument_size_in_bytes + own + sizes.temp_size_in_bytes + sizes.generated_code_size_in_bytes


def _in_turns(case: Mapping[str, Any], bench: Bench, programs: Mapping[str, Any]) -> dict[str, float]:
    """Milliseconds per step of each program: blocks of steps in turns, medians."""
    times: dict[str, list[float]] = {name: [] for name in programs}
    for program in programs.values():
        jax.block_until_ready(bench.run(program, 2))
    for _ in range(case["blocks"]):
        for name, program in programs.items():
            times[name] += bench.times(program, 1, case["steps"])
    return {name: 1e3 * statistics.median(values) for name, values in times.items()}


def stem(case: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The first convolution plain (6×6 on 3 channels) and folded (3×3 on 12), in turns."""
    case = _typed(case)
    bench = make_bench(case)
    programs = {"plain": bench.lower().compile()}
    with folded_stem():
        programs["folded"] = make_bench(case).lower().compile()
    times = _in_turns(case, bench, programs)
    yield row(
        f"stem, {title(case)}",
        f"plain {times['plain']:.2f} ms, folded {times['folded']:.2f} ms, ratio {times['folded'] / times['plain']:.3f}"
        + (" (a CPU folds both)" if bench.device.platform == "cpu" else ""),
        plain_ms=times["plain"],
        folded_ms=times["folded"],
        freeze=case["freeze"],
        model=case["model"],
    )


def dispatch(case: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """One and several steps per dispatch, on a batch that lies on the device: time per step, and that of the Python thread."""
    case = _typed(case)
    for count in (1, case["together"]):
        bench = make_bench(case)
        program = bench.lower().compile() if count == 1 else _together(bench, count)
        jax.block_until_ready(bench.run(program, 2))
        in_python, whole = [], []
        for _ in range(case["blocks"]):
            start = time.perf_counter()
            metrics = bench.run(program, 1)
            in_python.append(time.perf_counter() - start)
            jax.block_until_ready(metrics)
            whole += bench.times(program, 1, max(case["steps"] // count, 1))
        milliseconds, thread = 1e3 * statistics.median(whole) / count, 1e3 * statistics.median(in_python)
        yield row(
            f"{count} steps per dispatch, {title(case)}",
            f"{milliseconds:.3f} ms per step; the call takes Python {thread:.2f} ms",
            milliseconds=milliseconds,
            python_ms=thread,
            together=count,
            model=case["model"],
            freeze=case["freeze"],
        )


def _together(bench: Bench, count: int) -> Callable[[Any, Any, Any, Any], tuple[Any, Any]]:
    """Some steps on the same batch as one call of a program, whose loop learns their number when it runs."""

    def run(moving: Any, resting: Any, batch: Any, factors: Any, steps: jax.Array) -> tuple[Any, Any]:
        def one(_: Any, carried: tuple[Any, Any]) -> tuple[Any, Any]:
            state, metrics = bench.step(TrainState(carried[0], resting), batch, factors)
            return state.moving, metrics

        shapes = jax.eval_shape(lambda: one(0, (moving, None))[1])
        empty = jax.tree.map(lambda value: jnp.zeros(value.shape, value.dtype), shapes)
        return jax.lax.fori_loop(0, steps, one, (moving, empty))

    steps = jax.device_put(np.int32(count), bench.sharding)
    arguments: tuple[Any, ...] = (bench.state.moving, bench.state.resting, bench.batch, {}, steps)
    program = jax.jit(run, donate_argnums=0).lower(*arguments).compile()
    return lambda *arguments: program(*arguments, steps)


def profile(case: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The longest kernels of three steps, and the share of the time in which the card computes."""
    case = _typed(case)
    bench = make_bench(case)
    program = bench.lower().compile()
    jax.block_until_ready(bench.run(program, WARM_UP))
    busy, reason = _busy(lambda: jax.block_until_ready(bench.run(program, case["steps"])), case["seconds"])
    if busy is None:
        yield row("busy share of the card", f"left out: {reason}")
    else:
        yield row(f"busy share of the card, {title(case)}", f"{busy:.0f} %", limit="90 %", passes=busy >= 90, busy=busy)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(bench.run(program, 3))
        times = _kernel_times(Path(folder))
    if not times:
        raise AbsentError("the profiler saw no kernels of the device")
    total = sum(times.values())
    for name, nanoseconds in times.most_common(case["kernels"]):
        yield row(
            f"kernel {name[:100]}", f"{nanoseconds / 3e6:.3f} ms per step, {nanoseconds / total:.1%}", kernel=name
        )


def _kernel_times(folder: Path) -> Counter[str]:
    """Nanoseconds by kernel, from a trace: of the streams of a GPU, of the lines of operations of a TPU, of XLA's threads on a CPU."""
    times: Counter[str] = Counter()
    lines = {"/device:GPU": "Stream", "/device:TPU": "XLA Ops", "/host:CPU": "tf_XLAEigen"}
    for file in folder.rglob("*.xplane.pb"):
        for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
            begins = next((name for place, name in lines.items() if plane.name.startswith(place)), None)
            for line in plane.lines if begins else ():
                if line.name.startswith(str(begins)):
                    for event in line.events:
                        times[event.name] += event.duration_ns
    return times


def _busy(work: Callable[[], object], seconds: float) -> tuple[float | None, str]:
    """The mean busy share of the first card in per cent, while it works for so long; else the reason why it is not known."""
    if jax.devices()[0].platform != "gpu":
        return None, "not an NVIDIA card"
    read = _reader()
    if read is None:
        return None, "neither nvidia-ml-py nor nvidia-smi is here"
    shares: list[float] = []
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.2):
            shares.append(read())

    watcher = threading.Thread(target=watch)
    watcher.start()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        work()
    done.set()
    watcher.join()
    return (statistics.mean(shares[2:]), "") if len(shares) > 2 else (None, "too few readings")


def _reader() -> Callable[[], float] | None:
    """Reads the busy share in per cent."""
    try:
        import pynvml

        pynvml.nvmlInit()
        card = pynvml.nvmlDeviceGetHandleByIndex(0)
        return lambda: float(pynvml.nvmlDeviceGetUtilizationRates(card).gpu)
    except Exception:  # whatever this library raises where there is no card or no driver for it
        command = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "--id=0"]
        if shutil.which("nvidia-smi") is None:
            return None
        return lambda: float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
