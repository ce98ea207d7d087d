"""Descriptions of devices that are not here."""

import re

import pytest

from yolojax.config import configs_root, read_yaml
from yolojax.errors import UserError
from yolojax.plan import devices as targets
from yolojax.plan.devices import Target, cuda_description, load_target, target_environment, usable_bytes


@pytest.fixture
def installed(monkeypatch):
    monkeypatch.setattr(targets, "_is_installed", lambda package: True)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("name", read_yaml(configs_root() / "targets.yaml"))
def test_every_shipped_description_is_whole(name):
    target = load_target(name)
    assert target.platform == name.split(":")[0]
    assert 1e10 < target.memory < 1e12
    if target.platform == "cuda":
        text = cuda_description(target)
        assert text.count("{") == text.count("}") == 3
        assert all(
            re.search(r": \S", line) for line in text.strip().splitlines() if "{" not in line and "}" not in line
        )
        assert f"device_memory_size: {target.memory}" in text
    assert target_environment(target)["JAX_PLATFORMS"] == "cpu"


@pytest.mark.usefixtures("installed")
def test_the_facts_of_a_card_reach_the_compiler():
    text = cuda_description(load_target("cuda:h100"))
    assert "major: 9 minor: 0 feature_extension: ACCELERATED_FEATURES" in text
    assert "core_count: 132" in text
    assert "major: 8 minor: 0 feature_extension: NONE" in cuda_description(load_target("cuda:a100"))


@pytest.mark.parametrize(("name", "package"), [("cuda:h100", "jax-cuda12-plugin"), ("tpu:v5e", "libtpu")])
def test_without_its_compiler_the_extra_is_named(monkeypatch, name, package):
    monkeypatch.setattr(targets, "_is_installed", lambda asked: asked != package)
    with pytest.raises(UserError, match=rf"--target {name}: .*pip install 'yolojax\[aot\]'.*missing: {package}"):
        load_target(name)


def test_an_unknown_target_lists_the_known():
    with pytest.raises(
        UserError, match=r"--target cuda:h1: is not known; there are cpu, gpu, tpu .* cuda:h100, .*tpu:v5e"
    ):
        load_target("cuda:h1")


@pytest.mark.usefixtures("installed")
def test_jax_takes_a_part_of_a_gpu(monkeypatch):
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
    card, chip = load_target("cuda:h100"), load_target("tpu:v5e")
    assert usable_bytes(card, None) == int(0.75 * card.memory)
    assert usable_bytes(chip, None) == chip.memory
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.5")
    assert usable_bytes(card, None) == card.memory // 2


@pytest.mark.usefixtures("installed")
def test_the_compiler_for_tpus_is_told_no_flags_for_a_cpu(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_max_isa=AVX2 --xla_dump_to=there")
    assert target_environment(load_target("tpu:v5e"))["XLA_FLAGS"] == "--xla_dump_to=there"


def test_devices_of_this_machine_need_no_description():
    assert load_target("cpu") == Target(name="cpu", title="cpu of this machine", platform="own", facts={})
    assert target_environment(load_target("gpu"))["JAX_PLATFORMS"] == "cuda,cpu"
