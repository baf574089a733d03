"""Run many jobs on Dask, whatever happens to them: deaths, hangs, and memory that runs out.

The engine knows neither scans nor ledgers: it takes jobs and a function, and hands each outcome to
whoever called, in the order in which they come.
"""

from __future__ import annotations

import os
import queue
import secrets
import signal
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

from medgen.batch.cluster import LANES, lanes_of_a_worker, total_lanes
from medgen.batch.work import TELL, WAITS, Outcome
from medgen.errors import MedgenError

if TYPE_CHECKING:
    from distributed import Client, Future


class Job(Protocol):
    """What the engine knows of a job, which is a dataclass of plain values."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def id(self) -> str:
        """Its name, unlike those of all others."""
        ...

    @property
    def attempt(self) -> int:
        """1 for the first try; the engine counts on."""
        ...


AJob = TypeVar("AJob", bound=Job)
_HEARTBEAT_S = 0.25
# Workers of a cluster may come and go; how many there are is asked no more often than this.
_COUNT_EVERY_S = 5.0
BEGINS = "begins"
# A worker that cannot be ended (without a nanny, or on a lost machine) is not waited for.
_PATIENCE_S = 60.0
# A worker that dies is replaced in less time than this.
_ALONE_S = 30.0
_DIED = "its worker process died"
# Windows has no SIGKILL; there SIGTERM ends a process as surely.
_KILL = getattr(signal, "SIGKILL", signal.SIGTERM)


class ClusterLost(MedgenError):
    """The scheduler is gone; what was recorded stays recorded."""


@dataclass
class _Flight(Generic[AJob]):
    """A job under way."""

    job: AJob
    future: Future
    alone: bool
    started: float | None = None
    waits: float | None = None
    worker: str | None = None
    pid: int | None = None
    stopped: float | None = None


@dataclass
class Engine(Generic[AJob]):
    """Runs jobs on a cluster.

    Attributes:
        client: Of the cluster.
        work: Does one job; must be importable by the workers.
        timeout_s: A job that takes longer is ended with its worker.
        attempts: Most tries of a job that runs out of memory or whose worker dies.
        on_retry: Told of a job that will be tried again, and why.
        on_start: Told which job has begun.
        on_alone: Told when the cluster has had no worker for a while.
    """

    client: Client
    work: Callable[[AJob], Outcome]
    timeout_s: float
    attempts: int = 3
    on_retry: Callable[[AJob, Outcome], None] = lambda job, outcome: None
    on_start: Callable[[AJob], None] = lambda job: None
    on_alone: Callable[[], None] = lambda: None
    _messages: queue.SimpleQueue[tuple[str, Any]] = field(default_factory=queue.SimpleQueue)
    _flights: dict[str, _Flight[AJob]] = field(default_factory=dict)
    _deaths: Counter[str] = field(default_factory=Counter)
    _last: deque[AJob] = field(default_factory=deque)
    # Keys and topics are shared by everybody on a scheduler: two runs must never meet in one.
    _name: str = field(default_factory=lambda: f"medgen-{secrets.token_hex(8)}")
    _serial: int = 0
    _lanes: int = 0
    _window: int = 0
    _counted: float = float("-inf")
    _seen: float = field(default_factory=time.monotonic)

    def run(self, jobs: Iterable[AJob]) -> Iterator[tuple[AJob, Outcome]]:
        """Do all jobs; yields each with its final outcome.

        Raises:
            ClusterLost: The scheduler does not answer any more.
        """
        waiting = deque(jobs)
        topic = self._name
        self.client.subscribe_topic(topic, lambda event: self._messages.put(("started", event)))
        try:
            while waiting or self._flights or self._last:
                self._count_workers()
                while waiting and len(self._flights) < self._window:
                    self._submit(waiting.popleft())
                if self._last and not waiting and not self._flights:
                    self._submit(self._last.popleft(), last=True)
                for flight, outcome in self._settled():
                    if outcome.state != "memory" or not self._again(flight, outcome, waiting):
                        yield flight.job, outcome
                self._end_hanging()
        finally:
            with suppress(Exception):
                self.client.cancel([flight.future for flight in self._flights.values()], force=True)
            with suppress(Exception):
                self.client.unsubscribe_topic(topic)

    def _count_workers(self) -> None:
        """How many cases the cluster holds now; without workers, what is under way must wait."""
        if time.monotonic() - self._counted < _COUNT_EVERY_S:
            return
        self._counted = time.monotonic()
        with suppress(OSError):  # a lost scheduler is noticed and told elsewhere
            held, lanes = total_lanes(self.client), lanes_of_a_worker(self.client)
            # A few more than can be held, so that no lane waits for this loop.
            self._window = held + 2
            if held:
                self._lanes, self._seen = lanes, time.monotonic()
            elif time.monotonic() - self._seen > _ALONE_S:
                self._seen = float("inf")  # say it once
                self.on_alone()

    def _submit(self, job: AJob, last: bool = False) -> None:
        self._serial += 1
        key = f"{self._name}-{self._serial}"
        # A job that was cut short once gets a worker of its own.
        cut_short = job.attempt > 1 or self._deaths[job.id] > 0
        lanes = self._lanes if cut_short else min(1, self._lanes)
        taken = {LANES: lanes} if lanes else None
        future = self.client.submit(
            _announced, self.work, job, self._name, key, key=key, pure=False, retries=0,
            resources=taken,
        )  # fmt: skip
        alone = last or (lanes > 0 and lanes == self._lanes)
        self._flights[key] = _Flight(job, future, alone)
        future.add_done_callback(lambda done: self._messages.put(("finished", done.key)))

    def _settled(self) -> list[tuple[_Flight[AJob], Outcome]]:
        """Wait a moment for news; give the jobs that ended."""
        ended = []
        with suppress(queue.Empty):
            message = self._messages.get(timeout=_HEARTBEAT_S)
            while True:
                kind, value = message
                if kind == "started":
                    self._note_news(value)
                elif value in self._flights:
                    flight = self._flights.pop(value)
                    ended.append((flight, self._outcome(flight)))
                message = self._messages.get_nowait()
        if self.client.status not in ("running", "connecting"):
            raise ClusterLost(
                "the Dask scheduler does not answer any more",
                "Start it again, and the same command: finished cases are kept.",
            )
        return ended

    def _note_news(self, event: tuple[float, dict[str, Any]]) -> None:
        """A job has begun, waits for a neighbour, or goes on: waiting is not its own time."""
        _, news = event
        flight = self._flights.get(news["key"])
        if flight is None:
            return
        now = time.monotonic()  # our own clock: that of another machine may differ
        if news["what"] == BEGINS:
            flight.started = now
            flight.worker, flight.pid = news["worker"], news["pid"]
            self.on_start(flight.job)
        elif news["what"] == WAITS:
            flight.waits = now
        elif flight.started is not None and flight.waits is not None:
            flight.started += now - flight.waits
            flight.waits = None

    def _outcome(self, flight: _Flight[AJob]) -> Outcome:
        """What a finished future says."""
        from distributed import CancelledError, KilledWorker

        future = flight.future
        seconds = 0.0 if flight.started is None else time.monotonic() - flight.started
        try:
            if flight.stopped is not None:
                minutes = self.timeout_s / 60
                return Outcome(
                    "failed", f"took longer than {minutes:g} minutes and was stopped",
                    "Raise timeout_minutes in the pipeline, and use --retry-failed.",
                    seconds=seconds,
                )  # fmt: skip
            outcome: Outcome = future.result(timeout=30)
            return outcome
        except (KilledWorker, CancelledError):
            begun = None if flight.started is None else "after it had begun"
            return Outcome("memory", _DIED, None, begun, seconds=seconds)
        except Exception as error:  # a job that cannot even be sent
            return Outcome("failed", f"could not be run: {type(error).__name__}", seconds=seconds)
        finally:
            future.release()

    def _again(self, flight: _Flight[AJob], outcome: Outcome, waiting: deque[AJob]) -> bool:
        """Queue a job that was cut short again, unless it had all its tries.

        When a worker dies, so do the jobs beside the culprit. So a death counts as a try only if
        the job had the worker to itself. It gets one to itself after the first death; if that one
        dies before the job says that it has begun, the job is tried last, with no other on the
        cluster, and then nobody else can be blamed.
        """
        job, line = flight.job, waiting
        if outcome.reason == _DIED:
            self._deaths[job.id] += 1
            tried_last = self._deaths[job.id] > 2
            if not self._lanes or self._deaths[job.id] > 1:
                line = self._last
            if not flight.alone or (flight.started is None and not tried_last):
                line.append(job)
                return True
        self.on_retry(job, outcome)
        if job.attempt >= self.attempts:
            return False
        line.append(replace(job, attempt=job.attempt + 1))
        return True

    def _end_hanging(self) -> None:
        """End the workers of jobs that take too long; nothing else stops a thread."""
        for key, flight in self._flights.items():
            now = time.monotonic()
            if flight.stopped is not None and now - flight.stopped > _PATIENCE_S:
                self._messages.put(("finished", key))
            late = flight.started is not None and now - flight.started > self.timeout_s
            idle = flight.waits is not None or flight.worker is None
            if late and not idle and flight.stopped is None:
                flight.stopped = now
                # Asked of the nanny: the worker itself may be deaf.
                with suppress(Exception):
                    self.client.run(
                        os.kill, flight.pid, _KILL, workers=[str(flight.worker)], nanny=True,
                        on_error="ignore",
                    )  # fmt: skip


def _announced(work: Callable[[AJob], Outcome], job: AJob, topic: str, key: str) -> Outcome:
    """Run a job on a worker; say first that it has begun, and later whether it waits."""
    from distributed import get_worker

    worker = get_worker()

    def tell(what: str) -> None:
        news = {"key": key, "what": what, "worker": worker.address, "pid": os.getpid()}
        worker.log_event(topic, news)

    tell(BEGINS)
    TELL.set(tell)
    return work(job)
