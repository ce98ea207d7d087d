"""What the documents say of themselves: sections that exist, links that lead somewhere, tables that are true."""

from __future__ import annotations

import json
import math
import re
import shlex
import shutil
import tomllib
from collections import Counter
from pathlib import Path
from pkgutil import resolve_name
from urllib.parse import unquote

import jax
import pytest
import yaml

from yolojax.cli.main import COMMANDS, build_parser
from yolojax.config import configs_root
from yolojax.flags import with_dashes
from yolojax.model.network import abstract_variables
from yolojax.model.spec import load_spec
from yolojax.version import __version__
from yolojax.weights.find import load_weights

REPOSITORY = Path(__file__).resolve().parent.parent
YOLOV5 = (REPOSITORY / "docs" / "yolov5.md").read_text(encoding="utf-8")
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SECTIONS = re.findall(r"^#+ §(\d+(?:\.\d+)?) ", YOLOV5, re.MULTILINE)
FOLDERS = ("yolojax", "convert", "tests", "configs", "docs", "benchmarks", "examples")
COMMANDS_PAGE = REPOSITORY / "docs" / "commands.md"


def documents() -> list[Path]:
    pages = {*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/**/*.md"), *REPOSITORY.glob("tests/README.md")}
    return sorted(pages - {COMMANDS_PAGE})


def texts() -> list[Path]:
    files = [file for folder in FOLDERS for file in (REPOSITORY / folder).rglob("*")]
    return sorted([*(file for file in files if file.suffix in (".py", ".md", ".yaml")), *REPOSITORY.glob("*.md")])


def anchors(file: Path) -> set[str]:
    """Anchors of the headings, as GitHub and MyST make them; a page may be another file that it includes."""
    document = file.read_text(encoding="utf-8")
    if included := re.match(r"```{include} (\S+)", document):
        return anchors(file.parent / included[1])
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
        if file.resolve() == COMMANDS_PAGE:  # made when the site is built
            assert not anchor or anchor in {f"yolojax-{name}" for name in COMMANDS}, target
            continue
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


@pytest.mark.parametrize("document", ["docs/architecture.md", "CONTRIBUTING.md", "SECURITY.md", "tests/README.md"])
def test_files_that_are_named_exist(document):
    text = (REPOSITORY / document).read_text(encoding="utf-8")
    named = re.findall(r"`((?:[\w.-]+/)*[\w.-]+\.(?:py|md|yaml|toml|yml))`", text)
    assert named
    places = [REPOSITORY, REPOSITORY / "yolojax", REPOSITORY / "tests", REPOSITORY / ".github" / "workflows"]
    assert not [name for name in named if "NAME" not in name and not any((place / name).exists() for place in places)]


def commands() -> list[tuple[str, str]]:
    """Every command that stands on a line of its own: the document's name and the words; continued lines are put together."""
    lines = []
    for document in documents():
        text = document.read_text(encoding="utf-8").replace("\\\n", " ")
        for line in re.findall(r"^ *((?:yolojax|python train\.py|python -m yolojax) [^#\n]+)", text, re.MULTILINE):
            if not re.search(r"[\[|…]|COMMAND", line):  # a synopsis, or prose
                lines.append((str(document.relative_to(REPOSITORY)), line.split(" && ")[0].strip()))
    return lines


def test_commands_are_taken_as_they_are_written():
    assert len(commands()) > 40
    for document, line in commands():
        words = shlex.split(line)
        words = ["train", *words[2:]] if words[1] == "train.py" else words[words.index("yolojax") + 1 :]
        try:
            build_parser(words[0]).parse_args(with_dashes(words))
        except SystemExit as error:
            raise AssertionError(f"{document}: {line}") from error


def test_the_table_of_hyperparameters_is_that_of_the_files():
    (_, *names), *rows = cells("1.15", "| key |")
    for column, name in enumerate(names, start=1):
        told = {row[0]: float(row[column]) for row in rows if row[column] != "–"}
        assert told == yaml.safe_load((configs_root() / "hyps" / f"{name}.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("row", cells("1.1", "| | parameters")[1:], ids=lambda row: row[0])
def test_the_table_of_parameters_is_that_of_the_networks(row):
    numbers = [int(re.match(r"[\d,]+", cell)[0].replace(",", "")) for cell in row[1:]]

    networks = {
        classes: abstract_variables(load_spec(f"yolov5{row[0]}", classes=classes))["params"] for classes in (80, 20)
    }

    def parameters(classes: int, first: int = 0) -> int:
        params = networks[classes]
        trained = [params[f"model_{layer}"] for layer in range(first, 25) if f"model_{layer}" in params]
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(trained))

    assert numbers[:2] + numbers[4:] == [parameters(80), parameters(20), parameters(20, 10), parameters(20, 24)]


def test_the_citation_has_the_version():
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    assert (citation["version"], citation["license"]) == (__version__, PROJECT["license"])


def test_the_badges_are_true():
    badges = [unquote(word) for word in re.findall(r"img\.shields\.io/badge/(\S+)-blue", README)]
    assert badges[0] == f"python-≥ {PROJECT['requires-python'].removeprefix('>=')}"
    assert badges[1] == f"licence-{PROJECT['license'].replace('-', '--')}"
    assert badges[2:] == ["tried on-CPU | NVIDIA GPU"]


def test_the_python_of_the_readme(tmp_path, monkeypatch, tiny_data, tiny_model):
    monkeypatch.chdir(tmp_path)
    shutil.copy(tiny_data.parent / "images" / "val" / "0.png", "photo.png")
    [code] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    small = {"imgsz": 64, "batch_size": 4, "epochs": 1, "workers": 0, "device": "cpu", "noplots": True}
    for written, here in {
        'weights="yolov5n.pt"': f'weights="", cfg={str(tiny_model)!r}',
        'data="my-data.yaml"': f"data={str(tiny_data)!r}",
        'freeze=("10",)': 'freeze=("2",)',
        "epochs=50": ", ".join(f"{name}={value!r}" for name, value in small.items()),
        "photo.jpg": "photo.png",
    }.items():
        assert written in code
        code = code.replace(written, here)
    exec(compile(code, "README.md", "exec"), {})


def test_the_public_surface_exists():
    """What the API pages name can be imported; the site's build goes further and reads it."""
    names = [
        name
        for page in (REPOSITORY / "docs" / "api").glob("*.md")
        for name in re.findall(r"^\.\. auto\w+:: (\S+)", page.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert len(names) > 60
    for name in names:
        assert resolve_name(name).__doc__, name


def test_the_python_of_the_page_on_python(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (REPOSITORY / "docs" / "python.md").read_text(encoding="utf-8")
    changed, planned = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(compile(changed, "docs/python.md", "exec"), {})
    biases = load_weights("no-bias").variables["params"]["model_24"]["m_0"]["bias"]
    assert not biases.any()
    exec(compile(planned.partition("for row")[0], "docs/python.md", "exec"), {})  # tests/plan compiles the programs


def test_the_tutorial_imports_what_exists():
    """'.ci/run notebook' executes it."""
    notebook = json.loads((REPOSITORY / "docs" / "tutorial.ipynb").read_text(encoding="utf-8"))
    code = "".join("".join(cell["source"]) + "\n" for cell in notebook["cells"] if cell["cell_type"] == "code")
    imports = [line for line in code.splitlines() if re.match(r"(from|import) yolojax", line)]
    assert len(imports) > 8
    for line in imports:
        exec(line, {})
