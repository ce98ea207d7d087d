"""What launchers and flags say of the processes that belong together."""

import pytest

from yolojax.cli.main import main
from yolojax.errors import UserError
from yolojax.hosts.cluster import Cluster, find_cluster, local_device_ids, refuse_several, resolve_coordinator

SLURM = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_NODELIST": "node[07-08]",
    "SLURM_NTASKS": "8",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "1",
}
ADDRESS = "10.0.0.1:4000"


def set_environment(monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def test_a_process_alone_belongs_to_none():
    assert find_cluster(environment={}) is None
    assert find_cluster(environment={**SLURM, "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}) is None


def test_a_script_of_slurm_is_one_process_and_a_task_of_srun_one_of_several(monkeypatch):
    around = {name: value for name, value in SLURM.items() if "STEP" not in name}
    assert find_cluster(environment=around) is None
    cluster = find_cluster(environment=SLURM)
    assert (cluster.process_id, cluster.process_count, cluster.local_id, cluster.local_count) == (5, 8, 1, 4)
    set_environment(monkeypatch, SLURM)
    assert resolve_coordinator(cluster, 1).coordinator.startswith("node07:")


def test_a_tpu_pod_of_kubernetes_names_its_workers():
    environment = {"TPU_WORKER_ID": "2", "TPU_WORKER_HOSTNAMES": "a,b,c,d"}
    cluster = find_cluster(environment=environment)
    assert (cluster.process_id, cluster.process_count) == (2, 4)
    assert find_cluster(environment={"TPU_WORKER_ID": "0", "TPU_WORKER_HOSTNAMES": "a"}) is None


def test_open_mpi_tells_all_but_the_address(monkeypatch):
    cluster = find_cluster(ADDRESS, environment=OPEN_MPI)
    assert cluster == Cluster(
        origin="Open MPI", process_id=1, process_count=2, coordinator=ADDRESS, local_id=0, local_count=1
    )
    assert resolve_coordinator(cluster, 1) is cluster
    with pytest.raises(UserError, match="does not say where process 0 is; add --coordinator HOST:PORT"):
        resolve_coordinator(find_cluster(environment=OPEN_MPI), 1)


def test_flags_win_over_the_environment():
    environment = {"JAX_COORDINATOR_ADDRESS": ADDRESS, "JAX_PROCESS_ID": "1", "JAX_PROCESS_COUNT": "2"}
    cluster = find_cluster(environment=environment)
    assert (cluster.coordinator, cluster.process_id, cluster.process_count) == (ADDRESS, 1, 2)
    assert find_cluster("b:1", 2, 3, environment) == Cluster(
        origin="command line", process_id=2, process_count=3, coordinator="b:1"
    )
    assert find_cluster(ADDRESS, 0, 1, {}) is None


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ((ADDRESS, None, 2), "--process-id: is missing"),
        ((ADDRESS, 0, None), "--process-count: is missing"),
        ((ADDRESS, 2, 2), "--process-id 2: must be from 0 to 1"),
        (("host", 0, 2), "--coordinator host: write HOST:PORT"),
    ],
)
def test_what_does_not_make_a_cluster_is_refused(given, sentence):
    with pytest.raises(UserError, match=sentence):
        find_cluster(*given, environment={})


def test_a_number_in_the_environment_that_is_none_is_refused():
    with pytest.raises(UserError, match="JAX_PROCESS_ID=first in the environment: must be a whole number"):
        find_cluster(environment={"JAX_PROCESS_ID": "first"})


@pytest.mark.parametrize(
    ("local", "visible", "ids"),
    [
        ((None, 1), "0,1", None),
        ((0, 1), "0,1,2,3,4,5,6,7", None),  # one task of a node has all of its GPUs
        ((3, 4), "0,1,2,3", [3]),
        ((1, 2), "0,1,2,3,4,5,6,7", [4, 5, 6, 7]),
        ((1, 2), "5", None),  # the launcher has divided them
    ],
)
def test_tasks_of_one_machine_share_its_gpus(local, visible, ids):
    cluster = Cluster(origin="SLURM", process_id=0, process_count=8, local_id=local[0], local_count=local[1])
    assert local_device_ids(cluster, {"CUDA_VISIBLE_DEVICES": visible}) == ids


def test_other_commands_refuse_to_run_several_times(monkeypatch, capsys):
    refuse_several("detect", {})
    set_environment(monkeypatch, SLURM)
    assert main(["detect"]) == 2
    assert (
        "SLURM has started 8 of this command, and 'yolojax detect' does its work in one process"
        in capsys.readouterr().err
    )
