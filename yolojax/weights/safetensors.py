"""Weights as a ``.safetensors`` file: what other programs and the Hugging Face Hub read, and what is safe to take from anybody.

A folder of it holds ``model.safetensors``, the record of ``weights.json`` as ``config.json``, and a model card, ``README.md``. The record stands in the
file's own metadata as well, so the file alone is enough, and it is what counts. Arrays keep their names (``params/model_0/conv/kernel``), dtypes and bits.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np

from yolojax.errors import UserError
from yolojax.files import write_file, write_json
from yolojax.tree import flatten
from yolojax.weights.store import Weights, weights_from, weights_record

log = logging.getLogger(__name__)

ARRAYS = "model.safetensors"
_CONFIG = "config.json"
_CARD = "README.md"
_KEY = "yolojax"  # of the record in the file's metadata


def write_safetensors(folder: Path, weights: Weights, card: str) -> None:
    """Write a folder; files of the same names are replaced, each of them whole or not at all.

    Args:
      folder: of the files; it is made.
      weights: what to write.
      card: content of ``README.md``.

    Raises:
      UserError: the package is missing, or the place cannot be written.
    """
    save = _import_safetensors().numpy.save
    arrays = {path: np.ascontiguousarray(leaf) for path, leaf in flatten(jax.device_get(weights.variables)).items()}
    record = weights_record(weights)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror})") from error
    write_file(folder / ARRAYS, save(arrays, metadata={_KEY: json.dumps(record)}))
    write_json(folder / _CONFIG, {"library_name": "yolojax", "model_type": "yolov5", **record})
    write_file(folder / _CARD, card)


def read_safetensors(file: Path) -> Weights:
    """Read the weights in a ``.safetensors`` file.

    Returns:
      Weights with float32 arrays that fit their architecture. Where the ``config.json`` of the folder says something else, a warning is logged.

    Raises:
      UserError: the package is missing, the file is damaged or not one of these, or its arrays do not fit its architecture.
    """
    safe_open = _import_safetensors().safe_open
    try:
        with safe_open(file, framework="numpy") as content:
            record = json.loads((content.metadata() or {}).get(_KEY, "null"))
            arrays = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118 (it is no dict)
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror or error})") from error
    except Exception as error:  # the package has an error of its own, and raises others too
        reason = (str(error) or repr(error)).splitlines()[0][:200]
        raise UserError(f"{file}: is damaged ({reason}); copy or download it again") from error
    if record is None:
        raise UserError(
            f"{file}: holds arrays but not which network they belong to; only files of 'yolojax export --include safetensors' do"
        )
    weights = weights_from(record, arrays, file, file)
    if file.name == ARRAYS and (trouble := _config_trouble(file.with_name(_CONFIG), record)):
        log.warning(
            "%s: %s; what counts is the record inside %s, so it changes nothing",
            file.with_name(_CONFIG),
            trouble,
            file.name,
        )
    return weights


def _config_trouble(file: Path, record: Mapping[str, Any]) -> str:
    """Why a ``config.json`` does not say what the record says; empty where it does, or is not there."""
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return ""
    except (OSError, ValueError) as error:
        return f"cannot be read ({error})"
    if not isinstance(content, dict):
        return "holds no record"
    others = [key for key, value in record.items() if _canonical(content.get(key)) != _canonical(value)]
    return f"says something else about {', '.join(others)}" if others else ""


def _canonical(value: Any) -> str:
    """JSON of a value; unlike the value itself, NaN in it equals NaN."""
    return json.dumps(value, sort_keys=True)


def _import_safetensors() -> ModuleType:
    """The package, or an error that says how to get it."""
    try:
        import safetensors.numpy
    except ImportError as error:
        raise UserError(".safetensors files need safetensors: pip install 'yolojax[safetensors]'") from error
    return safetensors
