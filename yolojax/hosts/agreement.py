"""What several processes tell each other beside the arrays that they compute with; nothing of it happens where there is one process.

Words go through the service that JAX's processes find each other by, arrays through the devices. A wait has no limit of its own: it ends when a process that
is waited for is lost, because all are watched (``membership``).
"""

from __future__ import annotations

import io
import itertools
import json
import secrets
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax._src import distributed
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import Mesh

from yolojax.errors import UserError
from yolojax.files import write_file
from yolojax.mesh import put_batch

_PATIENCE = 10_000  # milliseconds of one question to the service
_TOKEN = ".token"
_TOKEN_SECONDS = 30.0  # that a shared file system may take to show a new file
_rounds = itertools.count()


def client() -> Any:
    """The connection of this process to the others; None where it is alone."""
    return distributed.global_state.client


def process_count() -> int:
    """How many processes work together."""
    return distributed.global_state.num_processes if client() is not None else 1


def process_index() -> int:
    """The number of this one, from 0."""
    return distributed.global_state.process_id if client() is not None else 0


def is_first() -> bool:
    """Whether this is process 0, which prints, draws, and writes what is shared."""
    return process_index() == 0


def gathered(subject: str, text: str) -> list[str]:
    """What every process says to a subject, in their order; all of them have to ask."""
    if process_count() == 1:
        return [text]
    place = f"yolojax/{next(_rounds)} {subject}"
    client().key_value_set(f"{place}/{process_index()}", text)
    return [_wait_for(f"{place}/{number}") for number in range(process_count())]


def decided(subject: str, decide: Callable[[], str]) -> str:
    """What process 0 decides, in all processes."""
    if process_count() == 1:
        return decide()
    place = f"yolojax/{next(_rounds)} {subject}"
    if is_first():
        client().key_value_set(place, decide())
    return _wait_for(place)


def gathered_arrays(arrays: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """The NumPy arrays of every process, in their order; they may differ in everything."""
    if process_count() == 1:
        return [dict(arrays)]
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **arrays)
    own = np.frombuffer(file.getvalue(), np.uint8)
    sizes = [int(size) for size in gathered("size of arrays", str(len(own)))]
    room = np.zeros(1 << (max(sizes) - 1).bit_length(), np.uint8)  # few different sizes, each of which is compiled
    room[: len(own)] = own
    rows = np.asarray(process_allgather(room)).reshape(len(sizes), -1)
    return [_load(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def _load(content: bytes) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def check_alike(facts: Mapping[str, Any]) -> None:
    """Compare what all processes have to have in common.

    Raises:
      UserError: they do not; in all of them.
    """
    told = [json.loads(text) for text in gathered("facts", json.dumps(facts, default=str))]
    for number, theirs in enumerate(told):
        for name, value in told[0].items():
            if theirs[name] != value:
                raise UserError(
                    f"process {number} and process 0 differ in {name} ({_short(theirs[name])} and {_short(value)}); "
                    "give all processes the same command line and the same files"
                )


def meet(mesh: Mesh) -> None:
    """Let the devices of all processes find each other while none is ahead: on CPUs they have 30 seconds for it, and compiling a step takes longer."""
    if process_count() > 1:
        gathered("ready", "")
        flags = put_batch({"": np.zeros(len(mesh.local_devices), np.float32)}, mesh)
        jax.block_until_ready(_total(flags))


@jax.jit
def _total(flags: dict[str, jax.Array]) -> jax.Array:
    return flags[""].sum()


def check_shared(folder: Path) -> None:
    """Make sure that a folder of process 0 is the same one for all.

    Raises:
      UserError: some do not see what process 0 writes there; in all of them.
    """
    if process_count() == 1:
        return

    def leave() -> str:
        token = secrets.token_hex(8)
        write_file(folder / _TOKEN, token)
        return token

    token = decided("token", leave)
    answers = gathered("sees token", "" if _shows(folder / _TOKEN, token) else socket.gethostname())
    if is_first():
        (folder / _TOKEN).unlink(missing_ok=True)
    if blind := [f"process {number} on {host}" for number, host in enumerate(answers) if host]:
        raise UserError(
            f"{folder}: {', '.join(blind)} cannot see what process 0 writes there; "
            "give --project a folder that all machines share under the same path"
        )


def _shows(file: Path, content: str) -> bool:
    end = time.monotonic() + _TOKEN_SECONDS
    while time.monotonic() < end:
        try:
            if file.read_text(encoding="ascii") == content:
                return True
        except OSError:
            pass
        time.sleep(0.2)
    return False


def _wait_for(key: str) -> str:
    while True:
        try:
            return str(client().blocking_key_value_get(key, _PATIENCE))
        except Exception as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
