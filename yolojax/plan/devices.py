"""What a step can be compiled for: the devices of this machine, and accelerators that are not here.

An absent accelerator is known by its description in ``configs/targets.yaml``; the plugins of the extra ``aot`` compile for it without a driver. They
read environment variables when JAX is imported, so each target has a process of its own, started with ``target_environment`` (see ``plan``).
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Literal

from yolojax.config import configs_root, read_yaml
from yolojax.errors import UserError
from yolojax.runtime import KEEP_PLUGINS, computation_dtype, dtype_of, why_absent

if TYPE_CHECKING:
    import jax

OWN = ("cpu", "gpu", "tpu")
# The part of a GPU's memory that JAX takes when it starts, unless the environment says otherwise.
_GPU_FRACTION = "XLA_PYTHON_CLIENT_MEM_FRACTION"


@dataclass(frozen=True, kw_only=True)
class Target:
    """A device to compile for.

    Attributes:
      name: as a user writes it.
      title: for people.
      platform: ``own`` is a device of this machine.
      memory: bytes of an absent device; None for one of this machine, which tells itself.
      facts: what the compiler needs to know of an absent device.
    """

    name: str
    title: str
    platform: Literal["own", "cuda", "tpu"]
    memory: int | None = None
    facts: Mapping[str, Any]


def load_target(name: str) -> Target:
    """The target that a user means.

    Args:
      name: ``cpu``, ``gpu`` or ``tpu`` for a device of this machine, else a name in ``configs/targets.yaml``.

    Raises:
      UserError: it is neither, or the packages that compile for it are not installed.
    """
    if name in OWN:
        return Target(name=name, title=f"{name} of this machine", platform="own", facts={})
    described = read_yaml(configs_root() / "targets.yaml")
    if name not in described:
        raise UserError(
            f"--target {name}: is not known; there are {', '.join(OWN)} (of this machine) and {', '.join(described)}"
        )
    content = described[name]
    platform: Literal["cuda", "tpu"] = "cuda" if "cuda" in content else "tpu"
    missing = [package for package in _PACKAGES[platform] if not _is_installed(package)]
    if missing:
        raise UserError(
            f"--target {name}: compiling for a device that is not here needs the extra 'aot': "
            f"pip install 'yolojax[aot]' (in a checkout: pip install -e '.[aot]'); missing: {', '.join(missing)}"
        )
    return Target(
        name=name, title=content["title"], platform=platform, memory=content["memory"], facts=content[platform]
    )


_PACKAGES = {"cuda": ("jax-cuda12-plugin", "nvidia-cuda-nvcc-cu12"), "tpu": ("libtpu",)}


def _is_installed(package: str) -> bool:
    try:
        return bool(version(package))
    except PackageNotFoundError:
        return False


def target_environment(target: Target) -> dict[str, str]:
    """The variables to start a process with that compiles for ``target``, in addition to those that are set."""
    # JAX's cache of compiled programs does not serve devices that are absent, and its programs do not tell their memory.
    variables = {"JAX_ENABLE_COMPILATION_CACHE": "false", "JAX_PLATFORMS": "cpu"}
    if target.platform == "own" and target.name != "cpu":
        variables["JAX_PLATFORMS"] = "cuda,cpu" if target.name == "gpu" else "tpu,cpu"
    if target.platform == "cuda":
        variables[KEEP_PLUGINS] = "1"
    if target.platform == "tpu":
        variables |= {
            "TPU_SKIP_MDS_QUERY": "1",
            "TPU_WORKER_HOSTNAMES": "localhost",
            "TPU_ACCELERATOR_TYPE": target.facts["machine"],
            "TPU_LOG_DIR": "disabled",
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
            # Another XLA than JAX's own, which may not know flags for a CPU and ends at one that it does not know.
            "XLA_FLAGS": " ".join(flag for flag in os.environ.get("XLA_FLAGS", "").split() if "xla_cpu_" not in flag),
            # Seconds instead of minutes. Memory comes out larger than in a run, never smaller.
            "JAX_OPTIMIZATION_LEVEL": os.environ.get("JAX_OPTIMIZATION_LEVEL") or "O0",
        }
    return variables


def open_device(target: Target) -> jax.Device:
    """The device to compile for, in a process that was started with ``target_environment``.

    Raises:
      UserError: it is a device of this machine that this machine does not have.
    """
    import jax

    if target.platform == "own":
        if (reason := why_absent({"gpu": "cuda"}.get(target.name, target.name))) is not None:
            raise UserError(f"--target {target.name}: {reason}; cuda:h100 or tpu:v5e, say, need not be here")
        try:
            return jax.devices({"gpu": "cuda"}.get(target.name, target.name))[0]
        except RuntimeError as error:
            raise UserError(f"--target {target.name}: not available here ({str(error).splitlines()[0]})") from error
    return open_devices(target, (1, 1) if target.platform == "cuda" else target.facts["chips"])[0]


def open_devices(target: Target, arrangement: Sequence[int]) -> list[jax.Device]:
    """Absent devices that share a step, to compile for in a process that was started with ``target_environment``.

    Args:
      target: one of ``configs/targets.yaml``.
      arrangement: of GPUs, hosts and cards in each; of TPUs, the chips of a slice along each of its dimensions, all in one machine.
    """
    from jax.experimental import topologies

    written = "x".join(map(str, arrangement))
    options: dict[str, Any]
    if target.platform == "cuda":
        options = {"topology_name": "", "topology": f"1x{written}", "target_config": cuda_description(target)}
    else:
        bounds = (*arrangement, 1, 1)[:3]
        options = {
            "topology_name": f"{target.facts['generation']}:{written}",
            "chips_per_host_bounds": bounds,
            "chip_config_name": target.facts.get("configuration", "default"),
        }
    devices: Any = topologies.get_topology_desc(platform=target.platform, **options).devices
    # A call that is not quite right gives a device of this machine, and figures of a CPU.
    if len(devices) != math.prod(arrangement) or devices[0].client.runtime_type != "compile_only_runtime":
        raise RuntimeError(f"{target.name}, {written}: JAX gave {devices} instead of devices to compile for")
    return list(devices)


def dtype_on(target: Target, device: jax.Device, asked: str) -> str:
    """The dtype that a step computes in on a target: what is asked for; for ``auto`` what ``yolojax train`` takes there."""
    if asked != "auto" or target.platform == "own":
        return computation_dtype(asked, [device])
    return dtype_of({"cuda": "gpu"}.get(target.platform, target.platform), str(target.facts.get("compute_capability")))


def usable_bytes(target: Target, device: jax.Device) -> int:
    """The memory that a program may take.

    On a GPU it is what JAX reserves (``XLA_PYTHON_CLIENT_MEM_FRACTION``, .75 by default); on a CPU, all of the machine's.
    """
    if target.memory is not None:
        fraction = float(os.environ.get(_GPU_FRACTION) or 0.75) if target.platform == "cuda" else 1.0
        return int(target.memory * fraction)
    if limit := (device.memory_stats() or {}).get("bytes_limit"):
        return limit
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def cuda_description(target: Target) -> str:
    """A GPU in the text form that XLA reads.

    What all cards since Volta share is written here; the CUDA and cuDNN versions are those that JAX's own CUDA packages bring.
    """
    facts = target.facts
    major, minor = str(facts["compute_capability"]).rstrip("a").split(".")
    # ``9.0a``: instructions that only cards of exactly this capability have.
    extension = "ACCELERATED_FEATURES" if str(facts["compute_capability"]).endswith("a") else "NONE"
    return f"""
platform_name: "CUDA"
device_description_str: "{target.title}"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
gpu_device_info {{
  cuda_compute_capability {{ major: {major} minor: {minor} feature_extension: {extension} }}
  core_count: {facts["multiprocessors"]}
  fpus_per_core: {facts["lanes"]}
  clock_rate_ghz: {facts["clock_ghz"]}
  memory_bandwidth: {facts["bandwidth"]}
  device_memory_size: {target.memory}
  l2_cache_size: {facts["l2_cache"]}
  shared_memory_per_core: {facts["shared_memory_per_multiprocessor"]}
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: {facts["shared_memory_per_block"]}
  threads_per_core_limit: {facts["threads_per_multiprocessor"]}
  threads_per_block_limit: 1024
  threads_per_warp: 32
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  driver_version: "12.8.0"
  runtime_version: "12.8.0"
  compile_time_toolkit_version: "12.8.0"
  dnn_version: "9.10.0"
}}
"""
