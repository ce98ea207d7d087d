"""Processes of our own: what they print, started with a log, waited for, and alone in their folder."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from yolojax.errors import UserError
from yolojax.interrupts import Interrupt
from yolojax.lock import LOCK, take_lock
from yolojax.system import detached, inherits_locks, request_signal

PERIOD = 2.0  # seconds between two looks at a process
_PATIENCE = 300.0  # seconds that an interrupted process gets to save


def start_process(
    command: Sequence[str], output: Path, lock: int, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start a command that adds what it prints to a log.

    Args:
      command: and its arguments.
      output: log file.
      lock: of ``locked_folder``, which the process holds as well.
      environment: of the process, if it is not that of this one.
    """
    with output.open("ab") as file:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            pass_fds=(lock,) if lock >= 0 else (),
            **detached(),  # Ctrl-C reaches this process alone, which hands it on once
        )


class Running(Protocol):
    """What is waited for: a process, or the part of one."""

    returncode: int | None

    def wait(self, timeout: float) -> int:
        """Wait for the end; ``subprocess.TimeoutExpired`` where it does not come."""
        ...

    def send_signal(self, signal: int) -> None:
        """Hand a signal on."""
        ...

    def kill(self) -> None:
        """End it at once."""
        ...


def wait_for(process: Running, interrupt: Interrupt, watch: Callable[[], None] = lambda: None) -> int:
    """Wait until a process ends, and hand an interruption on to it.

    Args:
      process: to wait for.
      interrupt: of this process.
      watch: called every ``PERIOD`` seconds, and once more at the end.

    Returns:
      Its exit status.
    """
    asked = 0.0
    while process.returncode is None:
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=PERIOD)
        watch()
        if interrupt.signal is not None and not asked:
            asked = time.monotonic()
            process.send_signal(request_signal(interrupt.signal))
        if asked and time.monotonic() - asked > _PATIENCE:
            process.kill()
    return process.returncode


def last_line(output: Path) -> str:
    """The last line of a log, shortened, as the likeliest reason of a failure."""
    lines = output.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return textwrap.shorten(lines[-1], 240) if lines else "no output"


@contextmanager
def locked_folder(folder: Path, owner: str) -> Iterator[int]:
    """Hold a folder, which is made where it is missing; processes that inherit the hold keep it after this one has ended.

    Args:
      folder: to hold.
      owner: what works in it, for messages: ``study``, ``evolution``.

    Yields:
      The file descriptor of the lock, or -1 where processes cannot inherit it.

    Raises:
      UserError: the folder cannot be made, or another process holds it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("a")
    except OSError as error:
        raise UserError(f"{folder}: the folder of the {owner} cannot be made ({error.strerror})") from error
    with file:
        if not take_lock(file):
            raise UserError(f"{folder}: another {owner}, or a run that it left behind, is at work in this folder")
        yield file.fileno() if inherits_locks() else -1


def show_log() -> None:
    """Print what yolojax logs; on a terminal through rich, which keeps the lines and a progress bar apart."""
    # What OpenCV and FFmpeg print about damaged files names no file; our own lines do. Data workers inherit this.
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files need not be text
    handler: logging.Handler = logging.StreamHandler(sys.stdout)
    if sys.stdout.isatty():
        from rich.logging import RichHandler

        handler = RichHandler(show_time=False, show_level=False, show_path=False)
    log = logging.getLogger("yolojax")
    log.handlers[:] = [handler]
    log.propagate = False
    log.setLevel(logging.INFO)
