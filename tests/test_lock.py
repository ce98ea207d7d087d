"""Locks of folders where the system has other ones, or none."""

import errno

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
    with locked(tmp_path), locked(tmp_path):
        assert (tmp_path / LOCK).exists()
