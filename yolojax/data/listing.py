"""Which images a split in YOLO layout has, and which label files belong to them.

An entry is a folder, an image, or a list of images. Paths are looked for where people's tools mean them:
a list's entries relative to the list, the working folder and the data set; ``../train/images``, as
Roboflow writes it, in the folder of the YAML file.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence, Set
from pathlib import Path

from yolojax.data.config import DataConfig, system_path
from yolojax.data.images import IMAGE_SUFFIXES, UNREAD_SUFFIXES
from yolojax.data.sample import UNUSED_LABEL, Problem
from yolojax.errors import UserError
from yolojax.text import read_text, trimmed

_LISTED_SUFFIXES = IMAGE_SUFFIXES + UNREAD_SUFFIXES
_OTHER_LAYOUTS = {".xml": "VOC", ".json": "LabelMe or COCO"}  # annotations that labelling tools write beside images
_FEWEST_FIELDS = 5  # of a row of labels
_MOST_ENTRIES = 200_000  # of the folders that are searched for labels


def list_images(config: DataConfig, split: str, entry: str, problems: list[Problem]) -> list[Path]:
    """The images of an entry of a split.

    Args:
      config: the data set.
      split: name of the split, for messages.
      entry: a folder, an image or a list.
      problems: gets what a list names and nobody can find.

    Raises:
      UserError: the entry does not exist, or has no image.
    """
    where = f"{config.file}: key '{split}'"
    places = entry_places(config, entry)
    path = next((place for place in places if os.path.exists(place)), None)
    if path is None:
        also = f" (nor {', '.join(map(str, places[1:]))})" if places[1:] else ""
        raise UserError(
            f"{where}: {places[0]} does not exist{also}; set 'path' in that file to the folder of the data set"
        )
    if path.is_dir():
        images = list(_walk(path))
        if not any(image.suffix.lower() in IMAGE_SUFFIXES for image in images):
            unread = f", but {len(images)} files of kinds that are not read, as {images[0].name}" if images else ""
            raise UserError(f"{where}: {path} holds no image ({', '.join(IMAGE_SUFFIXES)}){unread}")
        return images
    if path.suffix.lower() in _LISTED_SUFFIXES:
        return [path]
    return _read_list(config, where, path, problems)


def entry_places(config: DataConfig, entry: str) -> list[Path]:
    """Where an entry of a data YAML may be, the likeliest place first."""
    written = system_path(entry)
    places = [config.root / written]
    if written.startswith("../"):
        places += [config.root / written.removeprefix("../"), config.file.parent / written]
        places += [config.file.parent / written.removeprefix("../")]
    return list(dict.fromkeys(places))


def _read_list(config: DataConfig, where: str, path: Path, problems: list[Problem]) -> list[Path]:
    try:
        lines = read_text(path).splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: {path} is no list of images: it is not text") from error
    images, first = [], ""
    for number, line in enumerate(lines, start=1):
        if not trimmed(line):
            continue
        places = _line_places(config, path, line)
        image = next((place for place in places if os.path.isfile(place)), None)  # Path.is_file refuses long names
        tried = f"{trimmed(line)} does not exist; looked for at {', '.join(map(str, places))}"
        first = first or f"line {number}: {tried}"
        if image is None:
            problems.append(Problem("missing image", f"{path}, line {number}", tried, "image"))
        else:
            images.append(image)
    if not images:
        raise UserError(f"{where}: {path} names no image that exists" + (f"; {first}" if first else ""))
    return images


def _line_places(config: DataConfig, path: Path, line: str) -> list[Path]:
    """Where the image of a line of a list may be.

    A list made by YOLOv5's scripts is relative to itself, one made by hand to the working folder or the data
    set, and one made by CVAT to a folder ``data`` that is not there.
    """
    written = system_path(trimmed(line))
    names = [written, written.removeprefix("data/")] if written.startswith("data/") else [written]
    return list(dict.fromkeys(base / name for name in names for base in (path.parent, Path(), config.root)))


def _walk(folder: Path) -> Iterable[Path]:
    """Images below a folder, those of kinds that are not read among them; links are followed, once each."""
    for place, files in _folders(folder):
        for file in files:
            if file.lower().endswith(_LISTED_SUFFIXES) and not file.startswith("."):
                yield Path(place, file)


def _folders(folder: Path) -> Iterator[tuple[str, list[str]]]:
    seen = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        yield place, files


def label_path(image: Path) -> Path:
    """Where the labels of an image are: the last ``/images/`` of its path becomes ``/labels/``, its suffix ``.txt``."""
    return Path(*_swapped(image.parts[:-1], "images", "labels"), image.name).with_suffix(".txt")


def _swapped(folders: Sequence[str], old: str, new: str) -> list[str]:
    """Folders of a path, the last one of a name replaced."""
    result = list(folders)
    if old in result:  # a relative path may begin with it
        result[len(result) - 1 - result[::-1].index(old)] = new
    return result


def check_label_files(root: Path, images: Sequence[Path], readable: Sequence[Path]) -> tuple[int, list[Problem]]:
    """Compare the label files that images have with those that lie near.

    Args:
      root: folder of the data set.
      images: of a split.
      readable: those that are images indeed. Labels are looked for around these alone: a line of a list may name any
        file of the machine.

    Returns:
      How many of the images have no label file, and problems: label files that belong to no image, and
      those that belong to several.
    """
    owners: defaultdict[Path, list[Path]] = defaultdict(list)
    for image in images:
        owners[_absolute(label_path(image))].append(image)
    absent = {path for path in owners if not path.is_file()}
    problems = [
        Problem("shared label file", str(image), f"has the label file of {sharing[0].name}: {path}")
        for path, sharing in owners.items()
        if path not in absent
        for image in dict.fromkeys(sharing)
        if image != sharing[0]
    ]
    folders = sorted({_absolute(label_path(image)).parent for image in readable})
    near = {path for folder in folders for path in _text_files(folder)}
    if absent:
        suffixes = (".txt", *_OTHER_LAYOUTS) if len(absent) == len(owners) else (".txt",)
        near |= _namesakes(_absolute(root), {path.stem for path in absent}, suffixes)
    wanted = {path.stem: path for path in absent}
    stems: dict[Path, frozenset[str]] = {}
    for path in sorted(near - owners.keys()):
        rows = _label_rows(path)
        if rows is not None and not _has_image(path, stems):
            message = _belongs_to_none(path, rows, wanted.get(path.stem))
            problems.append(Problem(UNUSED_LABEL, str(path), message, "label file"))
    return sum(len(owners[path]) for path in absent), problems


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))


def _belongs_to_none(path: Path, rows: int, wanted: Path | None) -> str:
    layout = _OTHER_LAYOUTS.get(path.suffix.lower())
    if layout:
        return f"looks like annotations of {layout}, which are not read where 'format' is yolo"
    instead = f"; labels of this name are looked for in {wanted}" if wanted else ""
    return f"belongs to no image, with {rows} rows{instead}"


def _text_files(folder: Path) -> Iterator[Path]:
    """Text files in a folder of labels and below it."""
    for place, names in _folders(folder):
        yield from (Path(place, name) for name in names if name.lower().endswith(".txt"))


def _namesakes(root: Path, stems: Set[str], suffixes: Sequence[str]) -> set[Path]:
    """Files below the data set that are called like labels that are missing."""
    files, entries = set(), 0
    for place, names in _folders(root):
        entries += len(names)
        if entries > _MOST_ENTRIES:
            break
        for name in names:
            stem, suffix = os.path.splitext(name)
            if stem in stems and suffix.lower() in suffixes:
                files.add(Path(place, name))
    return files


def _label_rows(path: Path) -> int | None:
    """Rows of a file that looks like labels; None for other text (``classes.txt``)."""
    if path.suffix.lower() in _OTHER_LAYOUTS:
        return 0
    try:
        lines = [line for line in read_text(path).splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError):
        return None
    return None if lines and len(lines[0].split()) < _FEWEST_FIELDS else len(lines)


def _has_image(label: Path, stems: dict[Path, frozenset[str]]) -> bool:
    """Whether an image exists, of this split or another, that the label file belongs to.

    Args:
      label: the file.
      stems: names of images by folder, to be read once.
    """
    for folder in (Path(*_swapped(label.parts[:-1], "labels", "images")), label.parent):
        if label_path(folder / f"{label.stem}.jpg") == label:
            if folder not in stems:
                stems[folder] = _image_stems(folder)
            if label.stem in stems[folder]:
                return True
    return False


def _image_stems(folder: Path) -> frozenset[str]:
    try:
        names = os.listdir(folder)
    except OSError:
        return frozenset()
    return frozenset(os.path.splitext(name)[0] for name in names if name.lower().endswith(_LISTED_SUFFIXES))
