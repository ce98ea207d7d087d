"""Batches made ahead of time, by threads of this process or by worker processes."""

from __future__ import annotations

import gc
import multiprocessing
import os
import re
import signal
import sys
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from multiprocessing import resource_tracker
from typing import Any, Generic, Protocol, TypeVar

import cv2
import grain
from absl import flags
from grain.multiprocessing import SharedMemoryArray

from yolojax.data.workers import leave_program_out
from yolojax.errors import UserError

_PATIENCE = 5.0  # seconds
T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")


class Batches(Protocol[T_co]):
    """A list of batches that can be asked for in any order; it goes to the workers as it is."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> T_co: ...


class Prefetch(Generic[T]):
    """Batches from a number on, made ahead of time.

    Attributes:
      number: of the next batch.
      workers: processes that make batches; 0 for threads of this one.
    """

    def __init__(self, batches: Batches[T], number: int, workers: int, threads: int = 1) -> None:
        self.number, self.workers = number, workers
        cv2.setNumThreads(1)  # workers are the parallelism; OpenCV's own threads would fight them
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain reads its own flags, and the command line is not absl's
        source: Any = grain.MapDataset.source(batches).slice(slice(number, len(batches)))
        if workers == 0:
            options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads + 1)
            iterator = iter(source.to_iter_dataset(options))
        else:
            unbuffered = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
            leave_program_out()
            _start_quiet_tracker()
            processes = grain.MultiprocessingOptions(min(workers, max(len(source), 1)), per_worker_buffer_size=2)
            iterator = iter(source.to_iter_dataset(unbuffered).mp_prefetch(processes, worker_init_fn=_start_worker))
        # Grain's iterators cannot be taken apart while Python ends, and say so: they go before, closed or not. Behind it the batch of ``start``.
        self._held: list[Any] = [iterator]
        self._let_go = weakref.finalize(self, _close, self._held)

    def start(self) -> None:
        """Begin now, and not when the first batch is asked for. (``start_prefetch`` of Grain's own iterator begins nothing before a first ``next``.)"""
        if len(self._held) == 1:
            thread = ThreadPoolExecutor(1, "yolojax-first-batch")
            self._held.append(thread.submit(next, self._held[0]))
            thread.shutdown(wait=False)

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        try:
            batch: T = next(self._held[0]) if len(self._held) == 1 else self._held.pop().result()
        except RuntimeError as error:
            if ended := re.search(r"terminated unexpectedly with exit code (-?\d+)", str(error)):
                raise UserError(_lost_worker(int(ended[1]), self.workers)) from error
            raise
        self.number += 1
        return batch

    def close(self) -> None:
        """Stop making batches, and give their shared memory back."""
        self._let_go()
        if self.workers:
            _wait_for_freed_memory()


def _lost_worker(status: int, workers: int) -> str:
    """What to say of a worker that has ended by itself."""
    how = f"status {status}" if status >= 0 else f"signal {-status} ({signal.Signals(-status).name})"
    likely = {
        -9: "; a system that runs out of memory kills so",  # numbers, because Windows has no such signals
        -7: "; so it ends where /dev/shm has no room left ('docker run --shm-size=2g' gives a container more)",
    }.get(status, "")
    fewer = "a smaller --workers" if workers > 1 else "--workers 0"
    return (
        f"--workers {workers}: a process that loads images was ended by {how}{likely}; {fewer} needs less memory, "
        f"and --resume goes on from the last checkpoint"
    )


def _close(held: list[Any]) -> None:
    """Close the iterator in a list and forget it, with what refers to itself in it; once nobody waits for a batch of it."""
    iterator, *asked = held
    held.clear()
    wait(asked)
    iterator.close()
    gc.collect()


def _wait_for_freed_memory() -> None:
    """Let Grain's thread that frees shared memory finish: the end of a process does not wait for it, and Python would warn of what is left."""
    freeing = getattr(SharedMemoryArray, "_del_thread_pool", None)
    if freeing is not None:
        freeing.apply_async(int).wait(_PATIENCE)  # it has one thread, so that this comes last


def _start_quiet_tracker() -> None:
    """Start the process that frees shared memory at the end, without its warning.

    Grain gives the last few arrays back in a thread that the end of the program does not wait for, so
    there is always something left to free.
    """
    sys.warnoptions.append("ignore:resource_tracker:UserWarning")
    resource_tracker.ensure_running()
    sys.warnoptions.pop()


def _start_worker(_index: int, _count: int) -> None:
    # A terminal or a scheduler sends these to all processes; what to do is decided by the one that trains.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    cv2.setNumThreads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for ever: nobody takes its batches."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
