"""Plans: the real step, compiled but never run."""

import json

import pytest

from yolojax.cli.main import main
from yolojax.errors import UserError
from yolojax.study.plan_settings import PlanSettings


def test_a_plan_counts_what_each_freeze_costs(tiny_model, tmp_path):
    file = tmp_path / "plan.json"
    words = ["plan", "--cfg", str(tiny_model), "--img", "64", "--batch", "2", "--freeze", "0", "5", "--quick"]
    assert main([*words, "--json", str(file)]) == 0
    everything, detect = json.loads(file.read_text())["rows"]
    assert [everything["freeze"], detect["freeze"]] == ["0", "5"]
    assert everything["parameters"] == everything["trainable"] > detect["trainable"] > 0
    # Layer 5 is one convolution, layer 6 (Detect) has one per level.
    assert everything["weight_gradient_ops"] > detect["weight_gradient_ops"] >= 3
    for key in ("flops", "peak_bytes", "temp_bytes", "optimizer_bytes"):
        assert everything[key] > detect[key] > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"cfg": "yolov5n", "weights": "yolov5n-shapes"}, "name a network"),
        ({"cfg": "yolov5n", "batch_size": 0}, "--batch-size 0: must be at least 1"),
    ],
)
def test_what_no_step_can_have_is_refused(words, message):
    with pytest.raises(UserError, match=message):
        PlanSettings(**words)


def test_an_unknown_target_is_a_users_mistake(tiny_model, capsys):
    assert main(["plan", "--cfg", str(tiny_model), "--img", "64", "--target", "cuda:rtx9999"]) == 2
    assert "cuda:rtx9999" in capsys.readouterr().err
