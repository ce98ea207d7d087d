"""What a training added to weights, alone: a few hundred kilobytes where most layers were frozen, or have adapters.

A delta is one ``.npz`` file: the arrays that are not those of the base, adapters in their own small form, and a record with the SHA-256 of the base, so that it
is never applied to other weights.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from yolojax.errors import UserError
from yolojax.files import write_file
from yolojax.freezing.adapters import is_adapter, merge_adapters_on_host
from yolojax.model.network import Variables, abstract_variables
from yolojax.model.spec import ModelSpec
from yolojax.tree import flatten, unflatten
from yolojax.weights.store import Weights, float32_arrays, weights_from, weights_record

SUFFIX = ".delta.npz"
_RECORD = "record.json"
_MOST_SHARE = 0.25  # of the values of the network; above it a delta saves little


@dataclass(frozen=True, kw_only=True, eq=False)
class Delta:
    """What is to be put on weights.

    Attributes:
      base: ``arrays_sha256`` of these weights.
      record: all about the result but its arrays; see ``weights_record``.
      arrays: by path with collection (``params/model_24/m_0/kernel``): arrays in place of the base's, and adapters of kernels of the base.
    """

    base: str
    record: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray]

    @property
    def share(self) -> float:
        """Its values, as a share of those of the whole network."""
        spec = ModelSpec.from_dict(self.record["architecture"])
        whole = sum(leaf.size for leaf in jax.tree.leaves(abstract_variables(spec)))
        return sum(leaf.size for leaf in self.arrays.values()) / whole


def arrays_sha256(variables: Variables) -> str:
    """The SHA-256 of all arrays, with paths and shapes, as hexadecimal text; the same for a ``.pt`` and for what it was converted to."""
    digest = hashlib.sha256()
    for path, leaf in sorted(flatten(variables).items()):
        array = np.ascontiguousarray(leaf, np.float32)
        digest.update(f"{path} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def small_delta(result: Weights, resting: frozenset[str], with_adapters: Variables) -> Delta | None:
    """The delta of a training, where it is worth writing: where it began from weights, and changed little of them.

    Args:
      result: what was trained, with plain kernels; its ``source`` names the base.
      resting: paths, with collection, of the arrays that did not move; a kernel with an adapter among them.
      with_adapters: its arrays with the adapters apart, which are used in place of the kernels.
    """
    base = result.source.get("base")
    if base is None:
        return None
    kept = resting - set(base["replaced"])
    leaves = flatten(with_adapters).items()
    arrays = {path: np.asarray(leaf) for path, leaf in leaves if path not in kept or is_adapter(path)}
    delta = Delta(base=base["arrays_sha256"], record=weights_record(result), arrays=arrays)
    return delta if delta.share <= _MOST_SHARE else None


def save_delta(path: Path, delta: Delta) -> None:
    """Write a delta, whole or not at all.

    Raises:
      UserError: the place cannot be written.
    """
    record = json.dumps({"base": delta.base, **delta.record}).encode()
    content = io.BytesIO()
    np.savez(content, **{_RECORD: np.frombuffer(record, np.uint8)}, **delta.arrays)  # type: ignore[arg-type]
    write_file(path, content.getvalue())


def read_delta(path: str | Path) -> Delta:
    """Read what ``save_delta`` wrote; no code from the file is run.

    Raises:
      UserError: there is no such file, or it is damaged or no delta, or an array is not of floating-point numbers or not finite.
    """
    try:
        with np.load(io.BytesIO(Path(path).read_bytes()), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        record = json.loads(arrays.pop(_RECORD).tobytes())
        return Delta(base=record.pop("base"), record=record, arrays=float32_arrays(arrays, Path(path)))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: is no '*{SUFFIX}' of a run of ours, or is damaged ({error})") from error


def apply_delta(weights: Weights, delta: Delta, place: str | Path) -> Weights:
    """The weights that a training gave, from those that it began from.

    Args:
      weights: the base.
      delta: of the training.
      place: its file, for errors.

    Raises:
      UserError: they are other weights, or the delta is damaged.
    """
    fingerprint = arrays_sha256(weights.variables)
    if fingerprint != delta.base:
        name = weights.source.get("file") or weights.spec.name
        raise UserError(
            f"{place}: belongs to other weights than {name} (arrays {delta.base[:12]}…, not {fingerprint[:12]}…); "
            f"give those that it was trained from ({delta.record.get('source', {}).get('trained_from')})"
        )
    arrays = {**flatten(weights.variables), **delta.arrays}
    params = {name.partition("/")[2]: leaf for name, leaf in arrays.items() if name.startswith("params/")}
    merged = merge_adapters_on_host(unflatten(params))
    others = {name: leaf for name, leaf in arrays.items() if not name.startswith("params/")}
    leaves = {**{f"params/{path}": leaf for path, leaf in flatten(merged).items()}, **others}
    return weights_from(delta.record, leaves, Path(place), Path(place))
