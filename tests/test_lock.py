"""Locks of folders where the system has other ones, or none."""

import errno
import os
from pathlib import Path

import pytest

from yolojax import lock
from yolojax.errors import UserError
from yolojax.lock import LOCK, locked, take_lock

fcntl = pytest.importorskip("fcntl")


def test_a_second_hold_of_a_folder_is_refused_and_names_the_first(tmp_path):
    with (
        locked(tmp_path),
        pytest.raises(UserError, match=r"process \d+ on .* is at work in this folder"),
        locked(tmp_path),
    ):
        pass
    assert not (tmp_path / LOCK).exists()


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    with (tmp_path / LOCK).open("w") as file:
        assert take_lock(file)
    assert "two processes in one folder would not be noticed here (No locks available)" in caplog.text


def test_a_system_without_locks_guards_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "fcntl", None)
    monkeypatch.setattr(lock, "msvcrt", None)
    with locked(tmp_path), locked(tmp_path):
        assert (tmp_path / LOCK).exists()


class Msvcrt:
    """What Windows offers: a byte of a file is locked for one that has it open, and an open file cannot be removed."""

    LK_NBLCK = 2

    def __init__(self):
        self.bytes = {}

    def locking(self, handle, mode, count):
        assert (mode, count) == (self.LK_NBLCK, 1)
        key = os.fstat(handle).st_ino, os.lseek(handle, 0, os.SEEK_CUR)
        if is_open(self.bytes.get(key)):
            raise PermissionError(errno.EACCES, "Permission denied")
        self.bytes[key] = handle


def is_open(handle):
    try:
        return handle is not None and bool(os.fstat(handle))
    except OSError:
        return False


def test_windows_locks_a_byte_behind_what_the_file_says(tmp_path, monkeypatch):
    system, unlink = Msvcrt(), Path.unlink

    def remove(path, missing_ok=False):
        if any(is_open(handle) for handle in system.bytes.values()):
            raise PermissionError(errno.EACCES, "used by another process")
        unlink(path, missing_ok)

    monkeypatch.setattr(lock, "fcntl", None)
    monkeypatch.setattr(lock, "msvcrt", system)
    monkeypatch.setattr(lock, "removes_open_files", lambda: False)
    monkeypatch.setattr(Path, "unlink", remove)
    with locked(tmp_path):
        assert (tmp_path / LOCK).read_text().startswith("{")
        with pytest.raises(UserError, match=r"process \d+ on .* is at work in this folder"), locked(tmp_path):
            pass
    assert not (tmp_path / LOCK).exists()
    [(_, place)] = system.bytes
    assert place > 1_000_000
