"""Opens an untrusted PyTorch file, and runs nothing of what is in it.

A ``.pt`` is a pickle, a program that may call any function by name. Two checks stand before it: every name in it must be on the list below, and torch's own
restricted unpickler then reads it, with each class of the file replaced by an inert stand-in.
"""

from __future__ import annotations

import pickle
import pickletools
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from yolojax.errors import UserError


class Inert:
    """What an object of the file becomes: it keeps its attributes and can do nothing. ``kind`` is the name of its class."""

    kind = ""

    def __new__(cls, *_: object, **__: object) -> Inert:
        """Take any arguments and forget them."""
        return super().__new__(cls)

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)


_MODULES = [
    *(f"models.yolo.{name}" for name in ("Model", "DetectionModel", "Detect")),
    *(f"models.common.{name}" for name in ("Conv", "C3", "Bottleneck", "SPPF", "Concat")),
]
_STAND_INS = [
    *_MODULES,
    *(f"yolov5.{name}" for name in _MODULES),  # trained with the pip package
    *(
        f"torch.nn.modules.{name}"
        for name in (
            "activation.SiLU",
            "batchnorm.BatchNorm2d",
            "container.ModuleList",
            "container.Sequential",
            "conv.Conv2d",
            "pooling.MaxPool2d",
            "upsampling.Upsample",
        )
    ),
    # Figures and settings that train.py leaves in the file.
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    *("numpy.ndarray", "numpy.dtype"),
    *(f"{module}.{name}" for module in ("pathlib", "pathlib._local") for name in ("PosixPath", "WindowsPath")),
]
# These torch makes itself, of plain data.
_PLAIN = [
    "_codecs.encode",
    "builtins.set",
    "collections.OrderedDict",
    "torch.Size",
    "torch.device",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_tensor_v2",
    *(
        f"torch.{name}Storage"
        for name in ("Half", "BFloat16", "Float", "Double", "Byte", "Char", "Short", "Int", "Long", "Bool")
    ),
]
_ALLOWED = frozenset([*_STAND_INS, *_PLAIN])

_OTHERS = {
    "is a YOLOv8 or later checkpoint, which is another network": ("ultralytics.",),
    "is a segmentation checkpoint; only detection models can be converted": (
        "models.yolo.Segment",
        "models.common.Proto",
    ),
    "is a classification checkpoint; only detection models can be converted": (
        "models.yolo.Classif",
        "models.common.Classify",
    ),
    "was written by YOLOv5 v5.0 or older, which is another network; v6.0 or newer is needed": (
        "models.common.Focus",
        "models.common.BottleneckCSP",
    ),
}
_SIGNATURES = {
    b"\xff\xd8\xff": "is an image (JPEG)",
    b"\x89PNG": "is an image (PNG)",
    b"GIF8": "is an image (GIF)",
    b"BM": "is an image (BMP)",
    b"RIFF": "is an image or a video",
    b"<": "is a web page (did the download fail?)",
    b"version https://git-lfs": "is a pointer of Git LFS ('git lfs pull' fetches the file itself)",
    b"": "is something else",
}


def open_untrusted(path: Path) -> Any:
    """The content of a PyTorch file as plain data, tensors and ``Inert`` objects.

    Args:
      path: any file at all.

    Raises:
      UserError: it is no PyTorch file, is damaged, is of another kind of network, or asks for something that is not on the list; nothing of it was run.
    """
    torch = import_torch()
    names = sorted(set(_globals(path)) - _ALLOWED)
    for sentence, prefixes in _OTHERS.items():
        if any(name.removeprefix("yolov5.").startswith(prefixes) for name in names):
            raise UserError(f"{path}: {sentence}")
    if names:
        shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        raise UserError(
            f"{path}: refused, because it asks for {shown}, which YOLOv5's own layers (v6.0 or newer) do without; "
            "nothing in it was run"
        )
    if not zipfile.is_zipfile(path):
        raise UserError(
            f"{path}: is a bare pickle, as PyTorch before 1.6 wrote them; YOLOv5 v6.0 or newer writes archives"
        )
    stand_ins = [(type("StandIn", (Inert,), {"kind": name.removeprefix("yolov5.")}), name) for name in _STAND_INS]
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(stand_ins):
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).rpartition("WeightsUnpickler error: ")[2].partition("\n")[0][:200]
        raise UserError(f"{path}: refused by PyTorch's restricted reader ({reason}); nothing in it was run") from error
    except Exception as error:  # torch raises many kinds for a damaged file
        reason = (str(error) or repr(error)).splitlines()[0][:200]
        raise UserError(f"{path}: is damaged or truncated ({reason}); copy or download it again") from error


def import_torch() -> ModuleType:
    """PyTorch, or an error that says how to get it."""
    try:
        import torch
    except ImportError as error:
        raise UserError(".pt files need PyTorch: pip install 'yolojax[torch]'") from error
    return torch


def _globals(path: Path) -> Iterator[str]:
    """The names that the pickle in a file asks for, without unpickling."""
    strings: list[str] = []
    try:
        for code, argument, _ in pickletools.genops(_pickle(path)):
            if code.name in ("GLOBAL", "INST"):
                yield str(argument).replace("__builtin__ ", "builtins ").replace(" ", ".")
            elif code.name == "STACK_GLOBAL":
                yield ".".join(strings[-2:])
            elif isinstance(argument, str):
                strings.append(argument)
    except UserError:
        raise
    except Exception as error:  # pickletools raises many kinds for bytes that are no pickle
        raise UserError(f"{path}: is damaged ({error}); copy or download it again") from error


def _pickle(path: Path) -> bytes:
    with path.open("rb") as file:
        head = file.read(64)
        if head.startswith(b"PK\x03\x04"):
            if not zipfile.is_zipfile(file):
                raise UserError(f"{path}: is truncated; copy or download it again")
            return _pickle_in_archive(path)
        if head.startswith(b"\x80"):  # a bare pickle, which may be an attack: its names are told
            file.seek(0)
            return file.read()
    what = next(meaning for start, meaning in _SIGNATURES.items() if head.lstrip().startswith(start))
    raise UserError(f"{path}: {what if head else 'is empty'}, not a PyTorch checkpoint")


def _pickle_in_archive(path: Path) -> bytes:
    try:
        with zipfile.ZipFile(path) as archive:
            files = archive.namelist()
            if any(file.endswith("/constants.pkl") for file in files):
                raise UserError(f"{path}: is a TorchScript export; give the checkpoint that train.py wrote")
            data = [file for file in files if file.endswith("/data.pkl")]
            if len(data) != 1:
                raise UserError(f"{path}: is a zip archive, not a PyTorch checkpoint")
            if damaged := archive.testzip():
                raise UserError(f"{path}: is damaged ({damaged} fails its checksum); copy or download it again")
            return archive.read(data[0])
    except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError, EOFError) as error:
        raise UserError(f"{path}: is damaged ({error}); copy or download it again") from error
