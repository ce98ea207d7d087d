import pytest

from yolojax.errors import UserError
from yolojax.freezing.load import load_strategy, rehearse
from yolojax.freezing.phases import History
from yolojax.freezing.selectors import layer_of, select


def frozen(values, paths) -> frozenset[str]:
    ((_, phase),) = rehearse(load_strategy(values), paths, 5, "yolov5n")
    return phase.frozen


@pytest.mark.parametrize(
    ("values", "selector"),
    [
        (["10"], 10),
        ("10", 10),
        (10, 10),
        (["0", "1", "2"], [0, 1, 2]),
        (["0-9"], 10),
        (["model_*/cv1/**"], "model_*/cv1/**"),
    ],
)
def test_a_selector_is_a_strategy(values, selector, p5):
    assert frozen(values, p5) == select(selector, p5)


def test_the_default_freezes_nothing(p5):
    assert frozen(("0",), p5) == frozenset()
    assert load_strategy(("0",)).name == "0"


def test_names_and_files_of_the_shipped_ones(p5):
    assert load_strategy(["gradual"]).name == load_strategy("gradual.yaml").name == "gradual"
    assert frozen("backbone", p5) == frozen("backbone.yaml", p5) == frozen(10, p5)


def write(folder, text, name="mine.yaml"):
    file = folder / name
    file.write_text(text)
    return str(file)


def test_a_strategy_of_ones_own_in_yaml(tmp_path, p5):
    file = write(tmp_path, "phases:\n- freeze: 24\n- start: 2\n  train: [5-9, detect]\n  rates: {5-9: 0.1}\n")
    (_, first), (start, second) = rehearse(load_strategy([file]), p5, 5)
    assert first.frozen == select(24, p5)
    assert start == 2
    assert {layer_of(path) for path in set(p5) - second.frozen} == {5, 6, 7, 8, 9, 24}
    assert second.factors == {"5-9": 0.1, "trainable": 1.0}


def test_a_strategy_of_ones_own_in_python(tmp_path, p5):
    text = '''
"""Freeze one more layer after every epoch that was no better than the one before."""
from yolojax.freezing.phases import make_phase

NEEDS = {"movement"}

def phase(epoch, history, paths):
    scores = [record.fitness for record in history.records]
    worse = sum(after <= before for before, after in zip(scores, scores[1:]))
    return make_phase(paths, freeze=min(worse, 10), network=history.network)
'''
    strategy = load_strategy([write(tmp_path, text, "cautious.py")])
    assert strategy.name == "cautious"
    assert strategy.needs == {"movement"}
    assert strategy.description == "Freeze one more layer after every epoch that was no better than the one before."
    assert [start for start, _ in rehearse(strategy, p5, 5)] == [0, 2, 3, 4]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("freeze: 40\n", r"mine\.yaml: freeze 40: yolov5n has layers 0 to 24"),
        ("freeze: all\n", r"mine\.yaml: freeze all leaves nothing to train"),
        ("train: 0\n", r"mine\.yaml: there is nothing to train"),
        ("freez: 10\n", r"phase 1: key 'freez' is unknown; did you mean 'freeze'"),
        ("kind: graduale\n", "key 'kind': 'graduale' is none of phases, layerwise"),
        ("kind: [gradual]\n", "key 'kind': .* is none of"),
        ("kind: gradual\nunti: 5\n", "key 'unti' is unknown; did you mean 'until'"),
        ("kind: gradual\nuntil: soon\n", "key 'until': 'soon' is neither an epoch"),
        ("kind: gradual\ngroups: [backbone, detect]\n", "key 'groups': .* is in none of them"),
        ("kind: layerwise\ndecay: -1\n", "key 'decay': expected a number above 0, found -1"),
        ("kind: freezeout\ngroups: 6\n", "key 'groups': at most 5"),
        ("kind: freezeout\ncubed: 1\n", "key 'cubed': expected true or false, found 1"),
        ("kind: freezeout\nfirst: 2\n", "key 'first': 2 is no part of the run"),
        ("kind: plateau\npatience: 1.5\n", "key 'patience': expected int, found 1.5"),
        ("kind: adapters\nrank: 0\n", "key 'rank': expected a number above 0"),
        ("kind: adapters\nselect: detect\n", "select detect: model_24/m_0/kernel trains itself"),
        ("kind: adapters\nselect: '**/bn'\n", "there is no kernel in it"),
        ("kind: surgical\nalso: detekt\n", "also detekt: .* did you mean 'detect'"),
        ("phases: []\n", "key 'phases': expected a list of phases"),
        ("phases: 3\n", "key 'phases': expected a list of phases"),
        ("phases: [3]\n", "key 'phases': expected a list of phases"),
        ("freeze: 10\nphases: []\n", "key 'freeze' is unknown"),
        ("phases: [{start: 2, freeze: 1}]\n", "the first phase starts at epoch 2; nothing says what trains before"),
        ("phases: [{freeze: 1}, {start: 9, freeze: 2}]\n", "phase 2 starts at epoch 9, but the run has 8"),
        ("phases: [{freeze: 1}, {start: 50%}, {start: 4}]\n", "phase 3 starts at epoch 4, the one before it at 4"),
        ("phases: [{freeze: 1}, {start: 5}, {start: 4}]\n", "phase 3 starts at epoch 4, the one before it at 5"),
        ("phases: [{freeze: 1}, {freeze: 2}]\n", "phase 2 starts at epoch 0, the one before it at 0"),
        ("phases: [{freeze: 1}, {start: 2, freeze: 25}]\n", "phase 2: freeze 25 leaves nothing to train"),
        ("rates: [1]\n", "key 'rates': expected 'selector: factor' lines"),
        ("rates:\n", "key 'rates': expected 'selector: factor' lines"),
    ],
)
def test_a_bad_file_is_refused_before_the_run(tmp_path, text, message, p5):
    with pytest.raises(UserError, match=message) as error:
        rehearse(load_strategy([write(tmp_path, text)]), p5, 8, "yolov5n")
    assert "mine.yaml" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = (", r"cannot be run \(SyntaxError"),
        ("x = 1", "has no function phase"),
        ("def phase(epoch, history, paths): return 1 / 0", r"phase\(\) failed at epoch 0 \(ZeroDivisionError"),
        ("def phase(epoch, history, paths): return {}", r"phase\(\) returned {} instead of a phase"),
        ("NEEDS = ['luck']\ndef phase(epoch, history, paths): pass", "NEEDS 'luck' is none of"),
        (
            "from yolojax.freezing.phases import labelled_phase\n"
            "def phase(epoch, history, paths): return labelled_phase(dict.fromkeys(paths[1:], 'a'))",
            "model_0/conv/kernel has no label",
        ),
        (
            "from yolojax.freezing.phases import make_phase\n"
            "def phase(epoch, history, paths): return make_phase(paths, freeze=9 * epoch)",
            "freeze 27: the network has layers 0 to 24",
        ),
    ],
)
def test_a_bad_python_file_is_refused_before_the_run(tmp_path, text, message, p5):
    with pytest.raises(UserError, match=message) as error:
        rehearse(load_strategy(write(tmp_path, text, "mine.py")), p5, 8)
    assert "mine.py" in str(error.value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("gradul", "--freeze gradul: no strategy or group has this name; did you mean 'gradual'"),
        ("backbon", "did you mean 'backbone'"),
        ("nothing.yaml", "nothing.yaml: no such file"),
        ("nothing.py", "--freeze nothing.py: no such file"),
        ("30", "--freeze 30: yolov5n has layers 0 to 24"),
        ("25", "--freeze 25 leaves nothing to train"),
    ],
)
def test_errors_of_the_command_line(value, message, p5):
    with pytest.raises(UserError, match=message):
        rehearse(load_strategy([value]), p5, 8, "yolov5n")


def test_a_phase_is_told_where_its_network_is_named(p5):
    with pytest.raises(UserError, match="--frozen 30: yolov5n has"):
        load_strategy(["30"], "--frozen").phase(0, History(epochs=1, network="yolov5n"), p5)
