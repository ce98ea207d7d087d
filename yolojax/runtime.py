"""How JAX starts: with the accelerators that are here, the devices that are asked for, and a compile cache."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from yolojax.errors import UserError
from yolojax.system import glibc_version, replaces_processes

if TYPE_CHECKING:
    import jax

log = logging.getLogger(__name__)

_HUGE_PAGES = "glibc.malloc.hugetlb"
# Large arrays in huge pages of few heaps, which keep the memory that they leave for the next ones. With one heap the compiler's threads wait for each other.
_ALLOCATOR = {
    _HUGE_PAGES: 1,
    "glibc.malloc.mmap_max": 0,
    "glibc.malloc.trim_threshold": 2**44,
    "glibc.malloc.arena_max": 2,
}
_PLATFORMS = {"cpu": "cpu", "gpu": "cuda", "cuda": "cuda", "tpu": "tpu"}
_CUDA_PLUGINS = ("cuda12", "cuda13")
# For a program that compiles for accelerators which are not here, as `yolojax plan` does.
KEEP_PLUGINS = "YOLOJAX_KEEP_PLUGINS"
# Sums that many threads add to at once are sorted first. Kernels are still chosen by timing them, among those with the same bits every time.
DETERMINISTIC = "--xla_gpu_exclude_nondeterministic_ops=true"


def cache_folder() -> Path:
    """Where yolojax keeps what it can make again: ``$YOLOJAX_CACHE``, else ``~/.cache/yolojax``."""
    return Path(os.environ.get("YOLOJAX_CACHE") or Path.home() / ".cache" / "yolojax")


def prepare_process() -> None:
    """Settings of a process that computes; call it first, see ``use_huge_pages``.

    Tracing makes millions of objects that live. Looking through them for cycles at Python's usual pace takes a tenth of the time until the first step.
    """
    use_huge_pages()
    gc.set_threshold(100_000, 10, 10)


def use_huge_pages() -> None:
    """Start this process again so that large arrays lie in huge pages that it keeps, where glibc can do it and nobody has chosen otherwise.

    On a CPU, XLA allocates the temporary arrays of a step anew each time; in pages of 4 kB, making them takes a quarter of a step, and huge ones that
    are given back have to be found again (``docs/performance.md``). glibc reads these settings only before a program begins. Call it
    first: what was done before is done again.
    """
    chosen = os.environ.get("GLIBC_TUNABLES", "")
    if _huge_pages_absence() is not None or _HUGE_PAGES in chosen or not sys.executable:
        return
    ours = [f"{name}={value}" for name, value in _ALLOCATOR.items() if f"{name}=" not in chosen]
    tunables = ":".join([chosen, *ours] if chosen else ours)
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | {"GLIBC_TUNABLES": tunables})


def _huge_pages_absence() -> str | None:
    """Why glibc cannot put large arrays into huge pages here; None where it can."""
    if not replaces_processes():
        return "this system cannot start a process again in its place"
    version = glibc_version()
    if version == (0, 0):
        return "this system has no glibc"
    return None if version >= (2, 35) else f"glibc {version[0]}.{version[1]} is older than 2.35"


def huge_pages_problem() -> str | None:
    """Why the large arrays of a training on the CPU do not lie in huge pages; None where they do."""
    if (reason := _huge_pages_absence()) is not None:
        return reason
    if f"{_HUGE_PAGES}=0" in os.environ.get("GLIBC_TUNABLES", ""):
        return "GLIBC_TUNABLES switches them off"
    kernel = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not kernel.is_file() or "[never]" in kernel.read_text(encoding="ascii"):
        return f"the kernel gives none ({kernel})"
    return None


def leave_out_absent_accelerators() -> None:
    """Let JAX start with what is here, where its plugins for NVIDIA GPUs or TPUs are installed and no such device is.

    JAX would try them: it prints warnings and tracebacks, and libtpu asks for the metadata server of a cloud, before it
    takes the CPU. The package does this when it is imported, because data workers import JAX through Grain and have no
    other place. ``JAX_PLATFORMS`` and ``YOLOJAX_KEEP_PLUGINS=1`` in the environment are respected.
    """
    if os.environ.get(KEEP_PLUGINS):
        return
    absent, present = absent_accelerators(), []
    if "cuda" in absent:
        for name in _CUDA_PLUGINS:
            # Importing a module that is None fails as if it were not installed; JAX expects that of its own parts, but
            # warns where a plugin that it has found by itself is missing. This one has nothing to register.
            sys.modules.setdefault(f"jax_{name}_plugin", None)  # type: ignore[arg-type]
            plugin = ModuleType(f"jax_plugins.xla_{name}")
            plugin.initialize = lambda: None  # type: ignore[attr-defined]
            sys.modules.setdefault(plugin.__name__, plugin)
    else:
        present = ["cuda"] if _has_cuda_plugin() else []
    if "tpu" not in absent and find_spec("libtpu"):
        present.append("tpu")
    if absent:
        os.environ.setdefault("JAX_PLATFORMS", ",".join([*present, "cpu"]))


def absent_accelerators() -> tuple[str, ...]:
    """Platforms (``cuda``, ``tpu``) whose plugin is installed on a machine without such a device."""
    cuda = _has_cuda_plugin() and not has_nvidia_driver()
    tpu = find_spec("libtpu") is not None and not has_tpu()
    return (*(["cuda"] if cuda else []), *(["tpu"] if tpu else []))


def _has_cuda_plugin() -> bool:
    names = [f"jax_{name}_plugin" for name in _CUDA_PLUGINS]
    # Hidden modules have no spec.
    return any(name in sys.modules or find_spec(name) for name in names)


def has_nvidia_driver() -> bool:
    """Whether the library of NVIDIA's driver is here."""
    import ctypes

    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def has_tpu() -> bool:
    """Whether a TPU is attached to this machine."""
    google = "0x1ae0"
    vendors = Path("/sys/bus/pci/devices").glob("*/vendor")
    return "JAX_FORCE_TPU_INIT" in os.environ or any(file.read_text().strip() == google for file in vendors)


def why_absent(platform: str) -> str | None:
    """Why JAX cannot have a platform (``cpu``, ``cuda``, ``tpu``) on this machine; None where nothing speaks against it."""
    if platform == "cuda" and not has_nvidia_driver():
        return "there is no NVIDIA driver on this machine"
    if platform == "cuda" and not _has_cuda_plugin():
        return "JAX needs its CUDA plugin: pip install 'yolojax[cuda12]'"
    if platform == "tpu" and not has_tpu():
        return "no TPU is attached to this machine"
    if platform == "tpu" and not find_spec("libtpu"):
        return "JAX needs libtpu: pip install 'yolojax[tpu]'"
    return None


def select_devices(device: str = "", deterministic: bool = False) -> list[jax.Device]:
    """Start JAX and choose the devices of a command; compiled programs are kept on disk from then on.

    Args:
      device: ``cpu``, ``gpu``, ``tpu``, numbers as in ``0,1``, of the devices of each process, or nothing for all devices of the best
        platform.
      deterministic: have programs for a GPU computed without operations whose bits differ from run to run.

    Returns:
      Devices that this command uses, over all hosts.

    Raises:
      UserError: the platform or a number does not exist here; the message lists what does. Or ``deterministic`` comes too late, or JAX cannot work in
        this process.
    """
    import jax
    from jax._src.xla_bridge import backends_are_initialized

    late = backends_are_initialized() and DETERMINISTIC not in os.environ.get("XLA_FLAGS", "")
    if deterministic and not late:
        exclude_nondeterminism()

    if _lost_its_threads():
        raise UserError(
            "this process was forked from one in which JAX had started, and would wait for ever: "
            "start it with multiprocessing.get_context('spawn'), or before the other one uses JAX"
        )
    name = device.strip().lower().removeprefix("cuda:")
    if (reason := why_absent(_PLATFORMS.get(name, "cpu"))) is not None:
        raise UserError(f"--device {device}: {reason}")
    if name in _PLATFORMS:
        jax.config.update("jax_platforms", _PLATFORMS[name])
    elif jax.config.values.get("jax_platforms") is None and absent_accelerators():  # JAX was imported before yolojax
        jax.config.update("jax_platforms", os.environ.get("JAX_PLATFORMS"))
    try:
        with _plain_warnings():
            devices = jax.devices(_PLATFORMS.get(name))
    except RuntimeError as error:
        jax.config.update("jax_platforms", None)
        reason = str(error).splitlines()[0]
        if not name:
            raise UserError(f"no device could be started ({reason}); --device cpu takes the CPU") from error
        raise UserError(f"--device {device}: not available here ({reason})") from error
    if deterministic and late and devices[0].platform == "gpu":
        raise UserError(
            "--deterministic: JAX has started in this program already, and reads its flags only once; "
            f"set XLA_FLAGS={DETERMINISTIC} before it starts"
        )
    if not name and devices[0].platform == "cpu" and absent_accelerators():
        log.info("no NVIDIA driver and no TPU here: computing on the CPU")
    if jax.config.values.get("jax_compilation_cache_dir") is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "compiled"))
    if jax.process_count() > 1:
        counts = jax.process_index(), jax.process_count(), jax.local_device_count(), jax.device_count()
        log.info("process %d of %d (counted from 0), %d devices each, %d in all", *counts)
    if not name or name in _PLATFORMS:
        return devices
    try:
        owners = sorted({item.process_index for item in devices})
        local = [[item for item in devices if item.process_index == owner] for owner in owners]
        return [own[int(number)] for own in local for number in name.split(",")]
    except (ValueError, IndexError) as error:
        listed = ", ".join(f"{index} = {item.device_kind}" for index, item in enumerate(jax.local_devices()))
        raise UserError(f"--device {device}: choose cpu, gpu, tpu or numbers of: {listed}") from error


def exclude_nondeterminism() -> None:
    """Have JAX compile for a GPU without operations whose bits differ from run to run; it reads this when it starts."""
    flags = os.environ.get("XLA_FLAGS", "").split()
    os.environ["XLA_FLAGS"] = " ".join(dict.fromkeys([*flags, DETERMINISTIC]))


def device_peak_bytes(device: jax.Device) -> int | None:
    """The most memory that this process ever held on a device, in bytes; None where the device does not say (CPU)."""
    return (device.memory_stats() or {}).get("peak_bytes_in_use")


def dtype_of(platform: str, compute_capability: str | None = None) -> str:
    """What ``--dtype auto`` means on a device.

    Args:
      platform: as JAX names it: ``cpu``, ``gpu``, ``tpu``.
      compute_capability: of an NVIDIA GPU, as in ``8.0``.

    Returns:
      ``bfloat16`` where a device multiplies it at full speed, else ``float16`` where it has units for that, else ``float32``.

    >>> [dtype_of("gpu", capability) for capability in ("9.0", "7.5", "6.1")]
    ['bfloat16', 'float16', 'float32']
    """
    if platform == "tpu":
        return "bfloat16"
    major = int(version[1]) if (version := re.match(r"(\d+)\.", compute_capability or "")) else 0
    return "bfloat16" if major >= 8 else "float16" if major == 7 else "float32"


def computation_dtype(asked: str, devices: Sequence[jax.Device]) -> str:
    """The dtype of a computation on some devices: what is asked for; for ``auto`` what the least of them is made for, see ``dtype_of``."""
    if asked != "auto":
        return asked
    dtypes = {dtype_of(device.platform, getattr(device, "compute_capability", None)) for device in devices}
    return min(dtypes, key=("float32", "float16", "bfloat16").index)


def all_digits() -> AbstractContextManager[object]:
    """A context in which float32 products have all digits of float32.

    A GPU or TPU rounds what it multiplies to ten or eight bits otherwise (TF32, bfloat16). On a CPU there is nothing to change.
    """
    import jax

    return nullcontext() if jax.default_backend() == "cpu" else jax.default_matmul_precision("highest")


def _lost_its_threads() -> bool:
    """Whether this is a fork of a process in which JAX had started: its threads are not copied. False where the system does not tell."""
    bridge, tasks = sys.modules.get("jax._src.xla_bridge"), Path("/proc/self/task")
    spawned = multiprocessing.parent_process() is None or "--multiprocessing-fork" in sys.orig_argv
    if spawned or not tasks.is_dir() or not getattr(bridge, "backends_are_initialized", bool)():
        return False
    return not any("XLA" in (task / "comm").read_text(errors="replace") for task in tasks.iterdir())


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Of a plugin that cannot start, the reason in one line instead of a traceback."""

    def shorten(record: logging.LogRecord) -> bool:
        if record.exc_info:
            record.msg, record.args, record.exc_info = f"{record.getMessage()}: {record.exc_info[1]}", (), None
        return True

    bridge = logging.getLogger("jax._src.xla_bridge")
    bridge.addFilter(shorten)
    try:
        yield
    finally:
        bridge.removeFilter(shorten)
