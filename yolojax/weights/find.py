"""The weights that a user means: a name, a folder, a run or a ``.pt``."""

from __future__ import annotations

import os
from pathlib import Path

from yolojax.config import configs_root
from yolojax.errors import UserError
from yolojax.weights.converted import read_converted
from yolojax.weights.delta import apply_delta, read_delta
from yolojax.weights.safetensors import ARRAYS as SAFETENSORS
from yolojax.weights.safetensors import read_safetensors
from yolojax.weights.store import Weights, is_weights_folder, read_weights, replaced

EMBEDDED_WEIGHTS = "yolov5n-shapes"
_OFFICIAL = "https://github.com/ultralytics/yolov5/releases/download/v7.0"


def load_weights(source: str | Path, delta: str | Path | None = None) -> Weights:
    """The weights that a user means.

    Args:
      source: a ``.pt`` checkpoint of YOLOv5, a weights directory, a run folder (its best weights, else its last), a ``.safetensors`` file of
        ours or the folder of one, or a name (``yolov5m``) that is looked for in the working directory, in ``weights/``, in the folder
        ``$YOLOJAX_WEIGHTS`` and among the shipped ones.
      delta: a ``.delta.npz`` of a run that began from them: what it added.

    Returns:
      Weights with float32 arrays that fit their architecture.

    Raises:
      UserError: nothing is there, or it is damaged or of another kind; the message says how to get what is missing. Or the delta belongs to others.
    """
    if delta is not None:
        return apply_delta(load_weights(source), read_delta(delta), delta)
    path = find_weights(source)
    if path.is_dir():
        return read_weights(path)
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    if path.suffix in (".onnx", ".stablehlo"):
        raise UserError(
            f"{path}: is an export; give the weights that it was made from ('yolojax bench' measures exports)"
        )
    return read_converted(path)


def find_weights(source: str | Path) -> Path:
    """The file or weights directory that a user means; arguments and errors as of ``load_weights``."""
    if not str(source):
        raise UserError("--weights '': names no weights here; leave the flag out for the embedded ones")
    path = Path(source).expanduser()
    if path.is_file():
        return path
    if path.suffix == ".pt" and (is_weights_folder(path.with_suffix("")) or replaced(path.with_suffix("")).is_dir()):
        path = path.with_suffix("")  # weights/last.pt, as a run of the original has it
    if path.is_dir() or replaced(path).is_dir():
        inside = [
            path,
            replaced(path),
            *(path / place / name for place in ("weights", "") for name in ("best", "last")),
        ]
        for candidate in inside:
            if is_weights_folder(candidate):
                return candidate
        if (path / SAFETENSORS).is_file():
            return path / SAFETENSORS
    stem = path.name.removesuffix(".pt")
    folders = [
        Path(),
        Path("weights"),
        Path(os.environ.get("YOLOJAX_WEIGHTS") or "weights"),
        configs_root() / "weights",
    ]
    for folder in folders if path.parent == Path() else ():
        if is_weights_folder(folder / stem):
            return folder / stem
        if (folder / f"{stem}.pt").is_file():
            return folder / f"{stem}.pt"
    if (
        path.is_dir() or replaced(path).is_dir()
    ):  # only now: one that holds something else does not hide the weights of its name
        raise UserError(f"{source}: is neither a weights directory nor a run folder (no weights.json, no weights/best)")
    if stem in {f"yolov5{size}{six}" for size in "nsmlx" for six in ("", "6")}:
        advice = f"download {_OFFICIAL}/{stem}.pt into this folder (yolojax data download {stem}.pt does), into weights/ or into $YOLOJAX_WEIGHTS"
    else:
        shipped = sorted(folder.name for folder in folders[-1].glob("*") if is_weights_folder(folder))
        advice = (
            f"give a .pt file, a weights directory, a run folder or a name (shipped: {', '.join(shipped) or 'none'})"
        )
    raise UserError(f"{source}: no such weights; {advice}")
