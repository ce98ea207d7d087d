"""Training checkpoints: everything that a resumed run needs to end with the same bits.

A run folder holds ``checkpoints/<step>/`` (state of the optimizer and the loop, for ``--resume``; the newest two) beside ``weights/last`` and
``weights/best`` (weights directories of the averaged weights, for use). Saving is atomic and asynchronous (Orbax).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp

from yolojax.errors import UserError
from yolojax.files import disk_trouble

State = TypeVar("State")
Progress = dict[str, Any]


class Checkpoints:
    """The resumable checkpoints of one run folder, oldest first; the newest two are kept."""

    def __init__(self, folder: Path) -> None:
        """Open (and create) ``folder/checkpoints``."""
        logging.getLogger("absl").setLevel(logging.WARNING)
        self.folder = folder.absolute() / "checkpoints"
        options = ocp.CheckpointManagerOptions(max_to_keep=2, create=True)
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def save(self, step: int, state: Any, progress: Progress) -> None:
        """Save in the background; waits for the save before it, and raises that one's error.

        Args:
          step: optimizer steps and micro-batches so far; names the checkpoint.
          state: pytree of arrays.
          progress: JSON values: epoch, next batch, early-stop counters, history.

        Raises:
          UserError: the disk is full or not writable; checkpoints saved before are untouched.
        """
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(_named(state)), progress=ocp.args.JsonSave(progress)
                ),
                force=True,
            )
        except Exception as error:
            raise _disk_error(self.folder, error) from error

    def wait(self) -> None:
        """Block until the last save is on disk.

        Raises:
          UserError: it could not be written.
        """
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise _disk_error(self.folder, error) from error

    def newest(self) -> Path | None:
        """The newest checkpoint, once it is on disk; None if there is none."""
        self.wait()
        step = self._manager.latest_step()
        return None if step is None else self.folder / str(step)

    def restore(self, template: Callable[[Progress], State]) -> tuple[State, Progress, list[str]] | None:
        """The newest checkpoint that can be read.

        Args:
          template: from a checkpoint's progress to the pytree of arrays or ``ShapeDtypeStruct`` (with shardings) that its state has.

        Returns:
          State, progress and one sentence per damaged checkpoint that was passed over; ``None`` if there is none at all.

        Raises:
          UserError: there are checkpoints, but none can be read.
        """
        damaged: list[str] = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                progress = self._read(step, progress=ocp.args.JsonRestore())
                wanted = template(progress)
                named = self._read(step, state=ocp.args.StandardRestore(_named(wanted)))
            except Exception as error:  # Orbax raises many kinds for a damaged file
                damaged.append(f"{self.folder / str(step)}: cannot be read ({str(error).splitlines()[0][:120]})")
                continue
            leaves = [named[name] for name in _named(wanted)]
            return jax.tree.unflatten(jax.tree.structure(wanted), leaves), progress, damaged
        if damaged:
            raise UserError(
                "no checkpoint of this run can be read; start it again without --resume: " + "; ".join(damaged)
            )
        return None

    def _read(self, step: int, **item: Any) -> Any:
        return self._manager.restore(step, args=ocp.args.Composite(**item))[next(iter(item))]

    def close(self) -> None:
        """Finish and release the background threads."""
        self.wait()
        self._manager.close()


def _named(tree: Any) -> dict[str, Any]:
    """Leaves by path, so that the file depends on no Python class of the optimizer's state."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def _disk_error(folder: Path, error: Exception) -> UserError:
    reason = disk_trouble(error) or str(error).splitlines()[0]
    return UserError(f"{folder}: the checkpoint could not be saved ({reason}); continue with --resume once it can be")
