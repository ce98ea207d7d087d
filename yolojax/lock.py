"""One process at a time in a folder."""

from __future__ import annotations

import errno
import json
import logging
import os
import platform
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

from yolojax.errors import UserError
from yolojax.system import removes_open_files

fcntl: Any = import_module("fcntl") if find_spec("fcntl") else None
msvcrt: Any = import_module("msvcrt") if find_spec("msvcrt") else None  # Windows

log = logging.getLogger(__name__)

LOCK = ".lock"
_FAR = 1 << 30


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder for this process; the system lets go of it when the process ends, however it ends.

    The file ``.lock`` in it names the process for those who come later. One that a dead process left behind is taken over.

    Raises:
      UserError: another process holds it, or the file cannot be written.
    """
    path = folder / LOCK
    try:
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error
    with file:
        if not take_lock(file):
            file.seek(0)
            raise UserError(
                f"{folder}: {_holder(file.read())} is at work in this folder; wait for it, stop it, or choose another --name"
            )
        file.truncate(0)
        file.write(
            json.dumps(
                {
                    "process": os.getpid(),
                    "machine": platform.node(),
                    "command": textwrap.shorten(" ".join(sys.orig_argv), 120),
                }
            )
        )
        file.flush()
        try:
            yield
        finally:
            if removes_open_files():
                path.unlink(missing_ok=True)
    if not removes_open_files():
        with suppress(OSError):  # the next process has it open already
            path.unlink()


def take_lock(file: IO[str]) -> bool:
    """Lock an open file for this process; False where another one holds it. Systems and file systems without locks guard nothing."""
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        elif msvcrt is not None:
            _lock_byte(file)
    except BlockingIOError:
        return False
    except OSError as error:
        log.warning("%s: two processes in one folder would not be noticed here (%s)", file.name, error.strerror)
    return True


def _lock_byte(file: IO[str]) -> None:
    """Windows locks bytes, and nobody else can read them meanwhile: a byte far behind what is written.

    Raises:
      BlockingIOError: another process holds it.
      OSError: there are no locks here.
    """
    position = os.lseek(file.fileno(), 0, os.SEEK_CUR)
    os.lseek(file.fileno(), _FAR, os.SEEK_SET)
    try:
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EDEADLK):
            raise BlockingIOError(error.errno, error.strerror) from error
        raise
    finally:
        os.lseek(file.fileno(), position, os.SEEK_SET)


def _holder(content: str) -> str:
    """Who holds a folder, in words."""
    try:
        record = json.loads(content)
        return f"process {record['process']} on {record['machine']} ({record['command']})"
    except (ValueError, KeyError, TypeError):  # it is just being written
        return "another process"
