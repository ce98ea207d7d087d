"""Rules on the source: which tier may import which, and what an import may cost."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
GROUND = 0
TIERS = [
    {
        *("errors", "text", "version", "files", "flags", "tree", "mesh", "packing", "exchange"),
        *("interrupts", "lock", "processes", "hosts", "drawing", "figures", "runtime", "system", "caches", "scores"),
        *("config", "hyperparameters"),
    },
    {"model", "freezing", "data", "evaluation"},
    {"augmentation", "features"},
    {"weights.store", "weights.record"},
    {"convert", "weights.safetensors", "weights.card", "weights.join", "weights.head", "weights.delta"},
    {"weights.converted"},
    {"weights.find", "weights.start", "weights.teacher"},
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


def package(module: str) -> str | None:
    """The package that a module of ours is in, as ``TIERS`` names it; None for other people's modules and empty ``__init__`` files."""
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


def tier(name: str) -> int:
    return next(level for level, packages in enumerate(TIERS) if name in packages)


@pytest.mark.parametrize("file", sources(), ids=lambda file: str(file.relative_to(REPOSITORY)))
def test_imports_run_downwards(file):
    name = module_name(file)
    here = package(name)
    modules = imported_modules(file)
    if here != "convert":
        assert not any(module.split(".")[0] == "torch" for module in modules), "only convert/ may import torch"
    if here == "data":
        assert not any(module.split(".")[0] in ("jax", "flax") for module in modules), "data/ is NumPy only"
    if here == "freezing":
        assert not any(module.split(".")[0] == "flax" for module in modules), "freezing/ works on plain trees"
    for module in modules:
        there = package(module)
        if here is None or there is None or there == here:
            continue
        assert tier(there) <= tier(here), f"{name} imports {module} from a tier above"
        assert tier(there) < tier(here) or tier(here) == GROUND, f"{name} imports {module} from the same tier"


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


def test_no_file_is_longer_than_four_hundred_lines():
    lines = {module_name(file): len(file.read_text(encoding="utf-8").splitlines()) for file in sources()}
    assert {name: count for name, count in lines.items() if count > 400} == {}


def test_training_has_at_most_seventeen_files():
    """What comes to it and has a subject of its own gets a folder of its own."""
    assert len(list((REPOSITORY / "yolojax" / "training").glob("*.py"))) <= 17


def test_nothing_that_ships_names_a_folder_of_the_authors():
    shipped = [*sources(), *(file for file in (REPOSITORY / "configs").rglob("*.yaml")), REPOSITORY / "train.py"]
    shipped += [*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md"), *(REPOSITORY / "examples").glob("*.py")]
    shipped += [*(REPOSITORY / "benchmarks").rglob("*.py"), *(REPOSITORY / "docs").rglob("*.ipynb")]
    assert [str(file) for file in shipped if "../shared" in file.read_text(encoding="utf-8")] == []
