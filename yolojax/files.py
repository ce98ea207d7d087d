"""Writing files: folders and files that appear complete or not at all, JSON, YAML, and the folders of runs."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from yolojax.errors import UserError
from yolojax.system import replaces_folders


@contextmanager
def complete_folder(folder: Path) -> Iterator[Path]:
    """Give a place beside ``folder`` to write into, which takes its name at the end of the block, and is removed if the block fails.

    Args:
      folder: must not exist by then, or be empty.

    Raises:
      OSError: it cannot be written, or another process was faster.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield unfinished
        unfinished.chmod(0o755)
        if not replaces_folders():
            with suppress(FileNotFoundError):
                folder.rmdir()
        unfinished.replace(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


@contextmanager
def complete_file(file: Path) -> Iterator[Path]:
    """Give a place beside ``file`` to write to, which takes its name (and the place of what has it) at the end of the block.

    Raises:
      OSError: it cannot be written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{file.name}-", suffix=file.suffix, dir=file.parent)
    os.close(handle)
    unfinished = Path(name)
    try:
        yield unfinished
        unfinished.chmod(0o644)
        unfinished.replace(file)
    finally:
        unfinished.unlink(missing_ok=True)


def new_run_folder(project: str | Path, name: str, exist_ok: bool = False) -> Path:
    """Create ``project/name``, or ``name2``, ``name3``, … when taken.

    Raises:
      UserError: the folder cannot be created.
    """
    if not name.strip():
        raise UserError("--name '': is empty; name the run's folder, or leave the flag out")
    base = Path(project) / name
    number = 1
    try:
        while True:
            folder = base if number == 1 else base.with_name(f"{name}{number}")
            try:
                folder.mkdir(parents=True, exist_ok=exist_ok)
                return folder
            except FileExistsError:
                if exist_ok:
                    raise
                number += 1
    except OSError as error:
        raise UserError(f"{base}: the run folder cannot be created ({error.strerror})") from error


def find_run_folder(resume: str, project: str | Path) -> Path:
    """The run that ``--resume`` means.

    Args:
      resume: a run folder, something inside it, the name of a run, or ``latest``.
      project: folder of the runs, searched for the named or latest one.

    Raises:
      UserError: no such run, or it has nothing to resume from.
    """
    if resume == "latest":
        runs = sorted(Path(project).glob("*/settings.yaml"), key=lambda file: file.stat().st_mtime)
        if not runs:
            raise UserError(f"--resume: no run in {project}; name the run's folder")
        return runs[-1].parent
    places = (Path(resume), Path(project) / resume)
    folder = next((folder for place in places if (folder := run_folder_of(place)) is not None), None)
    if folder is None:
        raise UserError(f"--resume {resume}: not a run folder (it holds no settings.yaml)")
    return folder


def run_folder_of(path: Path) -> Path | None:
    """The run folder that a path is, or is in; None if there is none."""
    whole = path.absolute()
    return next((folder for folder in (whole, *whole.parents) if (folder / "settings.yaml").is_file()), None)


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically: a reader sees the old file or the new one."""
    write_file(path, json.dumps(content, indent=2, default=_plain) + "\n")


def write_yaml(path: Path, content: Mapping[str, Any]) -> None:
    """Write YAML atomically."""
    write_file(path, yaml.safe_dump(json.loads(json.dumps(content, default=_plain)), sort_keys=False))


def write_file(path: Path, content: str | bytes) -> None:
    """Write a file atomically: a reader sees the old one or the new one.

    Raises:
      UserError: it cannot be written.
    """
    try:
        with complete_file(path) as unfinished:
            unfinished.write_bytes(content.encode() if isinstance(content, str) else content)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, frozenset | set):
        return sorted(value)
    return value.item() if hasattr(value, "item") else str(value)


def disk_trouble(error: BaseException | None) -> str | None:
    """What the disk has to do with an error, in words; None if nothing.

    Orbax wraps or rewords the errors of the operating system, so the causes of ``error`` are looked through too.
    """
    if error is None:
        return None
    if (isinstance(error, OSError) and error.errno == errno.ENOSPC) or "No space left" in str(error):
        return "the disk is full: free some space"
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return disk_trouble(error.__cause__ or error.__context__)


def readable_size(count: int) -> str:
    """Bytes as people write them.

    >>> readable_size(24_000_000_000), readable_size(1_500_000), readable_size(12)
    ('24.0 GB', '1.5 MB', '12 B')
    """
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= unit:
            return f"{count / unit:,.1f} {name}"
    return f"{count} B"
