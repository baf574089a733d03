"""The cells of a study on the cluster of this machine: the engine of cohorts, with other jobs.

Here a job is a cell, one method with one seed, which leaves its own result in its own folder. It
may take hours, so no time is too long, and one whose process dies is tried once more: a training
goes on from its last checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from medgen.batch.cluster import Layout, available_cores, local_cluster
from medgen.batch.engine import Engine
from medgen.batch.work import Outcome
from medgen.tasks.benchmark_runs import IN_TURN, Runner, attempted

Order = TypeVar("Order")

TRIES = 2
ADVICE = "if memory ran out, --jobs 1 leaves a model more of it"


def runner(jobs: int) -> Runner:
    """What runs so many cells of a study at a time."""
    return IN_TURN if jobs <= 1 else OnCluster(jobs)


@dataclass(frozen=True)
class OnCluster:
    """Runs cells in processes of their own; see :class:`medgen.tasks.benchmark_runs.Runner`.

    Attributes:
        jobs: Cells at a time.
    """

    jobs: int

    def __call__(
        self, orders: Mapping[str, Order], work: Callable[[Order], None]
    ) -> Iterator[tuple[str, str | None]]:
        """Carry out orders, each on a worker that has no other."""
        workers = min(self.jobs, len(orders))
        if workers == 0:
            return
        # A cell says itself where it computes, and what memory it will need nobody knows.
        layout = Layout(
            workers, max(1, available_cores() // workers), 1, math.inf, ("cpu",) * workers
        )
        cells = [Cell(name, order, work) for name, order in orders.items()]
        # Training loads its data in processes of its own.
        with local_cluster(layout, parents=True) as client:
            for cell, outcome in Engine(client, carry_out, math.inf, attempts=TRIES).run(cells):
                died = outcome.state == "memory"
                yield cell.id, f"{outcome.reason}; {ADVICE}" if died else outcome.reason


@dataclass(frozen=True)
class Cell:
    """A cell, as sent to a worker.

    Attributes:
        id: Its name.
        order: What to do.
        work: A function of a module.
        attempt: 1 for the first try.
    """

    id: str
    order: Any
    work: Callable[[Any], None]
    attempt: int = 1


def carry_out(cell: Cell) -> Outcome:
    """What a worker does with a cell; never raises."""
    message = attempted(cell.work, cell.order)
    return Outcome("done") if message is None else Outcome("failed", message)
