"""Files that are not what they say. Whatever they hold, none of it runs."""

import contextlib
import os
import pickle
import zipfile

import pytest

from convert import untrusted
from convert.checkpoint import read_checkpoint
from yolojax.cli.main import main
from yolojax.errors import UserError
from yolojax.weights.find import load_weights


class Attack:
    """Unpickling this calls ``function(*arguments)``."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def attacks(marker):
    return {
        "posix.system": Attack(os.system, f"touch {marker}"),
        "builtins.eval": Attack(eval, f"open({str(marker)!r}, 'w')"),
        "builtins.exec": Attack(exec, f"open({str(marker)!r}, 'w')"),
        "builtins.getattr": Attack(getattr, "text", "upper"),
        "builtins.__import__": Attack(__import__, "this"),
        "io.open": Attack(open, str(marker), "w"),
    }


@pytest.mark.parametrize("trusting", [False, True])
@pytest.mark.parametrize("name", list(attacks("")))
def test_an_attack_in_a_checkpoint_never_runs(builder, tmp_path, monkeypatch, name, trusting):
    if trusting:  # what users of the original set so that it loads its own files
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    marker = tmp_path / "executed"
    model = builder.model()
    model.hyp = {"lr0": attacks(marker)[name]}
    path = builder.save(tmp_path / "evil.pt", model)
    with pytest.raises(
        UserError, match=rf"evil\.pt: refused, because it asks for {name.replace('.', '[.]')}, .*nothing"
    ):
        load_weights(path)
    assert not marker.exists()

    # The second check: torch's own reader refuses too.
    monkeypatch.setattr(untrusted, "_ALLOWED", untrusted._ALLOWED | {name})
    with pytest.raises(UserError, match="refused by PyTorch's restricted reader"):
        load_weights(path)
    assert not marker.exists()


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_bare_pickle_never_runs(tmp_path, protocol):
    pytest.importorskip("torch")
    path, marker = tmp_path / "evil.pt", tmp_path / "executed"
    path.write_bytes(pickle.dumps({"model": Attack(os.system, f"touch {marker}")}, protocol))
    match = "posix[.]system" if protocol else "not a PyTorch checkpoint"  # protocol 0 is plain text
    with pytest.raises(UserError, match=match):
        load_weights(path)
    assert not marker.exists()


def test_a_newer_pickle_inside_an_archive_never_runs(tmp_path):
    torch = pytest.importorskip("torch")
    path, marker = tmp_path / "evil.pt", tmp_path / "executed"
    torch.save({"model": Attack(os.system, f"touch {marker}")}, path, pickle_protocol=4)
    with pytest.raises(UserError, match=r"posix\.system"):
        load_weights(path)
    assert not marker.exists()


def test_stand_ins_keep_state_and_do_nothing(builder, tmp_path):
    path = builder.save(tmp_path / "good.pt", builder.model())
    content = untrusted.open_untrusted(path)
    conv = content["model"]._modules["model"]._modules["0"]
    assert isinstance(conv, untrusted.Inert)
    assert type(conv).kind == "models.common.Conv"
    assert not callable(conv)
    assert not any(isinstance(permitted, tuple) for permitted in builder.torch.serialization.get_safe_globals())


def archive(path, **files):
    with zipfile.ZipFile(path, "w") as file:
        for name, content in files.items():
            file.writestr(f"archive/{name}.pkl", content)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "is empty"),
        (b"\xff\xd8\xff\xe0\x00\x10JFIF", r"is an image \(JPEG\), not a PyTorch checkpoint"),
        (b"\x89PNG\r\n\x1a\n", r"is an image \(PNG\)"),
        (b"\n<!DOCTYPE html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        (b"hello", "is something else, not a PyTorch checkpoint"),
        (b"PK\x03\x04", "is truncated"),
        (b"\x80\x02nonsense", "is damaged"),
        (pickle.dumps([1, 2], 2), "is a bare pickle"),
    ],
)
def test_other_files_are_told_apart(tmp_path, content, match):
    pytest.importorskip("torch")
    path = tmp_path / "weights.pt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=match):
        read_checkpoint(path)


def test_other_archives_are_told_apart(tmp_path):
    pytest.importorskip("torch")
    archive(tmp_path / "letter.pt", document=b"")
    archive(tmp_path / "script.pt", data=b"", constants=b"")
    archive(tmp_path / "nonsense.pt", data=b"nonsense")
    for name, match in [("letter", "is a zip archive"), ("script", "TorchScript export"), ("nonsense", "is damaged")]:
        with pytest.raises(UserError, match=match):
            read_checkpoint(tmp_path / f"{name}.pt")


def test_a_cut_or_spoilt_checkpoint_is_refused(builder, tmp_path):
    path = builder.save(tmp_path / "best.pt", builder.model())
    content = path.read_bytes()
    for length in (10, len(content) // 2, len(content) - 10):
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match=r"best\.pt: is truncated"):
            read_checkpoint(path)
    for place in range(len(content) - 300, len(content), 23):  # the table of contents
        path.write_bytes(content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :])
        with contextlib.suppress(UserError):  # any other error fails
            untrusted.open_untrusted(path)


def test_one_spoilt_byte_of_a_tensor_is_found(builder, tmp_path, contents, capfd):
    path = builder.save(tmp_path / "a.pt", builder.model())
    read_checkpoint(path)
    with zipfile.ZipFile(path) as archive:
        entry = max(archive.infolist(), key=lambda item: item.file_size if "/data/" in item.filename else 0)
    content = bytearray(path.read_bytes())
    content[content.index(entry.filename.encode()) + len(entry.filename) + entry.file_size // 2 + 64] ^= 1
    path.write_bytes(content)
    before = contents(tmp_path)
    assert main(["freeze", "--weights", str(path)]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert f"a.pt: is damaged ({entry.filename} fails its checksum); copy or" in line
    assert contents(tmp_path) == before
