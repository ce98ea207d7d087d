"""Batches made on the device are those of the host, given the same draws; and the same ones however a run goes."""

import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from yolojax.augmentation.batches import apply, make_batch
from yolojax.augmentation.division import bring
from yolojax.augmentation.draws import DeviceAugmentation, Draws, draw, epoch_order
from yolojax.augmentation.resident import place_resident, resident_bytes
from yolojax.data import geometry
from yolojax.data.augment import Augmentation, Images, make_image
from yolojax.data.sample import ImageError, Sample
from yolojax.hyperparameters import Hyperparameters
from yolojax.mesh import AXIS, make_mesh

SIZE = 64
NOTHING = {"hsv_h": 0.0, "hsv_s": 0.0, "hsv_v": 0.0}
STRONG = {"degrees": 20.0, "shear": 8.0, "translate": 0.2, "scale": 0.5, "flipud": 0.5}
CASES = {
    "mosaics": {"translate": 0.1, "scale": 0.5},
    "turned mosaics, mixed": {**STRONG, "mixup": 0.5},
    "tilted mosaics": {**STRONG, "perspective": 0.001},
    "some mosaics, mixed": {**STRONG, "mosaic": 0.5, "mixup": 0.5},
    "alone": {**STRONG, "mosaic": 0.0},
    "untouched": {"translate": 0.0, "scale": 0.0, "mosaic": 0.0, "fliplr": 0.0},
}


def photo(seed: int, height: int, width: int, smooth: bool) -> np.ndarray:
    """Noise; or, where OpenCV's rounding of hue would be drowned in it, something smooth."""
    rng = np.random.default_rng(seed)
    if not smooth:
        return rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
    y, x = np.mgrid[:height, :width] / SIZE
    waves = [np.sin(rng.uniform(1, 6) * x + rng.uniform(1, 6) * y + rng.uniform(0, 6)) for _ in range(3)]
    return (127.5 + 127 * np.stack(waves, -1)).astype(np.uint8)


def split(smooth: bool = False) -> list[Sample]:
    """Seven images of different shapes, with 0 to 5 boxes each."""
    shapes = [(48, 64), (64, 48), (64, 64), (30, 64), (64, 20), (96, 128), (147, 60)]
    samples = []
    for seed, (height, width) in enumerate(shapes):
        rng = np.random.default_rng(seed)
        boxes = np.concatenate(
            [
                rng.integers(0, 9, (seed % 6, 1)),
                rng.uniform(0.3, 0.7, (seed % 6, 2)),
                rng.uniform(0.05, 0.6, (seed % 6, 2)),
            ],
            1,
        )
        image = photo(seed, height, width, smooth)
        reader = lambda image=image: image  # noqa: E731
        samples.append(Sample(name=f"{seed}", size=(height, width), boxes=boxes.astype(np.float32), reader=reader))
    return samples


class Recorder:
    """A generator that keeps what it gives."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.given: list = []

    def __getattr__(self, name: str):
        def draw(*arguments, **options):
            value = getattr(self.rng, name)(*arguments, **options)
            self.given.append(list(arguments[0]) if name == "shuffle" else value)
            return value

        return draw


def read_draws(given: list, index: int, hyp: Hyperparameters) -> dict:
    """The fields of ``Draws`` for one image, from what the host drew, in its order."""
    given = list(given)
    take = lambda: given.pop(0)  # noqa: E731
    nothing = {
        "parts": [0] * 4,
        "centre": [0, 0],
        "tilt": [0, 0],
        "angle": 0,
        "scale": 1,
        "shear": [0, 0],
        "move": [0, 0],
    }

    def motion() -> dict:
        tilt, angle, scale, shear, move = (take() for _ in range(5))
        return {"tilt": tilt, "angle": angle, "scale": scale, "shear": shear, "move": np.array(move) * SIZE}

    def mosaic() -> dict:
        for _ in range(3):
            take()
        return {"parts": take(), "centre": [int(take()), int(take())], **motion()}

    made = {"alone": index, "mosaic": take() < hyp.mosaic, "mixed": False, "share": 1.0}
    views = [nothing, nothing]
    if made["mosaic"]:
        views[0] = mosaic()
        made["mixed"] = take() < hyp.mixup
        if made["mixed"]:
            take()
            views[1], made["share"] = mosaic(), take()
    else:
        views[0] = nothing | motion()
    made["gains"] = 1 + take() * np.array([hyp.hsv_h, hyp.hsv_s, hyp.hsv_v]) if hyp.hsv_v else np.ones(3)
    made["flip_up_down"], made["flip_left_right"] = take() < hyp.flipud, take() < hyp.fliplr
    assert not given
    count = 2 if hyp.mosaic > 0 and hyp.mixup > 0 else 1
    return made | {name: [view[name] for view in views[:count]] for name in nothing}


def both_ways(hyp: Hyperparameters, images: int = 32, smooth: bool = False):
    """Images and boxes of the host, and the batch of the device for the host's draws."""
    samples = Images(split(smooth), SIZE, False)
    hosts, draws = [], []
    for number in range(images):
        rng, index = Recorder(number), number % len(samples.samples)
        hosts.append(make_image(samples, index, (SIZE, SIZE), Augmentation(hyperparameters=hyp), rng))
        draws.append(read_draws(rng.given, index, hyp))
    kinds = {"parts": np.int32, "alone": np.int32, "centre": np.int32, "mosaic": bool, "mixed": bool} | dict.fromkeys(
        ("flip_up_down", "flip_left_right"), bool
    )
    given = Draws(
        **{
            name: jnp.asarray(np.array([row[name] for row in draws]).astype(kinds.get(name, np.float32)))
            for name in Draws._fields
        }
    )
    resident, unreadable = place_resident(samples)
    assert not unreadable
    settings = DeviceAugmentation(hyperparameters=hyp, count=len(samples.samples), image_size=SIZE, batch_size=images)
    batch = jax.device_get(jax.jit(lambda draws, resident: apply(draws, resident, settings))(given, resident))
    return hosts, batch


def differences(hosts, batch) -> np.ndarray:
    """Grey levels between the two at every pixel and channel."""
    return np.abs(np.stack([made.image for made in hosts]).astype(int) - batch["images"])


def assert_same_boxes(hosts, batch) -> None:
    for made, boxes, mask in zip(hosts, batch["boxes"], batch["mask"], strict=True):
        assert mask.sum() == len(made.boxes)
        assert mask[: len(made.boxes)].all()
        np.testing.assert_array_equal(boxes[mask][:, 0], made.boxes[:, 0])
        np.testing.assert_allclose(boxes[mask][:, 1:] * SIZE, made.boxes[:, 1:] * SIZE, atol=1e-3)


@pytest.mark.parametrize("case", CASES)
def test_given_the_same_draws_the_device_makes_what_the_host_makes(case):
    hosts, batch = both_ways(Hyperparameters(**{**NOTHING, **CASES[case]}))
    assert differences(hosts, batch).max() <= 1
    assert_same_boxes(hosts, batch)
    assert (batch["images"] == geometry.GREY).all(-1).any()
    assert sum(len(made.boxes) for made in hosts) > 20


def test_colours_are_rounded_as_the_host_rounds_them():
    hosts, batch = both_ways(Hyperparameters(hsv_h=0.1, mixup=0.3, degrees=5.0), smooth=True)
    difference = differences(hosts, batch)
    assert (difference <= 1).mean() > 0.999
    assert (difference <= 10).mean() > 0.9999


HYP = Hyperparameters(mixup=0.3, degrees=5.0, flipud=0.3)


def batch_maker(samples, batch_size=8, mesh=None, hyp=HYP, divided=False):
    """A jitted ``make(epoch, first_place)`` over some samples."""
    images = Images(samples, SIZE, False)
    settings = DeviceAugmentation(
        hyperparameters=hyp, count=len(samples), image_size=SIZE, batch_size=batch_size, mesh=mesh, divided=divided
    )
    resident, _ = place_resident(images, mesh, divided)
    program = jax.jit(lambda resident, epoch, place: make_batch(resident, settings, jax.random.key(3), epoch, place))
    return lambda epoch, place: jax.device_get(program(resident, jnp.int32(epoch), jnp.int32(place)))


@pytest.mark.long
def test_a_batch_depends_on_seed_epoch_and_place_alone():
    make = batch_maker(split())
    first, again, later, next_epoch = make(0, 0), make(0, 0), make(0, 8), make(1, 0)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    for other in (later, next_epoch):
        assert (first["images"] != other["images"]).mean() > 0.5
    small = batch_maker(split(), batch_size=4)
    halves = [small(0, place) for place in (0, 4)]
    jax.tree.map(lambda whole, *parts: np.testing.assert_array_equal(whole, np.concatenate(parts)), first, *halves)


def test_an_epoch_shows_every_sample_once_and_fills_its_last_batch_from_a_second_permutation():
    settings = DeviceAugmentation(hyperparameters=HYP, count=11, image_size=SIZE, batch_size=4)
    key = jax.random.key(0)
    orders = np.array([epoch_order(settings, key, epoch) for epoch in range(3)])
    assert orders.shape == (3, 12)
    assert (np.sort(orders[:, :11]) == np.arange(11)).all()
    assert len({tuple(order) for order in orders.tolist()}) == 3
    few = DeviceAugmentation(hyperparameters=HYP, count=3, image_size=SIZE, batch_size=8)
    assert (np.sort(np.array(epoch_order(few, key, 0))[:6].reshape(2, 3)) == np.arange(3)).all()


def test_draws_have_the_distributions_of_the_host():
    hyp = Hyperparameters(mosaic=0.7, mixup=0.4, flipud=0.2, fliplr=0.6, degrees=10, shear=3, perspective=0.001)
    settings = DeviceAugmentation(hyperparameters=hyp, count=50, image_size=SIZE, batch_size=4096)
    places = jnp.arange(4096, dtype=jnp.int32)
    draws = jax.device_get(draw(settings, jax.random.key(0), 0, places, places % 50))
    near = lambda wanted: pytest.approx(wanted, abs=0.03)  # noqa: E731
    assert draws.mosaic.mean() == near(0.7)
    assert draws.mixed[draws.mosaic].mean() == near(0.4)
    assert not draws.mixed[~draws.mosaic].any()
    assert (draws.flip_up_down.mean(), draws.flip_left_right.mean()) == (near(0.2), near(0.6))
    # Beta(32, 32) has variance 1 / 260.
    assert (draws.share.mean(), draws.share.std() * 260**0.5) == (near(0.5), near(1))
    assert (draws.parts[:, 0] == (places % 50)[:, None]).any(1).all()
    assert np.bincount(draws.parts.ravel(), minlength=50).std() / (8 * 4096 / 50) < 0.1
    for values, low, high in (
        (draws.centre, SIZE / 2, 1.5 * SIZE),
        (draws.tilt, -0.001, 0.001),
        (draws.angle, -10, 10),
        (draws.scale, 0.5, 1.5),
        (draws.shear, -3, 3),
        (draws.move, 0.4 * SIZE, 0.6 * SIZE),
        (draws.gains[:, 1], 0.3, 1.7),
    ):
        ordered = np.sort((values.ravel() - low) / (high - low))
        assert ordered[0] >= 0
        assert ordered[-1] <= 1
        assert np.abs(ordered - np.linspace(0, 1, len(ordered))).max() < 0.03


def compare_devices() -> None:
    """The same batches on 1, 2 and 8 devices that keep all images or a part of them; run in a process that has them."""
    for hyp in (HYP, Hyperparameters(mosaic=0), Hyperparameters(mosaic=0.5)):
        makers = [
            batch_maker(split(), mesh=make_mesh(jax.devices()[:count]), hyp=hyp, divided=divided)
            for count, divided in ((1, False), (2, False), (8, False), (2, True), (8, True))
        ]
        for epoch in range(10):
            first, *others = (make(epoch, 8) for make in makers)
            for other in others[:2]:
                jax.tree.map(np.testing.assert_array_equal, first, other)
            for other in others[2:]:
                np.testing.assert_array_equal(first["images"], other["images"])
                np.testing.assert_array_equal(first["mask"], other["mask"])
                np.testing.assert_allclose(first["boxes"], other["boxes"], rtol=0, atol=5e-7)
    print("equal")


@pytest.mark.long
def test_batches_are_the_same_for_any_number_of_devices():
    assert in_eight_devices("compare_devices") == "equal"


def in_eight_devices(function: str) -> str:
    """What a function of this file prints in a process that has so many."""
    folder = Path(__file__).resolve().parent
    # Not the tests' quick compilation: it has several ways to emit a loop, and with AVX-512 they round some pixels otherwise.
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "PYTHONPATH": os.pathsep.join([str(folder), str(folder.parents[1])]),
    }
    code = f"import test_batches; test_batches.{function}()"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert not done.returncode, done.stderr[-3000:]
    return done.stdout.strip()


def test_images_that_cannot_be_read_are_replaced_by_the_next_one():
    def fail():
        raise ImageError("is broken")

    samples = split()
    samples[2] = Sample(name="broken", size=(64, 64), boxes=samples[1].boxes, reader=fail)
    resident, unreadable = place_resident(Images(samples, SIZE, False))
    assert unreadable == ["broken"]
    for field in (resident.images, resident.sizes, resident.boxes, resident.counts):
        np.testing.assert_array_equal(field[2], field[3])
    assert sum(field.nbytes for field in jax.tree.leaves(resident)) == resident_bytes(samples, SIZE)


def bring_rows() -> None:
    """Rows of an array that eight devices divide, asked for evenly, by one device of one other, and by all of one; run in a process that has them."""
    mesh, rows = make_mesh(jax.devices()), np.arange(48, dtype=np.float32).reshape(24, 2)
    program = jax.jit(
        jax.shard_map(
            partial(bring, axis=AXIS),
            mesh=mesh,
            in_specs=(PartitionSpec(AXIS), PartitionSpec(AXIS)),
            out_specs=PartitionSpec(AXIS),
            check_vma=False,
        )
    )
    even = np.random.default_rng(0).integers(0, 24, 80)
    for wanted in (even, np.where(np.arange(80) < 10, 23, even), np.full(80, 1)):
        np.testing.assert_array_equal(program(rows, wanted.astype(np.int32)), rows[wanted])
    text = program.lower(rows, wanted.astype(np.int32)).compile().as_text()
    assert re.search(r"f32\S* all-to-all\(", text)
    assert not re.search(r"f32\S* all-(gather|reduce)\(", text)  # no device ever has them all
    print("equal")


def test_a_device_is_brought_what_others_keep():
    assert in_eight_devices("bring_rows") == "equal"
