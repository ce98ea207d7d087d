"""The recipes in examples/launch/: their own command lines, with processes of this machine in the place of nodes."""

import os
import shutil
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from yolojax.cli.main import build_parser

LAUNCH = Path(__file__).resolve().parents[2] / "examples" / "launch"
SCRIPTS = sorted(LAUNCH.glob("*.sh"))
ANNOTATION = "metadata.annotations['batch.kubernetes.io/job-completion-index']"

MOST_SECONDS = 900
# Each stands for a program of the same name, and starts what it is given once for each of two processes.
STANDS_FOR = {
    "yolojax": 'exec {python} -m yolojax "$@"',
    "srun": """
        export SLURM_STEP_NODELIST=localhost SLURM_NTASKS=2 SLURM_STEP_TASKS_PER_NODE=2
        for number in 0 1; do SLURM_PROCID=$number SLURM_LOCALID=$number "$@" & started[number]=$!; done
        wait "${{started[0]}}" && wait "${{started[1]}}"
    """,
    "gcloud": """
        export JAX_COORDINATOR_ADDRESS=127.0.0.1:$PORT JAX_PROCESS_COUNT=2
        for number in 0 1; do JAX_PROCESS_ID=$number bash -c "${{!#}}" & started[number]=$!; done
        wait "${{started[0]}}" && wait "${{started[1]}}"
    """,
}

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the recipes are for Linux")


@pytest.fixture
def machine(tmp_path):
    """The environment of a machine that has the programs of the recipes."""
    for name, lines in STANDS_FOR.items():
        file = tmp_path / "programs" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"#!/usr/bin/env bash\n{lines.format(python=sys.executable)}\n")
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    path = f"{tmp_path / 'programs'}:{os.environ['PATH']}"
    package = str(Path(__file__).resolve().parents[2])
    return os.environ | {
        "PATH": path,
        "PYTHONPATH": package,
        "SLURM_JOB_ID": port,
        "JAX_COORDINATOR_PORT": port,
        "PORT": port,
    }


@pytest.fixture
def small(tiny_model, tiny_data):
    """Flags that make a training of seconds of that of a recipe."""
    fixed = f"--weights= --cfg={tiny_model} --data={tiny_data} --img=64 --batch=4 --freeze=4 --epochs=1 --workers=0 --noplots --noval --nosave"
    return fixed.split()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_recipe_is_a_script_with_flags_of_train(script):
    text = script.read_text(encoding="utf-8")
    assert_trains(text, "--weights" + text.split("flags=(--weights", 1)[1].split(")")[0])


def assert_trains(script: str, words: str) -> None:
    """It is one of bash, and ``words`` are flags of train; the last one stands for those of a user."""
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    arguments = build_parser("train").parse_args(["train", *words.replace('"', "").split()[:-1]])
    assert arguments.freeze == ["10"]


def test_jobset_gives_each_pod_its_number_and_shared_memory():
    content, template = jobset(), pod()
    [job], [container] = content["spec"]["replicatedJobs"], template["containers"]
    [script] = container["args"]
    assert_trains(script, script.split("exec yolojax train ")[-1])
    variables = {item["name"]: item for item in container["env"]}
    assert variables["JAX_PROCESS_ID"]["valueFrom"]["fieldRef"]["fieldPath"] == ANNOTATION
    # Its first pod, as JobSet names it; and as many processes as pods, all at once.
    name = content["metadata"]["name"]
    assert variables["JAX_COORDINATOR_ADDRESS"]["value"] == f"{name}-{job['name']}-0-0.{name}:12345"
    pods = job["template"]["spec"]
    assert variables["JAX_PROCESS_COUNT"]["value"] == str(pods["parallelism"]) == str(pods["completions"])
    assert "/dev/shm" in [mount["mountPath"] for mount in container["volumeMounts"]]
    assert {"medium": "Memory", "sizeLimit": "16Gi"} in [volume.get("emptyDir") for volume in template["volumes"]]


def jobset() -> dict:
    content = yaml.safe_load((LAUNCH / "jobset.yaml").read_text(encoding="utf-8"))
    assert (content["apiVersion"], content["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    return content


def pod() -> dict:
    return jobset()["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]


def run_together(commands: list[tuple[list[str], dict]], **options) -> None:
    """Start commands at once, each in a process; none of them stays behind."""
    started = [subprocess.Popen(command, **options | extra) for command, extra in commands]
    try:
        assert [process.wait(MOST_SECONDS) for process in started] == [0] * len(started)
    finally:
        for process in started:
            process.kill()


def assert_trained_together(folder: Path) -> None:
    assert (folder / "results.json").is_file()
    assert "process 1 of 2" in (folder / "logs" / "process-1.txt").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["slurm_per_node", "slurm_per_gpu"])
def test_slurm(name, machine, small, tmp_path):
    done = subprocess.run(
        ["bash", str(LAUNCH / f"{name}.sh"), *small], cwd=tmp_path, env=machine, timeout=MOST_SECONDS, check=False
    )
    assert done.returncode == 0
    assert_trained_together(tmp_path / "runs" / "train" / f"slurm-{machine['SLURM_JOB_ID']}")


@pytest.mark.slow
def test_tpu_pod(machine, small, tmp_path):
    words = ["bash", str(LAUNCH / "tpu_pod.sh"), "slice", "zone", str(tmp_path), *small]
    assert subprocess.run(words, env=machine, timeout=MOST_SECONDS, check=False).returncode == 0
    assert_trained_together(tmp_path / "runs" / "exp")


@pytest.mark.slow
def test_two_machines(machine, small, tmp_path):
    words = ["bash", str(LAUNCH / "two_machines.sh")]
    address = f"127.0.0.1:{machine['PORT']}"
    commands = [([*words, number, address, *small], {}) for number in ("0", "1")]
    run_together(commands, cwd=tmp_path, env=machine)
    assert_trained_together(tmp_path / "runs" / "train" / "exp")


@pytest.mark.slow
def test_jobset(machine, small, tmp_path):
    [container] = pod()["containers"]
    command = [*container["command"], *container["args"]]
    assert shutil.which(command[0])
    own = {
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{machine['PORT']}",
        "JAX_PROCESS_COUNT": "2",
        "FLAGS": " ".join(small),
    }
    commands = [(command, {"env": machine | own | {"JAX_PROCESS_ID": number}}) for number in ("0", "1")]
    run_together(commands, cwd=tmp_path)
    assert_trained_together(tmp_path / "runs" / "train" / "jobset")
