"""What a worker does with one case: read, compute, write into a draft folder, say how it went.

A try never raises: whatever goes wrong becomes an outcome that the ledger can record.
"""

from __future__ import annotations

import errno
import secrets
import shutil
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal

from medgen.batch.private import harmless, without_paths, without_root
from medgen.errors import MedgenError
from medgen.io.files import flush
from medgen.io.walk import Location

if TYPE_CHECKING:
    from medgen.batch.pipeline import Task


WAITS, GOES_ON = "waits", "goes on"
# Whom a job tells that it waits for its neighbours; its time does not run meanwhile.
TELL: ContextVar[Callable[[str], None]] = ContextVar("tell", default=lambda what: None)


@contextmanager
def turn(lock: Lock) -> Iterator[None]:
    """Hold a lock that the cases of one process share; waiting for it is told to the engine."""
    if not lock.acquire(blocking=False):
        TELL.get()(WAITS)
        lock.acquire()
        TELL.get()(GOES_ON)
    try:
        yield
    finally:
        lock.release()


@dataclass(frozen=True)
class Job:
    """One case, as sent to a worker. Plain values only.

    Attributes:
        id: Label of the case.
        sources: The files, or members of zips, that hold it.
        root: The archive, so that its name can be kept out of messages.
        private: Whether paths may name a patient (DICOM).
        task: What to do.
        drafts: Folder in which a draft is made and filled.
        stem: What output names start with when cases share a folder; None if they do not.
        models: Folder of each model package that the task names; a name without one is that of
            a method without training.
        device: Where to compute.
        seed: Seed of the run.
        memory_gb: Most memory this case may use.
        attempt: 1 for the first try.
        key: Secret for tasks that need one.
        patient: Label of the patient.
        facts: Header facts of the image, for tasks that name outputs by them.
    """

    id: str
    sources: tuple[Location, ...]
    root: str
    private: bool
    task: Task
    drafts: str
    stem: str | None = None
    models: dict[str, str] = field(default_factory=dict)
    device: str = "cpu"
    seed: int = 0
    memory_gb: float = 4.0
    attempt: int = 1
    key: bytes = b""
    patient: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


class Skip(Exception):
    """Nothing went wrong, but there is nothing to do for this case; says why."""


@dataclass(frozen=True)
class Outcome:
    """How a try went.

    Attributes:
        state: ``done``; ``skipped``; ``failed`` for good; ``memory`` (try again with less);
            ``disk`` (full: the whole run must stop).
        reason: Why it failed, in words for people.
        hint: What to do about it.
        detail: Where in the program an unexpected error happened.
        draft: Folder that holds the outputs of a done case, to be published.
        result: Values, flags and output names; see :class:`medgen.batch.ledger.Entry`.
        input_sha256: Hash of the input's contents.
        seconds: Time the worker took.
    """

    state: Literal["done", "skipped", "failed", "memory", "disk"]
    reason: str | None = None
    hint: str | None = None
    detail: str | None = None
    draft: str = ""
    result: dict[str, Any] = field(default_factory=dict)
    input_sha256: str | None = None
    seconds: float = 0.0


def work(job: Job) -> Outcome:
    """Do one case. Never raises: what goes wrong is in the outcome, and the draft is removed."""
    from medgen.batch.verbs import verb_of

    start = time.perf_counter()
    # Of its own: an earlier try may have died here, or still be at it on a lost machine.
    draft = Path(job.drafts) / secrets.token_hex(8)
    try:
        draft.mkdir(parents=True)
        result, digest = verb_of(job)(job, draft)
        for path in draft.rglob("*"):
            if path.is_file():
                flush(path)
        seconds = time.perf_counter() - start
        return Outcome("done", None, None, None, str(draft), result, digest, seconds)
    except Skip as reason:
        shutil.rmtree(draft, ignore_errors=True)
        return Outcome("skipped", str(reason), seconds=time.perf_counter() - start)
    except Exception as error:
        shutil.rmtree(draft, ignore_errors=True)
        return _failure(job, error, time.perf_counter() - start)


def _failure(job: Job, error: Exception, seconds: float) -> Outcome:
    """What to record of an exception, without the names of private paths."""
    text = error.message if isinstance(error, MedgenError) else str(error)
    reason = _scrubbed(job, harmless(error) if job.private else text)
    if _is_memory(error):
        return Outcome("memory", "ran out of memory", None, reason, seconds=seconds)
    cause: BaseException = error.__cause__ or error
    if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
        return Outcome("disk", reason, getattr(error, "hint", None), seconds=seconds)
    if isinstance(error, MedgenError):
        hint = None if error.hint is None else _scrubbed(job, error.hint)
        return Outcome("failed", reason, hint, seconds=seconds)
    frames = traceback.extract_tb(error.__traceback__)[-6:]
    detail = " < ".join(f"{f.name} ({Path(f.filename).name}:{f.lineno})" for f in reversed(frames))
    return Outcome(
        "failed", f"unexpected {type(error).__name__}: {reason}".removesuffix(": ")[:500],
        "This is a defect in medgen; please report it with the line in `medgen batch status -v`.",
        detail, seconds=seconds,
    )  # fmt: skip


def _is_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't alloc" in text)


def _scrubbed(job: Job, text: str) -> str:
    """A message that names no patient, and not where on this machine the archive lies."""
    if job.private:
        return without_paths(text, job.sources, job.root)
    return without_root(text, job.root)
