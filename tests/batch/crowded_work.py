"""Jobs that share a lock with their neighbours, as cases share a processor; the id says how."""

from __future__ import annotations

import threading
import time

from medgen.batch.work import Job, Outcome, turn

_LOCK = threading.Lock()


def act(job: Job) -> Outcome:
    """``short-1`` holds the lock for a second, ``long-2`` for ever; says whose job it is."""
    with turn(_LOCK):
        time.sleep(600 if job.id.startswith("long") else 1.0)
    return Outcome("done", result={"root": job.root})


def quick(job: Job) -> Outcome:
    """Says whose job it is."""
    time.sleep(0.05)
    return Outcome("done", result={"root": job.root})
