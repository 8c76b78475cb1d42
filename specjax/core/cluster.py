"""Which process of how many this is: from flags, or from what a launcher left behind."""

from __future__ import annotations

from collections.abc import Mapping

from specjax.core.launch import MEETING, Place

AUTO = "auto"
# What JAX needs to see of a Slurm step. A login shell inside an allocation lacks some of them.
_SLURM = (
    *("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS"),
    *("SLURM_PROCID", "SLURM_LOCALID"),
)


def find_place(
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    environment: Mapping[str, str],
) -> Place | None:
    """Where this process stands among others; None: it is alone.

    Flags win. Without any, a launcher that JAX recognises and that started more than one process
    is believed; ``--num_processes=1`` says that this one is alone all the same.

    Raises:
      ValueError: on flags that are incomplete or do not fit together.
    """
    if num_processes is not None and num_processes < 1:
        raise ValueError(f"--num_processes={num_processes}: must be at least 1.")
    if process_id is not None and not 0 <= process_id < (num_processes or process_id + 1):
        raise ValueError(
            f"--process_id={process_id}: must be from 0 to {(num_processes or 1) - 1}, below "
            f"--num_processes={num_processes}."
        )
    if num_processes == 1:
        return None
    known = launched(environment)
    if coordinator is None and num_processes is None and process_id is None:
        return detect(environment) if known else None
    if coordinator == AUTO:
        if num_processes is not None or process_id is not None:
            raise ValueError("--coordinator=auto finds the numbers, too; leave them out.")
        return detect(environment)
    if coordinator is None:
        raise ValueError("--num_processes and --process_id need --coordinator=HOST:PORT.")
    check_address(coordinator)
    if known and num_processes is None and process_id is None:
        _, num_processes, process_id = known
    if num_processes is None or process_id is None:
        missing = "--num_processes" if num_processes is None else "--process_id"
        raise ValueError(f"--coordinator={coordinator} needs {missing}, too.")
    return Place(coordinator, num_processes, process_id)


def launched(environment: Mapping[str, str]) -> tuple[str, int, int] | None:
    """(launcher, number of processes, which of them) where several were started together."""

    def number(name: str) -> int:
        text = environment.get(name, "")
        return int(text) if text.isdigit() else 0

    if all(name in environment for name in _SLURM):
        # An interactive shell has the tasks of its job, but is a step of one task.
        tasks = number(
            "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environment else _SLURM[2]
        )
        if tasks > 1:
            return "Slurm", tasks, number("SLURM_PROCID")
    if number("OMPI_COMM_WORLD_SIZE") > 1:
        return "Open MPI", number("OMPI_COMM_WORLD_SIZE"), number("OMPI_COMM_WORLD_RANK")
    hosts = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES", "")
    if "," in hosts:
        return "Cloud TPU", hosts.count(",") + 1, number("TPU_WORKER_ID")
    return None


def detect(environment: Mapping[str, str]) -> Place | None:
    """What JAX finds out about its cluster; None: one process.

    Raises:
      ValueError: if it finds none, or not enough.
    """
    from jax._src.clusters import ClusterEnv  # what `initialize` asks; it has no public name

    ask = ClusterEnv.auto_detect_unset_distributed_params
    try:
        address, num, process, devices = ask(None, None, None, None, None, int(MEETING))
    except Exception as error:  # whatever a metadata server or a package for it raises
        raise ValueError(f"--coordinator=auto: {error}") from error
    if address is None or num is None or process is None:
        known = launched(environment)
        who = f"{known[0]} started {known[1]} processes, but JAX" if known else "JAX"
        raise ValueError(
            f"{who} finds no coordinator here (it knows Slurm's srun, Open MPI 4, Kubernetes and "
            "Cloud TPU); give --coordinator=HOST:PORT, --num_processes and --process_id, or "
            "--num_processes=1 for one process alone."
        )
    # JAX gives each process of Slurm one GPU; a process alone on its node has all of them.
    gpus = environment.get("SLURM_GPUS_ON_NODE", "")
    per_node = environment.get("SLURM_STEP_TASKS_PER_NODE", "")
    if gpus.isdigit() and per_node.split("(")[0] == "1" and "," not in per_node:
        devices = list(range(int(gpus)))
    return None if num == 1 else Place(address, num, process, tuple(devices) if devices else None)


def check_address(coordinator: str) -> None:
    """Raises ValueError unless it is HOST:PORT."""
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(
            f"--coordinator={coordinator} is not HOST:PORT, such as 10.0.0.1:1234, or auto."
        )
