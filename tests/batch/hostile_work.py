"""Jobs that go wrong on purpose, run by real worker processes; the job's id says how."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from medgen.batch.work import Job, Outcome


def act(job: Job) -> Outcome:
    """Do what the id says: ``ok-1``, ``die-2``, ``die-once-3``, ``hang-4``, ``memory-once-5``..."""
    what = job.id.rsplit("-", 1)[0]
    been_here = Path(job.root) / job.id
    first = not been_here.exists()
    been_here.touch()
    if what == "die" or (what == "die-once" and first):
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "die-silently":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "hang":
        time.sleep(600)
    if what == "memory" or (what == "memory-once" and job.attempt == 1):
        return Outcome("memory", "ran out of memory")
    if what == "hog":
        hoard = []
        for _ in range(200):
            hoard.append(bytearray(os.urandom(1 << 20) * 50))
            time.sleep(0.02)
    time.sleep(0.05)
    return Outcome("done", result={"attempt": job.attempt})


def first_environment() -> dict[str, str] | None:
    """The environment this process was started with, where the system tells."""
    path = Path("/proc/self/environ")
    if not path.exists():
        return None
    return dict(entry.split("=", 1) for entry in path.read_text().split("\0") if "=" in entry)
