"""What a command does before it computes."""

import os
import subprocess
import sys

import pytest

from yolojax import runtime
from yolojax.runtime import use_huge_pages
from yolojax.system import glibc_version

PRINT = "from yolojax.runtime import use_huge_pages; use_huge_pages(); import os; print(os.getpid(), os.environ.get('GLIBC_TUNABLES'))"


@pytest.fixture
def started(monkeypatch):
    """Programs that would take the place of this process, with their environment."""
    found = []
    monkeypatch.setattr(os, "execve", lambda *words: found.append(words))
    monkeypatch.setattr(runtime, "glibc_version", lambda: (2, 36))
    monkeypatch.setattr(runtime, "replaces_processes", lambda: True)
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    return found


def test_a_process_starts_again_as_it_was_called(started, monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["python", "-P", "train.py", "--freeze", "10"])
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.arena_max=4")
    use_huge_pages()
    ((program, words, environment),) = started
    assert program == sys.executable
    assert words == [sys.executable, "-P", "train.py", "--freeze", "10"]
    assert environment["GLIBC_TUNABLES"] == "glibc.malloc.arena_max=4:glibc.malloc.hugetlb=1"
    assert environment["PATH"] == os.environ["PATH"]


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
    assert tunables == ("glibc.malloc.hugetlb=1" if glibc_version() >= (2, 35) else "None")
