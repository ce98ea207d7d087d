import json
import re

import jax
import numpy as np

from yolojax import doctor, runtime
from yolojax.cli.main import main


def test_the_doctor_tells_people_and_programs_the_same(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["doctor", "--json", str(tmp_path / "doctor.json")]) == 0
    printed, report = capsys.readouterr().out, json.loads((tmp_path / "doctor.json").read_text())
    assert all(len(line) <= 80 for line in printed.splitlines())
    assert all(re.fullmatch(r"[a-z][a-z0-9_]*", key) for key in report)
    assert (report["jax"], report["numpy"]) == (jax.__version__, np.__version__)
    assert report["jax"] in printed
    assert report["devices"][0]["platform"] == "cpu"
    assert f"train --freeze 10 would run on: {report['train']}" in " ".join(printed.split())
    assert "float32" in report["train"]
    assert {row["name"] for row in report["disks"]} >= {"current folder", "cache", "temporary files"}
    for row in report["extras"]:
        assert (row["command"] is None) == row["installed"]
        assert (row["command"] or "installed") in printed


def test_without_a_device_the_reason_comes_last_and_the_status_is_1(monkeypatch, capsys):
    report = doctor.examine() | {"devices": [], "device_problem": "no device could be started (broken)", "train": None}
    monkeypatch.setattr(doctor, "examine", lambda: report)
    assert main(["doctor"]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "no device could be started (broken)"


def test_huge_pages_that_are_switched_off_are_told(monkeypatch, capsys):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=0")
    monkeypatch.setattr(runtime, "_huge_pages_absence", lambda: None)
    main(["doctor"])
    assert "not used: GLIBC_TUNABLES switches them off" in capsys.readouterr().out
