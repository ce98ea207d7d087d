"""The code in docs/data.md runs."""

import re
from pathlib import Path

import pytest

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "data.md"


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL))
def test_example_runs(code):
    exec(compile(code, str(DOCUMENT), "exec"), {})
