"""Converted ``.pt`` checkpoints, kept in the cache folder: to import PyTorch and convert takes two seconds of every start."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import zipfile
from pathlib import Path

import numpy as np

from yolojax.errors import UserError
from yolojax.files import write_file
from yolojax.model.spec import ModelSpec
from yolojax.runtime import cache_folder
from yolojax.tree import flatten, unflatten
from yolojax.version import __version__
from yolojax.weights.store import Weights, weights_record

log = logging.getLogger(__name__)

_RECORD = "record"


def read_converted(path: Path) -> Weights:
    """The weights of a ``.pt``; arguments, result and errors as of ``convert.checkpoint.read_checkpoint``.

    A copy belongs to the name and the bytes of the checkpoint, and to the version that converted it. One that cannot be read is made again; where the
    cache folder cannot be written, there is none.
    """
    digest = hashlib.sha256(f"{path.name}\0".encode())  # an architecture is called by it
    with path.open("rb") as file:
        hashlib.file_digest(file, lambda: digest)
    copy = cache_folder() / "weights" / f"{digest.hexdigest()}-{__version__}.npz"
    try:
        return _read(copy)
    except FileNotFoundError:
        pass
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        log.debug("%s: cannot be read (%r); it is made again", copy, error)
    from convert.checkpoint import read_checkpoint  # needs torch, which those who have no .pt do without

    weights = read_checkpoint(path)
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        _write(copy, weights)
    except (OSError, UserError) as error:
        log.debug("%s: cannot be written (%s)", copy, error)
    return weights


def _read(copy: Path) -> Weights:
    with np.load(io.BytesIO(copy.read_bytes()), allow_pickle=False) as content:
        arrays = {name: content[name] for name in content.files}
    record = json.loads(arrays.pop(_RECORD).tobytes())
    return Weights(
        spec=ModelSpec.from_dict(record["architecture"], copy),
        names=tuple(record["classes"]),
        variables=unflatten(arrays),
        source=record["source"],
    )


def _write(copy: Path, weights: Weights) -> None:
    record = np.frombuffer(json.dumps(weights_record(weights)).encode(), np.uint8)
    content = io.BytesIO()
    np.savez(content, **{_RECORD: record}, **flatten(weights.variables))  # type: ignore[arg-type]
    write_file(copy, content.getvalue())
