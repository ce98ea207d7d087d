"""Checks that settings share; the flags themselves are tested by the commands."""

from types import SimpleNamespace

import pytest

from yolojax.errors import UserError
from yolojax.flags import at_least, fraction


def test_limits():
    settings = SimpleNamespace(batch_size=1, imgsz=None, iou_thres=1.0)
    at_least(settings, batch_size=1, imgsz=32)
    fraction(settings, "iou_thres")
    with pytest.raises(UserError, match=r"^--batch-size 1: must be at least 2$"):
        at_least(settings, batch_size=2)
    with pytest.raises(UserError, match=r"^--iou-thres 1.0: must be at least 0 and below 1$"):
        fraction(settings, "iou_thres", below=True)


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_what_is_no_fraction(value):
    with pytest.raises(UserError, match="must be from 0 to 1"):
        fraction(SimpleNamespace(conf_thres=value), "conf_thres")
