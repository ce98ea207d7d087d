"""Fetching data sets and weights, on request only: resumable, checked, and unpacked with nothing outside the folder.

A file arrives in ``<cache>/downloads`` as ``NAME.part`` and is taken up again where it broke off; a file that somebody put there by hand under its
own name is checked and used instead. A data set's folder appears complete or not at all.
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import logging
import shutil
import stat
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO
from urllib.parse import urlsplit

from yolojax.data.config import DataConfig, Download
from yolojax.errors import UserError
from yolojax.files import complete_folder
from yolojax.runtime import cache_folder

log = logging.getLogger(__name__)

DownloadProgress = Callable[[str, int, int | None], None]

OFFICIAL_WEIGHTS = tuple(f"yolov5{size}{six}" for six in ("", "6") for size in "nsmlx")
_RELEASE = "https://github.com/ultralytics/yolov5/releases/download/v7.0"
_ATTEMPTS = 5  # without a single new byte
_TIMEOUT = 30.0  # seconds without an answer
_CHUNK = 1 << 20
_DAMAGED = (
    zipfile.BadZipFile,
    tarfile.TarError,
    gzip.BadGzipFile,
    zlib.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
)
_MOST_MEMBERS = 1_000_000  # of an archive
_MOST_GROWTH, _SMALLEST_LIMIT = 50, 1 << 26  # an archive may unpack to this many times its size, or to this many bytes


def weights_download(name: str) -> Download | None:
    """Where official weights are, by name (``yolov5n`` or ``yolov5n.pt``); their checksums are not published."""
    stem = name.removesuffix(".pt")
    return Download(url=f"{_RELEASE}/{stem}.pt") if stem in OFFICIAL_WEIGHTS else None


def download_data(config: DataConfig, progress: DownloadProgress | None = None) -> Path:
    """Fetch and unpack what the ``download`` section of a data set lists.

    Args:
      config: the data set.
      progress: called with a file's name, the bytes there and all bytes where known.

    Returns:
      The data set's folder, complete.

    Raises:
      UserError: nothing to download, the folder exists, no network, a wrong checksum, or an archive that is damaged or hostile.
    """
    if not config.download:
        raise UserError(f"{config.file}: has no 'download' section with addresses; fetch the data set by hand")
    root = config.root
    if root.exists() and not (root.is_dir() and not any(root.iterdir())):
        raise UserError(f"{root}: exists already and is left as it is; move it away, or give another --data-root")
    archives = [fetch(item, progress, f"unpack it into {root}") for item in config.download]
    try:
        with complete_folder(root) as unfinished:
            for item, archive in zip(config.download, archives, strict=True):
                log.info("unpacking %s", archive.name)
                unpack(archive, unfinished / item.into, item.strip, item.only)
        for archive in archives:
            archive.unlink()
    except OSError as error:
        raise UserError(f"{root}: cannot be written ({error.strerror or error})") from error
    return root


def download_weights(name: str, folder: Path, progress: DownloadProgress | None = None) -> Path:
    """Fetch official weights into a folder; arguments and errors as in ``download_data``."""
    item = weights_download(name)
    if item is None:
        raise UserError(f"{name}: no official weights have this name; there are {', '.join(OFFICIAL_WEIGHTS)}")
    target = folder / f"{name.removesuffix('.pt')}.pt"
    if target.exists():
        raise UserError(f"{target}: exists already and is left as it is")
    fetched = fetch(item, progress, f"put it at {target}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f".{target.name}.part"
        shutil.move(fetched, part)  # may be a copy from another disk: it appears under its name when it is whole
        part.replace(target)
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror or error})") from error
    return target


def fetch(item: Download, progress: DownloadProgress | None = None, purpose: str = "", *, pause: float = 1.0) -> Path:
    """Fetch one file into the cache folder, going on where an earlier try broke off, and check it.

    Args:
      item: address, and size and checksum where known.
      progress: see ``download_data``.
      purpose: what to do with the file, for whoever fetches it by hand.
      pause: seconds before another try; each further one waits as long again.

    Raises:
      UserError: no network, a connection that breaks again and again, or a file that is not the expected one.
    """
    name = _file_name(item.url)
    folder = cache_folder() / "downloads"
    finished, part = folder / name, folder / f"{name}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not finished.is_file():
            _receive_all(item, part, finished, progress, purpose, pause)
            part.replace(finished)
        _verify(item, finished)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror or error})") from error
    return finished


def _file_name(url: str) -> str:
    try:
        address = urlsplit(url)
    except ValueError as error:
        raise UserError(f"{url}: is no address ({error})") from error
    name = PurePosixPath(address.path).name
    if address.scheme not in ("http", "https") or name in ("", ".."):
        raise UserError(f"{url}: is no http or https address of a file")
    return name


def _receive_all(
    item: Download, part: Path, finished: Path, progress: DownloadProgress | None, purpose: str, pause: float
) -> None:
    reason, failures = "", 0
    while failures < _ATTEMPTS:
        before = part.stat().st_size if part.is_file() else 0
        try:
            if _receive(item, part, progress):
                return
            reason = "the connection was cut"
        except urllib.error.HTTPError as error:
            reason = f"the server says {error.code} {error.reason}"
            if error.code < 500:
                break
        except urllib.error.URLError as error:
            reason = str(error.reason)
        except (TimeoutError, ConnectionError, http.client.HTTPException) as error:
            reason = f"the connection was cut: {error or type(error).__name__}"
        arrived = part.stat().st_size if part.is_file() else 0
        failures = 0 if arrived > before else failures + 1
        if failures < _ATTEMPTS:
            time.sleep(pause * failures)
    arrived = part.stat().st_size if part.is_file() else 0
    again = f"; {arrived} bytes are there, and the same command goes on from them" if arrived else ""
    raise UserError(
        f"{item.url}: cannot be fetched ({reason}){again}. By hand: fetch it where there is a network, and "
        f"put it at {finished} and run the same command again" + (f", or {purpose}" if purpose else "")
    )


def _receive(item: Download, part: Path, progress: DownloadProgress | None) -> bool:
    """Take up a download; whether it is whole now."""
    mark = part.with_name(f"{part.name}.version")  # what the server called the file that the part is from
    have = part.stat().st_size if part.is_file() else 0
    version = mark.read_text(encoding="utf-8") if have and mark.is_file() else ""
    request = urllib.request.Request(item.url, headers={"User-Agent": "yolojax", "Accept-Encoding": "identity"})
    if have and version:  # without it, the parts of two different files could meet
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", version)
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            part.unlink()  # longer than the file: start again
            return False
        raise
    with response:
        resumed = response.status == http.HTTPStatus.PARTIAL_CONTENT
        if resumed and not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            part.unlink()
            return False
        have = have if resumed else 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else item.size
        if item.size is not None and total != item.size:
            raise UserError(f"{item.url}: has {total} bytes, not {item.size}; it is not the expected file")
        tag = response.headers.get("ETag") or ""
        mark.write_text(
            "" if tag.startswith("W/") else tag or response.headers.get("Last-Modified") or "", encoding="utf-8"
        )
        with part.open("ab" if resumed else "wb") as file:
            while chunk := response.read1(_CHUNK):  # what there is, so that a connection which dies loses nothing
                file.write(chunk)
                have += len(chunk)
                if total is not None and have > total:
                    raise UserError(f"{item.url}: sends more than the {total} bytes it announced")
                if progress:
                    progress(part.stem, have, total)
    if total is None or have == total:
        mark.unlink()
        return True
    return False


def _verify(item: Download, path: Path) -> None:
    """Check size and checksum; a file that fails is renamed, so that the next try starts afresh and nothing is lost."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if item.sha256 is None:
        log.info("%s: no checksum is known to compare with; its sha256 is %s", path.name, digest)
    if (item.size not in (None, path.stat().st_size)) or (item.sha256 not in (None, digest)):
        refused = path.with_name(f"{path.name}.refused")
        path.replace(refused)
        expected = f"sha256 {item.sha256}" if item.sha256 else f"{item.size} bytes"
        raise UserError(
            f"{item.url}: is not the expected file (sha256 {digest}, {refused.stat().st_size} bytes; expected {expected}); "
            f"kept as {refused}, run the same command to fetch it again"
        )


def unpack(archive: Path, folder: Path, strip: int = 0, only: str = "") -> None:
    """Unpack a zip or tar file: plain files and folders only, and none outside ``folder``.

    Args:
      archive: the file.
      folder: where to; made if need be.
      strip: leading folders of every name to leave out.
      only: a folder, named without those, that is taken while the rest is left out.

    Raises:
      UserError: damaged, of another kind, too large unpacked, or with names or links that lead out.
    """
    limit = max(_MOST_GROWTH * archive.stat().st_size, _SMALLEST_LIMIT)
    wanted = PurePosixPath(only).parts
    total = 0
    try:
        for count, (name, opened) in enumerate(_members(archive), start=1):
            if count > _MOST_MEMBERS:
                raise UserError(f"{archive}: has more than {_MOST_MEMBERS} files; it is not unpacked")
            parts = _safe_parts(archive, name)[strip:]
            if len(parts) <= len(wanted) or parts[: len(wanted)] != wanted:
                continue
            target = folder.joinpath(*parts[len(wanted) :])
            target.parent.mkdir(parents=True, exist_ok=True)
            source = opened()
            if source is None:
                raise tarfile.ReadError(f"'{name}' has no content")
            with source, target.open("xb") as file:
                while chunk := source.read(_CHUNK):
                    total += len(chunk)
                    if total > limit:
                        raise UserError(f"{archive}: unpacks to more than {limit} bytes; it is not unpacked")
                    file.write(chunk)
    except FileExistsError as error:
        raise UserError(f"{archive}: holds {error.filename} twice, or what another archive holds") from error
    except _DAMAGED as error:
        raise UserError(
            f"{archive}: is damaged or no archive ({error}); remove it and run the same command again"
        ) from error


def _members(archive: Path) -> Iterator[tuple[str, Callable[[], IO[bytes] | None]]]:
    """Names of the files of an archive, and how to open each; links and devices are refused, folders left out."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as packed:
            for info in packed.infolist():
                file_type = stat.S_IFMT(info.external_attr >> 16)
                if file_type not in (0, stat.S_IFREG, stat.S_IFDIR):
                    raise UserError(f"{archive}: '{info.filename}' is a link or a device; it is not unpacked")
                _safe_parts(archive, info.orig_filename)
                if not info.is_dir():
                    yield info.filename, partial(packed.open, info)
        return
    with tarfile.open(archive) as tar:
        for member in tar:
            _safe_parts(archive, member.name)
            if not (member.isfile() or member.isdir()):
                raise UserError(f"{archive}: '{member.name}' is a link or a device; it is not unpacked")
            if member.isfile():
                yield member.name, partial(tar.extractfile, member)


def _safe_parts(archive: Path, name: str) -> tuple[str, ...]:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or any(mark in name for mark in ("\\", ":", "\0")):
        raise UserError(f"{archive}: '{name}' leads out of the folder; the archive is not unpacked")
    return path.parts
