"""Rules on the source: which floor may import which, and what an import may cost."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
FLOORS = [
    {"errors", "drawing", "config", "runtime"},
    {"model", "freezing", "data", "evaluation"},
    {"training"},
    {"study", "inference"},
    {"cli"},
]


def sources() -> list[Path]:
    return sorted(file for folder in ("yolojax", "convert") for file in (REPOSITORY / folder).rglob("*.py"))


def imported_modules(file: Path) -> set[str]:
    """Absolute names of everything that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def room(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "yolojax" and len(parts) > 1 else None


def floor(name: str) -> int:
    return next(level for level, rooms in enumerate(FLOORS) if name in rooms)


@pytest.mark.parametrize("file", sources(), ids=lambda file: str(file.relative_to(REPOSITORY)))
def test_imports_run_downwards(file):
    relative = file.relative_to(REPOSITORY)
    here = relative.parts[1].removesuffix(".py")
    modules = imported_modules(file)
    if relative.parts[0] == "yolojax":
        assert not any(name.split(".")[0] == "torch" for name in modules), "only convert/ may import torch"
    if relative.parts[0] == "convert" or here == "__init__":
        return
    if here == "data":
        assert not any(name.split(".")[0] in ("jax", "flax") for name in modules), "data/ is NumPy only"
    if here == "freezing":
        assert not any(name.split(".")[0] == "flax" for name in modules), "freezing/ works on plain trees"
    for module in modules:
        there = room(module)
        if there is None or there in (here, "__version__"):
            continue
        assert floor(there) <= floor(here), f"{relative} imports {module} from a floor above"
        assert floor(there) < floor(here) or floor(here) == 0, f"{relative} imports {module} from the same floor"


def test_importing_the_package_is_light():
    """No torch, no JAX device, no TensorFlow; and quick, because every data worker does it."""
    code = "import sys, yolojax, yolojax.cli.main; print(sorted({'jax', 'torch', 'tensorflow', 'flax', 'cv2'} & set(sys.modules)))"
    output = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout
    assert output.strip() == "[]"
