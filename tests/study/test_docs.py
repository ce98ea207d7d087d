"""The study in docs/studies.md is a study."""

import re
from pathlib import Path

from yolojax.study.scenarios import load_study

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "studies.md"


def test_the_example_is_read(tmp_path):
    file = tmp_path / "my-study.yaml"
    file.write_text(re.findall(r"```yaml\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)[0])
    study = load_study(file)
    assert [scenario.framework for scenario in study.scenarios] == ["yolojax"] * 3 + ["torch"]
    assert study.reference[0].map50 == 0.54
