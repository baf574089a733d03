"""How ``medgen batch`` shows what it will do, how far it is, and what came of it."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medgen.cli.console import NORMAL, VERBOSE, Settings, plain, say, stderr, stdout

if TYPE_CHECKING:
    from medgen.batch.ledger import Entry
    from medgen.batch.prepare import Plan, Watcher

# Plain progress lines, for logs, come no more often than this; failures always.
LINE_EVERY_S = 2.0


@contextmanager
def watching() -> Iterator[Watcher]:
    """Show progress: a live display on a terminal, plain lines elsewhere, nothing with -q."""
    from medgen.batch.prepare import Watcher

    if Settings.level < NORMAL:
        yield Watcher()
    elif sys.stderr.isatty():
        with _live() as watcher:
            yield watcher
    else:
        yield _Lines().watcher()


@contextmanager
def _live() -> Iterator[Watcher]:
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from medgen.batch.prepare import Watcher

    columns = (
        TextColumn("{task.description}"), BarColumn(bar_width=30), MofNCompleteColumn(),
        TextColumn("{task.fields[news]}"),
    )  # fmt: skip
    with Progress(*columns, console=stderr(), transient=True) as progress:
        bar = progress.add_task("Looking at headers", total=None, news="")
        tally = _Tally()

        def planned(todo: int, settled: int) -> None:
            tally.begin(todo)
            progress.update(bar, description="Cases", total=todo, completed=0)
            if settled:
                progress.console.print(f"[dim]{_to_do(todo, settled)}[/]")

        def started(case: str) -> None:
            progress.update(bar, news=f"{tally} [dim]{escape(case[-40:])}[/]")

        def ended(entry: Entry) -> None:
            tally.add(entry)
            progress.update(bar, advance=1, news=str(tally))
            if entry.state == "failed":
                line = f"[red]failed[/] {escape(entry.id)}: {escape(entry.reason or '')}"
                progress.console.print(line, soft_wrap=True)

        yield Watcher(
            looked_at=lambda files: progress.update(bar, completed=files),
            planned=planned, started=started, ended=ended,
            say=lambda message: progress.console.print(escape(message), soft_wrap=True),
        )  # fmt: skip


class _Tally:
    """How many are done, how fast, and how long it will take."""

    def __init__(self) -> None:
        self.todo = self.ended = self.failed = 0
        self.start = time.monotonic()

    def begin(self, todo: int) -> None:
        self.todo, self.start = todo, time.monotonic()

    def add(self, entry: Entry) -> None:
        self.ended += 1
        self.failed += entry.state == "failed"

    def __str__(self) -> str:
        elapsed = max(time.monotonic() - self.start, 1e-3)
        parts = [f"{self.failed} failed"] if self.failed else []
        if self.ended:
            parts.append(f"{60 * self.ended / elapsed:.1f} a minute")
            left = (self.todo - self.ended) * elapsed / self.ended
            parts.append(f"{_duration(left)} left" if self.ended < self.todo else "")
        return ", ".join(part for part in parts if part)


class _Lines:
    """Progress as plain lines on stderr, for logs."""

    def __init__(self) -> None:
        self.tally = _Tally()
        self.last = time.monotonic()

    def watcher(self) -> Watcher:
        from medgen.batch.prepare import Watcher

        return Watcher(
            looked_at=self.looked_at, planned=self.planned, ended=self.ended, say=self.line
        )

    def line(self, text: str) -> None:
        sys.stderr.write(plain(text) + "\n")
        sys.stderr.flush()
        self.last = time.monotonic()

    def looked_at(self, files: int) -> None:
        if time.monotonic() - self.last > 10:
            self.line(f"looked at {files} files")

    def planned(self, todo: int, settled: int) -> None:
        self.tally.begin(todo)
        self.line(_to_do(todo, settled))

    def ended(self, entry: Entry) -> None:
        self.tally.add(entry)
        done = f"{self.tally.ended}/{self.tally.todo}"
        if entry.state == "failed":
            self.line(f"{done} failed {entry.id}: {entry.reason}")
        elif time.monotonic() - self.last > LINE_EVERY_S or self.tally.ended == self.tally.todo:
            self.line(f"{done} {entry.state} {entry.id} ({self.tally})")


def print_counts(counts: dict[str, int], output: Path, seconds: float | None) -> None:
    """What came of a run, and where to look."""
    from rich.markup import escape

    console = stdout()
    took = "" if seconds is None else f" in {_duration(seconds)}"
    console.print(f"{words(counts)}{took}")
    page = escape(str(output / "index.html"))
    console.print(f"Look at [b]{page}[/]", soft_wrap=True)
    if counts.get("failed"):
        console.print("[dim]Why some failed stands there; --retry-failed tries them again.[/]")


def _to_do(todo: int, settled: int) -> str:
    """Such as "1 case to do, 2 need no work"."""
    return f"{todo} {_CASES[todo == 1]} to do, {settled} {_NEED[settled == 1]} no work"


_CASES, _NEED = ("cases", "case"), ("need", "needs")


def words(counts: dict[str, int]) -> str:
    """Cases by state, in words."""
    order = ("done", "failed", "skipped", "waiting")
    said = [f"{counts[state]} {state}" for state in order if counts.get(state)]
    return ", ".join(said) or "no image fits the pipeline; selection.tsv says why"


def print_problem(entry: Entry, attempts: list[dict[str, Any]]) -> None:
    """Why a case failed or was skipped, and every try of it."""
    from rich.markup import escape

    console = stdout()
    reason = escape(entry.reason or "")
    console.print(f"[b]{escape(entry.id)}[/] {entry.state}: {reason}", soft_wrap=True)
    if entry.hint:
        console.print(f"  [dim]{escape(entry.hint)}[/]", soft_wrap=True)
    for attempt in attempts:
        detail = escape(attempt["detail"] or "")
        text = f"  try {attempt['number']}: {attempt['outcome']} {detail}"
        console.print(f"[dim]{text}[/]", soft_wrap=True)


def plan_facts(planned: Plan, seconds: float | None) -> dict[str, Any]:
    """The plan for another program."""
    return {
        "pipeline": planned.pipeline.name,
        "input": planned.found.kind,
        "images": len(planned.found.images),
        "set_aside": planned.found.set_aside,
        "notes": planned.found.notes,
        "cases": len(planned.cases),
        "to_do": [case.id for case in planned.todo],
        "settled": [
            {"case": case.id, "state": case.state, "reason": case.reason}
            for case in planned.cases
            if case.state != "waiting"
        ],
        "memory_gb_per_case": round(planned.case_gb, 2),
        "workers": None if planned.layout is None else str(planned.layout),
        "estimated_seconds": None if seconds is None else round(seconds),
    }


def print_plan(planned: Plan, seconds: float | None, verbose: bool) -> None:
    """The plan in a few lines: what is chosen and why not the rest, and what it costs."""
    from collections import Counter

    from rich.markup import escape
    from rich.table import Table

    console = stdout()
    console.print(f"[b]{escape(planned.pipeline.name)}[/] {escape(planned.pipeline.description)}")
    reasons = Counter((v.verdict, v.reason) for v in planned.verdicts)
    aside = Counter({("set aside", e["reason"]): e["objects"] for e in planned.found.set_aside})
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("images", justify="right")
    table.add_column("verdict")
    table.add_column("reason", overflow="fold")
    for (verdict, reason), count in [*reasons.most_common(), *aside.most_common()]:
        unit = " objects" if verdict == "set aside" else ""
        table.add_row(f"{count}{unit}", verdict, escape(reason))
    console.print(table)
    for note in planned.found.notes:
        console.print(f"[yellow]Note:[/] {escape(note)}")
    settled = len(planned.cases) - len(planned.todo)
    console.print(
        f"{_to_do(len(planned.todo), settled)}; "
        f"about {planned.case_gb:.1f} GB a case; {planned.layout}"
    )
    if seconds is not None:
        console.print(
            f"About {_duration(seconds)}, measured on a drawn head of the same size, "
            "without reading and writing"
        )
    if verbose:
        for case in planned.cases:
            text = case.chosen or case.reason or ""
            console.print(f"[dim]{escape(case.id)}: {case.state}, {escape(text)}[/]")
    say("Nothing was written.", level=VERBOSE)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
