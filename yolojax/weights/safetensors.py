"""Weights as a ``.safetensors`` file: what other programs and the Hugging Face Hub read, and what is safe to take from anybody.

A folder of it holds ``model.safetensors``, the record of ``weights.json`` as ``config.json``, and a model card, ``README.md``. The record stands in the
file's own metadata as well, so the file alone is enough. Arrays keep their names (``params/model_0/conv/kernel``), dtypes and bits.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import jax
import numpy as np

from yolojax.errors import UserError
from yolojax.files import write_file, write_json
from yolojax.tree import flatten
from yolojax.weights.store import Weights, weights_from, weights_record

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
      Weights with float32 arrays that fit their architecture.

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
    return weights_from(record, arrays, file, file)


def _import_safetensors() -> ModuleType:
    """The package, or an error that says how to get it."""
    try:
        import safetensors.numpy
    except ImportError as error:
        raise UserError(".safetensors files need safetensors: pip install 'yolojax[safetensors]'") from error
    return safetensors
