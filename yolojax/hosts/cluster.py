"""Whether this process is one of several that were started together, as a launcher or the command line says."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from yolojax.errors import UserError
from yolojax.runtime import has_tpu

COORDINATOR, PROCESS_ID, PROCESS_COUNT = "JAX_COORDINATOR_ADDRESS", "JAX_PROCESS_ID", "JAX_PROCESS_COUNT"


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Several processes, of which this is one.

    Attributes:
      origin: what says so, for people.
      process_id: of this one, from 0.
      process_count: of all.
      coordinator: ``HOST:PORT`` where process 0 can be reached; None where nothing has said it yet.
      local_id: of this process among those of its machine, from 0; None where nobody tells.
      local_count: processes of its machine.
    """

    origin: str
    process_id: int
    process_count: int
    coordinator: str | None = None
    local_id: int | None = None
    local_count: int = 1

    @property
    def variables(self) -> dict[str, str]:
        """Variables of the environment that tell another program the same, where flags have told this one; a launcher's are there already."""
        if self.coordinator is None:
            return {}
        return {
            COORDINATOR: self.coordinator,
            PROCESS_ID: str(self.process_id),
            PROCESS_COUNT: str(self.process_count),
        }


def add_cluster_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that tell a process of the others."""
    group = parser.add_argument_group("several machines", "SLURM, Open MPI and TPU pods need none of these")
    group.add_argument(
        "--coordinator",
        metavar="HOST:PORT",
        help=f"address of process 0, with a free port; default: {COORDINATOR} of the environment, else what the launcher says",
    )
    group.add_argument(
        "--process-id", type=int, metavar="N", help=f"number of this process, from 0; default: {PROCESS_ID}"
    )
    group.add_argument("--process-count", type=int, metavar="N", help=f"number of processes; default: {PROCESS_COUNT}")


def find_cluster(
    coordinator: str | None = None,
    process_id: int | None = None,
    process_count: int | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Cluster | None:
    """The processes that this one belongs to; None where it is alone.

    Args:
      coordinator: value of ``--coordinator``.
      process_id: value of ``--process-id``.
      process_count: value of ``--process-count``.
      environment: where launchers leave their variables.

    Raises:
      UserError: what is known does not make a cluster.
    """
    coordinator = coordinator or environment.get(COORDINATOR)
    process_id = _number(environment, PROCESS_ID) if process_id is None else process_id
    process_count = _number(environment, PROCESS_COUNT) if process_count is None else process_count
    launched = _launched(environment)
    if coordinator is None and process_id is None and process_count is None:
        return launched or _tpu_pod(environment)
    if launched is not None:
        process_id = launched.process_id if process_id is None else process_id
        process_count = launched.process_count if process_count is None else process_count
    if process_count == 1:
        return None
    if process_id is None or process_count is None:
        missing = "--process-id" if process_id is None else "--process-count"
        raise UserError(
            f"{missing}: is missing, and no launcher says it; several processes need both, and --coordinator"
        )
    if not 0 <= process_id < process_count:
        raise UserError(
            f"--process-id {process_id}: must be from 0 to {process_count - 1}, as there are {process_count}"
        )
    if coordinator is not None and not _is_address(coordinator):
        raise UserError(f"--coordinator {coordinator}: write HOST:PORT, as in 10.0.0.1:12345")
    given = Cluster(origin="command line", process_id=process_id, process_count=process_count, coordinator=coordinator)
    return given if launched is None else replace(launched, **_own(given))


def refuse_several(command: str, environment: Mapping[str, str] = os.environ) -> None:
    """Refuse to do several times what is to be done once.

    Raises:
      UserError: a launcher has started several of this process.
    """
    if (cluster := _launched(environment)) is not None:
        raise UserError(
            f"{cluster.origin} has started {cluster.process_count} of this command, and 'yolojax {command}' does its work in one process; "
            "start it once (train, val and study can share theirs)"
        )


def resolve_coordinator(cluster: Cluster, timeout: int) -> Cluster:
    """The same with the address of process 0, which the launcher's variables tell.

    Args:
      cluster: of ``find_cluster``.
      timeout: seconds that a name may take until it is known.

    Raises:
      UserError: nothing tells it.
    """
    if cluster.coordinator is not None:
        return cluster
    from jax._src import clusters

    kinds: dict[str, list[Any]] = {
        "SLURM": [clusters.SlurmCluster],
        "Open MPI": [clusters.OmpiCluster],
        "the TPU pod": [clusters.GkeTpuCluster, clusters.GceTpuCluster],
    }
    for environment in kinds.get(cluster.origin, []):
        if environment.is_env_present():
            port = os.environ.get("JAX_COORDINATOR_PORT")
            address = environment.get_coordinator_address(timeout_secs=timeout, override_coordinator_port=port)
            return replace(cluster, coordinator=address)
    raise UserError(
        f"{cluster.origin} has started {cluster.process_count} processes and does not say where process 0 is; "
        "add --coordinator HOST:PORT, the machine of process 0 and a free port there"
    )


def local_device_ids(cluster: Cluster, environment: Mapping[str, str] = os.environ) -> list[int] | None:
    """Which NVIDIA GPUs of its machine a process is to take; None for all that it can see.

    Processes of one machine share its GPUs evenly, unless the launcher has given each its own already.

    >>> eight = {"CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"}
    >>> cluster = Cluster(origin="SLURM", process_id=5, process_count=8, local_id=1, local_count=4)
    >>> local_device_ids(cluster, eight), local_device_ids(cluster, {"CUDA_VISIBLE_DEVICES": "3"})
    ([2, 3], None)
    """
    if cluster.local_id is None or cluster.local_count == 1:
        return None
    named = environment.get("CUDA_VISIBLE_DEVICES")
    visible = len(named.split(",")) if named else len(list(Path("/dev").glob("nvidia[0-9]*")))
    share = visible // cluster.local_count
    return list(range(cluster.local_id * share, (cluster.local_id + 1) * share)) or None


def _launched(environment: Mapping[str, str]) -> Cluster | None:
    """What a launcher's variables say; None where there is none, or it has started one process."""
    cluster = None
    if "SLURM_STEP_NODELIST" in environment:  # inside of srun, not in the script around it
        tasks = environment.get("SLURM_STEP_TASKS_PER_NODE", "1").partition("(")[0].split(",")[0]
        cluster = _from_variables(environment, "SLURM", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", tasks)
    elif "OMPI_COMM_WORLD_SIZE" in environment:
        names = ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK")
        tasks = environment.get("OMPI_COMM_WORLD_LOCAL_SIZE", "1")
        cluster = _from_variables(environment, "Open MPI", *names, tasks)
    elif "," in environment.get("TPU_WORKER_HOSTNAMES", ""):
        count = len(environment["TPU_WORKER_HOSTNAMES"].split(","))
        cluster = _from_variables(
            {"COUNT": str(count), **environment}, "the TPU pod", "TPU_WORKER_ID", "COUNT", "", "1"
        )
    return cluster if cluster is not None and cluster.process_count > 1 else None


def _tpu_pod(environment: Mapping[str, str]) -> Cluster | None:
    """The workers of a TPU pod of Google Cloud, which tells them by its metadata server alone."""
    if not has_tpu() or environment.get("JAX_PLATFORMS", "").split(",")[0] == "cpu":
        return None
    import jax  # noqa: F401  finds out whether this is such a machine
    from jax._src.clusters import GceTpuCluster

    if not GceTpuCluster.is_env_present() or (count := GceTpuCluster.get_process_count()) == 1:
        return None
    return Cluster(origin="the TPU pod", process_id=GceTpuCluster.get_process_id(), process_count=count)


def _from_variables(
    environment: Mapping[str, str], origin: str, process_id: str, count: str, local_id: str, local_count: str
) -> Cluster | None:
    number, total = _number(environment, process_id), _number(environment, count)
    if number is None or total is None:
        return None
    return Cluster(
        origin=origin,
        process_id=number,
        process_count=total,
        local_id=_number(environment, local_id),
        local_count=int(local_count),
    )


def _number(environment: Mapping[str, str], name: str) -> int | None:
    value = environment.get(name)
    if value is None:
        return None
    if not value.isdecimal():
        raise UserError(f"{name}={value} in the environment: must be a whole number")
    return int(value)


def _is_address(text: str) -> bool:
    host, _, port = text.rpartition(":")
    return bool(host) and port.isdecimal()


def _own(given: Cluster) -> dict[str, Any]:
    return {name: getattr(given, name) for name in ("process_id", "process_count", "coordinator")}
