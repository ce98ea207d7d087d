"""What the documents say of themselves: sections that exist, links that lead somewhere, tables that are true."""

from __future__ import annotations

import math
import re
from collections import Counter
from pathlib import Path

import jax
import pytest
import yaml

from yolojax.config import configs_root
from yolojax.model.network import abstract_variables
from yolojax.model.spec import load_spec

REPOSITORY = Path(__file__).resolve().parent.parent
YOLOV5 = (REPOSITORY / "docs" / "yolov5.md").read_text(encoding="utf-8")
SECTIONS = re.findall(r"^#+ §(\d+(?:\.\d+)?) ", YOLOV5, re.MULTILINE)
FOLDERS = ("yolojax", "convert", "tests", "configs", "docs", "benchmarks", "examples")


def documents() -> list[Path]:
    return sorted([*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/*.md"), *REPOSITORY.glob("*/README.md")])


def texts() -> list[Path]:
    files = [file for folder in FOLDERS for file in (REPOSITORY / folder).rglob("*")]
    return sorted([*(file for file in files if file.suffix in (".py", ".md", ".yaml")), *REPOSITORY.glob("*.md")])


def anchors(document: str) -> set[str]:
    """Anchors of the headings, as GitHub and MyST make them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", document, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def cells(section: str, first: str) -> list[list[str]]:
    """The rows of the table of a section whose header starts with ``first``, without marks of code."""
    text = YOLOV5[YOLOV5.index(f"### §{section} ") :]
    lines = text[text.index(first) :].split("\n\n")[0].splitlines()
    return [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in (lines[0], *lines[2:])]


def test_every_section_that_is_cited_exists():
    assert not [section for section, times in Counter(SECTIONS).items() if times > 1]
    cited = {
        (section, file.relative_to(REPOSITORY))
        for file in texts()
        for section in re.findall(r"§(\d+(?:\.\d+)?)", file.read_text(encoding="utf-8"))
    }
    assert len(cited) > 40
    assert not sorted((section, str(file)) for section, file in cited if section not in SECTIONS)


@pytest.mark.parametrize("document", documents(), ids=lambda file: str(file.relative_to(REPOSITORY)))
def test_links_inside_the_repository_lead_somewhere(document):
    text = document.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"\w+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = document.parent / path if path else document
        assert file.exists(), target
        assert not anchor or anchor in anchors(file.read_text(encoding="utf-8")), target


def test_the_table_of_hyperparameters_is_that_of_the_files():
    (_, *names), *rows = cells("1.15", "| key |")
    for column, name in enumerate(names, start=1):
        told = {row[0]: float(row[column]) for row in rows if row[column] != "–"}
        assert told == yaml.safe_load((configs_root() / "hyps" / f"{name}.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("row", cells("1.1", "| | parameters")[1:], ids=lambda row: row[0])
def test_the_table_of_parameters_is_that_of_the_networks(row):
    numbers = [int(re.match(r"[\d,]+", cell)[0].replace(",", "")) for cell in row[1:]]

    def parameters(classes: int, first: int = 0) -> int:
        params = abstract_variables(load_spec(f"yolov5{row[0]}", classes=classes))["params"]
        trained = [params[f"model_{layer}"] for layer in range(first, 25) if f"model_{layer}" in params]
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(trained))

    assert numbers[:2] + numbers[4:] == [parameters(80), parameters(20), parameters(20, 10), parameters(20, 24)]
