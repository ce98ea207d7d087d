"""``yolojax detect``, end to end: with a network that sees coloured rectangles, on images and videos that each test makes."""

import csv
import json
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import cv2
import jax
import numpy as np
import pytest

from yolojax.cli.main import main
from yolojax.inference import detector
from yolojax.model.network import init_variables
from yolojax.model.spec import load_spec
from yolojax.weights.store import Weights, save_weights

CLASSES = ("red", "green", "n/a: blue")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    spec = load_spec("yolov5n", classes=3)
    variables = jax.tree.map(np.asarray, init_variables(spec, jax.random.key(0)))
    folder = tmp_path_factory.mktemp("weights") / "random"
    save_weights(folder, Weights(spec=spec, names=CLASSES, variables=variables, source={"image_size": 64}))
    return folder


@pytest.fixture
def detect(weights, tmp_path, monkeypatch, sees_colours, contents):
    """Run the command in an empty folder; gives status, figures and run folder. No file that is there is ever changed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(detector, "make_predict", sees_colours)
    file, runs = tmp_path / "d.json", tmp_path / "runs"

    def run(*words):
        before = {path: facts for path, facts in contents(tmp_path, weights).items() if runs not in path.parents}
        before.pop(file, None)
        status = main(["detect", "--weights", str(weights), "--device", "cpu", "--json", "d.json", *map(str, words)])
        assert before.items() <= contents(tmp_path, weights).items()
        return status, json.loads(file.read_text()) if file.exists() else None, runs / "detect" / "exp"

    return run


def painted(*boxes, size=(80, 120)):
    """Grey, with a rectangle of each given (class, x1, y1, x2, y2)."""
    image = np.full((*size, 3), 128, np.uint8)
    for label, x1, y1, x2, y2 in boxes:
        image[y1:y2, x1:x2] = np.eye(3)[label] * 255
    return image


def save(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), image[..., ::-1])
    return path


def make_video(path, frames=12, rate=25.0, size=(64, 96), codec="MJPG"):
    """A red square that moves to the right, two pixels per frame."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), rate, size[::-1])
    for number in range(frames):
        writer.write(painted((0, 4 + 2 * number, 20, 24 + 2 * number, 40), size=size)[..., ::-1])
    writer.release()
    return path


def read_video(path):
    capture = cv2.VideoCapture(str(path))
    frames = []
    while (frame := capture.read())[0]:
        frames.append(frame[1])
    return frames, capture.get(cv2.CAP_PROP_FPS)


def test_a_folder_of_images(detect, tmp_path, capsys):
    first = painted((0, 10, 8, 50, 40), (2, 70, 30, 110, 70))
    save(tmp_path / "in" / "a.png", first)
    save(tmp_path / "in" / "b.jpg", painted(size=(50, 40)))
    (tmp_path / "in" / "notes.md").write_text("no image")
    status, figures, folder = detect("--source", "in", "--save-txt", "--save-conf", "--save_csv", "--save-crop")
    assert status == 0
    assert (figures["images"], figures["detections"], figures["problems"]) == (2, 2, [])
    assert figures["per_class"] == {"red": 1, "n/a: blue": 1}

    rows = np.loadtxt(folder / "labels" / "a.txt")
    expected = [[0, 30 / 120, 24 / 80, 40 / 120, 32 / 80, 0.9], [2, 90 / 120, 50 / 80, 40 / 120, 40 / 80, 0.7]]
    np.testing.assert_allclose(rows, expected, atol=0.03)
    assert (folder / "labels" / "b.txt").read_text() == ""
    with (folder / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["Image Name"], row["Prediction"], row["Confidence"]) for row in rows] == [
        ("a.png", "red", "0.9000"),
        ("a.png", "n/a: blue", "0.7000"),
    ]
    crop = cv2.imread(str(folder / "crops" / "n_a: blue" / "a_2.jpg"))
    assert crop.shape[0] == pytest.approx(50, abs=3)  # the box and its margin
    assert crop[25, 25, 0] > 200

    drawn = cv2.imread(str(folder / "a.png"))[..., ::-1]
    assert drawn.shape == first.shape
    assert 0.05 < (drawn != first).any(2).mean() < 0.5
    printed = capsys.readouterr().out
    for text in (
        "[1/2] in/a.png: 120x80 px, 1× red, 1× n/a: blue",
        "[2/2] in/b.jpg: 40x50 px, nothing",
        "ms inference",
    ):
        assert text in printed


def test_one_that_cannot_be_read_among_many(detect, tmp_path, capsys):
    for number in range(10):
        save(tmp_path / "in" / f"{number}.png", painted((1, 10, 10, 40, 40)))
    (tmp_path / "in" / "4.png").write_bytes(b"\x89PNG\r\n and no more")
    status, figures, folder = detect("--source", "in/*.png", "--save-txt", "--nosave")
    assert status == 1
    assert (figures["images"], figures["per_class"]) == (9, {"green": 9})
    assert len(figures["problems"]) == 1
    assert len(list((folder / "labels").iterdir())) == 9
    assert sorted(file.name for file in folder.iterdir()) == ["labels"]
    printed = capsys.readouterr().out
    assert "in/4.png: is no image of a known kind" in printed
    assert "left out or incomplete: 1 of 10" in printed


def test_an_image_that_breaks_off(detect, tmp_path, capsys):
    for name in ("a.jpg", "b.jpg"):
        save(tmp_path / "in" / name, painted((0, 10, 10, 40, 40)))
    cut = tmp_path / "in" / "b.jpg"
    cut.write_bytes(cut.read_bytes()[:-600])
    status, figures, folder = detect("--source", "in")
    assert (status, figures["images"]) == (1, 1)
    assert {file.name for file in folder.iterdir()} == {"a.jpg"}
    assert "in/b.jpg: breaks off" in capsys.readouterr().out


def test_a_list(detect, tmp_path, capsys):
    save(tmp_path / "lists" / "a.png", painted())
    save(tmp_path / "b" / "a.png", painted((0, 10, 10, 40, 40)))
    save(tmp_path / "b" / "c.png", painted())
    (tmp_path / "lists" / "list.txt").write_text("a.png\n\n# a remark\nb\nb/c.png\nnowhere.png\n")
    status, figures, folder = detect("--source", "lists/list.txt")
    assert status == 1
    assert figures["images"] == 3  # each once
    assert {file.name for file in folder.iterdir()} == {"a.png", "a_2.png", "c.png"}
    assert (cv2.imread(str(folder / "a_2.png")) != 128).any()  # the second a.png took nothing from the first
    assert (cv2.imread(str(folder / "a.png")) == 128).all()
    assert "line 6: nowhere.png: no such file" in capsys.readouterr().out


def test_a_list_as_other_programs_write_it(detect, tmp_path):
    """With a byte order mark, the separators of Windows, and spaces that nobody sees."""
    save(tmp_path / "photos" / "a.png", painted((0, 10, 10, 40, 40)))
    save(tmp_path / "lists" / "b.png", painted())
    (tmp_path / "lists" / "list.txt").write_text("photos\\a.png\u00a0\n.\\b.png\u200b\n", encoding="utf-16")
    status, figures, _ = detect("--source", "lists/list.txt")
    assert (status, figures["images"], figures["problems"]) == (0, 2, [])


@pytest.mark.parametrize("source", ["in", "in/*", "list.txt"])
def test_kinds_that_are_not_read_are_named(detect, tmp_path, capsys, source):
    save(tmp_path / "in" / "a.png", painted((0, 10, 10, 40, 40)))
    for name in ("b.dng", "c.jp2", "d.JXL", "notes.md"):
        (tmp_path / "in" / name).write_bytes(b"nothing that is read")
    (tmp_path / "list.txt").write_text("in\n")
    status, figures, folder = detect("--source", source)
    assert (status, figures["images"]) == (1, 1)
    assert [problem.partition(":")[0] for problem in figures["problems"]] == ["in/b.dng", "in/c.jp2", "in/d.JXL"]
    assert {file.name for file in folder.iterdir()} == {"a.png"}
    out = capsys.readouterr().out
    assert "in/b.dng: is a .dng file, which is not read; save it as JPEG or PNG" in out
    assert "left out or incomplete: 3 of 4" in out


@pytest.mark.parametrize("codec", [("avi", "MJPG"), ("mp4", "mp4v")])
@pytest.mark.parametrize("size", [(64, 96), (90, 50)])
def test_a_video(detect, tmp_path, capsys, codec, size):
    clip = make_video(tmp_path / f"clip.{codec[0]}", frames=7, rate=12.5, size=size, codec=codec[1])
    status, figures, folder = detect("--source", clip, "--save-txt")
    assert (status, figures["frames"], figures["per_class"]) == (0, 7, {"red": 7})
    frames, rate = read_video(folder / "clip.mp4")
    assert (len(frames), rate, frames[0].shape) == (7, 12.5, (*size, 3))
    assert not np.array_equal(frames[0], read_video(clip)[0][0])
    left = [np.loadtxt(folder / "labels" / f"clip_{number}.txt")[1] * size[1] for number in range(1, 8)]
    np.testing.assert_allclose(np.diff(left), 2, atol=1)
    assert "clip." in (line := capsys.readouterr().out.splitlines()[0])
    assert f"7 frames of {size[1]}x{size[0]} px, in all 7× red, " in line


def test_every_third_frame_at_a_third_of_the_rate(detect, tmp_path):
    _, figures, folder = detect("--source", make_video(tmp_path / "clip.avi"), "--vid-stride", 3, "--save-txt")
    frames, rate = read_video(folder / "clip.mp4")
    assert figures["frames"] == len(frames) == 4
    assert rate == pytest.approx(25 / 3, rel=1e-3)
    assert {file.stem for file in (folder / "labels").iterdir()} == {"clip_1", "clip_4", "clip_7", "clip_10"}


def test_a_video_that_breaks_off(detect, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    clip = make_video(tmp_path / "in" / "clip.avi", frames=60)
    clip.write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])
    save(tmp_path / "in" / "d.png", painted())
    status, figures, folder = detect("--source", "in")
    assert status == 1
    assert figures["images"] == 1
    assert 10 < figures["frames"] < 50
    assert len(read_video(folder / "clip.mp4")[0]) == figures["frames"]
    assert f"in/clip.avi: breaks off after frame {figures['frames']} of 60" in capsys.readouterr().out


def test_a_camera_runs_until_interrupted(detect, monkeypatch):
    class Camera:
        rate, expected, stride = 10.0, 0, 1

        def __init__(self, source, stride):
            assert source.name == "0"

        def __iter__(self):
            for number in range(1, 4):
                yield number, painted((0, 10, 10, 40, 40))
            raise KeyboardInterrupt

        def close(self):
            pass

    monkeypatch.setattr("yolojax.inference.detection.Video", Camera)
    status, figures, folder = detect("--source", 0)
    assert (status, figures["frames"], figures["problems"]) == (0, 3, [])
    assert len(read_video(folder / "stream_0.mp4")[0]) == 3


@pytest.fixture
def web(tmp_path, monkeypatch):
    """The address of a server that gives the files of an empty folder, and that folder."""
    monkeypatch.setenv("no_proxy", "*")
    (tmp_path / "web").mkdir()
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "web"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", tmp_path / "web"
        server.shutdown()


def test_a_stream(detect, web):
    address, served = web
    make_video(served / "clip.avi", frames=5).rename(served / "camera")
    _, figures, folder = detect("--source", f"{address}/camera")
    assert figures["frames"] == 5
    assert len(list(folder.glob("stream_*.mp4"))) == 1


def test_images_and_videos_of_the_web(detect, web, tmp_path, capsys):
    address, served = web
    save(served / "a b.png", painted((0, 10, 10, 40, 40)))
    make_video(served / "clip.avi", frames=5)
    names = ("a%20b.png?size=large", "clip.avi", "gone.jpg")
    (tmp_path / "list.txt").write_text("\n".join(f"{address}/{name}" for name in names))
    status, figures, folder = detect("--source", "list.txt", "--save-txt")
    assert (status, figures["images"], figures["frames"], figures["per_class"]) == (1, 1, 5, {"red": 6})
    assert {file.name for file in folder.iterdir()} == {"a b.jpg", "clip.mp4", "labels"}
    assert "gone.jpg: cannot be fetched (HTTP Error 404: File not found)" in capsys.readouterr().out


def test_a_file_that_is_no_video(detect, tmp_path, capsys):
    (tmp_path / "clip.mp4").write_bytes(b"no video")
    assert detect("--source", "clip.mp4")[0] == 2
    captured = capsys.readouterr()
    assert "clip.mp4: cannot be opened as a video" in captured.out
    assert captured.err == "yolojax detect: --source clip.mp4: nothing in it could be read\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--source", "nowhere.jpg"], "nowhere.jpg: no such file or folder"),
        (["--source", "empty"], "empty: holds no image and no video"),
        (["--source", "notes.md"], "notes.md: is neither an image nor a video"),
        (["--source", "raw"], "raw: holds no image and no video, but 1 files of kinds that are not read, as a.nef"),
        (["--source", "empty.txt"], "empty.txt: names nothing that exists"),
        (["--source", "nowhere.txt"], "the list cannot be read"),
        (["--source", "98"], "98: nothing in it could be read"),
        (["--source", "a.png", "--classes", "yellow"], "--classes yellow: no such class; there are 0 red, 1 green"),
        (["--source", "a.png", "--conf", "2"], "--conf-thres 2.0: must be from 0 to 1"),
        (["--source", "a.png", "--vid-stride", "0"], "--vid-stride 0: must be at least 1"),
        (["--source", "a.png", "--img", "64", "64", "64"], "--imgsz 64 64 64: one side, or height and width"),
        (["--source", "a.png", "--visualize"], "--visualize: feature maps are not drawn"),
        ([], "--source: name an image"),
    ],
)
def test_mistakes(detect, tmp_path, capsys, words, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a.nef").write_bytes(b"MM")
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "notes.md").write_text("no image")
    save(tmp_path / "a.png", painted())
    status, figures, folder = detect(*words)
    error = capsys.readouterr().err
    assert (status, figures) == (2, None)
    assert error.startswith("yolojax detect: ")
    assert message in error
    assert len(error.splitlines()) == 1
    assert not folder.exists()


def test_flags_of_yolov5_that_mean_nothing_are_taken(detect, tmp_path, capsys):
    save(tmp_path / "a.png", painted())
    assert detect("--source", "a.png", "--data", "coco128.yaml", "--dnn")[0] == 0
    assert "--data has no effect: class names come with the weights" in capsys.readouterr().out


def files_below(folder):
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


def test_no_file_takes_the_name_of_another(detect, tmp_path, capsys):
    """An image that is called like a frame of a video, and images that differ in folder, ending or case only."""
    red, blue = painted((0, 10, 8, 50, 40)), painted((2, 10, 8, 50, 40))
    for name, image in (("clip_3.png", blue), ("CLIP_5.png", blue), ("a.png", blue), ("a.jpg", red), ("A.bmp", red)):
        save(tmp_path / "in" / name, image)
    save(tmp_path / "in2" / "a.png", red)
    make_video(tmp_path / "in" / "clip.avi", frames=6)
    (tmp_path / "list.txt").write_text("in\nin2\n")
    status, figures, folder = detect("--source", "list.txt", "--save-txt", "--save-crop")
    assert (status, figures["images"], figures["frames"], figures["detections"]) == (0, 6, 6, 12)
    assert "in/clip.avi: 6 frames of 96x64 px, in all 6× red" in capsys.readouterr().out
    labels = files_below(folder / "labels")
    assert len(labels) == len({name.casefold() for name in labels}) == 12
    rows = [np.loadtxt(folder / "labels" / name, ndmin=2)[0, 0] for name in labels]
    assert sorted(rows) == [0] * 9 + [2] * 3
    assert len({name.casefold() for name in files_below(folder / "crops")}) == 12
    annotated = [file.name for file in folder.iterdir() if file.is_file()]
    assert len(annotated) == len({name.casefold() for name in annotated}) == 7
    assert (
        np.loadtxt(folder / "labels" / "clip_3.txt")[0] == 2
    )  # the photo's; the video came after CLIP_5 and is clip_2
    assert np.loadtxt(folder / "labels" / "clip_2_3.txt")[0] == 0
    assert files_below(tmp_path / "in") == ["A.bmp", "CLIP_5.png", "a.jpg", "a.png", "clip.avi", "clip_3.png"]


def test_a_window_is_wanted_where_there_is_no_display(detect, tmp_path, monkeypatch, capsys):
    for variable in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    save(tmp_path / "a.png", painted((0, 10, 8, 50, 40)))
    status, figures, folder = detect("--source", "a.png", "--view-img")
    assert (status, figures["detections"]) == (0, 1)
    assert (folder / "a.png").is_file()
    assert "--view-img has no effect: there is no display here" in capsys.readouterr().out


def test_a_window_shows_what_is_annotated(detect, tmp_path, monkeypatch, capsys):
    class FakeWindow:
        shown, waited = [], 0

        def show(self, image, title):
            self.shown.append((title, (image != plain).any()))

        def wait(self):
            FakeWindow.waited += 1

    monkeypatch.setattr("yolojax.inference.window.open_window", FakeWindow)
    plain = painted((0, 10, 8, 50, 40))
    save(tmp_path / "a.png", plain)
    assert detect("--source", "a.png", "--view_img", "--nosave")[0] == 0
    assert FakeWindow.shown == [("a.png", True)]
    assert FakeWindow.waited == 1
    assert "close the window to end" in capsys.readouterr().out


def test_which_detections(detect, tmp_path):
    save(tmp_path / "a.png", painted((0, 10, 10, 40, 40), (1, 50, 10, 80, 40), (2, 85, 10, 115, 40)))

    def counts(*words):
        return detect("--source", "a.png", "--nosave", "--save-txt", "--exist-ok", *words)[1]["per_class"]

    assert counts() == dict.fromkeys(CLASSES, 1)
    assert counts("--classes", 2, "red") == {"red": 1, "n/a: blue": 1}
    assert counts("--conf", 0.75) == {"red": 1, "green": 1}
    assert counts("--max-det", 1) == {"red": 1}


def test_boxes_of_different_classes_suppress_each_other_where_asked(detect, tmp_path):
    save(tmp_path / "a.png", painted((0, 10, 10, 40, 40), (1, 12, 12, 38, 38)))
    assert detect("--source", "a.png", "--nosave")[1]["per_class"] == {"red": 1, "green": 1}
    assert detect("--source", "a.png", "--nosave", "--agnostic-nms")[1]["per_class"] == {"red": 1}


def test_how_boxes_are_drawn(detect, tmp_path):
    plain = painted((0, 20, 30, 100, 70), size=(100, 160))
    save(tmp_path / "a.png", plain)

    def drawn(*words):
        """Share of the pixels that are not as they were."""
        _, _, folder = detect("--source", "a.png", "--exist-ok", *words)
        return (cv2.imread(str(folder / "a.png"))[..., ::-1] != plain).any(2).mean()

    assert drawn("--hide-labels") < drawn("--hide-conf") < drawn()
    assert drawn("--hide-labels") < drawn("--hide-labels", "--line-thickness", 6)


def test_how_the_network_computes(detect, tmp_path, monkeypatch, sees_colours):
    asked = []
    monkeypatch.setattr(detector, "make_predict", lambda *_, **how: asked.append(how) or sees_colours(*_, **how))
    save(tmp_path / "a.png", painted())
    for words in ([], ["--half"], ["--dtype", "bfloat16", "--augment"]):
        assert detect("--source", "a.png", "--nosave", *words)[0] == 0
    assert [(how["dtype"].name, how["augment"]) for how in asked] == [
        ("float32", False),
        ("bfloat16", False),
        ("bfloat16", True),
    ]


def test_batches_of_many_shapes(detect, tmp_path, monkeypatch, sees_colours):
    """Every image is found in its own place, and one program is enough for a few images of different shapes."""
    shapes = set()

    def make_predict(*args, **options):
        predict = sees_colours(*args, **options)
        seen = lambda images, sizes: shapes.add(images.shape) or predict(images, sizes)  # noqa: E731
        seen.compiled_ahead = predict.compiled_ahead
        return seen

    monkeypatch.setattr(detector, "make_predict", make_predict)
    sizes = [(80, 120), (120, 80), (80, 120), (64, 64), (80, 121), (120, 80), (80, 120)]
    for number, size in enumerate(sizes):
        save(tmp_path / "in" / f"{number}.png", painted((number % 3, 10, 10, 30, 50), size=size))
    _, _, folder = detect("--source", "in", "--batch", 3, "--img", 192, "--save-txt", "--nosave")
    for number, (height, width) in enumerate(sizes):
        row = np.loadtxt(folder / "labels" / f"{number}.txt")
        np.testing.assert_allclose(
            row, [number % 3, 20 / width, 30 / height, 20 / width, 40 / height], atol=0.03, err_msg=str(number)
        )
    assert shapes == {(3, 192, 192, 3)}


def test_without_a_source_the_embedded_weights_look_at_drawn_images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["detect", "--img", "64", "--conf", "0.01", "--device", "cpu", "--json", "d.json"]) == 0
    figures = json.loads((tmp_path / "d.json").read_text())
    assert figures["images"] == len(list((tmp_path / "runs" / "detect" / "exp").glob("*.png"))) == 8
    assert figures["detections"] > 0
