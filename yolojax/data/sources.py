"""From a data set's settings to the samples of one of its splits."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Literal

from yolojax.data.coco import open_coco
from yolojax.data.config import DataConfig, load_data_config
from yolojax.data.listing import label_path
from yolojax.data.sample import NO_SUCH_CLASS, SET_ASIDE, UNUSED_LABEL, Boxes, Split
from yolojax.data.shapes.files import prepare_shapes
from yolojax.data.tfds import PREFIX, open_tfds, tfds_config
from yolojax.data.voc import open_voc
from yolojax.data.yolo import open_yolo
from yolojax.errors import UserError

log = logging.getLogger(__name__)

SplitName = Literal["train", "val", "test"]


def load_data(name: str | Path, root: str | Path | None = None) -> DataConfig:
    """A data set's settings from what a user gives as ``--data``: a YAML file, a shipped name, or ``tfds:…``.

    Args:
      name: see above.
      root: folder of the data set, instead of the YAML's ``path``; for ``tfds:…`` the folder of the prepared data sets.

    Raises:
      UserError: see ``load_data_config`` and ``tfds_config``; or a file cannot be read.
    """
    try:
        return tfds_config(str(name), root) if str(name).startswith(PREFIX) else load_data_config(name, root)
    except OSError as error:
        raise UserError(f"{name}: {error.filename}: {error.strerror or error}") from error


def read_split(config: DataConfig, split: SplitName) -> Split:
    """The samples of a split and all its problems, without judging them; see ``open_split``."""
    try:
        return _read_split(config, split)
    except OSError as error:
        raise UserError(f"{config.file}: key '{split}': {error.filename}: {error.strerror or error}") from error


def _read_split(config: DataConfig, split: SplitName) -> Split:
    entries = getattr(config, split)
    if not entries:
        raise UserError(f"{config.file}: key '{split}' is missing")
    if config.download and not config.root.exists():
        raise UserError(
            f"{config.file}: key '{split}': {config.root} does not exist; set 'path' in that file to the folder of the data set, "
            f"give --data-root, or fetch it with: yolojax data download {config.file.stem}"
        )
    if config.format == "yolo":
        return open_yolo(config, split, entries)
    if config.format == "voc":
        return open_voc(config, split, entries)
    if config.format == "coco":
        return open_coco(config, split, entries)
    if config.format == "tfds":
        return open_tfds(config, split, entries)
    return open_yolo(dataclasses.replace(config, root=prepare_shapes(config)), split, entries)


def open_split(config: DataConfig, split: SplitName, *, single_class: bool = False, needs_boxes: bool = False) -> Split:
    """The usable samples of a split, checked; what was left out is in the report, and logged by name.

    Args:
      config: the data set.
      split: which part of it.
      single_class: give every box class 0.
      needs_boxes: refuse a split without one box: nothing can be learned from it.

    Raises:
      UserError: the data is missing, empty or mislabelled; the message names file, line and remedy.
    """
    opened = read_split(config, split)
    wrong = [problem for problem in opened.report.problems if problem.kind == NO_SUCH_CLASS]
    if wrong:
        more = f" (and {len(wrong) - 1} more such rows)" if len(wrong) > 1 else ""
        raise UserError(f"{wrong[0]}{more}")
    if not opened.samples:
        first = next((f"; {problem}" for problem in opened.report.problems if problem.left_out), "")
        raise UserError(f"{config.file}: key '{split}': no usable image{first}")
    if needs_boxes and not opened.report.boxes:
        raise UserError(f"{config.file}: key '{split}': not one box to learn from: {_why_no_box(config, opened)}")
    for line in opened.report.lines():
        log.info(line)
    if not opened.report.boxes:
        log.warning("%s: not one box: there will be no precision, recall and mAP of it", split)
    if single_class:
        samples = [dataclasses.replace(sample, boxes=_as_one_class(sample.boxes)) for sample in opened.samples]
        opened = Split(tuple(samples), opened.report)
    return opened


def _as_one_class(boxes: Boxes) -> Boxes:
    merged = boxes.copy()
    merged[:, 0] = 0
    return merged


def _why_no_box(config: DataConfig, opened: Split) -> str:
    """Where labels were looked for, and what lies there or near."""
    report = opened.report
    if report.unlabelled == report.images and config.format == "voc":
        stem = Path(opened.samples[0].name).stem
        return f"no image has an annotation: that of {opened.samples[0].name} is looked for as Annotations/{stem}.xml"
    if config.format not in ("yolo", "shapes"):
        set_aside = sum(problem.kind in SET_ASIDE for problem in report.problems)
        why = f", and {set_aside} that are left out ({', '.join(SET_ASIDE.values())})" if set_aside else ""
        first = next((f"; {problem}" for problem in report.problems if problem.left_out), "")
        return f"the annotations of its {report.images} images hold none to use{why}{first}"
    if report.unlabelled < report.images:
        empty = report.images - report.unlabelled
        nothing = f"{empty} of its {report.images} images have a label file, and no row of them can be used"
    else:
        image = Path(opened.samples[0].name)
        nothing = f"the labels of {image} are looked for in {label_path(image)}, and no image has such a file"
    unused = [problem for problem in report.problems if problem.kind == UNUSED_LABEL]
    if not unused:
        return f"{nothing}; no label files lie near"
    return f"{nothing}; {len(unused)} label files lie elsewhere: {unused[0].where} {unused[0].message}"
