import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yolojax.errors import UserError
from yolojax.freezing.phases import make_phase
from yolojax.freezing.selectors import backbone_end, layer_of, parse_selector, select


def layers(selected) -> set[int]:
    return {layer_of(path) for path in selected}


def test_the_paths_of_these_tests_are_those_of_yolov5n(p5, p6):
    assert (len(p5), max(map(layer_of, p5)), layers(p5)) == (177, 24, {*range(25)} - {11, 12, 15, 16, 19, 22})
    assert sum(path.endswith("/bn/scale") for path in p5) == 57
    assert (backbone_end(p5), backbone_end(p6), max(map(layer_of, p6))) == (10, 12, 33)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("10", range(10)),
        (10, range(10)),
        (["10"], range(10)),
        ("1", range(1)),
        (0, ()),
        ("0", ()),
        ("[]", ()),
        ([], ()),
        ("0-9", range(10)),
        (["0-9"], range(10)),
        ("[1]", (1,)),
        ([1], (1,)),
        (["1", "1"], (1,)),
        ("[0, 2, 5]", (0, 2, 5)),
        ("0,2,5", (0, 2, 5)),
        (["0", "1", "2"], (0, 1, 2)),
        (["10", "11", "12"], (10,)),
        (["0-2", "7"], (0, 1, 2, 7)),
        ("9-12", (9, 10)),
        ("backbone", range(10)),
        ("neck", (10, 13, 14, 17, 18, 20, 21, 23)),
        ("head", (10, 13, 14, 17, 18, 20, 21, 23, 24)),
        ("detect", (24,)),
        ("model_1", (1,)),
        ("model_1/**", (1,)),
        ("model_1*/conv/kernel", (1, 10, 14, 18)),
        ("model_?/conv/kernel", (0, 1, 3, 5, 7)),
        ("model_[13]/conv/kernel", (1, 3)),
        ("model_[!13]/conv/kernel", (0, 5, 7)),
        (r"re:model_\d/.*", range(10)),
        ("re:model_(2|24)/.*", (2, 24)),
        (r"re:model_\d{1,1}/.*", range(10)),
        ("[backbone, not:0-4]", range(5, 10)),
        (["backbone", "not:0-4"], range(5, 10)),
        ("not:head", range(10)),
        (["not:detect", "not:0-13"], (14, 17, 18, 20, 21, 23)),
    ],
)
def test_layers_of(value, expected, p5):
    assert layers(select(value, p5)) == set(expected)


@given(st.integers(0, 24))
def test_a_number_is_what_yolov5_freezes(count):
    # The original freezes every parameter whose name holds "model.{i}." for i below the number.
    paths = [f"model_{layer}/conv/kernel" for layer in range(25)]
    expected = {
        path for path in paths if any(f".{path.replace('/', '.')}.".startswith(f".model_{i}.") for i in range(count))
    }
    assert select(str(count), paths) == select(count, paths) == expected


def test_layer_one_is_not_layer_ten(p5):
    assert layers(select("[1]", p5)) == layers(select("model_1", p5)) == layers(select("re:model_1/.*", p5)) == {1}


def test_groups_of_a_p6_network(p6):
    assert layers(select("backbone", p6)) == set(range(12))
    assert layers(select("detect", p6)) == {33}
    assert select("neck", p6) | select("backbone", p6) | select("detect", p6) == set(p6) == select("all", p6)


def test_groups_by_kind_of_parameter(paths):
    assert select("bn", paths) == {path for path in paths if path.split("/")[-2] == "bn"}
    bias = select("bias", paths)
    assert bias == {path for path in paths if path.split("/")[-1] == "bias"}
    assert select(["bias", "not:bn"], paths) == bias & select("detect", paths) != frozenset()


def test_globs(paths):
    assert select("model_*/cv1/**", paths) == {path for path in paths if path.split("/")[1] == "cv1"}
    assert select("**/cv1/conv/kernel", paths) == {path for path in paths if path.endswith("/cv1/conv/kernel")}
    assert select("**/bn", paths) == select("bn", paths)
    deeper = select("**/cv1/**", paths)
    assert deeper == {path for path in paths if "/cv1/" in path} > select("model_*/cv1/**", paths)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("30", "--freeze 30: yolov5n has layers 0 to 24; 'yolojax freeze --cfg yolov5n --list' lists them"),
        ("26", "--freeze 26: yolov5n has layers 0 to 24"),
        ("25", "--freeze 25 leaves nothing to train"),
        ("0-24", "--freeze 0-24 leaves nothing to train"),
        ("0-25", "yolov5n has layers 0 to 24"),
        (["0", "25"], "--freeze 0 25: yolov5n has layers 0 to 24"),
        (["backbone", "head"], "--freeze backbone head leaves nothing to train"),
        ("**", r"--freeze ** leaves nothing to train"),
        ("9-0", "'9-0' is no layer or range"),
        (["-1", "2"], "'-1' is no layer"),
        (-1, "cannot be negative"),
        ("[11]", "--freeze [11]: there are no parameters in it"),
        (["backbone", "not:backbone"], "there are no parameters in it"),
        ("backbon", "did you mean 'backbone'?"),
        ("model_2/cv1/conv/kernl", "did you mean 'model_2/cv1/conv/kernel'?"),
        ("model_30/**", "'model_30/**' matches no parameter of yolov5n"),
        ("re:model_1", "'re:model_1' matches no parameter"),
        ("re:(", "'re:(' is no valid pattern"),
        ("model_[9-0]", "is no valid pattern"),
        ("", "a term is empty"),
        ("1,,2", "a term is empty"),
        (1.5, "--freeze 1.5: a selector is a number, a text or a list"),
        (None, "a selector is a number, a text or a list"),
        ([True], "a selector is a number, a text or a list"),
        ([[1]], "a selector is a number, a text or a list"),
    ],
)
def test_errors_say_what_exists(value, message, p5):
    with pytest.raises(UserError, match=re.escape(message)):
        make_phase(p5, freeze=parse_selector(value), network="yolov5n")


def test_the_group_that_is_not_there_is_an_error():
    with pytest.raises(UserError, match="has no 'backbone'"):
        select("backbone", ["model_0/conv/kernel", "model_1/m_0/kernel"])


def test_errors_name_where_the_selector_stands(p5):
    with pytest.raises(UserError, match=r"^mine\.yaml, key 'freeze': 40: the network has layers 0 to 24"):
        select(parse_selector(40, origin="mine.yaml, key 'freeze':"), p5)


def test_parsing_is_done_once():
    selector = parse_selector("backbone")
    assert parse_selector(selector) is selector
    assert hash(selector) == hash(parse_selector("backbone"))
