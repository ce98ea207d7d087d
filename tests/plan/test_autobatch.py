"""The batch that ``--batch -1`` means."""

import dataclasses
from types import SimpleNamespace

import jax
import pytest

from yolojax.errors import UserError
from yolojax.freezing.phases import make_phase
from yolojax.plan import autobatch
from yolojax.plan.autobatch import fitting_batch, largest_on_one, with_fitting_batch
from yolojax.training.settings import TrainSettings
from yolojax.training.setup import prepare

GPU = SimpleNamespace(platform="gpu", device_kind="Card", memory_stats=lambda: {"bytes_limit": 1000})


@pytest.fixture
def settings(tiny_model, tiny_data):
    return TrainSettings(weights="", cfg=str(tiny_model), data=str(tiny_data), imgsz=64, batch_size=-1, workers=0)


@pytest.fixture
def card(monkeypatch):
    """Lets trainings run on cards that need so many bytes per image, and ``frozen`` bytes less of them for every layer that is frozen."""

    def make(bytes_per_image, count=1, asked=None):
        def peak(spec, phase, shape, device):
            if asked is not None:
                asked.append((len(phase.frozen), shape))
            return 100 + shape.batch * bytes_per_image - len(phase.frozen)

        real = prepare
        monkeypatch.setattr(autobatch, "training_peak", peak)
        monkeypatch.setattr(autobatch, "select_devices", lambda *_: [GPU] * count)
        monkeypatch.setattr(
            autobatch, "prepare", lambda settings: real(dataclasses.replace(settings, device="cpu", batch_size=1))
        )

    return make


def test_a_cpu_takes_the_usual_batch_and_says_so(settings, caplog):
    with caplog.at_level("INFO", "yolojax"):
        assert with_fitting_batch(settings).batch_size == 16
    assert "--batch-size -1: 16, as without it: a CPU has no memory of its own to fill" in caplog.text


@pytest.mark.parametrize(("bytes_per_image", "count", "batch"), [(90, 1, 7), (130, 1, 5), (130, 2, 10), (340, 2, 4)])
def test_a_card_takes_what_fits_into_four_fifths_of_it(settings, card, bytes_per_image, count, batch):
    card(bytes_per_image, count)
    found, reason = fitting_batch(settings)
    assert found == batch  # 100 + n * bytes <= 800, times the number of cards
    assert "at most 80% of what Card has" in reason


def test_a_batch_is_no_larger_than_the_data(settings, card):
    card(1)
    assert fitting_batch(settings) == (10, "10, because there are no more than 10 training images")


def test_a_card_that_is_too_small_is_told(settings, card):
    card(900)
    with pytest.raises(UserError, match=r"not even one image of 64 px fits into 0\.0 GB; choose a smaller --img"):
        fitting_batch(settings)


def test_the_phase_that_needs_most_decides(settings, card, tmp_path):
    strategy = tmp_path / "thaw.yaml"
    strategy.write_text("phases: [{train: detect}, {start: 3, freeze: 0}]")
    asked = []
    card(40, asked=asked)
    job, _ = autobatch.prepare(
        dataclasses.replace(settings, freeze=(str(strategy),), multi_scale=True, dtype="bfloat16")
    )
    assert largest_on_one(job, GPU, 1000) == 16
    assert [frozen > 0 for frozen, _ in asked[:2]] == [True, False]  # every phase once
    assert not any(frozen for frozen, _ in asked[2:])  # then the one that needs most
    shape = asked[0][1]
    assert (shape.size, shape.dtype, shape.boxes) == (96, "bfloat16", job.stream.max_boxes)


@pytest.mark.slow
def test_what_is_found_is_the_largest_that_fits_as_compiled(settings):
    job, _ = prepare(dataclasses.replace(settings, batch_size=1))
    device = jax.devices("cpu")[0]
    paths = job.paths
    shape = autobatch.StepShape(batch=20, size=64, dtype="float32", boxes=job.stream.max_boxes, frozen_bn="fixed")
    limit = autobatch.training_peak(job.spec, make_phase(paths, freeze=0), shape, device)
    assert 16 <= largest_on_one(job, device, limit) <= 20
