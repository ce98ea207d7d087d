"""How many processes can make batches here, and how they are started."""

from __future__ import annotations

import logging
import multiprocessing
import shutil
from multiprocessing import spawn
from pathlib import Path
from typing import Any

from yolojax.system import processors

log = logging.getLogger(__name__)

SHARED_MEMORY = Path("/dev/shm")
# Batches of one worker that lie in shared memory at once, as measured: its buffer, Grain's own, and those on their way.
_BATCHES_PER_WORKER = 7


def loading_workers(asked: int, batch_size: int, image_size: int) -> int:
    """Processes that make batches: as many as are asked for, but no more than processors, images of a batch, or what shared memory has room for.

    Args:
      asked: by the user; a warning says where shared memory has room for fewer.
      batch_size: images of a batch.
      image_size: pixels of their side.
    """
    wanted = min(asked, processors(), batch_size if batch_size > 1 else 0)
    workers, reason = affordable_workers(wanted, 3 * image_size**2 * batch_size)
    if reason:
        log.warning("%s", reason)
    return workers


def affordable_workers(workers: int, batch_bytes: int, shared_memory: Path = SHARED_MEMORY) -> tuple[int, str]:
    """How many processes may make batches.

    Args:
      workers: how many are wanted; 0 for a thread of this process.
      batch_bytes: size of a batch, which goes from a worker to this process through shared memory.
      shared_memory: where the system keeps it; where it is no folder, there is room for all.

    Returns:
      As many as are wanted, or fewer and a sentence that says why.
    """
    if workers and multiprocessing.current_process().daemon:
        return 0, (
            "--workers 0: this process is itself a daemon of multiprocessing, which may start no others; a thread makes the batches"
        )
    if not workers or not shared_memory.is_dir():
        return workers, ""
    free, needed = shutil.disk_usage(shared_memory).free, _BATCHES_PER_WORKER * batch_bytes
    fitting = min(free // needed, workers)
    if fitting == workers:
        return workers, ""
    return fitting, (
        f"--workers {fitting} instead of {workers}: {shared_memory} has {_megabytes(free)} free, and a worker needs "
        f"{_megabytes(needed)} there ('docker run --shm-size=2g' or '--ipc=host' gives a container more)"
    )


def _megabytes(count: int) -> str:
    """A size with two digits, or all of those before the point."""
    return f"{count / 1e6:.0f} MB" if count >= 10_000_000 else f"{count / 1e6:.2g} MB"


def leave_program_out() -> None:
    """Let the processes that Grain starts import this package in the place of the program that started this one.

    A worker needs nothing of that program, and would run it again: a script without ``if __name__ == "__main__"`` once per worker, and a
    program that comes from standard input cannot be read a second time. The package comes first because it says how JAX starts, which Grain
    imports. Grain starts workers from threads of its own, and they are known by their names.
    """
    if getattr(spawn.get_preparation_data, "leaves_program_out", False):
        return
    prepare = spawn.get_preparation_data

    def prepare_worker(name: str) -> dict[str, Any]:
        data = prepare(name)
        if name.startswith("grain-"):
            data.pop("init_main_from_path", None)
            data["init_main_from_name"] = __name__
        return data

    prepare_worker.leaves_program_out = True  # type: ignore[attr-defined]
    spawn.get_preparation_data = prepare_worker
