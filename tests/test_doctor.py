"""What the doctor finds."""

import pytest
from packaging.requirements import Requirement

from yolojax import doctor
from yolojax.errors import UserError

METADATA = """Metadata-Version: 2.1
Name: {name}
Version: {version}
{requires}
"""


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Installs packages without content: ``packages("name", "1.0", "other; extra == 'x'")``."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def install(name, version, *requires):
        folder = tmp_path / f"{name}-{version}.dist-info"
        folder.mkdir()
        lines = "\n".join(f"Requires-Dist: {line}" for line in requires)
        (folder / "METADATA").write_text(METADATA.format(name=name, version=version, requires=lines))

    return install


@pytest.mark.parametrize(
    ("asked", "installed"),
    [
        ("whole", True),
        ("whole[light]", True),
        ("whole[old]", False),  # it is there, but too old
        ("whole[missing]", False),
        ("whole[nested]", False),  # of an extra of a package that is there
        ("whole[elsewhere]", True),  # of another system
        ("whole[light,missing]", False),
        ("nothing", False),
    ],
)
def test_an_extra_is_installed_when_all_that_it_asks_for_is(packages, asked, installed):
    packages(
        "whole", "1.0", "part>=2; extra == 'light'", "part>=4; extra == 'old'", "absent; extra == 'missing'",
        "part[more]; extra == 'nested'", "absent; extra == 'elsewhere' and sys_platform == 'plan9'",
    )  # fmt: skip
    packages("part", "3.0", "absent; extra == 'more'")
    assert doctor._is_installed(Requirement(asked)) is installed


def test_sizes_of_caches_are_those_of_their_files(tmp_path, monkeypatch):
    monkeypatch.setenv("YOLOJAX_CACHE", str(tmp_path))
    (tmp_path / "images" / "deep").mkdir(parents=True)
    (tmp_path / "images" / "one").write_bytes(b"x" * 1000)
    (tmp_path / "images" / "deep" / "two").write_bytes(b"x" * 24)
    (tmp_path / "images" / "again").symlink_to(tmp_path / "images" / "one")
    rows = {row["name"]: row for row in doctor._caches()}
    assert rows["images"] == {"name": "images", "folder": str(tmp_path / "images"), "bytes": 1024}


def test_a_machine_without_a_device_is_described_nevertheless(monkeypatch):
    def fail():
        raise UserError("no device could be started (broken)")

    monkeypatch.setattr(doctor, "select_devices", fail)
    report = doctor.examine()
    assert (report["devices"], report["train"]) == ([], None)
    assert report["device_problem"] == "no device could be started (broken)"
    assert report["memory_bytes"] > report["memory_free_bytes"] > 0
