"""What the operating system can do, asked by whatever would otherwise take it for Linux.

A caller asks for an ability (``replaces_processes``), never for a name, so that a test can take an ability away.
"""

from __future__ import annotations

import math
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Any

_moving = Lock()


def replaces_processes() -> bool:
    """Whether a program can take the place of this process; Windows starts a second one, and the shell does not wait for it."""
    return os.name == "posix"


def glibc_version() -> tuple[int, int]:
    """Major and minor version of the GNU C library; (0, 0) where there is another one."""
    name = "CS_GNU_LIBC_VERSION"
    libc = os.confstr(name) if name in getattr(os, "confstr_names", ()) else None
    if not libc:
        return 0, 0
    major, minor = libc.split()[-1].split(".")[:2]
    return int(major), int(minor)


def stop_signals() -> tuple[int, ...]:
    """The signals by which a person, a scheduler or another process asks this one to stop."""
    names = (
        "SIGINT",
        "SIGTERM",
        "SIGBREAK",
    )  # the last one is Windows' own, the only one that a process there can send to another
    return tuple(getattr(signal, name) for name in names if hasattr(signal, name))


def request_signal(number: int) -> int:
    """What hands a signal that asks to stop on to a process that was started with ``detached()``, so that it can still save.

    Args:
      number: of the signal, as this process got it; Windows can send such a process only one, whatever that was.
    """
    return getattr(signal, "CTRL_BREAK_EVENT", number)


def detached() -> dict[str, Any]:
    """Arguments of ``subprocess.Popen`` for a process that Ctrl-C in this terminal does not reach."""
    if hasattr(signal, "CTRL_BREAK_EVENT"):
        import subprocess

        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}  # type: ignore[attr-defined,unused-ignore]
    return {"start_new_session": True}


def inherits_locks() -> bool:
    """Whether a lock on a file can be handed to a process that is started, and ends with the last one that holds it."""
    return os.name == "posix"


def removes_open_files() -> bool:
    """Whether a file that is open can be removed; on Windows it has to be closed first."""
    return os.name == "posix"


def replaces_folders() -> bool:
    """Whether a folder can be renamed to the name of an empty one; on Windows that one has to go first."""
    return os.name == "posix"


def tells_shared_pages_apart() -> bool:
    """Whether the system can tell which part of its memory a process shares with others."""
    return sys.platform == "linux"


def positioned_writer() -> Callable[[int, Any, int], Any]:
    """What writes bytes at a place of an open file: ``writer(handle, content, offset)``, from several threads at once."""
    if hasattr(os, "pwrite"):
        return os.pwrite

    def write(handle: int, content: Any, offset: int) -> int:  # Windows: by way of the file's one position
        with _moving:
            os.lseek(handle, offset, os.SEEK_SET)
            return os.write(handle, content)

    return write


def tracks_shared_memory() -> bool:
    """Whether Python runs a process that frees shared memory at the end; on Windows the system does it."""
    return os.name == "posix"


def processors() -> int:
    """How many processors this process may use, by its affinity and the limit of its control group; where the system does not tell, how many there are."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = _control_group_limit(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup"))
    return usable if limit is None else max(1, min(usable, math.ceil(limit)))


def _control_group_limit(root: Path, own: Path) -> float | None:
    """Processors that the control groups of this process grant it, as containers and schedulers set them; None for as many as there are.

    Args:
      root: where the groups are.
      own: file that names those of this process.
    """
    limits = []
    try:
        rows = [line.split(":", 2) for line in own.read_text(encoding="ascii").splitlines()]
    except (OSError, ValueError):
        return None
    for _, controllers, name in rows:
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = root / controllers if controllers else root
        group = top / name.strip("/")
        for folder in (group, *group.parents):
            limits += _quota(folder)
            if folder == top:
                break
    return min(limits, default=None)


def _quota(group: Path) -> list[float]:
    """The limit of one control group, in processors; nothing where it has none."""
    try:
        if (group / "cpu.max").is_file():
            quota, period = (group / "cpu.max").read_text(encoding="ascii").split()
        else:
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text(encoding="ascii") for name in ("quota", "period"))
        return [int(quota) / int(period)] if int(quota) > 0 else []
    except (OSError, ValueError):  # no such group here, or "max"
        return []
