"""Device choice and the compile cache; called once by a command, before anything is computed."""

from __future__ import annotations

import ctypes
import logging
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from yolojax.errors import UserError
from yolojax.system import glibc_version, replaces_processes

if TYPE_CHECKING:
    import jax

log = logging.getLogger(__name__)

_HUGE_PAGES = "glibc.malloc.hugetlb"
_PLATFORMS = {"cpu": "cpu", "gpu": "cuda", "cuda": "cuda", "tpu": "tpu"}


def cache_folder() -> Path:
    """Where yolojax keeps what it can make again: ``$YOLOJAX_CACHE``, else ``~/.cache/yolojax``."""
    return Path(os.environ.get("YOLOJAX_CACHE") or Path.home() / ".cache" / "yolojax")


def use_huge_pages() -> None:
    """Start this process again so that large arrays lie in huge pages, where glibc can do it and nobody has chosen otherwise.

    On a CPU, XLA allocates the temporary arrays of a step anew each time; in pages of 4 kB, making them takes a quarter of a step
    (``docs/performance.md``). glibc reads this setting only before a program begins. Call it first: what was done before is done again.
    """
    chosen = os.environ.get("GLIBC_TUNABLES", "")
    if glibc_version() < (2, 35) or not replaces_processes() or _HUGE_PAGES in chosen or not sys.executable:
        return
    tunables = ":".join(filter(None, [chosen, f"{_HUGE_PAGES}=1"]))
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | {"GLIBC_TUNABLES": tunables})


def select_devices(device: str = "") -> list[jax.Device]:
    """Start JAX and choose the devices of a command; compiled programs are kept on disk from then on.

    Args:
      device: ``cpu``, ``gpu``, ``tpu``, numbers as in ``0,1``, or nothing for all devices of the best platform.

    Returns:
      Devices that this command uses, over all hosts.

    Raises:
      UserError: the platform or a number does not exist here; the message lists what does.
    """
    import jax

    name = device.strip().lower().removeprefix("cuda:")
    if name in _PLATFORMS:
        jax.config.update("jax_platforms", _PLATFORMS[name])
    elif not name and jax.config.values.get("jax_platforms") is None and _has_plugins_alone():
        log.info("no NVIDIA driver and no TPU here: computing on the CPU")
        jax.config.update("jax_platforms", "cpu")
    try:
        devices = jax.devices(_PLATFORMS.get(name))
    except RuntimeError as error:
        jax.config.update("jax_platforms", None)
        raise UserError(f"--device {device}: not available here ({str(error).splitlines()[0]})") from error
    if jax.config.values.get("jax_compilation_cache_dir") is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "compiled"))
    if not name or name in _PLATFORMS:
        return devices
    try:
        return [devices[int(number)] for number in name.split(",")]
    except (ValueError, IndexError) as error:
        listed = ", ".join(f"{index} = {item.device_kind}" for index, item in enumerate(devices))
        raise UserError(f"--device {device}: choose cpu, gpu, tpu or numbers of: {listed}") from error


def _has_plugins_alone() -> bool:
    """Whether JAX's plugins for accelerators are installed where no accelerator is, as for ``yolojax plan``.

    JAX would try them, and print a traceback and warnings before it takes the CPU.
    """
    if not any(find_spec(plugin) for plugin in ("jax_cuda12_plugin", "libtpu")):
        return False
    try:
        ctypes.CDLL("libcuda.so.1")  # of the driver
        return False
    except OSError:
        pass
    google = "0x1ae0"
    return all(file.read_text().strip() != google for file in Path("/sys/bus/pci/devices").glob("*/vendor"))
