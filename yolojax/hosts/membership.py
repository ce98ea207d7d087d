"""A process among several: joined, logged, watched, and left in order.

What JAX does by itself is to end a process when another one is lost, without a word of ours. Beside it stand here: a thread that waits for another process to
say why it fails, and a small program that outlives this process and says in its log that it has ended.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import jax

from yolojax.errors import UserError
from yolojax.hosts import farewell
from yolojax.hosts.agreement import check_shared, client, decided, is_first, process_count, process_index
from yolojax.hosts.cluster import Cluster, local_device_ids, resolve_coordinator
from yolojax.system import detached

log = logging.getLogger(__name__)

START_SECONDS = 300  # that all processes have to find each other; YOLOJAX_START_SECONDS in the environment
HEARTBEAT_SECONDS = 30  # without a sign of life after which a process is lost
_FAILURE = "yolojax/failure"
_OWN_SECONDS = 1.0  # after which a process that makes the same mistake as another one has said so itself
_READ_SECONDS = 3.0  # that process 0 stays, so that the others can read why it fails


class ProcessLog(logging.Handler):
    """The log of one process of several: a file in the run folder, and until that is known what is to go there."""

    def __init__(self, tells: subprocess.Popen[str]) -> None:
        """``tells`` is the program that says what this process can no longer say."""
        super().__init__()
        self._lines: list[str] = []
        self._file: Path | None = None
        self._tells = tells
        self.leaving = False

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line."""
        self.write(self.format(record))

    def write(self, line: str) -> None:
        """Write a line that no logger has made."""
        if self._file is None:
            self._lines.append(line)
            return
        with suppress(OSError), self._file.open("a", encoding="utf-8") as file:  # a full disk stops the checkpoint
            file.write(line + "\n")

    def keep_in(self, folder: Path, remedy: str) -> None:
        """Write to the run folder from now on, with what was to be written before; ``remedy`` is what to do if this process is cut off."""
        file = folder / "logs" / f"process-{process_index()}.txt"
        file.parent.mkdir(exist_ok=True)
        lines, self._lines, self._file = self._lines, [], file
        for line in lines:
            self.write(line)
        self.instruct(f"log {file.absolute()}")
        self.instruct(f"say {_gone(remedy)}")

    @property
    def kept(self) -> bool:
        """Whether there is a file."""
        return self._file is not None

    def instruct(self, line: str) -> None:
        """Tell the program that outlives this process."""
        with suppress(OSError):
            assert self._tells.stdin is not None
            self._tells.stdin.write(line + "\n")
            self._tells.stdin.flush()


def join(cluster: Cluster) -> None:
    """Find the other processes, before any device is touched, and watch them from then on.

    Raises:
      UserError: the address of process 0 is unknown, or JAX has started already.
      SystemExit: they cannot be found in time; status 2.
    """
    seconds = int(os.environ.get("YOLOJAX_START_SECONDS", START_SECONDS))
    cluster = resolve_coordinator(cluster, seconds)
    limit = threading.Timer(seconds, _give_up, (cluster, seconds))
    limit.daemon = True
    limit.start()
    own = signal.signal(signal.SIGINT, signal.SIG_DFL)  # which would wait until JAX has found them
    try:
        jax.distributed.initialize(
            cluster.coordinator,
            cluster.process_count,
            cluster.process_id,
            local_device_ids(cluster),
            cluster_detection_method="deactivate",  # it would give each process of SLURM one GPU, however many it has
            initialization_timeout=2 * seconds,  # JAX ends the program when it is over, without a sentence
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except Exception as error:
        raise UserError(f"process {cluster.process_id}: cannot join the others ({_first_line(error)})") from error
    finally:
        limit.cancel()
        signal.signal(signal.SIGINT, own)
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))  # JAX has put a handler of its own there
    _log_and_watch()


def run_folder(choose: Callable[[], Path], resumable: bool = False) -> Path:
    """The folder of a run, which has the log of each process too.

    Args:
      choose: is asked by process 0.
      resumable: whether a run that is cut off goes on from its last checkpoint.

    Raises:
      UserError: not all of them see the same one.
    """
    folder = Path(decided("run folder", lambda: str(choose())))
    check_shared(folder)
    if (handler := _process_log()) is not None:
        handler.keep_in(folder, f"continue with: python train.py --resume {folder}" if resumable else "start again")
    return folder


def leave() -> None:
    """Part from the others in order: all have finished."""
    if (handler := _process_log()) is None:
        return
    handler.leaving = True
    jax.distributed.shutdown()
    handler.instruct("end")


def fail(status: int, sentence: str) -> NoReturn:
    """End this process and tell the others why.

    Args:
      status: exit status, of all.
      sentence: of the reason.
    """
    handler = _process_log()
    if handler is not None and handler.leaving:
        os._exit(status)
    if handler is not None:
        handler.leaving = True
        handler.write(sentence)
    if is_first() or handler is None or not handler.kept:
        print(sentence, file=sys.stderr, flush=True)
    with suppress(Exception):
        content = {"status": status, "sentence": f"process {process_index()} on {socket.gethostname()}: {sentence}"}
        client().key_value_set(_FAILURE, json.dumps(content))
        if is_first():  # the service that they read it from ends with this process
            time.sleep(_READ_SECONDS)
    _end(handler, status)


def _log_and_watch() -> None:
    root = logging.getLogger("yolojax")
    tells = subprocess.Popen(
        [sys.executable, "-I", "-S", farewell.__file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        **detached(),
    )
    handler = ProcessLog(tells)
    handler.instruct(f"say {_gone('no run folder had been made yet')}")
    root.handlers[:] = [*(root.handlers if is_first() else ()), handler]
    if not is_first():  # what it says stands in its log
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115  as long as the process lives
    threading.Thread(target=_watch, args=(handler,), name="yolojax-watch", daemon=True).start()


def _watch(handler: ProcessLog) -> None:
    """End this process when another one says that it fails."""
    while not handler.leaving:
        try:
            content = json.loads(client().blocking_key_value_get(_FAILURE, 5_000))
        except Exception as error:
            if "DEADLINE_EXCEEDED" in str(error):
                continue
            return  # the service is gone, and JAX ends this process; what outlives it says so
        time.sleep(_OWN_SECONDS)
        if handler.leaving:
            return
        handler.leaving = True
        handler.write(content["sentence"])
        if is_first() or not handler.kept:
            print(content["sentence"], file=sys.stderr, flush=True)
        _end(handler, int(content["status"]))


def _process_log() -> ProcessLog | None:
    handlers = logging.getLogger("yolojax").handlers
    return next((handler for handler in handlers if isinstance(handler, ProcessLog)), None)


def _end(handler: ProcessLog | None, status: int) -> NoReturn:
    """End at once: the usual end waits for processes that never come."""
    if handler is not None:
        handler.instruct("end")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _give_up(cluster: Cluster, seconds: int) -> None:
    where = cluster.coordinator
    reason = (
        f"not all of the {cluster.process_count} processes have come to {where}"
        if cluster.process_id == 0
        else f"process 0 has not answered at {where}, or not all of the {cluster.process_count} have come"
    )
    print(
        f"process {cluster.process_id} of {cluster.process_count} ({cluster.origin}): {reason} within {seconds} s; see whether all were "
        "started, with the same address, and whether a firewall is between them",
        file=sys.stderr,
        flush=True,
    )
    os._exit(2)


def _gone(remedy: str) -> str:
    return (
        f"process {process_index()} of {process_count()} on {socket.gethostname()} has ended without a word: it was killed, "
        f"or JAX has ended it because another one was lost (their logs tell which); {remedy}"
    )


def _first_line(error: BaseException) -> str:
    return (str(error) or repr(error)).splitlines()[0]
