"""A Dask cluster without encryption, as somebody else may have started it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from distributed import LocalCluster


@contextmanager
def open_cluster(lanes: int) -> Iterator[str]:
    """The address of a scheduler with one worker process that holds that many cases."""
    with LocalCluster(
        n_workers=1, threads_per_worker=lanes, resources={"lanes": lanes},
        dashboard_address="127.0.0.1:0", silence_logs=50,
    ) as cluster:  # fmt: skip
        yield cluster.scheduler_address
