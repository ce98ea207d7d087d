"""What the rungs of the parity ladder share: goldens, the weights they were made with, and float64."""

import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from yolojax.freezing.tree import flatten, unflatten
from yolojax.model.network import abstract_variables
from yolojax.model.spec import ModelSpec, load_spec
from yolojax.model.weights import load_weights

GOLDENS = Path(__file__).resolve().parents[1] / "goldens"
sys.path.insert(0, str(GOLDENS))

import seeding  # noqa: E402

SEED = 0
Variables = dict[str, dict[str, Any]]


@pytest.fixture(scope="session")
def golden() -> Callable[[str], Mapping[str, np.ndarray]]:
    """Reads a golden file by name."""
    return cache(lambda name: dict(np.load(GOLDENS / f"{name}.npz")))


@pytest.fixture(scope="session")
def network(request: pytest.FixtureRequest) -> Callable[..., tuple[ModelSpec, Variables]]:
    """Specification and float32 variables: ``real`` is the published yolov5n, any other name a size with seeded weights."""

    @cache
    def build(name: str, classes: int = 6) -> tuple[ModelSpec, Variables]:
        if name == "real":
            pytest.importorskip("torch")
            weights = load_weights(request.getfixturevalue("shared_data") / "weights" / "yolov5n.pt")
            variables = {kind: flatten(tree) for kind, tree in weights.variables.items()}
            spec = weights.spec
        else:
            spec = load_spec(f"yolov5{name}", classes=classes)
            variables = {
                kind: seeding.arrays({path: leaf.shape for path, leaf in flatten(tree).items()}, SEED)
                for kind, tree in abstract_variables(spec).items()
            }
        return spec, {
            kind: unflatten({path: leaf.astype(np.float32) for path, leaf in flat.items()})
            for kind, flat in variables.items()
        }

    return build


@pytest.fixture
def float64() -> Iterator[None]:
    """Double precision for one test; all other tests of the process stay in single precision."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def worst(record_property: Callable[[str, object], None]) -> Callable[[str, Mapping[str, float]], float]:
    """The largest of some errors, written down for the report (``--junitxml``) that the figures in the docs come from."""

    def largest(rung: str, errors: Mapping[str, float]) -> float:
        where = max(errors, key=lambda path: np.nan_to_num(errors[path], nan=np.inf))
        record_property(rung, f"{errors[where]:.2e} at {where}")
        return errors[where]

    return largest
