"""Training checkpoints: everything that a resumed run needs to end with the same bits.

A run folder holds ``checkpoints/<step>/`` (state of the optimizer and the loop, for ``--resume``; the newest two) beside ``weights/last`` and
``weights/best`` (weights directories of the averaged weights, for use). Saving is atomic and asynchronous (Orbax). What lies there decides which folder
a run may go on in, or take the place of.
"""

from __future__ import annotations

import json
import logging
import shlex
from collections.abc import Callable, Mapping, Set
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental.multihost_utils import sync_global_devices

from yolojax.errors import UserError
from yolojax.files import disk_trouble, find_run_folder, run_folder_of
from yolojax.lock import locked
from yolojax.packing import Packing
from yolojax.training.settings import TrainSettings

State = TypeVar("State")

RESULTS = "results.json"  # of a run folder, written at the end
_STATE, _PACKED = "state", "packed_state"  # leaf by leaf, and with those of less than two axes end to end


class CheckpointError(Exception):
    """A checkpoint that cannot be read; says which, and why."""


def _shown(_: logging.LogRecord) -> bool:
    """Whether Orbax may log: its threads do so with the traceback of an error that ``save`` and ``wait`` raise as well; --debug shows it."""
    return logging.getLogger("yolojax").isEnabledFor(logging.DEBUG)


class Checkpoints:
    """The resumable checkpoints of one run folder; the newest two are kept."""

    def __init__(self, folder: Path) -> None:
        """Open (and create) ``folder/checkpoints``."""
        logging.getLogger("absl").addFilter(_shown)  # a level would not do: absl sets its own again
        self.folder = folder.absolute() / "checkpoints"
        options = ocp.CheckpointManagerOptions(max_to_keep=2, create=True)
        self._manager = ocp.CheckpointManager(self.folder, options=options)
        self._thread = ThreadPoolExecutor(1, "yolojax-saving")
        self._saving: Future[None] | None = None

    def in_background(self, write: Callable[[], None]) -> None:
        """Let a thread write files, after it has finished what it was given before; raises the error of that.

        Args:
          write: saves weights and then a state, all of it copies of ``on_host``. Several processes save one array together, so there it runs at once.
        """

        def write_whole() -> None:
            write()
            self._finish()  # so that the checkpoint before is on disk when the next one is begun

        self._join()
        if jax.process_count() == 1:
            self._saving = self._thread.submit(write_whole)
        else:
            write()

    def _join(self) -> None:
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.result()

    def save(self, step: int, state: Any, progress: Mapping[str, Any]) -> None:
        """Save in the background; waits for the save before it, and raises that one's error.

        Args:
          step: optimizer steps and micro-batches so far; names the checkpoint.
          state: pytree of arrays.
          progress: JSON values: epoch, next batch, early-stop counters, history.

        Raises:
          UserError: the disk is full or not writable; checkpoints saved before are untouched.
        """
        try:
            # Of a run that was stopped after the last batch of an epoch; now that epoch is counted.
            if step in self._manager.all_steps():
                self._manager.delete(step)
            # Orbax takes a third of a millisecond of Python for an array, however small it is.
            name, arrays = (_PACKED, _packed(_named(state))) if jax.process_count() == 1 else (_STATE, _named(state))
            items = {name: ocp.args.StandardSave(arrays), "progress": ocp.args.JsonSave(dict(progress))}
            self._manager.save(step, args=ocp.args.Composite(**items), force=True)
        except Exception as error:
            raise _disk_error(self.folder, error) from error

    def wait(self) -> None:
        """Block until the last save is on disk.

        Raises:
          UserError: it could not be written.
        """
        self._join()
        self._finish()

    def _finish(self) -> None:
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise _disk_error(self.folder, error) from error

    def newest(self) -> Path | None:
        """The newest checkpoint, once it is on disk; None if there is none."""
        self.wait()
        step = self._manager.latest_step()
        return None if step is None else self.folder / str(step)

    def steps(self) -> list[int]:
        """The steps that a checkpoint is there for, newest first."""
        return sorted(self._manager.all_steps(), reverse=True)

    def progress(self, step: int) -> dict[str, Any]:
        """What ``save`` was given as ``progress``.

        Raises:
          CheckpointError: it cannot be read.
        """
        content: dict[str, Any] = self._read(step, progress=ocp.args.JsonRestore())
        return content

    def restore(self, step: int, template: State) -> State:
        """The arrays of a checkpoint.

        Args:
          step: one of ``steps``.
          template: pytree of arrays or ``ShapeDtypeStruct`` (with shardings), as the state was that was saved.

        Raises:
          CheckpointError: it cannot be read, or is of another structure.
        """
        names = _named(template)
        if (self.folder / str(step) / _PACKED).is_dir():
            leaves = self._restore_packed(step, names)
        else:  # written by several processes, or before small arrays were put together
            leaves = self._read(step, **{_STATE: ocp.args.StandardRestore(names)})
        return jax.tree.unflatten(jax.tree.structure(template), [leaves[name] for name in names])

    def _restore_packed(self, step: int, template: Mapping[str, Any]) -> dict[str, Any]:
        expected = list(template.values())
        packing = Packing.of(expected)
        alone, names = len(packing.alone), _packed_names(template, packing)
        vectors = {
            name: np.empty(own.shape, own.dtype)
            for name, own in zip(names[alone:], jax.eval_shape(packing.pack, expected)[alone:], strict=True)
        }
        hollow = {name: template[name] for name in names[:alone]} | vectors
        content = self._read(step, **{_PACKED: ocp.args.StandardRestore(hollow)})
        for name, vector in vectors.items():  # Orbax does not compare those
            if content[name].shape != vector.shape:
                raise CheckpointError(f"{self.folder / str(step)}: cannot be read ({name} is of another length)")
        leaves = packing.divide([content[name] for name in names])
        for place in (place for places in packing.together for place in places):
            array = leaves[place]
            leaves[place] = jax.make_array_from_callback(array.shape, expected[place].sharding, array.__getitem__)
        return dict(zip(template, leaves, strict=True))

    def set_aside(self, step: int) -> Path:
        """Move a checkpoint that cannot be read out of the way of a new one of the same step; its place, ``damaged/`` in the run folder."""
        damaged = self.folder.with_name("damaged")
        place = next(place for number in count(1) if not (place := damaged / f"{step}-{number}").exists())
        if jax.process_index() == 0:
            damaged.mkdir(exist_ok=True)
            (self.folder / str(step)).rename(place)
        sync_global_devices("a damaged checkpoint is set aside")
        self._manager.reload()
        return place

    def _read(self, step: int, **item: Any) -> Any:
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**item))[next(iter(item))]
        except Exception as error:  # Orbax raises many kinds for a damaged file
            reason = (str(error) or repr(error)).splitlines()[0][:120]
            raise CheckpointError(f"{self.folder / str(step)}: cannot be read ({reason})") from error

    def close(self) -> None:
        """Finish and release the background threads.

        Raises:
          UserError: the last save could not be written.
        """
        try:
            self.wait()
        finally:
            self._thread.shutdown()
            self._manager.close()


def on_host(tree: State) -> State:
    """Copies that the next step, which is given the arrays, does not touch; those that several processes save together stay where they are."""
    return jax.tree.map(np.array, tree) if jax.process_count() == 1 else tree


def has_checkpoint(folder: Path) -> bool:
    """Whether a run folder holds a whole checkpoint."""
    return any(place.name.isdigit() for place in (folder / "checkpoints").glob("*"))


def folder_to_resume(settings: TrainSettings, given: Set[str]) -> Path:
    """The folder of the run that ``--resume`` means, which may stand behind ``--weights``.

    Raises:
      UserError: the weights are in no run folder, or there is no such run.
    """
    if settings.resume == "latest" and "weights" in given and settings.weights:
        folder = run_folder_of(Path(settings.weights))
        if folder is None:
            raise UserError(
                f"--weights {settings.weights} --resume: these weights are in no run folder; "
                "name the run (--resume FOLDER), or leave --weights out to continue the latest one"
            )
        return folder
    return find_run_folder(settings.resume or "latest", settings.project)


def refuse_unfinished(folder: Path) -> None:
    """A new run takes the place of a finished one only.

    Raises:
      UserError: there is one that can go on.
    """
    if has_checkpoint(folder) and not (folder / RESULTS).is_file():
        with locked(folder):  # another process that trains there is told first
            pass
        raise UserError(
            f"{folder}: holds an unfinished run, and --exist-ok replaces finished ones only; continue it with --resume {folder}, "
            f"choose another --name, or delete {folder / 'checkpoints'} to give it up"
        )


def refuse_finished(folder: Path, settings: TrainSettings, extended: bool) -> None:
    """A run goes on only as far as it was planned, or as its user extends it.

    Raises:
      UserError: it has trained all of these epochs, or stopped early and is not extended.
    """
    try:
        results = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    epochs, early = results["epochs"], results.get("stopped_early", False)
    if epochs >= (settings.epochs or 0) or (early and not extended):
        reason = f"no improvement for {settings.patience} epochs" if early else "all that were planned"
        command = ["python", "train.py", "--weights", str(folder), "--data", settings.data]
        raise UserError(
            f"{folder}: this run is finished, after {epochs} epoch{'s' if epochs != 1 else ''} ({reason}); "
            f"--epochs with a larger number extends it, and a new run begins from its weights with: {shlex.join(command)}"
        )


def _named(tree: Any) -> dict[str, Any]:
    """Leaves by path, so that the file depends on no Python class of the optimizer's state."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def _packed_names(leaves: Mapping[str, Any], packing: Packing) -> list[str]:
    """Names of what is carried: paths, and the dtypes of the vectors."""
    paths = list(leaves)
    vectors = [f"vector of {packing.dtypes[places[0]]}" for places in packing.together]
    return [*(paths[place] for place in packing.alone), *vectors]


def _packed(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The leaves of two axes and more, and for each dtype all others end to end."""
    packing = Packing.of(list(leaves.values()))
    return dict(zip(_packed_names(leaves, packing), packing.join(list(leaves.values())), strict=True))


def _disk_error(folder: Path, error: Exception) -> UserError:
    reason = disk_trouble(error) or (str(error) or repr(error)).splitlines()[0]
    return UserError(f"{folder}: the checkpoint could not be saved ({reason}); continue with --resume once it can be")
