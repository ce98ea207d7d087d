"""Fixtures that every test may use."""

from __future__ import annotations  # the oldest pytest that is allowed has no public name for some types of its own

import ctypes
import gc
import hashlib
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path

import cv2
import hypothesis
import numpy as np
import psutil
import pytest
import yaml

from yolojax.system import glibc_version


def quick_compilation() -> str:
    """XLA's flags for programs of a CPU that run a few times: LLVM without optimisation, and its short way to emit a fused loop."""
    short = tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 12)  # 0.12 has one way only, and a preset
    emitter = "--xla_cpu_use_fusion_emitters=false" if short else "--xla_cpu_opt_preset=CPU_OPT_PRESET_FAST_COMPILE"
    return f"--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1 {emitter}"


# Tests compile many small programs and run each a few times: compile quickly, and compile each only once over all processes of a test run,
# also what takes less than the second from which on JAX keeps a program by itself.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {quick_compilation()}".strip()
_compiled = tempfile.TemporaryDirectory(prefix="yolojax-compiled-")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", _compiled.name)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")
# The plugins of the extra `aot` are here for the plans; where no accelerator is, JAX would try them first.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("YOLOJAX_CACHE", str(Path(_compiled.name) / "cache"))
# Tracing makes very many small objects that live: looking through them for cycles at Python's usual pace takes a seventh of the time of all tests.
gc.set_threshold(100_000, 10, 10)
MEMORY_TO_KEEP = 1e9  # bytes; what a test process holds before it forgets the programs of a module
# A busy machine is no fault of what is tested.
_patient = {"deadline": None, "suppress_health_check": [hypothesis.HealthCheck.too_slow]}
hypothesis.settings.register_profile("patient", hypothesis.settings.default, **_patient)
hypothesis.settings.load_profile("patient")

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with real weights and photos (tests/README.md); absent on most machines."""
    folder = Path(os.environ.get("YOLOJAX_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "weights" / "yolov5n.pt").is_file():
        pytest.skip(f"real weights and photos are not at {folder} (set YOLOJAX_DATA)")
    return folder


@pytest.fixture(scope="session")
def contents() -> Callable[..., dict[Path, tuple[str, int]]]:
    """``contents(folder, …)``: digest and time of the last change of every file in them; what a command must leave as it was.

    A command may add files of its own: then what was there before is among what is there after, ``before.items() <= contents(folder).items()``.
    """

    def read(*folders: Path) -> dict[Path, tuple[str, int]]:
        files = (file for folder in folders for file in folder.rglob("*") if file.is_file())
        return {file: (hashlib.sha256(file.read_bytes()).hexdigest(), file.stat().st_mtime_ns) for file in files}

    return read


@pytest.fixture(scope="module", autouse=True)
def forget_programs() -> Iterator[None]:
    """Compiled programs and their memory go with the module that used them where they are many, so that a worker does not gather those of all."""
    yield
    if "jax" in sys.modules and psutil.Process().memory_info().rss > MEMORY_TO_KEEP:
        sys.modules["jax"].clear_caches()
        gc.collect()
        if glibc_version() > (0, 0):
            ctypes.CDLL(None).malloc_trim(0)  # else the C library keeps most of what was given back


@pytest.fixture(autouse=True)
def forget_log() -> Iterator[None]:
    """A command that a test calls sends what yolojax logs to its own output; later tests look for it where Python sends it."""
    yield
    log = logging.getLogger("yolojax")
    log.handlers.clear()
    log.propagate = True
    log.setLevel(logging.NOTSET)


TINY = """
nc: 2
anchors: [[8, 8, 16, 12, 12, 16], [20, 20, 32, 24, 24, 32]]
backbone:
  - [-1, 1, Conv, [8, 3, 2]]
  - [-1, 1, Conv, [16, 3, 2]]
  - [-1, 1, C3, [16]]
  - [-1, 1, Conv, [24, 3, 2]]
  - [-1, 1, SPPF, [24, 5]]
head:
  - [-1, 1, Conv, [32, 3, 2]]
  - [[4, 5], 1, Detect, []]
"""


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model YAML: two levels, seven layers; layers 0 to 4 are the backbone, 6 is Detect."""
    file = tmp_path_factory.mktemp("model") / "tiny.yaml"
    file.write_text(TINY)
    return file


@pytest.fixture(scope="session")
def pyramid() -> Callable[..., dict]:
    """``pyramid(*detected, deepest=5, anchors=...)``: the content of a model YAML that halves its images ``deepest`` times, goes back up one
    level at a time, and detects at the levels ``detected`` (3 is stride 8), which need not have the deepest among them."""

    def make(*detected: int, deepest: int = 5, anchors: object = None) -> dict:
        down = [[-1, 1, "Conv", [8, 3, 2]] for _ in range(deepest)]
        place, up = {deepest: deepest - 1}, []
        for level in range(deepest - 1, min(detected) - 1, -1):
            up += [[place[level + 1], 1, "Upsample", [2]], [[-1, level - 1], 1, "Concat", []], [-1, 1, "C3", [8]]]
            place[level] = deepest + len(up) - 1
        rows = [[side * 2**level // 8 for side in (10, 13, 16, 30, 33, 23)] for level in detected]
        detect = [[place[level] for level in detected], 1, "Detect", []]
        return {"nc": 2, "anchors": rows if anchors is None else anchors, "backbone": down, "head": [*up, detect]}

    return make


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data YAML in YOLO layout: ten training and four validation images of 64 px with one to three coloured squares."""
    folder = tmp_path_factory.mktemp("data")
    for split, count in (("train", 10), ("val", 4)):
        for part in ("images", "labels"):
            (folder / part / split).mkdir(parents=True)
        for number in range(count):
            rng = np.random.default_rng([number, count])
            image = rng.integers(90, 130, (64, 64, 3)).astype(np.uint8)
            rows = []
            for _ in range(rng.integers(1, 4)):
                category, (x, y), side = rng.integers(2), rng.integers(0, 40, 2), rng.integers(10, 24)
                image[y : y + side, x : x + side] = (220, 30, 30) if category else (30, 30, 220)
                rows.append(f"{category} {(x + side / 2) / 64} {(y + side / 2) / 64} {side / 64} {side / 64}")
            cv2.imwrite(str(folder / "images" / split / f"{number}.png"), image)
            (folder / "labels" / split / f"{number}.txt").write_text("\n".join(rows))
    file = folder / "squares.yaml"
    file.write_text(f"path: {folder}\ntrain: images/train\nval: images/val\nnames: [blue, red]\n")
    return file


@pytest.fixture
def write_study(tmp_path: Path, tiny_model: Path, tiny_data: Path) -> Callable[..., Path]:
    """Writes a study YAML; ``scenarios`` and other keys replace those of a small valid one."""

    def write(**changes) -> Path:
        train = {
            "weights": "",
            "cfg": str(tiny_model),
            "data": str(tiny_data),
            "img": 64,
            "batch": 4,
            "epochs": 2,
            "workers": 0,
        }
        content = {
            "title": "Squares",
            "train": train,
            "seeds": [0],
            "scenarios": [{"name": "freeze 2", "freeze": 2}],
            **changes,
        }
        file = tmp_path / "squares-study.yaml"
        file.write_text(yaml.safe_dump(content))
        return file

    return write


@pytest.fixture(scope="session")
def sees_colours():
    """In the place of ``make_predict``: a network of three classes that finds the red, green and blue rectangle in an image and nothing else."""
    import jax.numpy as jnp

    def make_predict(weights, *, dtype=None, augment=False, classes=None, mesh=None):

        def predict(images, sizes=None):
            predictions = np.zeros((len(images), 3, 8), np.float32)
            for row, image in zip(predictions, np.asarray(images).astype(int), strict=True):
                for label in range(3):
                    others = np.delete(image, label, 2).max(2)
                    y, x = np.nonzero(image[..., label] - others > 100)
                    if len(x):
                        x1, y1, x2, y2 = x.min(), y.min(), x.max() + 1, y.max() + 1
                        row[label, :5] = (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1, 1
                        row[label, 5 + label] = 0.9 - label / 10
            return jnp.asarray(predictions), ()

        predict.compiled_ahead = lambda *_, **__: nullcontext()
        return predict

    return make_predict


# --- What the tests cost: with --durations=N, processor seconds by file and the peak memory of every process --------------------------------------

_spent: dict[str, float] = {}
_peaks: list[float] = []
_BEGAN = pytest.StashKey[float]()


def peak_memory() -> float:
    """Most bytes that this process has held at once."""
    try:
        import resource
    except ImportError:  # Windows
        return psutil.Process().memory_info().peak_wset
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    item.stash[_BEGAN] = sum(os.times()[:4])  # those of processes that ended are among them
    return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    try:
        return (yield)
    finally:
        item.user_properties.append(("processor_seconds", sum(os.times()[:4]) - item.stash[_BEGAN]))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    file = report.nodeid.partition("::")[0]
    for name, seconds in report.user_properties if report.when == "teardown" else ():
        if name == "processor_seconds":
            _spent[file] = _spent.get(file, 0) + seconds


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["peak_memory"] = peak_memory()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: object) -> None:
    _peaks.append(getattr(node, "workeroutput", {}).get("peak_memory", 0))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if not config.option.durations:
        return
    terminalreporter.section(f"{sum(_spent.values()):.0f} processor seconds")
    for file, seconds in sorted(_spent.items(), key=lambda row: -row[1])[: config.option.durations]:
        terminalreporter.write_line(f"{seconds:7.1f} s  {file}")
    peaks = ", ".join(f"{peak / 1e9:.2f}" for peak in _peaks or [peak_memory()])
    terminalreporter.write_line(f"peak memory of the test processes: {peaks} GB")
