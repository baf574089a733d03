"""How work is spread over a machine: never more than fits, never less than can be done."""

from __future__ import annotations

import os

import pytest
from hostile_work import first_environment
from hypothesis import given
from hypothesis import strategies as st

from medgen.batch import cluster
from medgen.batch.cluster import DEVICE_OF_WORKER, Layout, lay_out, local_cluster
from medgen.errors import InputError


@given(
    case_gb=st.floats(0.1, 8), free_gb=st.floats(8, 256), cases=st.integers(0, 500),
    cores=st.integers(1, 128), workers=st.none() | st.integers(1, 200),
)  # fmt: skip
def test_the_cpu_is_shared_out_and_the_memory_is_kept(
    case_gb, free_gb, cases, cores, workers
) -> None:
    found = lay_out(
        "cpu", case_gb=case_gb, cases=cases, free_gb=free_gb, workers=workers, cores=cores
    )
    assert 1 <= found.workers <= (workers or cores)
    assert found.workers * found.lanes * case_gb <= free_gb * (1 + 1e-9)
    assert found.threads >= 1
    assert found.threads * found.workers <= max(cores, found.workers)
    assert found.memory_gb * found.workers == pytest.approx(free_gb)
    assert found.devices == ("cpu",) * found.workers
    if workers is None:
        assert found.workers <= max(cases, 1)


def test_workers_start_in_the_environment_they_need() -> None:
    """How memory is kept is settled when a process starts, so later would be too late."""
    with local_cluster(Layout(1, 3, 1, 1.0, ("cpu",))) as client:
        (first,) = client.run(first_environment).values()
        asked = ("OMP_NUM_THREADS", DEVICE_OF_WORKER)
        threads, device = (*(v for name in asked for v in client.run(os.getenv, name).values()),)
    if first is not None:  # only Linux shows it
        assert int(first["MALLOC_TRIM_THRESHOLD_"]) > 2**28
    assert (threads, device) == ("3", "cpu")


def test_a_layout_in_words() -> None:
    found = lay_out("cpu", case_gb=1, cases=100, free_gb=8, cores=1)
    assert str(found).startswith("1 process x 1 thread, at most ")


def test_one_process_for_each_gpu(monkeypatch) -> None:
    monkeypatch.setattr(cluster, "_gpus", lambda device: ["cuda:0", "cuda:1", "cuda:2"])
    found = lay_out("cuda", case_gb=2, cases=100, free_gb=64, cores=16)
    assert found.devices == ("cuda:0", "cuda:1", "cuda:2")
    assert (found.workers, found.threads, found.lanes) == (3, 5, 3)
    two_each = lay_out("cuda", case_gb=2, cases=100, free_gb=64, cores=16, workers=6)
    assert two_each.devices == ("cuda:0", "cuda:1", "cuda:2") * 2


def test_what_cannot_be_met_is_said(monkeypatch) -> None:
    with pytest.raises(InputError, match=r"needs about 9\.0 GB"):
        lay_out("cpu", case_gb=9, cases=1, free_gb=8)
    with pytest.raises(InputError, match="unknown device"):
        lay_out("gpu", case_gb=1, cases=1, free_gb=8)
    monkeypatch.setattr(cluster, "visible_gpus", lambda: [])
    assert lay_out("auto", case_gb=1, cases=4, free_gb=8, cores=2).devices == ("cpu", "cpu")
