"""What Dask runs first in each worker process of this machine."""

import signal


def dask_setup(worker: object) -> None:
    """Leave Ctrl-C, which a terminal sends to every process, to the run that owns the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
