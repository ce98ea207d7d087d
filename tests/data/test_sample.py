"""Images as users have them: upright, three channels, eight bits, or a reason why not."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from yolojax.data.images import probe_image, read_image
from yolojax.data.sample import ImageError, Problem, Report, Sample, samples_record


@pytest.fixture
def pixels() -> np.ndarray:
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 3)


def close(image: np.ndarray, expected: np.ndarray, tolerance: float = 3) -> bool:
    return image.shape == expected.shape and bool(np.abs(image.astype(int) - expected).mean() < tolerance)


@pytest.mark.parametrize("orientation", [1, 2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
def test_orientation_is_applied_and_the_size_agrees(tmp_path, pixels, orientation, suffix):
    path = tmp_path / f"a.{suffix}"
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(pixels).save(path, exif=exif)
    upright = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.transpose(1, 0, 2),
        6: pixels[::-1].transpose(1, 0, 2),
        7: pixels[::-1, ::-1].transpose(1, 0, 2),
        8: pixels[:, ::-1].transpose(1, 0, 2),
    }[orientation]
    image = read_image(path)
    assert probe_image(path) == (image.shape[:2], [])
    assert close(image, upright)


@pytest.mark.parametrize("orientation", [0, 77])
def test_nonsensical_orientation_is_named_and_taken_as_upright(tmp_path, pixels, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=exif)
    size, (problem,) = probe_image(tmp_path / "a.jpg")
    assert size == (40, 60)
    assert str(problem) == (
        f"{tmp_path / 'a.jpg'}: its EXIF orientation is {orientation}, not one of 1 to 8; it is taken as upright"
    )
    assert close(read_image(tmp_path / "a.jpg"), pixels)


def test_every_kind_of_pixel_becomes_eight_bit_colour(tmp_path, pixels):
    image = Image.fromarray(pixels)
    grey = np.repeat(np.array(image.convert("L"))[..., None], 3, 2)
    palette = np.array(image.convert("P").convert("RGB"))
    image.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=100)
    image.convert("L").save(tmp_path / "grey.jpg", quality=100)
    image.convert("P").save(tmp_path / "palette.png")
    image.convert("RGBA").save(tmp_path / "alpha.png")
    image.convert("LA").save(tmp_path / "grey_alpha.png")
    cv2.imwrite(str(tmp_path / "deep.png"), pixels[..., ::-1].astype(np.uint16) * 257)
    cv2.imwrite(str(tmp_path / "deep_grey.png"), grey[..., 0].astype(np.uint16) * 257)
    cv2.imwrite(str(tmp_path / "deep_grey.tiff"), grey[..., 0].astype(np.uint16) * 257)
    expected = dict.fromkeys(("cmyk.jpg", "alpha.png", "deep.png"), pixels)
    expected |= {
        "grey.jpg": grey,
        "grey_alpha.png": grey,
        "deep_grey.png": grey,
        "deep_grey.tiff": grey,
        "palette.png": palette,
    }
    for name, pixels in expected.items():
        image = read_image(tmp_path / name)
        assert image.dtype == np.uint8
        assert close(image, pixels), name
        assert probe_image(tmp_path / name) == ((40, 60), [])


@pytest.mark.parametrize("mode", ["RGBA", "P", "PA", "LA"])
def test_png_named_jpg_is_read_and_named(tmp_path, pixels, mode):
    image = Image.fromarray(pixels).convert("P" if mode == "PA" else mode)
    transparent = {"transparency": 0} if mode == "PA" else {}
    image.save(tmp_path / "a.jpg", "PNG", **transparent)
    size, (problem,) = probe_image(tmp_path / "a.jpg")
    assert (size, problem.kind, problem.left_out) == ((40, 60), "wrong extension", "")
    assert str(problem) == f"{tmp_path / 'a.jpg'}: is a PNG file, and read as one"
    assert (read_image(tmp_path / "a.jpg") == np.array(image.convert("RGB"))).all()


@pytest.mark.parametrize("cut", [2, 20])
def test_jpeg_cut_at_its_end_is_used_and_named(tmp_path, pixels, cut):
    path = tmp_path / "a.jpg"
    Image.fromarray(pixels).save(path, quality=95)
    whole = read_image(path)
    path.write_bytes(path.read_bytes()[:-cut])
    size, (problem,) = probe_image(path)
    assert size == (40, 60)
    assert str(path) in str(problem)
    assert not problem.left_out
    assert (read_image(path)[:30] == whole[:30]).all()


def test_jpeg_with_something_appended_is_whole(tmp_path, pixels):
    Image.fromarray(pixels).save(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes() + bytes(1000))
    assert probe_image(tmp_path / "a.jpg") == ((40, 60), [])


def test_jpeg_cut_in_its_middle_is_refused(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.jpg", quality=95)
    data = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(data[: len(data) // 2])
    with pytest.raises(ImageError, match=r"breaks off: the lower [0-9]+ of 200 rows are missing"):
        probe_image(tmp_path / "a.jpg")


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "is empty"), (b"no image", "no image of a known kind"), (b"\xff\xd8\xff", "no image of a known kind")],
)
def test_what_is_no_image_is_refused(tmp_path, content, reason):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(ImageError, match=reason):
        probe_image(tmp_path / "a.jpg")
    with pytest.raises(ImageError):
        read_image(tmp_path / "a.jpg")


def test_png_cut_at_its_end_is_refused(tmp_path, pixels):
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:-12])
    with pytest.raises(ImageError, match="cannot be decoded"):
        probe_image(tmp_path / "a.png")


def test_tiny_and_missing_images_are_refused(tmp_path):
    Image.new("RGB", (1, 1)).save(tmp_path / "one.png")
    with pytest.raises(ImageError, match="1x1 pixels"):
        probe_image(tmp_path / "one.png")
    with pytest.raises(ImageError, match="No such file"):
        read_image(Path(tmp_path / "none.png"))


def test_report_names_the_first_and_counts_the_rest():
    problems = tuple(Problem("bad label", f"{number}.txt, line 1", "x", "image") for number in range(25))
    lines = Report("train", found=30, images=5, backgrounds=1, boxes=9, problems=problems).lines(most=20)
    assert lines[0] == "train: 5 images, 9 boxes, 1 backgrounds; 25 of 30 images left out"
    assert lines[1] == "  0.txt, line 1: x; the image is left out"
    assert lines[-1] == "  … 5 more of the kind 'bad label'"
    assert len(lines) == 22


def test_the_record_of_samples_tells_data_sets_apart_wherever_they_lie(tmp_path):
    def sample(folder, box):
        boxes = np.array([[0, 0.5, 0.5, box, box]], np.float32)
        return Sample(name=f"{folder}/a.png", size=(8, 8), boxes=boxes, reader=lambda: np.zeros((8, 8, 3), np.uint8))

    here, elsewhere, other = (
        samples_record([sample(*choice)]) for choice in (("here", 0.5), ("there", 0.5), ("here", 0.4))
    )
    assert here == elsewhere != other
    assert (here["images"], here["boxes"]) == (1, 1)
