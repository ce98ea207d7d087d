"""What a running process uses: processors, memory, and the GPU where NVML is there (extra ``nvml``)."""

from __future__ import annotations

import time
from typing import Any

import psutil

from yolojax.system import tells_shared_pages_apart

COLUMNS = ("seconds", "epochs", "cpu_percent", "memory_bytes", "gpu_percent", "gpu_memory_bytes")


class Sampler:
    """Samples a process together with its children."""

    def __init__(self, pid: int) -> None:
        """Watch the process ``pid``."""
        self._process = psutil.Process(pid)
        self._spent: dict[int, float] = {}  # processor seconds of every process that was ever seen
        self._before = (time.monotonic(), 0.0)
        self._gpus = _open_gpus()

    def sample(self) -> dict[str, Any]:
        """Processors and memory since the last sample.

        Returns:
          ``cpu_percent`` (of one processor, so 200 for two that are busy), ``memory_bytes`` (shared pages are counted once where the system
          tells them apart), and ``gpu_percent``, ``gpu_memory_bytes`` over the GPUs that the process uses, where NVML is there.
        """
        try:
            family = [self._process, *self._process.children(recursive=True)]
        except psutil.NoSuchProcess:
            family = []
        memory = 0
        for process in family:
            try:
                with process.oneshot():
                    times = process.cpu_times()
                    memory += _memory(process)
                self._spent[process.pid] = times.user + times.system
            except psutil.Error:  # it ended meanwhile
                continue
        now, spent = time.monotonic(), sum(self._spent.values())
        cpu = 100 * (spent - self._before[1]) / (now - self._before[0])
        self._before = (now, spent)
        return {"cpu_percent": round(cpu, 1), "memory_bytes": memory, **self._sample_gpus({p.pid for p in family})}

    def _sample_gpus(self, pids: set[int]) -> dict[str, Any]:
        used = []
        for nvml, handle in self._gpus:
            try:
                running = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
                # Inside a container NVML names processes by numbers of the host, which mean nothing here: they are taken for ours.
                own = [item for item in running if item.pid in pids or not psutil.pid_exists(item.pid)]
                if own:
                    memory = sum(item.usedGpuMemory or 0 for item in own)
                    used.append((nvml.nvmlDeviceGetUtilizationRates(handle).gpu, memory))
            except nvml.NVMLError:
                continue
        if not used:
            return {}
        return {
            "gpu_percent": sum(percent for percent, _ in used) / len(used),
            "gpu_memory_bytes": sum(memory for _, memory in used),
        }


def _memory(process: psutil.Process) -> int:
    if tells_shared_pages_apart():
        return process.memory_full_info().pss
    return process.memory_info().rss


def _open_gpus() -> list[tuple[Any, Any]]:
    """The module and a handle per NVIDIA GPU; none without the extra or the driver."""
    try:
        import pynvml
    except ImportError:
        return []
    try:
        pynvml.nvmlInit()
        return [(pynvml, pynvml.nvmlDeviceGetHandleByIndex(index)) for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:
        return []
