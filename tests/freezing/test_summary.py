from types import SimpleNamespace

import pytest

from yolojax.freezing.phases import make_phase
from yolojax.freezing.summary import summarise
from yolojax.tree import unflatten

MODULES = ["Conv"] * 11 + ["Upsample", "Concat"] + ["C3"] * 12


@pytest.fixture
def params(p5):
    return unflatten({path: SimpleNamespace(shape=(2, 3)) for path in sorted(p5)})


def test_rows_add_up(params, p5):
    summary = summarise(params, make_phase(p5, freeze=10), MODULES)
    assert [row["layer"] for row in summary["layers"]] == list(range(25))
    assert sum(row["parameters"] for row in summary["layers"]) == summary["parameters"] == 6 * len(p5)
    assert sum(row["trainable"] for row in summary["layers"]) == summary["trainable"] == 6 * (177 - 99)
    assert len(summary["frozen_paths"]) == 99
    assert summary["frozen_paths"][-1].startswith("model_9/")
    assert summary["layers"][11] == {
        "layer": 11,
        "module": "Upsample",
        "parameters": 0,
        "trainable": 0,
        "bn_mode": None,
    }


@pytest.mark.parametrize("frozen_bn", ["fixed", "track"])
def test_batch_norm_modes(params, p5, frozen_bn):
    def modes(**options):
        return [row["bn_mode"] for row in summarise(params, make_phase(p5, **options), MODULES, frozen_bn)["layers"]]

    assert modes(freeze=10)[8:14] == [frozen_bn, frozen_bn, "train", None, None, "train"]
    assert modes(freeze=10)[24] is None
    assert modes(freeze="model_2/cv1")[1:4] == ["train", "mixed", "train"]
    assert modes(freeze=["backbone", "not:bn"])[2] == "train"
