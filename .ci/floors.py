"""Whether this environment holds the lowest versions that ``pyproject.toml`` allows, and each package can be imported.

    python .ci/floors.py EXTRA…
    python .ci/floors.py --constraints EXTRA…      # prints them for an installer, which else raises one where a new release of something deeper asks for it

A floor that a dependency's own floor overrides is not true: it was never tried. Prints what differs and exits with status 1.
"""

import importlib
import re
import sys
import tomllib
from importlib.metadata import packages_distributions, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ELSEWHERE = {
    "cuda12",
    "cuda13",
    "tpu",
    "torch",
    "aot",
    "dev",
}  # accelerators, PyTorch, and what only those who work on the project need

CONSTRAINTS = "--constraints"


def floors(project: dict, extras: list[str]) -> dict[str, str]:
    """Each package that the project and these extras ask for, with its lowest version ('' where it has none)."""
    wanted: dict[str, str] = {}
    groups = [project["dependencies"], *(project["optional-dependencies"][extra] for extra in extras)]
    for requirement in (Requirement(line) for group in groups for line in group):
        if requirement.name != project["name"]:  # an extra that names others
            lowest = [item.version for item in requirement.specifier if item.operator == ">="]
            wanted[canonicalize_name(requirement.name)] = lowest[0] if lowest else ""
    return wanted


def problem(name: str, floor: str, modules: list[str]) -> str | None:
    """Why a floor is not true; None where it is and the package's modules can be imported."""
    installed = version(name)
    numbers, lowest = (re.split(r"[.+]", text) for text in (installed, floor))
    if floor and numbers[: len(lowest)] != lowest:
        return f"{name}: {installed} was installed, the floor in pyproject.toml is {floor}"
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception as error:  # whatever it is, the floor is too low
            return f"{name} {installed}: 'import {module}' fails with {type(error).__name__}: {error}"
    return None


def main(extras: list[str]) -> int:
    """Compare and import all, print the problems."""
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = floors(project, [extra for extra in extras if extra != CONSTRAINTS])
    if CONSTRAINTS in extras:
        print(*(f"{name}=={floor}.*" for name, floor in wanted.items() if floor), sep="\n")
        return 0
    modules: dict[str, list[str]] = {name: [] for name in wanted}
    for module, distributions in packages_distributions().items():
        for name in {canonicalize_name(distribution) for distribution in distributions} & modules.keys():
            if module.isidentifier() and not module.startswith("_"):
                modules[name].append(module)
    problems = [text for name, floor in wanted.items() if (text := problem(name, floor, modules[name])) is not None]
    problems += [
        f"the extra '{extra}' is not tried"
        for extra in project["optional-dependencies"].keys() - ELSEWHERE - set(extras)
    ]
    print(*(problems or [f"{len(wanted)} lowest versions are installed and imported"]), sep="\n")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
