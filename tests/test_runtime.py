"""What a command does before it computes."""

import os
import subprocess
import sys

import pytest

from yolojax.runtime import use_huge_pages

PRINT = "from yolojax.runtime import use_huge_pages; use_huge_pages(); import os; print(os.getpid(), os.environ.get('GLIBC_TUNABLES'))"


@pytest.fixture
def started(monkeypatch):
    """Programs that would take the place of this process, with their environment."""
    found = []
    monkeypatch.setattr(os, "execve", lambda *words: found.append(words))
    monkeypatch.setitem(os.confstr_names, "CS_GNU_LIBC_VERSION", os.confstr_names.get("CS_GNU_LIBC_VERSION", 2))
    monkeypatch.setattr(os, "confstr", lambda _: "glibc 2.36")
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


@pytest.mark.parametrize("libc", ["glibc 2.34", None])
def test_a_libc_that_cannot_is_left_alone(started, monkeypatch, libc):
    monkeypatch.setattr(os, "confstr", lambda _: libc)
    use_huge_pages()
    assert not started


@pytest.mark.skipif(sys.platform != "linux", reason="needs glibc")
def test_the_process_stays_the_same_one():
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    with subprocess.Popen([sys.executable, "-c", PRINT], env=environment, stdout=subprocess.PIPE, text=True) as process:
        identity, tunables = process.communicate(timeout=60)[0].split()
    assert int(identity) == process.pid
    major, minor = os.confstr("CS_GNU_LIBC_VERSION").split()[1].split(".")[:2]
    assert tunables == ("glibc.malloc.hugetlb=1" if (int(major), int(minor)) >= (2, 35) else "None")
