"""What is decided before the first step."""

from types import SimpleNamespace

import pytest

from yolojax.model.spec import load_spec
from yolojax.training.validator import fitting_validation_batch


def devices(limit, count=1):
    stats = None if limit is None else {"bytes_limit": limit, "bytes_in_use": 0}
    return [SimpleNamespace(memory_stats=lambda: stats, platform="gpu", process_index=0)] * count


@pytest.mark.parametrize(
    ("limit", "count", "expected"), [(None, 1, 96), (60e9, 1, 96), (2e9, 1, 13), (2e9, 4, 52), (1e6, 2, 2)]
)
def test_a_validation_batch_is_twice_that_of_a_step_or_what_fits(limit, count, expected):
    spec = load_spec("yolov5m", classes=20)
    resolved = SimpleNamespace(imgsz=512, batch_size=48)
    found = fitting_validation_batch(spec, resolved.batch_size, resolved.imgsz, devices(limit, count))
    assert found == pytest.approx(expected, rel=0.6)
    assert found % count == 0
    assert (found == expected) or limit == 2e9
