"""Downloads from a server on this machine that can be told to misbehave."""

import hashlib
import io
import tarfile
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from yolojax.cli.main import main
from yolojax.data import download
from yolojax.data.config import DataConfig, Download, load_data_config
from yolojax.data.sources import read_split
from yolojax.errors import UserError

CONTENT = bytes(range(256)) * 4000


class Server(ThreadingHTTPServer):
    """Serves ``files``; the next answers break off after the numbers of bytes in ``cuts``, and ``silence`` seconds later the connections."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.cuts: list[int] = []
        self.ranges: list[str | None] = []
        self.etag = '"one"'
        self.with_ranges = True
        self.silence = 0.0

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{name}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        content = server.files.get(self.path.lstrip("/"))
        server.ranges.append(self.headers.get("Range"))
        if content is None:
            self.send_error(404)
            return
        start = 0
        if self.headers.get("Range") and server.with_ranges and self.headers.get("If-Range") == server.etag:
            start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        self.send_header("ETag", server.etag)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        body = content[start:]
        if server.cuts:
            self.wfile.write(body[: server.cuts.pop(0)])
            self.wfile.flush()
            time.sleep(server.silence)
        else:
            self.wfile.write(body)

    def log_message(self, *_arguments: object) -> None:
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("YOLOJAX_CACHE", str(tmp_path / "cache"))
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def packed(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


def tarred(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for member, content in members:
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def tar_member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, link
    return member


def config_for(root: Path, *items: Download) -> DataConfig:
    return DataConfig(file=Path("pets.yaml"), root=root, train=("a",), val=("a",), names=("x",), download=items)


def test_a_cut_connection_is_taken_up_where_it_broke_off(server):
    server.files["a.bin"], server.cuts = CONTENT, [300_000, 200_000]
    seen: list[tuple[str, int, int | None]] = []
    digest = hashlib.sha256(CONTENT).hexdigest()
    item = Download(url=server.url("a.bin"), size=len(CONTENT), sha256=digest)
    path = download.fetch(item, lambda *values: seen.append(values), pause=0)
    assert path.read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=300000-", "bytes=500000-"]
    assert seen[-1] == ("a.bin", len(CONTENT), len(CONTENT))
    assert [file.name for file in path.parent.iterdir()] == ["a.bin"]


def test_another_command_goes_on_but_not_with_another_file(server):
    server.files["a.bin"], server.cuts = CONTENT, [300_000, *[0] * 5]
    item = Download(url=server.url("a.bin"))
    with pytest.raises(UserError, match="300000 bytes are there"):
        download.fetch(item, pause=0)
    server.files["a.bin"], server.etag = CONTENT[::-1], '"two"'
    assert download.fetch(item, pause=0).read_bytes() == CONTENT[::-1]
    assert server.ranges[-1] == "bytes=300000-"


def test_a_server_that_falls_silent_counts_as_a_cut_connection(server, monkeypatch):
    monkeypatch.setattr(download, "_TIMEOUT", 0.2)
    server.files["a.bin"], server.cuts, server.silence = CONTENT, [300_000], 1.0
    assert download.fetch(Download(url=server.url("a.bin")), pause=0).read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=300000-"]


def test_a_server_without_ranges(server):
    server.files["a.bin"], server.cuts, server.with_ranges = CONTENT, [300_000], False
    assert download.fetch(Download(url=server.url("a.bin")), pause=0).read_bytes() == CONTENT


def test_a_wrong_checksum_is_refused_and_the_next_try_starts_afresh(server):
    server.files["a.bin"] = CONTENT
    item = Download(url=server.url("a.bin"), sha256=hashlib.sha256(CONTENT[::-1]).hexdigest())
    with pytest.raises(UserError, match="not the expected file"):
        download.fetch(item, pause=0)
    server.files["a.bin"] = CONTENT[::-1]
    assert download.fetch(item, pause=0).read_bytes() == CONTENT[::-1]
    server.files["b.bin"] = CONTENT
    with pytest.raises(UserError, match="has 1024000 bytes, not 7"):
        download.fetch(Download(url=server.url("b.bin"), size=7), pause=0)


def test_an_unknown_checksum_is_said(server, caplog):
    server.files["a.bin"] = CONTENT
    with caplog.at_level("INFO", "yolojax"):
        download.fetch(Download(url=server.url("a.bin")), pause=0)
    assert hashlib.sha256(CONTENT).hexdigest() in caplog.text


def test_offline_says_what_to_do_by_hand_and_that_works(server, tmp_path, monkeypatch):
    url = server.url("pets.zip")
    server.shutdown()
    server.server_close()
    config = config_for(tmp_path / "pets", Download(url=url, strip=1))
    monkeypatch.setattr("time.sleep", lambda _seconds: None)
    with pytest.raises(UserError, match=r"By hand: .*pets\.zip") as caught:
        download.download_data(config)
    by_hand = tmp_path / "cache" / "downloads" / "pets.zip"
    assert str(by_hand) in str(caught.value)
    assert not (tmp_path / "pets").exists()
    by_hand.write_bytes(packed({"pets/images/a.jpg": b"a"}))
    assert (download.download_data(config) / "images" / "a.jpg").read_bytes() == b"a"
    assert not by_hand.exists()


def test_a_data_set_of_two_archives(server, tmp_path):
    server.files["labels.zip"] = packed({"pets/labels/a.txt": b"0", "pets/train.txt": b"t"})
    server.files["photos.tar.gz"] = tarred((tar_member("train/a.jpg"), b"photo"))
    root = tmp_path / "data" / "pets"
    items = [Download(url=server.url("labels.zip"), strip=1), Download(url=server.url("photos.tar.gz"), into="images")]
    assert download.download_data(config_for(root, *items)) == root
    assert (root / "images" / "train" / "a.jpg").read_bytes() == b"photo"
    assert (root / "labels" / "a.txt").read_bytes() == b"0"
    with pytest.raises(UserError, match="left as it is"):
        download.download_data(config_for(root, *items))


HOSTILE = {
    "parent.zip": packed({"../evil": b"x"}),
    "absolute.zip": packed({"/tmp/evil": b"x"}),
    "windows.zip": packed({"a/C:evil": b"x"}),
    "parent.tar.gz": tarred((tar_member("a/../../evil"), b"x")),
    "absolute.tar.gz": tarred((tar_member("/tmp/evil"), b"x")),
    "link.tar.gz": tarred((tar_member("a", tarfile.SYMTYPE, "/etc"), b"")),
    "hardlink.tar.gz": tarred((tar_member("a", tarfile.LNKTYPE, "../evil"), b"")),
    "device.tar.gz": tarred((tar_member("a", tarfile.CHRTYPE), b"")),
    "bomb.zip": packed({"a": bytes(70 << 20)}),
    "twice.tar.gz": tarred((tar_member("a"), b"x"), (tar_member("a"), b"y")),
    "no.zip": b"<html>Not found</html>",
    "cut.zip": packed({"a": CONTENT})[:-40],
    "flipped.zip": packed({"a": CONTENT})[:40] + b"\0\xff\0\xff" + packed({"a": CONTENT})[44:],
    "flipped.tar.gz": tarred((tar_member("a"), CONTENT))[:60] + bytes(40) + tarred((tar_member("a"), CONTENT))[100:],
    "cut.tar.gz": tarred((tar_member("a"), CONTENT))[:-200],
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_or_damaged_archive_leaves_nothing(server, tmp_path, name):
    server.files[name] = HOSTILE[name]
    with pytest.raises(UserError):
        download.download_data(config_for(tmp_path / "data" / "pets", Download(url=server.url(name))))
    assert list((tmp_path / "data").iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "data"]


def test_one_folder_of_an_archive(tmp_path):
    names = ("pets-main/.x", "pets-main/dogs/.x", "pets-main/dogs/a/b.txt", "pets-main/cats/.x", "dogs/.x")
    (tmp_path / "a.zip").write_bytes(packed({name: name.encode() for name in names}))
    download.unpack(tmp_path / "a.zip", tmp_path / "out", 1, "dogs")
    unpacked = {str(file.relative_to(tmp_path / "out")) for file in (tmp_path / "out").rglob("*") if file.is_file()}
    assert unpacked == {".x", "a/b.txt"}
    assert (tmp_path / "out" / ".x").read_text() == "pets-main/dogs/.x"


def test_a_link_in_a_zip_is_refused(tmp_path):
    info = zipfile.ZipInfo("a")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(info, "/etc")
    with pytest.raises(UserError, match="link"):
        download.unpack(tmp_path / "a.zip", tmp_path / "out")


def test_weights_by_name(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(download, "_RELEASE", server.url("")[:-1])
    server.files["yolov5n.pt"] = CONTENT
    assert main(["data", "download", "yolov5n.pt", "--out", str(tmp_path / "w")]) == 0
    assert (tmp_path / "w" / "yolov5n.pt").read_bytes() == CONTENT
    assert main(["data", "download", "yolov5n", "--out", str(tmp_path / "w")]) == 2
    assert "left as it is" in capsys.readouterr().err
    assert main(["data", "download", "yolov5s", "--out", str(tmp_path / "w")]) == 2
    assert "404" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["bccd", "coco128", "coco", "voc"])
def test_a_missing_data_set_says_how_to_fetch_it(tmp_path, name):
    config = load_data_config(name, tmp_path / "nowhere")
    assert all(item.url.startswith("http") for item in config.download)
    with pytest.raises(UserError, match=f"yolojax data download {name}"):
        read_split(config, "train")


@pytest.mark.parametrize("text", ["[{url: a, into: ../b}]", "[{address: a}]", "[a]", "{a: b}"])
def test_a_download_section_is_checked(tmp_path, text):
    file = tmp_path / "x.yaml"
    file.write_text(f"train: a\nval: a\nnames: [x]\ndownload: {text}\n")
    with pytest.raises(UserError, match="download"):
        load_data_config(file)


def test_a_script_is_never_run(tmp_path):
    file = tmp_path / "x.yaml"
    file.write_text("train: a\nval: a\nnames: [x]\ndownload: echo hello\n")
    with pytest.raises(UserError, match="by hand"):
        download.download_data(load_data_config(file))
    with pytest.raises(UserError, match="no http"):
        download.fetch(Download(url="file:///etc/passwd"))
