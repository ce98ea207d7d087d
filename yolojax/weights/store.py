"""Weights: arrays together with what they are for, kept in a directory of their own.

A weights directory holds ``weights.json`` (architecture, classes, strides, where the weights come from and under which licence) beside ``arrays``, an
Orbax checkpoint of ``params`` and ``batch_stats``.
"""

from __future__ import annotations

import errno
import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from yolojax.errors import UserError
from yolojax.files import disk_trouble
from yolojax.model.network import Variables, abstract_variables, init_heads, init_variables
from yolojax.model.spec import ModelSpec
from yolojax.tree import flatten, unflatten

if TYPE_CHECKING:
    import orbax.checkpoint as ocp

_FORMAT = "yolojax weights 1"
_RECORD = "weights.json"
_ARRAYS = "arrays"


@dataclass(frozen=True, kw_only=True, eq=False)
class Weights:
    """A network that somebody trained.

    Attributes:
      spec: the architecture.
      names: of the classes.
      variables: ``{"params": {...}, "batch_stats": {...}}`` as NumPy arrays.
      source: where they come from: ``file``, ``sha256``, ``licence`` and whatever else is known; JSON values.
    """

    spec: ModelSpec
    names: tuple[str, ...]
    variables: Variables
    source: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class Transfer:
    """Variables for a new task, and which of their paths (``model_24/m_0/kernel``) were taken over or start afresh."""

    variables: Variables
    transferred: tuple[str, ...]
    initialised: tuple[str, ...]


def save_weights(directory: str | Path, weights: Weights, also: Sequence[str | Path] = ()) -> None:
    """Write a weights directory, all of it or nothing; and others with the same files, each of them whole too.

    The new directory is written beside the old one and takes its place at the end. Arrays keep their dtype. With several processes, one of them calls.

    Args:
      directory: new, empty, or a weights directory, which is replaced.
      weights: what to write.
      also: where the others go; to copy files takes a thirtieth of the time.

    Raises:
      UserError: something else of the user's is there, the disk is full, or the place cannot be written.
    """
    arrays = jax.tree.map(np.asarray, dict(weights.variables))
    size = 2**20 + sum(leaf.nbytes for leaf in jax.tree.leaves(arrays))

    def write(folder: Path) -> None:
        folder.mkdir()
        with _checkpointer() as checkpointer:
            checkpointer.save(folder / _ARRAYS, arrays)
        lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in weights_record(weights).items())
        (folder / _RECORD).write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")

    _put(directory, size, write)
    for other in also:
        _put(other, size, lambda folder: shutil.copytree(directory, folder))


def _put(directory: str | Path, size: int, write: Callable[[Path], object]) -> None:
    """Let ``write`` make a weights directory of ``size`` bytes beside the place that it takes at the end."""
    target = Path(directory).absolute()
    if target.exists() and not is_weights_folder(target) and not (target.is_dir() and not any(target.iterdir())):
        raise UserError(f"{directory}: exists and is not a weights directory; it is left as it is, name another place")
    writing = target.with_name(f".{target.name}.writing")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(writing, ignore_errors=True)
        if shutil.disk_usage(target.parent).free < size:  # Orbax would find out late and noisily
            raise OSError(errno.ENOSPC, f"{size // 2**20} MiB are needed")
        write(writing)
        _replace(writing, target)
    except Exception as error:  # whichever it was, nothing half-written stays
        shutil.rmtree(writing, ignore_errors=True)
        reason = disk_trouble(error)
        if reason is None:
            raise
        raise UserError(f"{directory}: cannot be written ({reason}); what was there before is untouched") from error


def weights_record(weights: Weights) -> dict[str, Any]:
    """All about weights but their arrays, as JSON values; ``weights_from`` puts both together again."""
    return {
        "format": _FORMAT,
        "architecture": weights.spec.to_dict(),
        "classes": list(weights.names),
        "strides": list(weights.spec.strides),
        "source": dict(weights.source),
    }


def weights_from(record: Any, arrays: Mapping[str, Any], record_place: Path, place: Path) -> Weights:
    """The weights that a record and arrays make.

    Args:
      record: of ``weights_record``.
      arrays: by path with collection, ``params/model_0/conv/kernel``.
      record_place: file of the record, for errors.
      place: of both, for errors.

    Returns:
      Weights with float32 arrays that fit their architecture.

    Raises:
      UserError: the record is damaged or of another format, or the arrays do not fit its architecture.
    """
    try:
        if record["format"] != _FORMAT:
            raise UserError(f"{place}: has the format {record['format']!r}, this version reads {_FORMAT!r}")
        spec = ModelSpec.from_dict(record["architecture"], record_place)
        names, source = tuple(map(str, record["classes"])), dict(record["source"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{record_place}: is damaged ({error!r}); convert or train the weights again") from error
    problems = differences(
        {path: leaf.shape for path, leaf in flatten(abstract_variables(spec)).items()},
        {path: leaf.shape for path, leaf in arrays.items()},
    )
    if len(names) != spec.classes:
        problems.append(f"{len(names)} class names for {spec.classes} classes")
    if problems:
        raise UserError(f"{place}: arrays and architecture do not fit; " + "; ".join(problems))
    return Weights(spec=spec, names=names, variables=unflatten(float32_arrays(arrays, place)), source=source)


def float32_arrays(arrays: Mapping[str, Any], place: Path) -> dict[str, np.ndarray]:
    """Arrays in float32, as every reader of weights gives them.

    Args:
      arrays: by path, of any floating-point dtype.
      place: of the arrays, for errors.

    Raises:
      UserError: one has another dtype, or holds NaN or infinity; the message names the first.
    """
    converted = {}
    for path, leaf in arrays.items():
        if not jax.dtypes.issubdtype(leaf.dtype, np.floating):
            raise UserError(
                f"{place}: {path} has dtype {leaf.dtype} instead of float32 (or another floating-point one); "
                "take the weights as they were before a program changed that"
            )
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinity, which is told below
            converted[path] = array = np.asarray(leaf, np.float32)
        if not np.isfinite(array).all():
            raise UserError(f"{place}: {path} is not finite (NaN or infinity); the training that wrote it diverged")
    return converted


def transfer(weights: Weights, spec: ModelSpec, key: jax.Array) -> Transfer:
    """Start a network from weights: arrays of the same path and shape are taken over, the others are initialised.

    Another number of classes thus re-initialises Detect only.

    Args:
      weights: where to start from.
      spec: the network to train.
      key: a JAX random key, for what is initialised.

    Raises:
      UserError: no array fits.
    """
    expected = flatten(abstract_variables(spec))
    given = flatten(weights.variables)
    fresh_paths = frozenset(_without_fit(given, expected))
    if len(fresh_paths) == len(expected):
        raise UserError(f"weights of {weights.spec.name} do not fit {spec.name}: no array has the same path and shape")
    heads = tuple(f"params/model_{layer.index}/" for layer in spec.detects)
    initialise = init_heads if all(path.startswith(heads) for path in fresh_paths) else init_variables
    fresh = flatten(initialise(spec, key)) if fresh_paths else {}
    leaves = {
        path: np.asarray(fresh[path]) if path in fresh_paths else np.asarray(given[path], leaf.dtype)
        for path, leaf in expected.items()
    }
    return Transfer(
        variables=unflatten(leaves),
        transferred=tuple(path.partition("/")[2] for path in expected if path not in fresh_paths),
        initialised=tuple(path.partition("/")[2] for path in expected if path in fresh_paths),
    )


def initialised_parameters(weights: Weights, spec: ModelSpec) -> tuple[str, ...]:
    """The parameter paths of ``spec`` that ``transfer`` would initialise, without computing anything."""
    return tuple(_without_fit(flatten(weights.variables["params"]), flatten(abstract_variables(spec)["params"])))


def _without_fit(given: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    return [path for path, leaf in expected.items() if path not in given or given[path].shape != leaf.shape]


def differences(expected: Mapping[str, tuple[int, ...]], given: Mapping[str, tuple[int, ...]]) -> list[str]:
    """What keeps arrays from filling a network: one sentence each for missing, unknown and differing ones; empty if they fit.

    >>> differences({"a": (3,), "b": (2,)}, {"a": (4,)})
    ['missing: b', 'other shape: a (4,) instead of (3,)']
    """
    both = expected.keys() & given.keys()
    problems = {
        "missing": [name for name in expected if name not in both],
        "unknown": [name for name in given if name not in both],
        "other shape": [
            f"{name} {given[name]} instead of {expected[name]}"
            for name in expected
            if name in both and given[name] != expected[name]
        ],
    }
    return [
        f"{problem}: {', '.join(names[:8])}" + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        for problem, names in problems.items()
        if names
    ]


def is_weights_folder(path: Path) -> bool:
    """Whether a folder is a weights directory."""
    return (path / _RECORD).is_file() and (path / _ARRAYS).is_dir()


def read_weights(directory: Path) -> Weights:
    """Read a weights directory.

    Returns:
      Weights with float32 arrays that fit their architecture.

    Raises:
      UserError: it is damaged, of another format, or its arrays do not fit its architecture.
    """
    try:
        record = json.loads((directory / _RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{directory / _RECORD}: is damaged ({error!r}); convert or train the weights again") from error
    try:
        with _checkpointer() as checkpointer:
            arrays = flatten(checkpointer.restore((directory / _ARRAYS).absolute()))
    except Exception as error:  # Orbax raises many kinds for a damaged file
        reason = str(error).splitlines()[0][:200] if str(error) else repr(error)
        raise UserError(
            f"{directory / _ARRAYS}: cannot be read ({reason}); convert or train the weights again"
        ) from error
    return weights_from(record, arrays, directory / _RECORD, directory)


def _checkpointer() -> ocp.Checkpointer:
    import orbax.checkpoint as ocp  # takes longer than to read a converted checkpoint, which is without it

    logging.getLogger("absl").setLevel(logging.WARNING)
    this = jax.process_index()  # no barrier: in a run of several processes, one writes while the others compute
    alone = ocp.options.MultiprocessingOptions(
        primary_host=this, active_processes={this}, barrier_sync_key_prefix="weights"
    )
    return ocp.Checkpointer(ocp.PyTreeCheckpointHandler(multiprocessing_options=alone), multiprocessing_options=alone)


def replaced(target: Path) -> Path:
    """Where the old weights directory stands while a new one takes its name."""
    return target.with_name(f".{target.name}.replaced")


def _replace(new: Path, target: Path) -> None:
    """Put ``new`` at ``target``; a crash between the two renames leaves the old directory where ``find_weights`` still finds it."""
    old = replaced(target)
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
    try:
        new.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)
