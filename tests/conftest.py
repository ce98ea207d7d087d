"""Fixtures that every test may use."""

import os
import tempfile
from pathlib import Path

import pytest

# Tests compile many small programs and run each a few times: compile quickly, and compile each only once over all processes of a test run.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0".strip()
_compiled = tempfile.TemporaryDirectory(prefix="yolojax-compiled-")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", _compiled.name)
os.environ.setdefault("YOLOJAX_CACHE", str(Path(_compiled.name) / "cache"))

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with real weights and photos, described in the developers' guide; absent on most machines."""
    folder = Path(os.environ.get("YOLOJAX_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "weights" / "yolov5n.pt").is_file():
        pytest.skip(f"real weights and photos are not at {folder} (set YOLOJAX_DATA)")
    return folder
