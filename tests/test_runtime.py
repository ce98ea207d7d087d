"""What a command does before it computes."""

import gc
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest
from jax._src import xla_bridge

from yolojax import runtime
from yolojax.errors import UserError
from yolojax.runtime import (
    all_digits,
    computation_dtype,
    has_nvidia_driver,
    has_tpu,
    prepare_process,
    select_devices,
    use_huge_pages,
    why_absent,
)
from yolojax.system import glibc_version

REPOSITORY = Path(__file__).resolve().parent.parent
# Pages that an array of 200 MB is given, once there was one before.
PAGES = """
from yolojax.runtime import use_huge_pages
use_huge_pages()
import resource, numpy
numpy.ones(25_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
numpy.ones(25_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
PRINT = "from yolojax.runtime import use_huge_pages; use_huge_pages(); import os; print(os.getpid(), os.environ.get('GLIBC_TUNABLES'))"


@pytest.fixture
def started(monkeypatch):
    """Programs that would take the place of this process, with their environment."""
    started = []
    monkeypatch.setattr(os, "execve", lambda *words: started.append(words))
    monkeypatch.setattr(runtime, "glibc_version", lambda: (2, 36))
    monkeypatch.setattr(runtime, "replaces_processes", lambda: True)
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    return started


FORKED = """
import multiprocessing, jax
def child():
    from yolojax.errors import UserError
    from yolojax.runtime import select_devices
    try:
        print(select_devices("cpu"))
    except UserError as error:
        print(error, flush=True)
jax.numpy.ones(3).block_until_ready()
process = multiprocessing.get_context("fork").Process(target=child)
process.start()
process.join(60)
process.kill()
raise SystemExit(process.exitcode)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="threads are told apart on Linux")
def test_a_fork_of_a_process_that_uses_jax_is_told_instead_of_waiting_for_ever():
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", FORKED], capture_output=True, text=True, timeout=120)
    assert "start it with multiprocessing.get_context('spawn')" in done.stdout
    assert done.returncode == 0
    assert "Traceback" not in done.stderr


def test_a_process_starts_again_as_it_was_called(started, monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["python", "-P", "train.py", "--freeze", "10"])
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.arena_max=4")
    use_huge_pages()
    ((program, words, environment),) = started
    assert program == sys.executable
    assert words == [sys.executable, "-P", "train.py", "--freeze", "10"]
    tunables = environment["GLIBC_TUNABLES"].split(":")
    assert tunables[:2] == ["glibc.malloc.arena_max=4", "glibc.malloc.hugetlb=1"]
    assert "glibc.malloc.mmap_max=0" in tunables
    assert sum("arena_max" in tunable for tunable in tunables) == 1
    assert environment["PATH"] == os.environ["PATH"]


def test_a_process_that_computes_seldom_looks_for_cycles(started):
    before = gc.get_threshold()
    try:
        gc.set_threshold(700, 10, 10)
        prepare_process()
        assert gc.get_threshold()[0] > 20_000
    finally:
        gc.set_threshold(*before)
    assert len(started) == 1  # with huge pages


def test_a_choice_of_the_user_stays(started, monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=0")
    use_huge_pages()
    assert not started


@pytest.mark.parametrize("version", [(2, 34), (0, 0)])
def test_a_libc_that_cannot_is_left_alone(started, monkeypatch, version):
    monkeypatch.setattr(runtime, "glibc_version", lambda: version)
    use_huge_pages()
    assert not started


def test_a_system_that_cannot_replace_a_process_is_left_alone(started, monkeypatch):
    monkeypatch.setattr(runtime, "replaces_processes", lambda: False)
    use_huge_pages()
    assert not started


@pytest.mark.skipif(glibc_version() == (0, 0), reason="needs glibc")
def test_the_process_stays_the_same_one():
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    with subprocess.Popen([sys.executable, "-c", PRINT], env=environment, stdout=subprocess.PIPE, text=True) as process:
        identity, tunables = process.communicate(timeout=60)[0].split()
    assert int(identity) == process.pid
    assert tunables.startswith("glibc.malloc.hugetlb=1:") if glibc_version() >= (2, 35) else tunables == "None"


@pytest.mark.skipif(glibc_version() < (2, 35), reason="needs glibc 2.35")
def test_large_arrays_come_from_memory_that_the_process_has_already():
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    done = subprocess.run([sys.executable, "-c", PAGES], env=environment, capture_output=True, text=True, timeout=60)
    assert int(done.stdout) < 20, done.stderr


# --- What a device computes in ----------------------------------------------------------------------------------------------------

H100 = SimpleNamespace(platform="gpu", compute_capability="9.0")
A100 = SimpleNamespace(platform="gpu", compute_capability="8.0")
T4 = SimpleNamespace(platform="gpu", compute_capability="7.5")
V100 = SimpleNamespace(platform="gpu", compute_capability="7.0")
P100 = SimpleNamespace(platform="gpu", compute_capability="6.0")
OTHER = SimpleNamespace(platform="gpu", compute_capability="gfx90a")
TPU, CPU = SimpleNamespace(platform="tpu"), SimpleNamespace(platform="cpu")


@pytest.mark.parametrize(
    ("devices", "dtype"),
    [
        ([H100], "bfloat16"),
        ([A100, A100], "bfloat16"),
        ([TPU], "bfloat16"),
        ([T4], "float16"),
        ([V100], "float16"),
        ([H100, T4], "float16"),  # the least of them decides
        ([P100], "float32"),
        ([OTHER], "float32"),
        ([CPU], "float32"),
    ],
)
def test_a_device_computes_in_what_it_is_made_for(devices, dtype):
    assert computation_dtype("auto", devices) == dtype
    assert computation_dtype("float16", devices) == "float16"  # what is asked for is done


@pytest.mark.parametrize(("platform", "precision"), [("cpu", None), ("gpu", "highest"), ("tpu", "highest")])
def test_an_accelerator_keeps_the_digits_where_they_are_promised(monkeypatch, platform, precision):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    with all_digits():
        assert jax.config.jax_default_matmul_precision == precision
    assert jax.config.jax_default_matmul_precision is None


def test_deterministic_is_asked_of_xla_before_jax_starts_and_once(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_autotune_level=4")
    monkeypatch.setattr(xla_bridge, "backends_are_initialized", lambda: False)
    for _ in range(2):
        select_devices("cpu", deterministic=True)
    assert os.environ["XLA_FLAGS"] == "--xla_gpu_autotune_level=4 --xla_gpu_exclude_nondeterministic_ops=true"


def test_deterministic_is_refused_where_a_gpu_was_started_without_it(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setattr(xla_bridge, "backends_are_initialized", lambda: True)
    select_devices("", deterministic=True)  # a CPU computes the same bits anyway
    monkeypatch.setattr(jax, "devices", lambda _: [SimpleNamespace(platform="gpu", device_kind="H100")])
    with pytest.raises(UserError, match="--deterministic: JAX has started in this program already"):
        select_devices("", deterministic=True)
    assert os.environ["XLA_FLAGS"] == ""


# --- JAX on a machine where plugins are installed and no accelerator is ----------------------------------------------------------

PLUGINS = {
    "jax_cuda12_plugin/__init__.py": "import sys; print('cudart_stub.cc:31', file=sys.stderr)",
    "jax_plugins/xla_cuda12/__init__.py": "def initialize(): raise RuntimeError('Unable to load CUDA')",
    "libtpu/__init__.py": "def get_library_path(): return '/does/not/exist'",
}
PROGRAMS = {
    "python": ["-c", "import yolojax; yolojax.load()"],
    "convert": ["-m", "convert", "yolov5n-shapes", "converted"],
    "command": ["-m", "yolojax", "freeze", "--cfg", "yolov5n", "--freeze", "10"],
    "benchmarks": ["-c", "import benchmarks.dispatch, jax; jax.devices()"],
    "jax itself": ["-c", "import yolojax, jax; assert jax.devices()[0].platform == 'cpu'"],
    "jax first": ["-c", "import jax, sys; print(file=sys.stderr); import yolojax; yolojax.load()"],
}


@pytest.fixture
def plugins(tmp_path):
    """An environment with plugins of JAX that complain, in front of those that may be installed, and no choice of platforms."""
    if has_nvidia_driver() or has_tpu():
        pytest.skip("there is an accelerator here")
    for name, text in PLUGINS.items():
        file = tmp_path / "plugins" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    environment = {
        name: value for name, value in os.environ.items() if name not in ("JAX_PLATFORMS", "TPU_SKIP_MDS_QUERY")
    }
    folders = [str(tmp_path / "plugins"), str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
    return environment | {"PYTHONPATH": os.pathsep.join(folders)}


@pytest.mark.parametrize("program", PROGRAMS)
def test_plugins_without_an_accelerator_say_nothing(plugins, tmp_path, program):
    done = subprocess.run(
        [sys.executable, *PROGRAMS[program]], env=plugins, cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    said = done.stderr.rpartition("\n\n")[2] if program == "jax first" else done.stderr
    assert said.strip() == ""


def test_what_is_installed_for_an_accelerator_is_never_loaded_without_one(plugins, tmp_path):
    """Neither the plugin for CUDA, nor libtpu, which would ask for a metadata server."""
    real = {**plugins, "PYTHONPATH": plugins["PYTHONPATH"].partition(os.pathsep)[2]}
    code = "import yolojax; yolojax.load(); print(*{line.split()[-1] for line in open('/proc/self/maps')}, sep='\\n')"
    if not os.path.exists("/proc/self/maps"):
        pytest.skip("this system does not tell what is loaded")
    done = subprocess.run(
        [sys.executable, "-c", code], env=real, cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert "jaxlib" in done.stdout
    assert "libtpu" not in done.stdout
    assert "cuda" not in done.stdout.lower()
    assert done.stderr == ""


def test_programs_that_compile_for_absent_accelerators_keep_the_plugins(plugins):
    code = "import yolojax, jax_cuda12_plugin, os; assert 'JAX_PLATFORMS' not in os.environ"
    done = subprocess.run(
        [sys.executable, "-c", code], env=plugins | {"YOLOJAX_KEEP_PLUGINS": "1"}, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "cudart_stub.cc:31\n")


@pytest.mark.slow
def test_data_workers_say_nothing_either(plugins, tiny_data, tiny_model, tmp_path):
    words = [
        "train",
        "--cfg",
        tiny_model,
        "--weights",
        "",
        "--data",
        tiny_data,
        "--img",
        "64",
        "--batch",
        "4",
        "--epochs",
        "1",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "yolojax", *map(str, words), "--workers", "2", "--noplots"],
        env=plugins, cwd=tmp_path, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert "no NVIDIA driver and no TPU here: computing on the CPU" in done.stdout


def test_numbers_of_devices_are_those_of_every_process(monkeypatch):
    devices = [SimpleNamespace(process_index=process, id=10 * process + own) for process in (1, 0) for own in (0, 1, 2)]
    monkeypatch.setattr(
        jax, "devices", lambda _=None: [SimpleNamespace(platform="gpu", **vars(one)) for one in devices]
    )
    monkeypatch.setattr(jax, "local_devices", lambda: [SimpleNamespace(device_kind="H100")] * 3)
    assert [one.id for one in select_devices("2,0")] == [2, 0, 12, 10]
    with pytest.raises(UserError, match="--device 3: choose cpu, gpu, tpu or numbers of: 0 = H100, 1 = H100, 2 = H100"):
        select_devices("3")


@pytest.mark.parametrize(("device", "reason"), [("gpu", "there is no NVIDIA driver"), ("tpu", "no TPU is attached")])
def test_a_device_that_is_not_here_is_one_sentence(device, reason):
    if why_absent({"gpu": "cuda"}.get(device, device)) is None:
        pytest.skip("it is here")
    with pytest.raises(UserError, match=rf"--device {device}: {reason}"):
        select_devices(device)
