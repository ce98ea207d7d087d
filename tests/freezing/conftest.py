"""Parameter paths of YOLOv5, written down here once, so that these tests need no model."""

from collections.abc import Iterator, Sequence

import pytest


def _convolution(path: str) -> Iterator[str]:
    yield f"{path}/conv/kernel"
    yield f"{path}/bn/scale"
    yield f"{path}/bn/bias"


def _c3(path: str, repeats: int) -> Iterator[str]:
    for name in ("cv1", "cv2", "cv3"):
        yield from _convolution(f"{path}/{name}")
    for repeat in range(repeats):
        for name in ("cv1", "cv2"):
            yield from _convolution(f"{path}/m_{repeat}/{name}")


def _network(layers: str, heads: int, repeats: Sequence[int]) -> tuple[str, ...]:
    paths: list[str] = []
    left = iter(repeats)
    for index, kind in enumerate(layers):
        path = f"model_{index}"
        if kind == "v":
            paths += _convolution(path)
        elif kind == "c":
            paths += _c3(path, next(left))
        elif kind == "s":
            paths += [*_convolution(f"{path}/cv1"), *_convolution(f"{path}/cv2")]
        elif kind == "d":
            paths += [f"{path}/m_{head}/{leaf}" for head in range(heads) for leaf in ("kernel", "bias")]
    return tuple(paths)


# v: Conv, c: C3, s: SPPF, u: Upsample, +: Concat, d: Detect
P5 = _network("vvcvcvcvcs" + "vu+cvu+cv+cv+cd", 3, (1, 2, 3, 1, 1, 1, 1, 1))
P6 = _network("vvcvcvcvcvcs" + "vu+cvu+cvu+cv+cv+cv+cd", 4, (1, 2, 3, 1, 1, 1, 1, 1, 1, 1, 1))


@pytest.fixture
def p5() -> tuple[str, ...]:
    """YOLOv5n: layers 0 to 24."""
    return P5


@pytest.fixture
def p6() -> tuple[str, ...]:
    """YOLOv5n6: layers 0 to 33."""
    return P6


@pytest.fixture(params=["p5", "p6"])
def paths(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """Either of them."""
    return P5 if request.param == "p5" else P6
