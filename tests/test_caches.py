"""What is ours in a cache folder, and that nothing else goes."""

import pytest

from yolojax.caches import clear, read_caches
from yolojax.data.shapes.files import ensure_shapes
from yolojax.data.shapes.scene import ShapesSettings

OURS = {
    "compiled": ["jit_step-0af3-cache", "jit_step-0af3-atime", "xla_gpu_per_fusion_autotune_cache_dir/a.textproto"],
    "images": ["0af3.bin", "0af3.npz"],
    "features": ["0af3.json", "0af3-view-0.bin", "0af3-view-0.npz", "yolojax-x.bin", ".0af3-val.npz-x1.npz"],
    "checks": ["0af3.json"],
    "weights": [f"{'0af3' * 16}-0.1.0.npz"],
    "downloads": ["bccd.zip", "coco.zip.part", "coco.zip.part.version"],
}


def write(file, content="12345"):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content)


@pytest.fixture
def root(tmp_path):
    for folder, names in OURS.items():
        for name in names:
            write(tmp_path / "cache" / folder / name)
    ensure_shapes(ShapesSettings(train=2, val=1), tmp_path / "cache")
    return tmp_path / "cache"


def test_every_folder_is_told_with_its_size_and_cleared(root):
    caches, foreign = read_caches(root)
    assert foreign == []
    [shapes], others = (
        [cache for cache in caches if cache.name.startswith("shapes-") == of_shapes] for of_shapes in (True, False)
    )
    assert [cache.name for cache in others] == sorted(OURS)
    assert [cache.bytes for cache in others] == [5 * len(OURS[name]) for name in sorted(OURS)]
    assert len(shapes.files) == 6  # images and labels
    for cache in caches:
        assert cache.foreign == ()
        clear(cache)
    assert list(root.iterdir()) == []


def test_files_of_others_and_links_stay(root, tmp_path):
    write(tmp_path / "photos" / "1.png")
    write(root / "compiled" / "thesis.tex")
    write(root / "images" / "holiday.png")
    write(root / "shapes-0123456789" / "images" / "train" / "mine.png")
    (root / "images" / "abc.bin").symlink_to(tmp_path / "photos" / "1.png")
    (root / "checks" / "linked").symlink_to(tmp_path / "photos")
    theirs = {path for path in root.rglob("*") if path.name in ("thesis.tex", "holiday.png", "mine.png", "abc.bin")}
    for cache in read_caches(root)[0]:
        clear(cache)
    left = {path for path in root.rglob("*") if path.is_file() or path.is_symlink()}
    assert left == theirs | {root / "checks" / "linked"}
    assert (tmp_path / "photos" / "1.png").is_file()


@pytest.mark.parametrize("name", ["notes.txt", "shapes", "compiled2"])
def test_a_folder_shared_with_other_things_keeps_its_downloads(root, name):
    write(root / name / "a") if "." not in name else write(root / name)
    caches, foreign = read_caches(root)
    assert foreign == [root / name]
    downloads = next(cache for cache in caches if cache.name == "downloads")
    assert (downloads.files, downloads.bytes, len(downloads.foreign)) == ((), 0, 3)


def test_a_folder_that_is_a_link_is_not_ours(root, tmp_path):
    (root / "compiled").rename(tmp_path / "elsewhere")
    (root / "compiled").symlink_to(tmp_path / "elsewhere")
    caches, foreign = read_caches(root)
    assert "compiled" not in [cache.name for cache in caches]
    assert foreign == [root / "compiled"]


def test_there_may_be_no_cache(tmp_path):
    assert read_caches(tmp_path / "none") == ([], [])
