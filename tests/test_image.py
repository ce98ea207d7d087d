"""The Dockerfile, of which no image is built here: what it runs is what people run by hand, and '.ci/run image' runs it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
LINES = [
    line.partition(" ")
    for line in (REPOSITORY / "Dockerfile").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
]


def arguments(instruction: str) -> list[str]:
    return [rest for word, _, rest in LINES if word == instruction]


def test_what_it_runs_is_the_command_of_the_readme():
    [command] = arguments("RUN")
    extras = '".${EXTRAS:+[$EXTRAS]}"'
    assert command.count(extras) == 1
    assert f"\n{command.replace(extras, '.')} && " in README
    assert "| `pip install '.[cuda13]'` |" in README  # what it becomes with EXTRAS=cuda13


def test_its_base_is_one_version_for_both_stages():
    bases = {line.split(" AS ")[0] for line in arguments("FROM")}
    assert len(bases) == 1
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", bases.pop())


def test_it_does_not_run_as_root():
    names = [word for word, _, _ in LINES]
    assert arguments("USER") == ["1000:1000"]
    assert names.index("USER") > max(place for place, name in enumerate(names) if name in ("FROM", "RUN", "COPY"))


def test_it_sees_what_the_wheel_is_built_from_and_no_more():
    ignore = (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in ignore
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {"pyproject.toml", project["project"]["readme"], *project["project"]["license-files"]}
    needed |= {*wheel["packages"], *wheel["force-include"]}
    assert {line.removeprefix("!") for line in ignore if line.startswith("!")} == needed
