import doctest

import pytest

from yolojax.freezing import random_layers
from yolojax.freezing.load import load_strategy, rehearse
from yolojax.freezing.random_layers import frozen_random, random_sentence
from yolojax.freezing.selectors import select


def frozen_random_of(name, fresh, paths):
    return frozen_random((phase for _, phase in rehearse(load_strategy(name), paths, 8)), fresh)


def test_the_example_in_the_docstring():
    assert doctest.testmod(random_layers).attempted
    assert not doctest.testmod(random_layers).failed


@pytest.mark.parametrize(
    ("freeze", "random"),
    [
        (["0"], False),
        (["10"], False),
        (["detect"], True),
        (["neck_only"], True),
        (["not:bn"], True),
        (["gradual"], False),
        (["linear_probe"], False),
        (["freezeout"], False),
        (["adapters"], False),
    ],
)
def test_another_number_of_classes_needs_detect_to_train(freeze, random, p5):
    detect = sorted(select("detect", p5))
    expected = [path for path in detect if random]
    assert list(frozen_random_of(freeze, [*detect, "model_3/bn/mean"], p5)) == expected


@pytest.mark.parametrize("freeze", ["bn_only", "bias_only", "surgical", "surgical_first", "adapters", "all_but_detect"])
def test_without_weights_a_strategy_freezes_what_it_never_trains(freeze, p5):
    random = frozen_random_of([freeze], p5, p5)
    assert random
    assert not set(random) & select("detect", p5)


def test_a_phase_that_thaws_is_enough(tmp_path, p5):
    file = tmp_path / "late.yaml"
    file.write_text("phases: [{freeze: detect}, {start: 3}]\n")
    assert frozen_random_of([str(file)], p5, p5) == ()


def test_the_sentence_names_layers_reason_and_remedy():
    paths = ["model_0/conv/kernel", "model_1/conv/kernel", "model_4/conv/kernel"]
    sentence = random_sentence(load_strategy(["10"]), paths, "80 classes before, 3 now")
    assert sentence.startswith(
        "--freeze 10: model_0 to model_1, model_4 start from random numbers (80 classes before, 3 now) and are frozen: "
    )
    assert sentence.endswith("for instance model_0/conv/kernel); let them train, or start from weights that fit")
    assert "as far as is known" in random_sentence(load_strategy(["surgical"]), paths, "why")
