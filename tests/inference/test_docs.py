"""The Python in docs/inference.md works as printed."""

import doctest
import re
from pathlib import Path

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "inference.md").read_text(encoding="utf-8")


def test_the_session():
    [session] = re.findall(r"```pycon\n(.*?)```", TEXT, re.DOTALL)
    test = doctest.DocTestParser().get_doctest(session, {}, "docs/inference.md", "docs/inference.md", 0)
    results = doctest.DocTestRunner().run(test)
    assert results.attempted > 5
    assert not results.failed


def test_the_reader_of_stablehlo(tmp_path, monkeypatch):
    from yolojax.cli.main import main

    monkeypatch.chdir(tmp_path)
    assert main(["export", "--weights", "yolov5n-shapes", "--dynamic", "--device", "cpu"]) == 0
    [program] = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    made = {}
    exec(program, made)
    assert made["predictions"].shape == (4, 1008, 13)
