"""The strategies shown in docs/freezing.md work as printed."""

import doctest
import importlib
import re
from pathlib import Path

import pytest

from yolojax.config import configs_root
from yolojax.freezing.load import load_strategy, rehearse
from yolojax.freezing.phases import EpochRecord, History
from yolojax.freezing.selectors import parse_selector, select

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "freezing.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"```\w+\n# (\S+)\n(.*?)```", TEXT, re.DOTALL))


@pytest.fixture
def strategy(tmp_path, monkeypatch):
    def load(name: str):
        (tmp_path / name).write_text(BLOCKS[name])
        monkeypatch.chdir(tmp_path)
        return load_strategy([name])

    return load


def test_the_yaml(strategy, p5):
    (_, first), (start, second) = rehearse(strategy("slow_backbone.yaml"), p5, 12)
    assert first.frozen == select("backbone", p5)
    assert start == 3
    assert second.frozen == select("backbone", p5) & select("bn", p5)
    assert second.factors == {"backbone": 0.05, "trainable": 0.5}


def test_the_python(strategy, p5):
    cautious = strategy("cautious.py")
    scores = [0.1, 0.2, 0.2, 0.3, 0.25]
    history = History(epochs=9, records=tuple(EpochRecord(fitness=score) for score in scores))
    assert cautious.phase(5, history, p5).frozen == select(2, p5)
    assert rehearse(cautious, p5, 9)[0][1].frozen == frozenset()


def test_every_selector_of_the_table(p5):
    table = TEXT[TEXT.index("| written |") : TEXT.index("Numbers are numbers")]
    cells = [line.split("|")[1] for line in table.splitlines()[2:] if line.startswith("|")]
    written = [text.replace("'", "") for cell in cells for text in re.findall("`([^`]+)`", cell)]
    assert len(written) > 12
    for text in written:
        values = text.split(" ") if not text.startswith("[") else [text]
        assert bool(select(parse_selector(values), p5)), text


def test_every_shipped_strategy_is_told():
    table = TEXT[TEXT.index("| name | what trains") : TEXT.index("With another number of classes")]
    rows = [line for line in table.splitlines() if line.startswith("|")]
    named = {name for line in rows for name in re.findall("`([a-z_]+)`", line.split("|")[1])}
    assert named == {file.stem for file in (configs_root() / "freezing").glob("*.yaml")}


@pytest.mark.parametrize(
    "name",
    ["freezing.adapters", "freezing.labels", "freezing.phases", "freezing.selectors", "freezing.signals", "tree"],
)
def test_examples_in_docstrings(name):
    results = doctest.testmod(importlib.import_module(f"yolojax.{name}"))
    assert results.attempted
    assert not results.failed
