"""Every shipped strategy: what it freezes when."""

import math

import pytest

from yolojax.config import configs_root
from yolojax.errors import UserError
from yolojax.freezing.adapters import Adapter, is_adapter
from yolojax.freezing.load import load_strategy, rehearse
from yolojax.freezing.phases import EpochRecord, History, make_phase, stages
from yolojax.freezing.selectors import layer_of, select
from yolojax.freezing.strategies import Adapters, FreezeOut, Gradual, Layerwise, Phases, Plateau, Surgical

SHIPPED = sorted(file.name for file in (configs_root() / "freezing").glob("*.yaml"))


def trained_layers(phase) -> set[int]:
    return {layer_of(path) for path, label in phase.labels.items() if label != "frozen"}


def stage_count(phase, paths) -> int:
    """How many of five stages are frozen, if they are frozen whole and from the front."""
    flags = [part <= phase.frozen for part in stages(5, paths).values()]
    assert phase.frozen == frozenset().union(*(p for p, f in zip(stages(5, paths).values(), flags, strict=True) if f))
    assert flags == sorted(flags, reverse=True)
    return sum(flags)


def test_all_of_them_are_shipped():
    assert {name.removesuffix(".yaml") for name in SHIPPED} >= {
        *("backbone", "all_but_detect", "neck_only", "surgical", "bn_only", "bias_only", "layerwise", "gradual"),
        *("linear_probe", "freezeout", "plateau", "adapters"),
    }


@pytest.mark.parametrize("epochs", [5, 8, 33])
@pytest.mark.parametrize("name", SHIPPED)
def test_labels_partition_the_tree_in_every_phase(name, epochs, paths):
    strategy = load_strategy(name)
    assert strategy.description
    starts = []
    for start, phase in rehearse(strategy, paths, epochs):
        starts.append(start)
        labels = phase.labels
        assert tuple(path for path in labels if not is_adapter(path)) == paths
        groups = set(labels.values()) - {"frozen"}
        assert groups
        assert set(phase.factors) == groups
        assert all(0 < factor < math.inf for factor in phase.factors.values())
    assert starts[0] == 0
    assert starts == sorted(set(starts))


def test_a_resumed_run_sees_the_same_phases(paths):
    for name in SHIPPED:
        strategy = load_strategy(name)
        ones = dict.fromkeys(paths, 1.0)
        record = EpochRecord(learning_rate=1.0, movement=ones)
        history = History(epochs=20, gradient_norms=ones, parameter_norms=ones, records=(record,) * 12)
        with_adapters = list(strategy.phase(0, history, paths).labels)
        assert strategy.phase(12, history, paths) == load_strategy(name).phase(12, history, with_adapters)


def test_static_strategies(p5):
    def trained(name: str) -> frozenset[str]:
        ((start, phase),) = rehearse(load_strategy(name), p5, 10)
        assert start == 0
        return frozenset(p5) - phase.frozen

    detect = select("detect", p5)
    assert trained("backbone.yaml") == select("head", p5)
    assert trained("all_but_detect") == detect
    assert trained("neck_only") == select("neck", p5)
    assert trained("bn_only") == select("bn", p5) | detect
    assert trained("bias_only") == select("bias", p5) | detect
    assert trained("surgical_first") == select("0-4", p5) | detect


def test_layerwise_decay(p5):
    phase = Layerwise(groups=5, decay=0.5)(0, History(epochs=9), p5)
    assert phase.factors == {"0-4": 1 / 16, "5-9": 1 / 8, "10-17": 1 / 4, "18-23": 1 / 2, "24": 1.0}
    assert not phase.frozen


def test_gradual_unfreezing_thaws_from_the_back(paths):
    counts = [stage_count(Gradual(until=8)(epoch, History(epochs=20), paths), paths) for epoch in range(20)]
    assert counts == [4, 4, 3, 3, 2, 2, 1, 1] + [0] * 12
    assert stage_count(Gradual(until="50%")(0, History(epochs=1), paths), paths) == 4


def test_linear_probe_then_fine_tuning(p5):
    phases = rehearse(load_strategy("linear_probe"), p5, 10)
    assert [(start, trained_layers(phase) == {24}) for start, phase in phases] == [(0, True), (2, False)]
    assert not phases[1][1].frozen


def test_freezeout_follows_its_cosines(p5):
    history, strategy = History(epochs=100), FreezeOut(groups=5, first=0.8, cubed=True, scaled=True)
    ends = [math.ceil(100 * (0.8 + 0.05 * index) ** 3) for index in range(5)]
    assert ends == [52, 62, 73, 86, 100]
    for epoch in (0, 30, 51, 52, 85, 86, 99):
        phase = strategy(epoch, history, p5)
        assert stage_count(phase, p5) == sum(end <= epoch for end in ends)
        expected = [0.5 * (1 + math.cos(math.pi * epoch / end)) * 100 / end for end in ends if end > epoch]
        assert list(phase.factors.values()) == pytest.approx(expected)
    # The compiled step changes only where a stage freezes.
    assert [start for start, _ in rehearse(load_strategy("freezeout"), p5, 100)] == [0, *ends[:-1]]
    plain = FreezeOut(first=0.5, cubed=False, scaled=False)
    assert [stage_count(plain(epoch, history, p5), p5) for epoch in (49, 50, 63, 75, 88, 99)] == [0, 1, 2, 3, 4, 4]
    assert set(plain(0, history, p5).factors.values()) == {1.0}


@pytest.mark.parametrize("stage", ["0-4", "5-9", "10-17", "18-23"])
def test_surgery_takes_the_stage_with_the_largest_relative_gradient(stage, p5):
    part = stages(5, p5)[stage]
    # Large parameters with large gradients must not win, nor Detect, which trains anyway.
    norms = {path: 100.0 if layer_of(path) in (1, 20) else 1.0 for path in p5}
    gradients = {
        path: norm * (3.0 if path in part else 9.0 if layer_of(path) == 24 else 1.0) for path, norm in norms.items()
    }
    phase = Surgical()(0, History(epochs=5, gradient_norms=gradients, parameter_norms=norms), p5)
    assert frozenset(p5) - phase.frozen == part | select("detect", p5)
    assert Surgical.needs == {"gradient_norms"}


def records(p5, speeds: dict[str, list[float]]) -> tuple[EpochRecord, ...]:
    """Movement of each stage per epoch, at a learning rate that falls."""
    parts, records = stages(5, p5), []
    for epoch in range(len(next(iter(speeds.values())))):
        rate = 0.1 / (epoch + 1)
        movement = {path: rate * speeds[name][epoch] for name, part in parts.items() for path in part}
        records.append(EpochRecord(learning_rate=rate, movement=movement))
    return tuple(records)


def test_plateau_freezes_the_front_stage_that_has_settled(p5):
    falling = [2.0**-epoch for epoch in range(10)]
    speeds = {
        "0-4": [4.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0],  # settled after epoch 4: two small changes
        "5-9": [1.0] * 6 + [2.0, 2.0, 2.0, 2.0],  # settled early, but behind the front; jumps, settles again after 8
        "10-17": falling,
        "18-23": [1.0] * 10,
        "24": [1.0] * 10,
    }
    history = History(epochs=10, records=records(p5, speeds))
    counts = [stage_count(Plateau(tolerance=0.1, patience=2, start=1)(epoch, history, p5), p5) for epoch in range(11)]
    assert counts == [0, 0, 0, 0, 0, 1, 2, 2, 2, 2, 2]
    later = Plateau(tolerance=0.1, patience=2, start=7)
    assert [stage_count(later(epoch, history, p5), p5) for epoch in range(11)] == [0] * 7 + [1, 1, 2, 2]


def test_plateau_looks_at_nothing_that_comes_later(p5):
    history = History(epochs=10, records=records(p5, dict.fromkeys(stages(5, p5), [1.0] * 10)))
    strategy = Plateau(start=1)
    for epoch in range(10):
        past = History(epochs=10, records=history.records[:epoch])
        assert strategy(epoch, past, p5) == strategy(epoch, history, p5)
    # Two changes need three epochs; then one stage per epoch, and the last one never.
    assert [stage_count(strategy(epoch, history, p5), p5) for epoch in range(11)] == [0, 0, 0, 1, 2, 3, 4, 4, 4, 4, 4]


def test_adapters_label_a_pair_for_every_frozen_kernel(p5):
    phase = Adapters(select="backbone", rank=2, rate=3.0)(0, History(epochs=5), p5)
    kernels = {path for path in select("backbone", p5) if path.endswith("/kernel")}
    assert set(phase.adapted) == kernels
    assert sum(label == "adapters" for label in phase.labels.values()) == 2 * len(kernels) == 66
    assert phase.factors == {"trainable": 1.0, "adapters": 3.0}
    assert phase.adapters == dict.fromkeys(phase.adapted, Adapter(2))
    assert phase != make_phase(p5, train="detect")


def test_adapters_have_ranks_by_selector_and_a_scale(p5):
    phase = Adapters(select="backbone", rank=4, ranks={"0-4": 2, "model_4/**": 8}, alpha=8.0)(0, History(epochs=5), p5)
    assert phase.adapters["model_0/conv/kernel"] == Adapter(2, 4.0)
    assert phase.adapters["model_4/cv1/conv/kernel"] == Adapter(8, 1.0)
    assert phase.adapters["model_9/cv2/conv/kernel"] == Adapter(4, 2.0)
    assert phase.label("model_0/conv/adapter/scale") == "frozen"
    assert "model_4/cv1/conv/adapter/scale" not in phase.labels
    assert phase != Adapters(select="backbone", rank=4, ranks={"0-4": 2, "model_4/**": 8})(0, History(epochs=5), p5)
    with pytest.raises(UserError, match="ranks 12-13: there is no adapted kernel in it"):
        Adapters(select="backbone", ranks={"12-13": 2})(0, History(epochs=5), p5)
    for wrong in ({"0": 0}, {"0": True}, [2]):
        with pytest.raises(UserError, match="key 'ranks'"):
            Adapters(ranks=wrong)


def test_phases_in_order(p5):
    strategy = Phases(
        phases=[{"freeze": 24}, {"start": 3, "freeze": 10, "factor": 0.5}, {"start": "50%", "name": "all"}]
    )
    phases = [strategy(epoch, History(epochs=10), p5) for epoch in range(10)]
    assert [len(phase.frozen) for phase in phases] == [171] * 3 + [99] * 2 + [0] * 5
    assert phases[3].factors == {"trainable": 0.5}
    assert [phase.name for phase in phases[::3]] == ["freeze 24", "freeze 10", "all", "all"]
