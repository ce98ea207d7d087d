"""One process at a time in a folder."""

from __future__ import annotations

import json
import logging
import os
import platform
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from yolojax.errors import UserError

try:
    import fcntl
except ImportError:  # Windows: there a folder is not guarded
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

LOCK = ".lock"


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
            path.unlink(missing_ok=True)


def take_lock(file: IO[str]) -> bool:
    """Lock an open file for this process; False where another one holds it. Systems and file systems without locks guard nothing."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        log.warning("%s: two processes in one folder would not be noticed here (%s)", file.name, error.strerror)
    return True


def _holder(content: str) -> str:
    """Who holds a folder, in words."""
    try:
        record = json.loads(content)
        return f"process {record['process']} on {record['machine']} ({record['command']})"
    except (ValueError, KeyError, TypeError):  # it is just being written
        return "another process"
