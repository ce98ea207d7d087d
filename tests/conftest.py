"""Fixtures that every test may use."""

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with real weights and photos, described in the developers' guide; absent on most machines."""
    folder = Path(os.environ.get("YOLOJAX_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "weights" / "yolov5n.pt").is_file():
        pytest.skip(f"real weights and photos are not at {folder} (set YOLOJAX_DATA)")
    return folder
