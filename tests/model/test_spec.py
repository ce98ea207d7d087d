import copy

import pytest

from yolojax.config import configs_root, read_yaml
from yolojax.errors import UserError
from yolojax.model.network import abstract_variables
from yolojax.model.spec import ModelSpec, load_spec

SIZES = ["n", "s", "m", "l", "x", "n6", "s6", "m6", "l6", "x6"]


@pytest.fixture
def content():
    """The content of yolov5n.yaml, to be spoilt."""
    return copy.deepcopy(read_yaml(configs_root() / "models" / "yolov5n.yaml"))


@pytest.mark.parametrize("size", SIZES)
def test_shipped_specs_survive_a_round_trip(size):
    spec = load_spec(f"yolov5{size}")
    assert ModelSpec.from_dict(spec.to_dict()) == spec
    assert hash(ModelSpec.from_dict(spec.to_dict())) == hash(spec)
    assert spec.name == f"yolov5{size}"
    assert spec.strides == ((8, 16, 32, 64) if size.endswith("6") else (8, 16, 32))
    assert spec.backbone == (12 if size.endswith("6") else 10)
    assert len(spec.layers) == (34 if size.endswith("6") else 25)


@pytest.mark.parametrize(
    ("size", "repeats"),
    # Layers 2, 4, 6, 8, 13, 17, 20, 23, written as 3, 6, 9, 3, 3, 3, 3, 3.
    [("n", [1, 2, 3, 1, 1, 1, 1, 1]), ("m", [2, 4, 6, 2, 2, 2, 2, 2]), ("x", [4, 8, 12, 4, 4, 4, 4, 4])],
)
def test_depth_multiple_scales_repeats(size, repeats):
    assert [layer.repeats for layer in load_spec(f"yolov5{size}").resolved if layer.module == "C3"] == repeats


def test_repeats_round_half_to_even(content):
    content["depth_multiple"] = 0.5
    repeats = [layer.repeats for layer in ModelSpec.from_dict(content).resolved if layer.module == "C3"]
    assert repeats == [2, 3, 4, 2, 2, 2, 2, 2]  # 1.5, 3, 4.5, 1.5


def test_width_multiple_rounds_channels_up_to_eight(content):
    content["width_multiple"] = 0.26
    assert [layer.channels for layer in ModelSpec.from_dict(content).resolved[:4]] == [24, 40, 40, 72]


def test_yolov5s_own_notation_means_the_same(content):
    expected = ModelSpec.from_dict(content)
    for line in content["head"]:
        if line[2] == "Upsample":
            line[2], line[3] = "nn.Upsample", ["None", 2, "nearest"]
        elif line[2] == "Concat":
            line[3] = [1]
        elif line[2] == "Detect":
            line[3] = ["nc", "anchors"]
    assert ModelSpec.from_dict(content | {"ch": 3}) == expected


def test_anchors_are_put_in_the_order_of_the_strides(content):
    expected = ModelSpec.from_dict(content).anchors
    content["anchors"] = content["anchors"][::-1]
    assert ModelSpec.from_dict(content).anchors == expected
    assert expected[0] == ((10, 13), (16, 30), (33, 23))


def test_with_classes_and_anchors():
    spec = load_spec("yolov5s", classes=3)
    assert abstract_variables(spec)["params"]["model_24"]["m_0"]["bias"].shape == (3 * (5 + 3),)
    heads = abstract_variables(spec.with_classes(7))["params"]["model_24"]
    assert heads["m_2"]["bias"].shape == (3 * (5 + 7),)
    other = spec.with_anchors([[(1, 2)], [(3, 4)], [(5, 6)]])
    assert other.anchors == (((1.0, 2.0),), ((3.0, 4.0),), ((5.0, 6.0),))
    assert abstract_variables(other)["params"]["model_24"]["m_0"]["bias"].shape == (5 + 3,)


BAD = [
    (("nc", 0), "key 'nc'.*found 0"),
    (("nc", True), "key 'nc'"),
    (("nc", "twenty"), "key 'nc'"),
    (("ch", 1), "3 channels, not 1"),
    (("depth_multiple", -1), "key 'depth_multiple'"),
    (("width_multiple", "wide"), "key 'width_multiple'"),
    (("anchors", -3), "key 'anchors'"),
    (("anchors", [[10, 13, 16]] * 3), "key 'anchors'"),
    (("anchors", [[10, 13]] * 2), "2 lines, but Detect has 3 levels"),
    (("anchors", [[10, 13], [10, 13], [10, 13, 20, 20]]), "same number"),
    (("anchors", [[10, 13], [10, 0], [10, 13]]), "positive"),
    (("backbone", None), "key 'backbone'"),
    (("activation", "nn.ReLU()"), "key 'activation' is unknown"),
    (("depht_multiple", 1), "did you mean 'depth_multiple'"),
    (("backbone", 0, [-1, 1, "Focus", [64, 3]]), "layer 0: module 'Focus' is unknown; there are Conv"),
    (("backbone", 0, [-1, 1, "Conv"]), "layer 0: expected"),
    (("backbone", 0, [-2, 1, "Conv", [64]]), "layer 0: sources"),
    (("backbone", 0, ["a", 1, "Conv", [64]]), "layer 0: sources"),
    (("backbone", 0, [-1, 2, "Conv", [64]]), "layer 0: repeats: 2"),
    (("backbone", 0, [-1, 1, "Conv", []]), "layer 0: Conv cannot"),
    (("backbone", 0, [-1, 1, "Conv", ["64"]]), "layer 0: Conv cannot"),
    (("backbone", 0, [-1, 1, "Conv", [64, 3, 0]]), "layer 0: Conv cannot"),
    (("backbone", 0, [-1, 1, "Conv", [64, 1, 2, -1]]), "layer 0: Conv cannot"),
    (("backbone", 0, [-1, 1, "Conv", [64, 3, 1, 0]]), "layer 0: Conv with kernel 3, stride 1, padding 0"),
    (("backbone", 2, [-1, 1, "C3", [128, True, 3]]), "layer 2: C3 cannot"),
    (("backbone", 9, [-1, 1, "SPPF", [1024, 4]]), "layer 9: SPPF needs an odd kernel"),
    (("head", 1, [-1, 1, "Upsample", [3]]), "layer 11: Upsample by 3"),
    (("head", 2, [[-1, 4], 1, "Concat", []]), "layer 12: Concat.*strides"),
    (("head", 2, [[-1, 40], 1, "Concat", []]), "layer 12: sources"),
    (("head", 0, [[-1, 6], 1, "Conv", [64]]), "layer 10: Conv has one source"),
    (("head", 0, [[9], 1, "Detect", []]), "layer 10: Detect is the last"),
    (("head", 14, [-1, 3, "C3", [64]]), "Detect"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=[str(change) for change, _ in BAD])
def test_a_bad_spec_is_one_clear_error(content, change, message):
    *keys, value = change
    place = content
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    with pytest.raises(UserError, match=message) as error:
        ModelSpec.from_dict(content, "my.yaml")
    assert str(error.value).startswith("my.yaml")


def test_a_missing_file_lists_what_exists():
    with pytest.raises(UserError, match="yolov5n6"):
        load_spec("yolov5q")


LEVELS = [((3, 4), 5), ((4,), 5), ((2, 3, 4, 5), 5), ((3, 4, 5, 6, 7), 7), ((3, 5), 5), ((3, 4), 7), ((1, 2), 3)]


@pytest.mark.parametrize(("detected", "deepest"), LEVELS)
def test_image_sizes_follow_the_largest_stride_inside(pyramid, detected, deepest):
    spec = ModelSpec.from_dict(pyramid(*detected, deepest=deepest))
    assert spec.strides == tuple(2**level for level in detected)
    assert spec.coarsest == 2**deepest
    assert spec.stride == max(32, 2**deepest)


def test_more_levels_than_the_loss_has_weights_for_are_refused(pyramid):
    with pytest.raises(UserError, match=r"^model: layer 22: Detect has 6 levels; the loss has weights for 5"):
        ModelSpec.from_dict(pyramid(2, 3, 4, 5, 6, 7, deepest=7))


@pytest.mark.parametrize(
    ("detected", "deepest", "shipped"),
    [((3, 4, 5), 5, "yolov5n"), ((3, 4, 5, 6), 6, "yolov5n6"), ((3, 4), 5, "yolov5n")],
)
def test_a_number_of_anchors_takes_those_of_the_nearest_model(pyramid, detected, deepest, shipped):
    spec = ModelSpec.from_dict(pyramid(*detected, deepest=deepest, anchors=3))
    assert spec.anchors == load_spec(shipped).anchors[: len(detected)]
    assert not spec.own_anchors
    assert spec.with_anchors(spec.anchors).own_anchors
    assert not spec.with_classes(9).own_anchors
    assert ModelSpec.from_dict(spec.to_dict()).anchors == spec.anchors


def test_anchors_grow_with_the_stride_where_no_model_has_the_level(pyramid):
    spec = ModelSpec.from_dict(pyramid(2, 3, 4, 7, deepest=7, anchors=5))
    areas = [[w * h for w, h in level] for level in spec.anchors]
    assert [len(level) for level in areas] == [5, 5, 5, 5]
    assert all(min(level) > 0 for level in areas)
    assert [max(level) for level in areas] == sorted(max(level) for level in areas)
    spec = ModelSpec.from_dict(pyramid(3, 4, 5, anchors=1))
    assert spec.anchors == tuple((level[1],) for level in load_spec("yolov5n").anchors)


@pytest.mark.parametrize("anchors", [0, -1, True, 2.5, "three", 101])
def test_another_number_of_anchors_is_refused(pyramid, anchors):
    with pytest.raises(UserError, match="or how many anchors each level has, found"):
        ModelSpec.from_dict(pyramid(3, 4, 5, anchors=anchors))


def test_what_crosses_a_cut_is_what_later_layers_read():
    spec = load_spec("yolov5n")
    assert [spec.crossing(start) for start in (0, 1, 10, 11, 24)] == [(-1,), (0,), (4, 6, 9), (4, 6, 10), (17, 20, 23)]
