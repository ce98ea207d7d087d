"""What a process uses."""

import os
import subprocess
import sys
import time

import pytest

from yolojax.study.sampling import Sampler


def test_a_busy_process_and_its_child_are_counted():
    busy = "import time\nblock = bytearray(50_000_000)\nend = time.time() + 20\nwhile time.time() < end: pass"
    parent = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {busy!r}])"
    with subprocess.Popen([sys.executable, "-c", parent]) as process:
        sampler, began = Sampler(process.pid), time.monotonic()
        time.sleep(1)
        sample = sampler.sample()
        children = sampler._process.children(recursive=True)
        used = sum(child.cpu_times().user for child in children) / (time.monotonic() - began)
        process.kill()
        for child in children:
            child.kill()
    assert sample["cpu_percent"] == pytest.approx(100 * used, rel=0.5)  # on a busy machine both are small
    assert used > 0
    assert sample["memory_bytes"] > 50_000_000


def test_a_process_that_ended_is_no_error():
    process = subprocess.Popen([sys.executable, "-c", ""])
    sampler = Sampler(process.pid)
    process.wait()
    assert sampler.sample()["memory_bytes"] == 0


def test_gpus_are_those_that_the_process_uses(monkeypatch):
    class Nvml:
        NVMLError = RuntimeError

        def nvmlDeviceGetComputeRunningProcesses(self, handle):  # noqa: N802
            pid = {"mine": 7, "other": os.getpid(), "host": 2**30}[handle]
            return [type("Use", (), {"pid": pid, "usedGpuMemory": 100})]

        def nvmlDeviceGetUtilizationRates(self, handle):  # noqa: N802
            return type("Rates", (), {"gpu": 60})

    handles = [(Nvml(), "mine"), (Nvml(), "other")]
    monkeypatch.setattr("yolojax.study.sampling._open_gpus", lambda: handles)
    sampler = Sampler(1)
    assert sampler._sample_gpus({7}) == {"gpu_percent": 60, "gpu_memory_bytes": 100}
    handles[:] = [(Nvml(), "other")]
    assert sampler._sample_gpus({7}) == {}
    handles[:] = [(Nvml(), "host")]  # a number that no process has here: seen from inside a container
    assert sampler._sample_gpus({7}) == {"gpu_percent": 60, "gpu_memory_bytes": 100}


def test_nvml_is_optional(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    from yolojax.study import sampling

    assert sampling._open_gpus() == []
