"""Detection data sets of TensorFlow Datasets, without TensorFlow.

A data set that somebody has prepared in a random-access format (ArrayRecord, Parquet) is read through ``tfds``'s own data sources. It is named
``tfds:voc/2007`` (looked for in ``$TFDS_DATA_DIR``, else ``~/tensorflow_datasets``) or ``tfds:/folder``. Any data set will do whose features have
``image``, ``objects/bbox`` and ``objects/label``; boxes marked ``is_difficult`` or ``is_crowd`` are left out.

In a YAML an entry is a split expression (``train+validation``), after the data set that it is of (``voc/2007/train+validation``) unless ``path`` is
the folder of that data set. Options of the YAML:

  difficult: whether to keep boxes marked ``is_difficult``; false unless given.
"""

from __future__ import annotations

import functools
import io
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from yolojax.config import check_keys
from yolojax.data.config import DataConfig
from yolojax.data.images import decode_image, probe_stream
from yolojax.data.sample import (
    Boxes,
    ImageError,
    Objects,
    Pixels,
    Problem,
    Sample,
    Split,
    make_split,
    no_boxes,
    read_samples,
)
from yolojax.errors import UserError

PREFIX = "tfds:"
_OPTIONS = ("difficult",)
_INFO = "dataset_info.json"  # of a version
_LEVELS = (
    _INFO,
    f"*/{_INFO}",
    f"*/*/{_INFO}",
)  # from the version itself, a folder of versions, or one of configurations


def tfds_config(name: str, home: str | Path | None = None) -> DataConfig:
    """The settings of a prepared data set, for ``--data tfds:…``.

    Args:
      name: ``tfds:`` and a data set (``voc/2007``) or a folder; split expressions for training and validation may follow in brackets:
        ``tfds:voc/2007[train+validation,test]``.
      home: folder of prepared data sets, instead of the usual one.

    Raises:
      UserError: it is not prepared, or has no boxes.
    """
    builder, _, splits = name.removeprefix(PREFIX).removesuffix("]").partition("[")
    folder = _prepared(name, [Path(home or _home()) / builder.replace(":", "/")])
    info = _builder(folder).info
    train, _, val = splits.partition(",")
    if not train:
        held_out = [split for split in ("validation", "val", "test") if split in info.splits]
        train, val = "train", held_out[0] if held_out else "train"
    return DataConfig(
        file=Path(name),
        root=folder,
        format="tfds",
        train=(train,),
        val=(val or train,),
        names=tuple(_label_names(name, info.features)),
    )


def open_tfds(config: DataConfig, split: str, entries: Sequence[str]) -> Split:
    """The samples of a split of a prepared data set.

    Args:
      config: the data set.
      split: which part of it.
      entries: split expressions (``train+validation``, ``voc/2007/test[:10%]``).

    Raises:
      UserError: it is not prepared in a random-access format, has no boxes or other classes, or has no such split.
    """
    check_keys(f"{config.file}: options", config.options, _OPTIONS)
    samples: list[Sample] = []
    problems: list[Problem] = []
    listed = 0
    for entry in entries:
        builder, _, expression = entry.rpartition("/")
        folder = _prepared(str(config.file), [config.root / builder, *([_home() / builder] if builder else [])])
        classes = _classes(config, folder)
        try:
            count = len(_source(folder, expression))
        except NotImplementedError as error:
            raise UserError(f"{config.file}: {folder} is in a format without random access; {_PREPARE}") from error
        except ValueError as error:
            raise UserError(
                f"{config.file}: key '{split}': '{expression}' is no split of {folder} ({_first_line(error)})"
            ) from error
        listed += count
        usable, seen = read_samples(partial(_read_sample, config, classes, folder, expression), range(count))
        samples += usable
        problems += seen
    return make_split(split, listed, samples, problems)


_PREPARE = "prepare it where TensorFlow is installed ('tfds build NAME --file_format=array_record'), and set TFDS_DATA_DIR to the folder of the data sets"


def _home() -> Path:
    """Where TensorFlow Datasets keeps what it has prepared."""
    return Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def _prepared(name: str, places: Sequence[Path]) -> Path:
    """The newest version of a data set in the first place that holds one; its folder has a ``dataset_info.json``."""
    for place in places:
        for level in _LEVELS:
            versions = [file.parent for file in place.glob(level)]
            if len({folder.parent for folder in versions}) > 1:
                raise UserError(f"{name}: choose one of {', '.join(sorted(str(folder.parent) for folder in versions))}")
            if versions:
                return max(
                    versions, key=lambda folder: [int(part) for part in folder.name.split(".") if part.isdigit()]
                )
    raise UserError(f"{name}: {places[-1]} holds no prepared data set; {_PREPARE}")


@functools.lru_cache(maxsize=8)
def _builder(folder: Path) -> Any:
    import tensorflow_datasets  # takes a second, and most runs do not need it

    try:
        return tensorflow_datasets.builder_from_directory(str(folder))
    except Exception as error:  # damaged files raise what its parsers raise
        raise UserError(f"{folder}: is no prepared data set that can be read ({_first_line(error)})") from error


@functools.lru_cache(maxsize=8)
def _source(folder: Path, expression: str) -> Any:
    """The examples of a split expression by number, their images as bytes; every process opens its own."""
    import tensorflow_datasets

    decoders = {"image": tensorflow_datasets.decode.SkipDecoding()}
    return _builder(folder).as_data_source(split=expression, decoders=decoders)


def _example(folder: Path, expression: str, number: int) -> Any:
    """An example of a split expression.

    Raises:
      ImageError: its record cannot be read.
    """
    try:
        return _source(folder, expression)[number]
    except (RuntimeError, ValueError) as error:
        raise ImageError(f"cannot be read from its record ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _label_names(name: str, features: Any) -> list[str]:
    content = dict(features.items())
    objects = dict(getattr(content.get("objects"), "feature", {})) if "image" in content else {}
    if "bbox" not in objects or getattr(objects.get("label"), "names", None) is None:
        raise UserError(
            f"{name}: is no detection data set: it needs image, objects/bbox and objects/label, and has {', '.join(content)}"
        )
    return objects["label"].names


def _classes(config: DataConfig, folder: Path) -> list[int | str]:
    """The class of each label of a prepared data set, or its name where the settings do not have it."""
    index = {name: number for number, name in enumerate(config.names)}
    labels = _label_names(str(config.file), _builder(folder).info.features)
    classes = [index.get(name, name) for name in labels]
    if not any(isinstance(label, int) for label in classes):
        raise UserError(f"{config.file}: key 'names': {folder} has none of these classes, but {', '.join(labels)}")
    return classes


def _read_sample(
    config: DataConfig, classes: Sequence[int | str], folder: Path, expression: str, number: int
) -> tuple[Sample | None, list[Problem]]:
    where = f"{folder}, {expression}, example {number}"
    try:
        example = _example(folder, expression, number)
        if "image/filename" in example:
            where += f" ({example['image/filename'].decode(errors='replace')})"
        size, _, problems = probe_stream(io.BytesIO(example["image"]), where)
    except ImageError as error:
        return None, [Problem("unreadable image", where, str(error), "image")]
    boxes, faults = _read_boxes(config, classes, where, example["objects"])
    problems += faults
    if any(problem.left_out == "image" for problem in problems):
        return None, problems
    return Sample(name=where, size=size, boxes=boxes, reader=partial(_read_image, folder, expression, number)), problems


def _read_image(folder: Path, expression: str, number: int) -> Pixels:
    return decode_image(_example(folder, expression, number)["image"])


def _read_boxes(
    config: DataConfig, classes: Sequence[int | str], where: str, objects: Mapping[str, Any]
) -> tuple[Boxes, list[Problem]]:
    """Boxes ``(n, 5)`` from (top, left, bottom, right) fractions, clipped to the image."""
    corners = np.array(objects["bbox"], np.float64).reshape(-1, 4)
    if not np.isfinite(corners).all():
        return no_boxes(), [Problem("bad annotation", where, "has a box that is not four numbers", "image")]
    marks = {"is_crowd": "crowd box"} | ({} if config.options.get("difficult") else {"is_difficult": "difficult box"})
    hidden = {kind: np.array(objects[mark], bool) for mark, kind in marks.items() if mark in objects}
    contents = Objects()
    for row, (label, box) in enumerate(zip(objects["label"], corners.clip(0, 1), strict=True)):
        class_index, item = classes[int(label)], f"{where}, object {row}"
        if set_aside := next((kind for kind, rows in hidden.items() if rows[row]), None):
            contents.problems.append(Problem(set_aside, item, "is marked so, and not used"))
        elif isinstance(class_index, str):
            contents.problems.append(
                Problem("unknown class", item, f"class '{class_index}' is not in {config.file}", "box")
            )
        else:
            contents.add_corners(item, class_index, box[1::-1], box[:1:-1])
    return contents.boxes, contents.problems
