"""Abilities of systems that this is not."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from yolojax import system


@pytest.fixture
def windows(monkeypatch):
    """What Python offers on Windows, as far as this module looks at it."""
    monkeypatch.setattr(system, "os", SimpleNamespace(name="nt", cpu_count=lambda: 4))
    monkeypatch.setattr(system, "signal", SimpleNamespace(SIGINT=2, SIGTERM=15, SIGBREAK=21, CTRL_BREAK_EVENT=1))
    monkeypatch.setattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 512, raising=False)


@pytest.mark.usefixtures("windows")
def test_windows():
    assert not system.replaces_processes()
    assert not system.inherits_locks()
    assert not system.tracks_shared_memory()
    assert system.glibc_version() == (0, 0)
    assert system.stop_signals() == (2, 15, 21)
    assert system.request_signal(2) == system.request_signal(15) == 1
    assert system.detached() == {"creationflags": 512}
    assert system.processors() == 4
    assert not system.removes_open_files()
    assert not system.replaces_folders()


@pytest.mark.skipif(os.name != "posix", reason="Windows has abilities of its own")
def test_linux_and_macos():
    assert system.replaces_processes()
    assert system.inherits_locks()
    assert system.tracks_shared_memory()
    assert system.removes_open_files()
    assert system.replaces_folders()
    assert system.positioned_writer() is os.pwrite
    assert system.stop_signals() == (signal.SIGINT, signal.SIGTERM)
    assert system.request_signal(signal.SIGINT) == signal.SIGINT
    assert system.request_signal(signal.SIGTERM) == signal.SIGTERM
    assert system.detached() == {"start_new_session": True}
    assert 1 <= system.processors() <= os.cpu_count()


def test_a_mac_has_no_glibc(monkeypatch):
    monkeypatch.setattr(os, "confstr_names", {"CS_PATH": 1}, raising=False)
    assert system.glibc_version() == (0, 0)


def test_bytes_find_their_place_where_a_file_has_one_position(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "pwrite", raising=False)
    write = system.positioned_writer()
    with (tmp_path / "file").open("wb", buffering=0) as file, ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda place: write(file.fileno(), bytes([place]) * 100, place * 100), reversed(range(50))))
    assert (tmp_path / "file").read_bytes() == b"".join(bytes([place]) * 100 for place in range(50))


def test_a_detached_process_can_be_asked_to_stop():
    """It leads a session or group of its own, takes the request as a wish, and can still save."""
    code = (
        "import time; from yolojax.interrupts import interruptible\n"
        "with interruptible() as interrupt:\n"
        "    print('ready', flush=True)\n"
        "    while not interrupt: time.sleep(.01)\n"
        "print('saved')"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **system.detached()) as process:
        assert process.stdout.readline() == "ready\n"
        if os.name == "posix":
            assert os.getsid(process.pid) == process.pid
        process.send_signal(system.request_signal(signal.SIGTERM))
        assert process.communicate(timeout=60)[0].endswith("saved\n")
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("files", "own", "limit"),
    [
        ({"cpu.max": "150000 100000"}, "0::/", 1.5),
        ({"cpu.max": "max 100000"}, "0::/", None),
        ({"a/cpu.max": "400000 100000", "a/b/cpu.max": "max 100000"}, "0::/a/b", 4),  # that of the group around it
        (
            {"cpu,cpuacct/a/cpu.cfs_quota_us": "50000", "cpu,cpuacct/a/cpu.cfs_period_us": "100000"},
            "3:cpu,cpuacct:/a",
            0.5,
        ),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, "4:cpu:/\n5:memory:/", None),
        ({}, "0::/gone", None),
    ],
)
def test_a_control_group_limits_the_processors(tmp_path, files, own, limit):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    (tmp_path / "own").write_text(own)
    assert system._control_group_limit(tmp_path, tmp_path / "own") == limit


def test_processors_that_a_process_may_not_use_do_not_count(monkeypatch):
    monkeypatch.setattr(
        os, "sched_getaffinity", lambda _: {5}, raising=False
    )  # as a launcher divides those of a machine
    assert system.processors() == 1


def test_without_control_groups_nothing_limits_the_processors(tmp_path):
    assert system._control_group_limit(tmp_path, tmp_path / "none") is None
