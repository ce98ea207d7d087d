"""Reading the files of images, and what their headers say.

Images are read upright (their EXIF orientation applied), as 8-bit RGB: grey and palette images get
three channels, alpha is dropped, CMYK is converted, 16 bits are divided by 256.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import BinaryIO, cast

import cv2
import numpy as np
from PIL import Image, ImageOps, features
from PIL.TiffImagePlugin import TiffImageFile

from yolojax.data.sample import ImageError, Pixels, Problem

IMAGE_SUFFIXES = (
    *(".avif", ".bmp", ".heic", ".heif", ".jpeg", ".jpg", ".mpo", ".pgm", ".png", ".ppm", ".tif", ".tiff"),
    ".webp",
)
# Kinds of images that are not read; they are listed all the same, so that they are named and not passed over.
RAW_SUFFIXES = (".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf", ".rw2")
UNREAD_SUFFIXES = (*RAW_SUFFIXES, ".exr", ".gif", ".hdr", ".j2k", ".jp2", ".jxl", ".psd", ".svg", ".tga")
SMALLEST_SIDE = 10
_FORMATS = {
    "AVIF": (".avif",),
    "BMP": (".bmp",),
    "HEIF": (".heic", ".heif"),
    "JPEG": (".jpg", ".jpeg"),
    "MPO": (".mpo", ".jpg", ".jpeg"),
    "PNG": (".png",),
    "PPM": (".ppm", ".pgm"),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
}
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
_AVIF_BRANDS = (b"avif", b"avis")
_TIFF_WIDTH, _TIFF_HEIGHT, _EXIF_ORIENTATION = 256, 257, 274
_JPEG_START, _JPEG_END, _PNG_END = b"\xff\xd8", b"\xff\xd9", b"IEND"
_TAIL = 256  # bytes in which an end marker is looked for: some cameras write a few behind it
_MOST_MISSING = 0.1  # share of the rows of a JPEG that may be missing at its end
_PILLOW_ERRORS = (
    *(OSError, Image.DecompressionBombError, SyntaxError, ValueError, TypeError, KeyError, OverflowError),
    *(RuntimeError, EOFError),
)
_UPRIGHT, _STRAIGHT, _TURNED = 1, (1, 2, 3, 4), (5, 6, 7, 8)


def read_image(path: Path) -> Pixels:
    """The image in a file, uint8 RGB ``(height, width, 3)``, upright.

    Raises:
      ImageError: the file is missing, or no image that can be decoded.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ImageError(f"cannot be read ({error.strerror})") from error
    return decode_image(data)


def decode_image(data: bytes) -> Pixels:
    """The image in the bytes of a file, uint8 RGB ``(height, width, 3)``, upright.

    Raises:
      ImageError: the bytes are no image that can be decoded.
    """
    if not data:
        raise ImageError("is empty")
    if _brand(data[:12]):
        return _decode_with_pillow(data)
    image = _decode(data)
    if image is None and data.startswith(_JPEG_START):
        # OpenCV refuses a JPEG that breaks off; with an end marker it decodes what there is.
        image = _decode(data + _JPEG_END)
    if image is None:
        raise ImageError("cannot be decoded")
    return image


def _brand(start: bytes) -> str:
    """``HEIF`` or ``AVIF`` by the first 12 bytes of a file; empty for all others."""
    if start[4:8] != b"ftyp":
        return ""
    return "AVIF" if start[8:12] in _AVIF_BRANDS else "HEIF" if start[8:12] in _HEIF_BRANDS else ""


def _open(file: BinaryIO) -> Image.Image:
    """The image in an open file, not yet decoded.

    Raises:
      ImageError: it needs a package that is not installed.
    """
    brand = _brand(file.read(12))
    file.seek(0)
    if brand == "HEIF":
        try:
            import pillow_heif
        except ImportError as error:
            raise ImageError("is a HEIC file; reading it needs pip install 'yolojax[heif]'") from error
        return cast(Image.Image, pillow_heif.open_heif(file).to_pillow())
    if brand == "AVIF" and not features.check("avif"):
        raise ImageError("is an AVIF file; reading it needs Pillow 11.3 or newer")
    return Image.open(file)


def _decode_with_pillow(data: bytes) -> Pixels:
    try:
        with _open(io.BytesIO(data)) as image:
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"), np.uint8)
    except _PILLOW_ERRORS as error:
        raise ImageError(f"cannot be decoded ({error})") from error


def _decode(data: bytes) -> Pixels | None:
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    except cv2.error as error:
        raise ImageError(f"cannot be decoded ({error.err})") from error
    return None if image is None else np.asarray(image, np.uint8)


def probe_image(path: Path) -> tuple[tuple[int, int], list[Problem]]:
    """Size of the image in a file, from its header alone.

    Returns:
      (height, width) upright, and what looks wrong though the image can be used.

    Raises:
      ImageError: the file is no image of a known kind, or too small.
    """
    try:
        if path.suffix.lower() in RAW_SUFFIXES:  # to Pillow they are TIFF files, of a thumbnail
            raise ImageError(f"is a {path.suffix} file, which is not read; save it as JPEG or PNG")
        with path.open("rb") as file:
            size, file_format, problems = probe_stream(file, str(path))
    except OSError as error:
        raise ImageError(f"cannot be read ({error.strerror})") from error
    if path.suffix.lower() not in _FORMATS[file_format]:
        problems.append(Problem("wrong extension", str(path), f"is a {file_format} file, and read as one"))
    return size, problems


def probe_stream(file: BinaryIO, name: str) -> tuple[tuple[int, int], str, list[Problem]]:
    """Size and format of the image in an open file that a report calls ``name``; see ``probe_image``."""
    try:
        with _open(file) as image:
            file_format, (width, height) = image.format or "HEIF", image.size
            if isinstance(image, TiffImageFile):  # Pillow has turned this size already, and no other's
                width, height = image.tag_v2[_TIFF_WIDTH], image.tag_v2[_TIFF_HEIGHT]
            # Pillow would decode a whole PNG to look for what may stand behind its pixels.
            has_exif = file_format != "PNG" or "exif" in image.info
            orientation = image.getexif().get(_EXIF_ORIENTATION, _UPRIGHT) if has_exif else _UPRIGHT
            if orientation in _TURNED:
                width, height = height, width
            if file_format not in _FORMATS:
                raise ImageError(f"is a {file_format} file; known are {', '.join(_FORMATS)}")
            if min(height, width) < SMALLEST_SIDE:
                raise ImageError(f"is only {width}x{height} pixels; {SMALLEST_SIDE} are needed")
            problems = _check_end(file, name, file_format, height)
            if orientation not in (*_STRAIGHT, *_TURNED):
                message = f"its EXIF orientation is {orientation!r}, not one of 1 to 8; it is taken as upright"
                problems.append(Problem("bad orientation", name, message))
            return (height, width), file_format, problems
    except Image.UnidentifiedImageError as error:
        raise ImageError("is no image of a known kind" if file.seek(0, os.SEEK_END) else "is empty") from error
    except _PILLOW_ERRORS as error:
        raise ImageError(f"is no readable image ({error})") from error


def _check_end(file: BinaryIO, name: str, file_format: str, height: int) -> list[Problem]:
    """Look for a JPEG's or PNG's end marker; without it the image may break off, or something may be appended to it."""
    marker = {"JPEG": _JPEG_END, "MPO": _JPEG_END, "PNG": _PNG_END}.get(file_format, b"")
    length = file.seek(0, os.SEEK_END)
    file.seek(max(length - _TAIL, 0))
    if marker in file.read():
        return []
    file.seek(0)
    data = file.read()
    image = decode_image(data)
    if _decode(data) is not None:
        return []
    missing = _missing_rows(image)
    if missing > _MOST_MISSING * height:
        raise ImageError(f"breaks off: the lower {missing} of {height} rows are missing")
    return [Problem("truncated image", name, "breaks off at its end; it is used all the same")]


def _missing_rows(image: Pixels) -> int:
    """Rows at the lower end that are all of one colour, as the decoder fills what is missing."""
    written = (image != image[-1, -1]).any((1, 2)).nonzero()[0]
    return len(image) - 1 - int(written[-1]) if len(written) else len(image)
