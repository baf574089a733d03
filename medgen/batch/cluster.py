"""Where the work is done: processes of this machine, or a Dask cluster that exists already."""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from medgen.devices import check_device_name, visible_gpus
from medgen.errors import InputError

if TYPE_CHECKING:
    from distributed import Client

# The Dask resource that a case takes: one lane, or all lanes of a worker after it killed one.
LANES = "lanes"
# One case computes while another is read or written; a GPU is fed by more.
LANES_ON_CPU = 2
LANES_ON_GPU = 3
MOST_WORKERS = 64
LOOPBACK = "127.0.0.1"
# For glibc. A network asks for the same large blocks again and again; Dask's own setting hands each
# back to the system at once, and clearing them anew takes a third of the time of the computation.
KEEP_MEMORY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**30),
}
# Tells a worker process of this machine which device is its own.
DEVICE_OF_WORKER = "MEDGEN_WORKER_DEVICE"


@dataclass(frozen=True)
class Layout:
    """How the work is spread over this machine.

    Attributes:
        workers: Processes.
        threads: Threads of each, for computing.
        lanes: Cases that a process holds at a time.
        memory_gb: Memory of each process; infinite: as much as there is.
        devices: The device of each process.
    """

    workers: int
    threads: int
    lanes: int
    memory_gb: float
    devices: tuple[str, ...]

    def __str__(self) -> str:
        processes = "process" if self.workers == 1 else "processes"
        threads = "thread" if self.threads == 1 else "threads"
        device = "" if self.devices[0] == "cpu" else f" on {', '.join(self.devices)}"
        return (
            f"{self.workers} {processes} x {self.threads} {threads}{device}, "
            f"at most {self.memory_gb:.1f} GB each"
        )


def lay_out(
    device: str,
    *,
    case_gb: float,
    cases: int,
    free_gb: float,
    workers: int | None = None,
    cores: int | None = None,
) -> Layout:
    """Choose processes and threads from the cores, the GPUs and the memory estimate.

    One process per GPU; on the CPU one per core, unless the memory holds fewer cases than that:
    then the cores are shared out among the processes that fit.

    Args:
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        case_gb: Most memory that one case needs, everything included.
        cases: How many cases there are to do.
        free_gb: Memory that may be used in all.
        workers: Number of processes, if the user chose it.
        cores: Processor cores to use; all of this machine when None.

    Raises:
        InputError: Not even one case fits, or there is no such device.
    """
    check_device_name(device)
    cores = cores or available_cores()
    gpus = _gpus(device)
    fit = int(free_gb // max(case_gb, 1e-3))
    if fit < 1:
        msg = f"one case needs about {case_gb:.1f} GB, but only {free_gb:.1f} GB may be used"
        raise InputError(msg, "Raise the limit with --max-memory (GB), or free some memory.")
    if gpus:
        count = min(workers or len(gpus), fit)
        devices = tuple(gpus[n % len(gpus)] for n in range(count))
    else:
        count = min(workers or min(cores, max(cases, 1), MOST_WORKERS), fit)
        devices = ("mps" if device == "mps" else "cpu",) * count
    wished = LANES_ON_GPU if gpus else LANES_ON_CPU
    # A further lane holds a further scan.
    lanes = max(1, min(wished, fit // count))
    return Layout(count, max(1, cores // count), lanes, free_gb / count, devices)


def available_cores() -> int:
    """Cores this process may use, which a container or a batch system may limit."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _gpus(device: str) -> list[str]:
    """The GPUs to use, as torch calls them; none for the CPU.

    Raises:
        InputError: A GPU was asked for and there is none.
    """
    if device in ("cpu", "mps") or (device == "auto" and not visible_gpus()):
        return []
    if device.startswith("cuda:"):
        from medgen.devices import resolve_device

        return [resolve_device(device)]
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0 and device == "cuda":
        raise InputError("--device cuda was asked for, but torch finds no CUDA device")
    return [f"cuda:{n}" for n in range(count)]


@contextmanager
def local_cluster(layout: Layout, *, parents: bool = False) -> Iterator[Client]:
    """Worker processes on this machine, gone when the block ends or this process dies.

    A worker that dies is replaced; one that takes more than its memory is ended before the system
    chooses a victim of its own.

    Args:
        layout: How many there are, and how large.
        parents: Whether workers may start processes of their own.
    """
    import dask
    from distributed import Client, Nanny, Scheduler, SpecCluster
    from distributed.security import Security

    _quiet()
    # Whoever reaches a worker can run programs on it: this machine only, and no other user of it.
    security = Security.temporary()
    names = (
        "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS",
        "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
    )  # fmt: skip
    memory = int(layout.memory_gb * 1e9) if math.isfinite(layout.memory_gb) else None
    environment = {**dict.fromkeys(names, str(layout.threads)), "MPLBACKEND": "agg"}
    settings = {
        # A worker's death is reported at once: the engine decides what is tried again, and how.
        "distributed.scheduler.allowed-failures": 0,
        "distributed.worker.memory.target": False,
        "distributed.worker.memory.spill": False,
        "distributed.worker.memory.pause": False,
        "distributed.worker.memory.terminate": 0.95,
        "distributed.worker.daemon": not parents,
        "logging": {"distributed": "critical"},
        # Read when a process starts, so it must stand there before.
        "distributed.nanny.pre-spawn-environ": KEEP_MEMORY,
    }
    with dask.config.set(settings):
        workers = {
            number: {
                "cls": Nanny,
                "options": {
                    "host": LOOPBACK,
                    "protocol": "tls",
                    "security": security,
                    "dashboard": False,
                    "dashboard_address": f"{LOOPBACK}:0",
                    "nthreads": layout.lanes,
                    "memory_limit": memory,
                    "resources": {LANES: layout.lanes},
                    "env": {**environment, DEVICE_OF_WORKER: layout.devices[number]},
                    "silence_logs": 50,
                    "preload": ["medgen.batch.preload"],
                },
            }
            for number in range(layout.workers)
        }
        # Without an address of its own the scheduler's page would ask for Dask's usual port.
        here = {
            "host": LOOPBACK, "protocol": "tls", "security": security, "dashboard": False,
            "dashboard_address": f"{LOOPBACK}:0",
        }  # fmt: skip
        scheduler = {"cls": Scheduler, "options": here}
        with (
            SpecCluster(
                workers=workers, scheduler=scheduler, security=security, silence_logs=50
            ) as cluster,
            Client(cluster, security=security, set_as_default=False) as client,
        ):
            yield client


def check_address(address: str) -> None:
    """Refuse what cannot be the address of a Dask scheduler.

    Raises:
        InputError: Says what an address looks like.
    """
    if not re.fullmatch(r"(tcp|tls|ucx|ws|wss)://[^\s/]+:\d+", address):
        msg = f"--scheduler must look like tcp://host:8786, got {address!r}"
        raise InputError(msg, "`dask scheduler` prints its address when it starts.")


@contextmanager
def existing_cluster(address: str) -> Iterator[Client]:
    """A client of a Dask cluster that is running already.

    Raises:
        InputError: Nobody answers there, or it has no workers.
    """
    check_address(address)
    from distributed import Client
    from distributed.security import Security

    _quiet()
    # Dask would leave a client half open, which stops the next one when it is collected.
    certificate = Security().get_connection_args("client")["ssl_context"]
    if address.startswith("tls://") and certificate is None:
        msg = f"the Dask scheduler at {address} asks for a certificate"
        raise InputError(msg, "Name yours in Dask's configuration, under distributed.comm.tls.")
    try:
        client = Client(address, timeout=10, set_as_default=False)
    except (OSError, TimeoutError) as error:
        msg = f"no Dask scheduler answers at {address}"
        raise InputError(msg, "Start one with `dask scheduler`, and workers beside it.") from error
    try:
        if not _workers(client):
            raise InputError(
                f"the Dask scheduler at {address} has no workers",
                f"Start some: dask worker {address} --nthreads 1 --resources {LANES}=1",
            )
        yield client
    finally:
        client.close()


def total_lanes(client: Client) -> int:
    """How many cases the cluster can hold at a time."""
    return sum(
        int(worker["resources"].get(LANES, 0) or worker["nthreads"]) for worker in _workers(client)
    )


def lanes_of_a_worker(client: Client) -> int:
    """Most cases that one worker holds; 0 if the workers were started without that resource."""
    lanes = [int(worker["resources"].get(LANES, 0)) for worker in _workers(client)]
    return max(lanes) if lanes and all(lanes) else 0


def _workers(client: Client) -> list[dict[str, Any]]:
    return list(client.scheduler_info(n_workers=-1).get("workers", {}).values())


def _quiet() -> None:
    """What Dask has to say about lost connections, medgen says itself."""
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
