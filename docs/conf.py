"""Configuration of the documentation site: ``python -m sphinx -n -W --keep-going docs build/site``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from sphinx.application import Sphinx

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parent))  # the checkout, not an installed package
os.environ["COLUMNS"] = "88"  # width of the commands' own help

from yolojax.cli.main import COMMANDS, build_parser  # noqa: E402
from yolojax.version import __version__  # noqa: E402

project = "yolojax"
copyright = "the yolojax authors, AGPL-3.0-or-later"
release = version = __version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4
nb_execution_mode = "off"  # the site shows what 'jupyter execute --inplace' left
nitpicky = True
nitpick_ignore_regex = [
    # Types of other packages and aliases that stand for them; types inside a tuple, which a list of attributes cuts in two.
    (
        "py:.*",
        r"(jax|numpy|np|npt|flax|collections|pathlib|typing|jaxlib|Path|Array|NDArray|Any|Tree|PIL|re)\b.*|tuple\[.*",
    ),
    # What public classes are made of and nobody builds on.
    (
        "py:class",
        r"yolojax\.(model\.spec\.T$|features\.shared\.T$|features\.store\.Store|evaluation\.evaluator\.Stopwatch|data\.augment\.Images|data\.batches\.TrainingBatches"
        r"|inference\.(predictor\.Predictor|results\.Tables))",
    ),
]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_class_signature = "mixed"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
napoleon_custom_sections = [("Source", "notes_style")]
python_maximum_signature_line_length = 88
add_module_names = False

html_theme = "furo"
html_title = f"yolojax {__version__}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {"light_css_variables": {"font-stack": "system-ui, sans-serif"}}
templates_path: list[str] = []
exclude_patterns = ["data", "figures", "README.md"]


def write_command_pages(app: Sphinx) -> None:
    """Write what ``yolojax COMMAND --help`` prints into a page of the reference."""
    lines = ["# Commands", "", "What `yolojax COMMAND --help` prints. `python train.py` is `yolojax train`.", ""]
    for name, summary in COMMANDS.items():
        parser = build_parser(name)
        subparsers = next(action for action in parser._actions if action.dest == "command")
        assert isinstance(subparsers.choices, dict)
        text = subparsers.choices[name].format_help()
        lines += [
            f"## yolojax {name}",
            "",
            f"{summary[0].upper()}{summary[1:]}.",
            "",
            "```text",
            text.rstrip(),
            "```",
            "",
        ]
    page = FOLDER / "commands.md"
    content = "\n".join(lines)
    if not page.is_file() or page.read_text(encoding="utf-8") != content:
        page.write_text(content, encoding="utf-8")


def plain_defaults(
    app: Sphinx, what: str, name: str, item: object, options: object, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """A default that a dataclass makes anew is written ``...``; ``<factory>`` is no Python, and Sphinx cannot read it."""
    return signature and signature.replace("<factory>", "..."), returns


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-signature", plain_defaults)
    app.connect("config-inited", lambda app, _config: write_command_pages(app))
