"""Which networks can teach which."""

import dataclasses

import jax
import numpy as np
import pytest

from yolojax.errors import UserError
from yolojax.model.network import abstract_variables
from yolojax.model.spec import load_spec
from yolojax.weights.delta import arrays_sha256
from yolojax.weights.store import Weights
from yolojax.weights.teacher import make_teacher

NAMES = ("bus", "Traffic light", "car")


@pytest.fixture(scope="module")
def weights(tiny_model):
    spec = load_spec(tiny_model, len(NAMES))
    variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract_variables(spec))
    return Weights(spec=spec, names=NAMES, variables=variables, source={"file": "old.pt"})


def test_classes_are_matched_by_name(weights, tiny_model):
    teacher = make_teacher(weights, load_spec(tiny_model, 4), ("sign", "car", "trafficlight", "dog"), 2.0, "--distil x")
    assert teacher.distillation.classes == ((1, 2), (2, 1))
    assert teacher.distillation.gain == 2
    assert teacher.names == ("car", "trafficlight")
    assert teacher.arrays_sha256 == arrays_sha256(weights.variables)


def test_anchors_of_a_half_precision_file_are_the_same(weights):
    rounded = np.array(weights.spec.anchors).astype(np.float16) * np.float64(1.0001)
    own = dataclasses.replace(weights, spec=weights.spec.with_anchors(rounded.tolist()))
    make_teacher(own, weights.spec, NAMES, 1.0, "--distil x")


def test_a_teacher_that_does_not_fit_is_refused(weights, tiny_model, pyramid, tmp_path):
    import yaml

    def refused(message, own=weights, spec=weights.spec, names=NAMES):
        with pytest.raises(UserError, match=f"--distil x: {message}"):
            make_teacher(own, spec, names, 1.0, "--distil x")

    refused(r"none of its classes \(bus, Traffic light, car\) is one of the run \(cat\)", names=("cat",))
    other = weights.spec.with_anchors([[[9.0, 9.0]] * 3, [[30.0, 30.0]] * 3])
    refused("its anchors are not those", spec=other)
    fewer = weights.spec.with_anchors([level[:2] for level in weights.spec.anchors])
    refused("its anchors are not those", spec=fewer)
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(pyramid(3, 4, 5)))
    refused("tiny detects at strides", spec=load_spec(tmp_path / "other.yaml", 3))
