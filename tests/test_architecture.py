"""Rules on the source: which floor may import which, and what an import may cost."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
GROUND = 0
FLOORS = [
    {
        *("errors", "text", "version", "files", "flags", "tree", "mesh"),
        *("interrupts", "lock", "processes", "drawing", "figures", "runtime", "system", "scores"),
        *("config", "hyperparameters"),
    },
    {"model", "freezing", "data", "evaluation"},
    {"weights.store"},
    {"convert", "weights.safetensors", "weights.card"},
    {"weights.find"},
    {"training", "inference"},
    {"study"},
    {"plan", "evolve", "doctor"},
    {"yolojax"},
    {"cli"},
]


def sources() -> list[Path]:
    return sorted(file for folder in ("yolojax", "convert") for file in (REPOSITORY / folder).rglob("*.py"))


def module_name(file: Path) -> str:
    """The dotted name of a file; that of its folder for ``__init__.py``."""
    parts = file.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(file) for file in sources()}


def imported_modules(file: Path) -> set[str]:
    """Absolute names of everything that a file imports, anywhere in it; a submodule by its own name."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                names.add(full if full in MODULES else node.module)
    return names


def room(module: str) -> str | None:
    """The room that a module of ours is in, as ``FLOORS`` names it; None for other people's modules and empty ``__init__`` files."""
    parts = module.split(".")
    if parts[0] == "convert":
        return "cli" if parts[-1] == "__main__" else "convert"
    if parts[0] != "yolojax":
        return None
    if len(parts) == 1:
        return "yolojax"
    if parts[1] == "weights":
        return ".".join(parts[1:3]) if len(parts) > 2 else None
    return parts[1]


def floor(name: str) -> int:
    return next(level for level, rooms in enumerate(FLOORS) if name in rooms)


@pytest.mark.parametrize("file", sources(), ids=lambda file: str(file.relative_to(REPOSITORY)))
def test_imports_run_downwards(file):
    name = module_name(file)
    here = room(name)
    modules = imported_modules(file)
    if here != "convert":
        assert not any(module.split(".")[0] == "torch" for module in modules), "only convert/ may import torch"
    if here == "data":
        assert not any(module.split(".")[0] in ("jax", "flax") for module in modules), "data/ is NumPy only"
    if here == "freezing":
        assert not any(module.split(".")[0] == "flax" for module in modules), "freezing/ works on plain trees"
    for module in modules:
        there = room(module)
        if here is None or there is None or there == here:
            continue
        assert floor(there) <= floor(here), f"{name} imports {module} from a floor above"
        assert floor(there) < floor(here) or floor(here) == GROUND, f"{name} imports {module} from the same floor"


def test_no_file_imports_itself_by_way_of_others():
    imports = {module_name(file): imported_modules(file) & MODULES for file in sources()}
    while imports:
        leaves = [name for name, modules in imports.items() if not modules & imports.keys() - {name}]
        assert leaves, f"these files import each other in a circle: {', '.join(sorted(imports))}"
        for name in leaves:
            del imports[name]


def test_importing_the_package_is_light():
    """No torch, no JAX device, no TensorFlow; and quick, because every data worker does it."""
    code = "import sys, yolojax, yolojax.cli.main; print(sorted({'jax', 'torch', 'tensorflow', 'flax', 'cv2'} & set(sys.modules)))"
    output = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout
    assert output.strip() == "[]"
