import json
from datetime import date

import jax
import pytest

from yolojax.errors import UserError
from yolojax.inference.export import read_stablehlo
from yolojax.inference.promise import expiry, promise

DAY = date(2026, 1, 31)


@pytest.fixture
def program(tmp_path):
    """A StableHLO file, and what stands beside one that was written on a day."""
    exported = jax.export.export(jax.jit(lambda x: x + 1))(jax.ShapeDtypeStruct((2,), "float32"))
    path = tmp_path / "a.stablehlo"
    path.write_bytes(bytes(exported.serialize()))

    def written(day):
        path.with_name("a.stablehlo.json").write_text(json.dumps(promise(day)))
        return path

    return written


def test_six_months_are_promised():
    assert promise(DAY) == {"jax": jax.__version__, "written": "2026-01-31", "readable_until": "2026-08-01"}


def test_the_last_day_is_a_good_one(program):
    path = program(DAY)
    assert expiry(path, date(2026, 8, 1)) is None
    assert expiry(path, date(2026, 8, 2)) == (
        f"{path}: written by jax {jax.__version__} on 2026-01-31, was promised to be readable until 2026-08-01; "
        "export it again from its weights"
    )


@pytest.mark.parametrize("beside", [None, "{", "[]", '{"readable_until": "soon"}'])
def test_nothing_beside_the_file_tells_nothing(tmp_path, beside):
    if beside is not None:
        (tmp_path / "a.stablehlo.json").write_text(beside)
    assert expiry(tmp_path / "a.stablehlo", DAY) is None


def test_an_expired_file_that_can_still_be_read_is_warned_of(program, contents, caplog):
    path = program(date(2020, 1, 1))
    before = contents(path.parent)
    run = read_stablehlo(path)
    assert "was promised to be readable until 2020-07-01" in caplog.text
    assert contents(path.parent) == before
    assert run(jax.numpy.zeros(2))[0].tolist() == [1, 1]
    caplog.clear()
    read_stablehlo(program(date.today()))
    assert not caplog.text


@pytest.mark.parametrize(
    ("day", "message"),
    [(date(2020, 1, 1), "promised to be readable until 2020-07-01; export it again"), (date.today(), "cannot read it")],
)
def test_a_file_that_cannot_be_read_is_one_sentence(program, contents, day, message):
    path = program(day)
    path.write_bytes(path.read_bytes()[:40])
    before = contents(path.parent)
    with pytest.raises(UserError, match=message) as error:
        read_stablehlo(path)
    assert "\n" not in str(error.value)
    assert contents(path.parent) == before
