"""The engine survives what jobs do to their workers, and loses none of them."""

from __future__ import annotations

import gc
import time
from collections import Counter
from pathlib import Path

import pytest
from distributed import Client
from hostile_work import act
from open_cluster import open_cluster

from medgen.batch.cluster import Layout, existing_cluster, local_cluster
from medgen.batch.engine import Engine
from medgen.batch.work import Job, Outcome
from medgen.errors import InputError


def job(name: str, folder: Path) -> Job:
    return Job(
        id=name, sources=(), root=str(folder), private=False, drafts=str(folder),
        task=None,  # type: ignore[arg-type]  # the engine does not look at it
    )  # fmt: skip


def layout(workers: int = 2, lanes: int = 2, memory_gb: float = 1.0) -> Layout:
    return Layout(workers, 1, lanes, memory_gb, ("cpu",) * workers)


def run(names: list[str], folder: Path, *, timeout_s: float = 60, **options: float):
    """Final outcomes by name, and how often each job used up a try in vain."""
    outcomes: dict[str, Outcome] = {}
    tries: Counter[str] = Counter()
    with local_cluster(layout(**options)) as client:
        engine = Engine(
            client, act, timeout_s, attempts=3, on_retry=lambda job, _: tries.update([job.id])
        )
        for finished, outcome in engine.run(job(name, folder) for name in names):
            assert finished.id not in outcomes, "reported twice"
            outcomes[finished.id] = outcome
    assert sorted(outcomes) == sorted(names), "lost or invented a job"
    return outcomes, tries


def test_every_job_ends_once_whatever_its_neighbours_do(tmp_path: Path) -> None:
    names = [f"ok-{n}" for n in range(12)] + ["die-1", "die-once-2", "memory-3", "memory-once-4"]
    outcomes, tries = run(names, tmp_path)
    assert all(outcomes[name].state == "done" for name in names if name.startswith("ok"))
    assert outcomes["die-1"].state == "memory" and "died" in str(outcomes["die-1"].reason)
    assert outcomes["die-once-2"].state == "done"
    assert outcomes["memory-once-4"].result == {"attempt": 2}
    assert outcomes["memory-3"].state == "memory"
    # A death beside another job counts against nobody; running out of memory always does.
    assert tries == {"die-1": 3, "memory-3": 3, "memory-once-4": 1}


def test_a_death_without_a_word_is_not_tried_for_ever(tmp_path: Path) -> None:
    outcomes, tries = run(["die-silently-1", "ok-2", "ok-3"], tmp_path)
    # A neighbour may lose its result on the way, and with it a try; but never itself.
    assert tries["die-silently-1"] == 3
    assert outcomes["die-silently-1"].state == "memory"
    assert outcomes["ok-2"].state == outcomes["ok-3"].state == "done"


def test_a_hanging_job_is_ended_and_its_neighbour_done_again(tmp_path: Path) -> None:
    start = time.monotonic()
    outcomes, _ = run(["hang-1", "ok-2", "ok-3", "ok-4"], tmp_path, timeout_s=2, workers=1)
    assert time.monotonic() - start < 40
    assert outcomes["hang-1"].state == "failed"
    assert "longer than" in str(outcomes["hang-1"].reason)
    assert [outcomes[f"ok-{n}"].state for n in (2, 3, 4)] == ["done"] * 3


def test_a_job_that_takes_all_memory_is_ended_before_the_system_suffers(tmp_path: Path) -> None:
    outcomes, _ = run(["hog-1", "ok-2"], tmp_path, workers=1, memory_gb=0.6)
    assert outcomes["hog-1"].state == "memory"
    assert outcomes["ok-2"].state == "done"


def test_an_existing_cluster_is_used_and_a_missing_one_refused(tmp_path: Path) -> None:
    with open_cluster(1) as address, existing_cluster(address) as client:
        outcomes = list(Engine(client, act, 60).run([job("ok-1", tmp_path)]))
        assert [outcome.state for _, outcome in outcomes] == ["done"]
    with pytest.raises(InputError, match="no Dask scheduler answers"):
        existing_cluster("tcp://127.0.0.1:9").__enter__()
    with pytest.raises(InputError, match="must look like"):
        existing_cluster("http://x").__enter__()


def test_nobody_else_on_this_machine_gets_in(tmp_path: Path) -> None:
    """Whoever reaches a worker can run programs on it."""
    with local_cluster(layout(workers=1)) as owner:
        address = owner.scheduler.address
        assert address.startswith("tls://127.0.0.1:")
        for known in (address, address.replace("tls:", "tcp:")):
            with pytest.raises(InputError, match=r"no Dask scheduler answers|certificate"):
                existing_cluster(known).__enter__()
        clients = [found for found in gc.get_objects() if isinstance(found, Client)]
        assert all(found is owner or found.status == "closed" for found in clients)
