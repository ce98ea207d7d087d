"""Decoded images in one file for all workers."""

import os
from dataclasses import replace
from itertools import islice

import cv2
import numpy as np
import pytest

from yolojax.data import cache as cache_module
from yolojax.data.batches import StreamSettings, validation_batches
from yolojax.data.cache import make_cache
from yolojax.data.sample import ImageError
from yolojax.data.sources import open_split
from yolojax.data.stream import training_stream
from yolojax.hyperparameters import Hyperparameters
from yolojax.runtime import cache_folder

SETTINGS = Hyperparameters(mosaic=0.5)


@pytest.fixture(autouse=True)
def own_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("YOLOJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache_module.tempfile, "tempdir", str(tmp_path))


def batches(samples, workers=0, **options):
    settings = StreamSettings(image_size=64, batch_size=4, **options)
    stream = training_stream(samples, SETTINGS, settings)
    batches = list(stream.iterate(workers=workers))
    stream.close()
    return batches


@pytest.mark.parametrize(("kind", "workers"), [("ram", 0), ("ram", 1), ("disk", 0)])
def test_batches_are_the_same_with_a_cache(samples, kind, workers):
    for plain, cached in zip(batches(samples), batches(samples, workers, cache=kind), strict=True):
        for expected, array in zip(plain.batch, cached.batch, strict=True):
            np.testing.assert_array_equal(array, expected)


def test_validation_is_the_same_with_a_cache(samples):
    plain, cached = (
        list(validation_batches(samples, image_size=32, batch_size=4, cache=kind).iterate()) for kind in (None, "ram")
    )
    for a, b in zip(plain, cached, strict=True):
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])


def test_memory_cache_has_no_name_and_is_gone_when_it_is_no_longer_used(samples, tmp_path, monkeypatch):
    monkeypatch.setattr(cache_module, "_roomy", lambda *_: tmp_path)
    cache = make_cache(samples, "ram", 64, smooth=False)
    path = cache.path
    assert path.stat().st_size == sum(sample_bytes(cache))
    assert cache[0].shape == (48, 64, 3)
    with pytest.raises(ValueError, match="read-only"):
        cache[0][0, 0, 0] = 1
    if path.parent.name == "fd":  # where the system has /proc
        assert not list(tmp_path.glob("*.bin"))
    del cache
    assert not path.exists()
    assert not list(tmp_path.glob("*.bin"))


def sample_bytes(cache):
    return (int(height) * int(width) * 3 for height, width in cache.shapes)


def test_disk_cache_is_used_again_and_made_again_when_a_file_changes(yolo_folder, caplog):
    config = yolo_folder({"a.png": [], "b.png": []})
    before = sorted(config.root.rglob("*"))

    def first_image():
        samples = open_split(config, "train").samples
        return make_cache(samples, "disk", 64, smooth=False)[0].copy()

    with caplog.at_level("INFO"):
        first, again = first_image(), first_image()
        assert (first == again).all()
        assert sum("filling it" in message for message in caplog.messages) == 1
        cv2.imwrite(str(config.root / "images" / "train" / "a.png"), 255 - first[..., ::-1])
        assert (first_image() == 255 - first).all()
    assert [path for path in sorted(config.root.rglob("*")) if cache_folder() not in (path, *path.parents)] == before


@pytest.mark.parametrize("suffix", [".npz", ".bin"])
@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04", b"\x80\x04."], ids=["missing", "empty", "zip", "pickle"])
def test_a_damaged_disk_cache_is_made_again(samples, suffix, content):
    first = make_cache(samples, "disk", 64, smooth=False)
    expected = first[3].copy()
    file = first.path.with_suffix(suffix)
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    cache_module._maps.clear()
    np.testing.assert_array_equal(make_cache(samples, "disk", 64, smooth=False)[3], expected)


@pytest.mark.parametrize("kind", ["ram", "disk"])
def test_what_does_not_fit_is_said_and_not_cached(samples, kind, monkeypatch, caplog):
    monkeypatch.setattr(cache_module, "available_memory", lambda: 1000)
    monkeypatch.setattr(cache_module.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 1000}))
    assert make_cache(samples, kind, 64, smooth=False) is None
    assert f"{kind} cache: 11 images need 0.00 GB, 0.00 GB of " in caplog.text
    assert "reading from the files instead" in caplog.text


def test_unreadable_image_is_the_same_error_from_a_cache(samples):
    class Broken:
        def __call__(self):
            raise ImageError("cannot be decoded")

    cache = make_cache([replace(samples[0], reader=Broken()), samples[1]], "ram", 64, smooth=False)
    with pytest.raises(ImageError):
        cache[0]
    assert cache[1].shape == (64, 48, 3)


@pytest.mark.parametrize("kind", ["ram", "disk"])
def test_full_disk_is_said_and_leaves_nothing_behind(samples, kind, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(cache_module, "_roomy", lambda *_: tmp_path)

    def full(*_):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(cache_module.os, "posix_fallocate", full)
    assert make_cache(samples, kind, 64, smooth=False) is None
    assert "cannot be written (No space left on device): reading from the files instead" in caplog.text
    assert not list(tmp_path.rglob("*.bin"))


def test_a_cache_folder_that_cannot_be_made_is_said(samples, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("YOLOJAX_CACHE", str(tmp_path / "file"))
    assert make_cache(samples, "disk", 64, smooth=False) is None
    assert "disk cache: cannot be written (Not a directory): reading from the files instead" in caplog.text


def test_available_memory_is_plausible():
    assert 0 < cache_module.available_memory() < 2**50


def test_streams_start_in_the_middle_from_a_cache(samples):
    stream = training_stream(samples, SETTINGS, StreamSettings(image_size=64, batch_size=4, epochs=2, cache="ram"))
    whole = list(stream.iterate())
    for a, b in zip(whole[4:], islice(stream.iterate(1, 1), 2), strict=True):
        np.testing.assert_array_equal(a.batch.images, b.batch.images)
