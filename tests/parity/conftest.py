"""What the rungs of the parity ladder share: goldens, the weights they were made with, and float64."""

import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from yolojax.model.network import abstract_variables
from yolojax.model.spec import ModelSpec, load_spec
from yolojax.tree import flatten, unflatten
from yolojax.weights.find import load_weights

GOLDENS = Path(__file__).resolve().parents[1] / "goldens"
sys.path.insert(0, str(GOLDENS))

import seeding  # noqa: E402

SEED = 0
Variables = dict[str, dict[str, Any]]


@pytest.fixture(scope="session")
def golden() -> Callable[[str], Mapping[str, np.ndarray]]:
    """Reads a golden file by name."""
    return cache(lambda name: dict(np.load(GOLDENS / f"{name}.npz")))


@cache
def spec_of(name: str) -> ModelSpec:
    return load_spec("yolov5n", classes=80) if name in ("n", "real") else load_spec(f"yolov5{name}", classes=6)


@pytest.fixture(scope="session")
def spec() -> Callable[[str], ModelSpec]:
    """The architecture of a golden: ``real`` is the published yolov5n, any other name a size with seeded weights."""
    return spec_of


@pytest.fixture(scope="session")
def network(request: pytest.FixtureRequest) -> Callable[[str], tuple[ModelSpec, Variables]]:
    """Architecture and variables of a golden, as NumPy arrays whose numbers are exact in float32."""

    @lru_cache(maxsize=1)  # yolov5x alone has a third of a gigabyte
    def build(name: str) -> tuple[ModelSpec, Variables]:
        spec = spec_of(name)
        if name == "real":
            pytest.importorskip("torch")
            weights = load_weights(request.getfixturevalue("shared_data") / "weights" / "yolov5n.pt")
            assert (weights.spec.resolved, weights.spec.anchors) == (spec.resolved, spec.anchors)
            return spec, jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), weights.variables)
        variables = {collection: flatten(tree) for collection, tree in abstract_variables(spec).items()}
        return spec, {
            collection: unflatten({path: seeding.array(path, leaf.shape, SEED) for path, leaf in leaves.items()})
            for collection, leaves in variables.items()
        }

    return build


@pytest.fixture
def float64() -> Iterator[None]:
    """Double precision for one test; all other tests of the process stay in single precision."""
    with jax.enable_x64(True):
        yield


FIGURES: dict[str, tuple[float, str]] = {}


@pytest.fixture(scope="session")
def worst() -> Callable[[str, Mapping[str, float]], float]:
    """The largest of some errors, kept by rung for the table at the end of a verbose run."""

    def largest(rung: str, errors: Mapping[str, float]) -> float:
        where = max(errors, key=lambda path: np.nan_to_num(errors[path], nan=np.inf))
        FIGURES[rung] = max(FIGURES.get(rung, (0.0, "")), (float(errors[where]), where))
        return errors[where]

    return largest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """With ``-v``: the largest error of every rung, the figures of ``docs/parity.md``."""
    if FIGURES and terminalreporter.verbosity >= 0:
        terminalreporter.section("largest errors against the original")
        for rung, (error, where) in FIGURES.items():
            terminalreporter.write_line(f"{rung:60} {error:.1e}  {where}")
