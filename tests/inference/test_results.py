"""What a detector answers: one image's detections, and the list of them with the methods of torch.hub's YOLOv5."""

import copy
import importlib.util
import pickle
import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from yolojax.errors import UserError
from yolojax.inference import results as module
from yolojax.inference.results import Detections, Results

NAMES = ("cat", "n/a", "dog")


def detections(path="", boxes=((10, 10, 30, 30), (40, 20, 60, 50)), classes=(2, 1)):
    rng = np.random.default_rng(0)
    return Detections(
        image=rng.integers(0, 255, (60, 80, 3)).astype(np.uint8),
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        scores=np.linspace(0.9, 0.5, len(boxes)).astype(np.float32),
        classes=np.array(classes, np.int64),
        names=NAMES,
        path=path,
    )


@pytest.fixture
def three():
    return Results([detections("x/a.png"), detections("y/a.png", (), ()), detections()])


def test_short_texts(three):
    assert repr(three) == (
        "[<Detections in x/a.png: 80x60 px, 1× n/a, 1× dog>, <Detections in y/a.png: 80x60 px, nothing>, "
        "<Detections in image: 80x60 px, 1× n/a, 1× dog>]"
    )
    assert str(three).splitlines()[1] == "y/a.png: 80x60 px, nothing"
    assert len(repr(Results([detections()] * 100))) < 250
    assert repr(Results([detections()] * 100)).endswith(", … 97 more]")
    assert repr(Results()) == "[]"


def test_it_is_a_list_that_can_be_copied_and_pickled(three):
    assert isinstance(three, list)
    assert three == list(three)
    for other in (copy.copy(three), pickle.loads(pickle.dumps(three))):
        assert isinstance(other, Results)
        np.testing.assert_array_equal(other[0].boxes, three[0].boxes)


def test_print(three, capsys):
    three.print()
    assert capsys.readouterr().out.splitlines() == [str(entry) for entry in three]


def test_save_gives_every_image_a_name_of_its_own(three, tmp_path, contents):
    folder = three.save(tmp_path / "runs" / "exp")
    assert sorted(file.name for file in folder.iterdir()) == ["a.jpg", "a_2.jpg", "image2.jpg"]
    assert cv2.imread(str(folder / "a.jpg")).shape == (60, 80, 3)
    before = contents(tmp_path)
    assert three.save(tmp_path / "runs" / "exp").name == "exp2"
    assert three.crop(tmp_path / "runs" / "exp").name == "exp3"
    assert before.items() <= contents(tmp_path).items()
    assert three.save(tmp_path / "runs" / "exp", exist_ok=True).name == "exp"
    three[0].save(tmp_path / "one.png")
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "one.png"))[..., ::-1], three[0].plot())


def test_crop(three, tmp_path):
    folder = three.crop(tmp_path / "exp")
    names = sorted(str(file.relative_to(folder)) for file in folder.rglob("*.jpg"))
    assert names == ["crops/dog/a_1.jpg", "crops/dog/image2_1.jpg", "crops/n_a/a_2.jpg", "crops/n_a/image2_2.jpg"]
    pixels = three[0].crops()[0]
    np.testing.assert_array_equal(pixels, three[0].image[4:36, 4:36])  # 20 px, 2 % more, and 10 px


def test_arguments_of_torch_hub(three, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(module, "has_display", lambda: True)
    monkeypatch.setattr(module.ImageShow, "show", lambda image: shown.append(np.asarray(image)) or True)
    three.show(labels=False)
    np.testing.assert_array_equal(shown[0], three[0].plot(hide_labels=True))
    folder = three.save(labels=False, save_dir=tmp_path / "boxes")
    assert (cv2.imread(str(folder / "a.jpg")) != cv2.imread(str(three.save(tmp_path / "both") / "a.jpg"))).any()
    assert len(list(three.crop(save=True, save_dir=tmp_path / "crops").rglob("*.jpg"))) == 4
    with pytest.raises(UserError, match=r"crop\(save=False\): \[0\]\.crops\(\)"):
        three.crop(save=False, save_dir=tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_show(three, monkeypatch):
    shown = []
    monkeypatch.setattr(module, "has_display", lambda: True)
    monkeypatch.setattr(module.ImageShow, "show", lambda image: shown.append(np.asarray(image)) or True)
    three.show()
    assert len(shown) == 3
    np.testing.assert_array_equal(shown[0], three[0].plot())
    monkeypatch.setattr(module, "has_display", lambda: False)
    with pytest.raises(UserError, match="no display"):
        three.show()
    assert len(shown) == 3


@pytest.mark.parametrize(
    ("thing", "name", "hint"),
    [
        ("list", "xyxy", r"here it is \[0\].boxes, \[0\].scores and \[0\].classes"),
        ("list", "xywhn", r"\[0\].boxes"),
        ("list", "render", r"\[0\].plot\(\)"),
        ("list", "names", r"\[0\].names"),
        ("list", "boxes", r"\[0\].boxes"),
        ("list", "to_pandas", r"\[0\].to_pandas"),
        ("one", "xyxy", "boxes"),
        ("one", "pandas", r"to_pandas\(\)"),
        ("one", "nonsense", "has no attribute 'nonsense'$"),
    ],
)
def test_names_of_other_libraries_are_answered(three, thing, name, hint):
    with pytest.raises(AttributeError, match=hint):
        getattr(three if thing == "list" else three[0], name)


def test_table_of_pandas(three, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserError, match="pip install pandas"):
        three[0].to_pandas()
    monkeypatch.undo()
    pytest.importorskip("pandas")
    table = three.pandas().xyxy[0]
    assert list(table.columns) == ["xmin", "ymin", "xmax", "ymax", "confidence", "class", "name"]
    assert table.iloc[1].tolist() == [40, 20, 60, 50, 0.5, 1, "n/a"]
    assert len(three.pandas().xyxy[1]) == 0
    with pytest.raises(AttributeError, match="here it is xyxy"):
        _ = three.pandas().xywh


def test_to_supervision(three, monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(UserError, match="pip install supervision"):
        three[0].to_supervision()
    monkeypatch.undo()
    supervision = pytest.importorskip("supervision")
    for entry in three:
        theirs = entry.to_supervision()
        np.testing.assert_array_equal(theirs.xyxy, entry.boxes)
        np.testing.assert_array_equal(theirs.confidence, entry.scores)
        np.testing.assert_array_equal(theirs.class_id, entry.classes)
        assert theirs["class_name"].tolist() == entry.labels
    annotated = supervision.BoxAnnotator().annotate(three[0].image.copy(), three[0].to_supervision())
    assert (annotated != three[0].image).any()
    assert len(three[0].to_supervision()[three[0].to_supervision().confidence > 0.6]) == 1


def test_to_fiftyone(three, monkeypatch):
    """Its package wants an older OpenCV, so its real form is tried in an environment that has it."""
    monkeypatch.setitem(sys.modules, "fiftyone", None)
    with pytest.raises(UserError, match="pip install fiftyone"):
        three[0].to_fiftyone()
    monkeypatch.undo()
    if importlib.util.find_spec("fiftyone") is None:
        made = SimpleNamespace(
            Detection=lambda **values: SimpleNamespace(**values),
            Detections=lambda detections: SimpleNamespace(detections=detections),
        )
        monkeypatch.setitem(sys.modules, "fiftyone", made)
    height, width = three[0].image.shape[:2]
    theirs = three[0].to_fiftyone().detections
    for entry, label, box, score in zip(theirs, three[0].labels, three[0].boxes, three[0].scores, strict=True):
        left, top, wide, high = entry.bounding_box
        np.testing.assert_allclose(
            [left * width, top * height, (left + wide) * width, (top + high) * height], box, rtol=1e-5
        )
        assert (entry.label, entry.confidence) == (label, pytest.approx(float(score)))
