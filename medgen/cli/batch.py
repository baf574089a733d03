"""``medgen batch``: whole archives; parse, call the cohort engine, show how far it is."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from medgen.cli import options
from medgen.cli.console import (
    NORMAL,
    VERBOSE,
    Settings,
    configure,
    plain,
    print_json,
    say,
    stderr,
    stdout,
)

if TYPE_CHECKING:
    from medgen.batch.ledger import Entry
    from medgen.batch.prepare import Options, Plan, Watcher

SOME_FAILED = 3
# Plain progress lines, for logs, come no more often than this; failures always.
LINE_EVERY_S = 2.0

RUN_EPILOG = (
    "**Examples**\n\n"
    "medgen batch run pipelines/brain_screening.yaml /archive -o results\n\n"
    "medgen batch run pipelines/brain_screening.yaml bids/ -o bids/derivatives/medgen\n\n"
    "medgen batch run pipelines/brain_screening.yaml /archive -o results --retry-failed\n\n"
    "medgen batch run pipelines/brain_screening.yaml /archive -o results --shard slurm"
)

batch = typer.Typer(
    help="Do the same to every case of an archive, and lose none.", no_args_is_help=True
)

Pipeline = Annotated[
    Path, typer.Argument(metavar="PIPELINE", help="A YAML file, as those in pipelines/.")
]
Archive = Annotated[
    Path,
    typer.Argument(metavar="ARCHIVE", help="DICOM folder or zip, BIDS data set, or NIfTI folder."),
]
RunFolder = Annotated[Path, typer.Argument(metavar="OUT", help="Folder of a run.")]
Input = Annotated[
    Literal["dicom", "bids", "nifti"] | None,
    typer.Option("--input", help="What the archive is, if it is not clear from what it holds."),
]
Workers = Annotated[
    int | None,
    typer.Option(help="Worker processes; chosen from cores and memory if not given.", min=1),
]
Scheduler = Annotated[
    str | None,
    typer.Option(help="Use the Dask cluster at this address.", metavar="tcp://HOST:PORT"),
]
ShardOption = Annotated[
    str | None,
    typer.Option(
        "--shard", metavar="i/N", help="Do part i of N only; **slurm** takes it from the array job."
    ),
]
MaxMemory = Annotated[
    float | None,
    typer.Option(
        help="Most memory to use in all, in GB. Default: 80 % of what is free, at most 16.",
        metavar="GB", min=0.1,
    ),
]  # fmt: skip
RetryFailed = Annotated[
    bool, typer.Option("--retry-failed", metavar="", help="Try failed cases again.")
]


@batch.command("run", epilog=RUN_EPILOG)
def run(
    pipeline: Pipeline,
    archive: Archive,
    output: options.Output,
    input_kind: Input = None,
    device: options.Device = "auto",
    workers: Workers = None,
    scheduler: Scheduler = None,
    shard: ShardOption = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume/--no-resume",
            metavar="",
            help="Go on with the run that OUT holds; or refuse a folder that holds one.",
        ),
    ] = True,
    retry_failed: RetryFailed = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", metavar="", help="Do every case again.")
    ] = False,
    max_memory: MaxMemory = None,
    seed: options.Seed = 0,
    keep_ids: Annotated[
        bool,
        typer.Option(
            "--keep-ids",
            metavar="",
            help="Write patient IDs, study UIDs and source paths into the summary.",
        ),
    ] = False,
    key_file: Annotated[
        Path | None,
        typer.Option(
            help="Key for de-identification, as of **medgen deidentify**; else one of this run.",
            metavar="FILE",
        ),
    ] = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Run a pipeline over an archive.

    Every case ends as done, failed or skipped, with the reason, in OUT/ledger.sqlite and on
    OUT/index.html. A run that was interrupted, however, goes on where it stopped when the same
    command is given again. Exit code 3 means that some cases failed.
    """
    configure(quiet=quiet, verbose=verbose, debug=debug)
    from medgen.batch.run import run_cohort

    wishes = _options(
        pipeline, archive, output, input_kind=input_kind, device=device, workers=workers,
        scheduler=scheduler, shard=shard, resume=resume, retry_failed=retry_failed,
        overwrite=overwrite, max_memory=max_memory, seed=seed, keep_ids=keep_ids,
        key_file=key_file,
    )  # fmt: skip
    start = time.monotonic()
    with _watching() as watcher:
        counts = run_cohort(wishes, watcher)
    if json:
        print_json({"counts": counts, "summary": str(output / "summary.json")})
    else:
        _print_counts(counts, output, time.monotonic() - start)
    if counts.get("failed"):
        raise typer.Exit(SOME_FAILED)


@batch.command("plan")
def plan(
    pipeline: Pipeline,
    archive: Archive,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The run's folder, to see what is left to do.")
    ] = Path("medgen-results"),
    input_kind: Input = None,
    device: options.Device = "auto",
    workers: Workers = None,
    shard: ShardOption = None,
    retry_failed: RetryFailed = False,
    max_memory: MaxMemory = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Say what a run would do, and about how long it would take. Writes nothing."""
    configure(quiet=quiet, verbose=verbose, debug=debug)
    import os

    from medgen.batch.discover import secret_of
    from medgen.batch.prepare import make_plan
    from medgen.batch.shards import HIDDEN

    wishes = _options(
        pipeline, archive, output, input_kind=input_kind, device=device, workers=workers,
        shard=shard, retry_failed=retry_failed, max_memory=max_memory,
    )  # fmt: skip
    begun = (output / HIDDEN / "secret").exists()
    secret = secret_of(output) if begun else os.urandom(32)
    with _watching() as watcher:
        planned = make_plan(wishes, secret, watcher)
    seconds = _estimate(planned)
    if json:
        print_json(_plan_facts(planned, seconds))
    else:
        _print_plan(planned, seconds, verbose)


@batch.command("status")
def status(
    output: RunFolder,
    json: options.Json = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Say how far a run is, also while it is going on; with -v list what failed and why."""
    configure(verbose=verbose, debug=debug)
    from collections import Counter
    from dataclasses import asdict

    from medgen.batch.ledger import Ledger, all_entries, ledger_paths
    from medgen.errors import InputError

    if not ledger_paths(output):
        raise InputError(f"{output} holds no run of medgen", "Name the folder given with -o.")
    entries = all_entries(output)
    counts: dict[str, int] = dict(Counter(entry.state for entry in entries.values()))
    if json:
        print_json({"counts": counts, "cases": [asdict(entry) for entry in entries.values()]})
        return
    stdout().print(_words(counts))
    if verbose:
        for path in ledger_paths(output):
            with Ledger(path, read_only=True) as ledger:
                for entry in ledger.entries().values():
                    if entry.state in ("failed", "skipped"):
                        _print_problem(entry, ledger.attempts(entry.id))


@batch.command("summarise")
def summarise(output: RunFolder, json: options.Json = False, debug: options.Debug = False) -> None:
    """Write summary.tsv, summary.json and index.html of a run again, of all its shards."""
    configure(debug=debug)
    from medgen.batch.summarise import summarise as write

    counts = write(output)
    if json:
        print_json({"counts": counts, "summary": str(output / "summary.json")})
    else:
        _print_counts(counts, output, None)


@batch.command("schema")
def schema() -> None:
    """Print the JSON schema of pipeline files."""
    from medgen.batch.pipeline import json_schema

    print_json(json_schema())


def _options(pipeline: Path, archive: Path, output: Path, **wishes: Any) -> Options:
    from medgen.batch.prepare import Options
    from medgen.batch.shards import Shard, parse_shard

    text, key_file = wishes.pop("shard", None), wishes.pop("key_file", None)
    if key_file is not None:
        from medgen.io.deidentify import read_key

        wishes["key"] = read_key(key_file)
    return Options(
        pipeline=pipeline, source=archive, output=output,
        shard=parse_shard(text) if text else Shard(), kind=wishes.pop("input_kind"),
        max_memory_gb=wishes.pop("max_memory"), **wishes,
    )  # fmt: skip


@contextmanager
def _watching() -> Iterator[Watcher]:
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


def _print_counts(counts: dict[str, int], output: Path, seconds: float | None) -> None:
    from rich.markup import escape

    console = stdout()
    took = "" if seconds is None else f" in {_duration(seconds)}"
    console.print(f"{_words(counts)}{took}")
    page = escape(str(output / "index.html"))
    console.print(f"Look at [b]{page}[/]", soft_wrap=True)
    if counts.get("failed"):
        console.print("[dim]Why some failed stands there; --retry-failed tries them again.[/]")


def _to_do(todo: int, settled: int) -> str:
    """Such as "1 case to do, 2 need no work"."""
    return f"{todo} {_CASES[todo == 1]} to do, {settled} {_NEED[settled == 1]} no work"


_CASES, _NEED = ("cases", "case"), ("need", "needs")


def _words(counts: dict[str, int]) -> str:
    order = ("done", "failed", "skipped", "waiting")
    words = [f"{counts[state]} {state}" for state in order if counts.get(state)]
    return ", ".join(words) or "no image fits the pipeline; selection.tsv says why"


def _print_problem(entry: Entry, attempts: list[dict[str, Any]]) -> None:
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


def _estimate(planned: Plan) -> float | None:
    """Seconds for all cases on this machine; None if it cannot be said."""
    from medgen.batch.estimate import seconds_per_case

    if planned.package is None or not planned.todo:
        return None
    say("[dim]Measuring how long a case takes[/]")
    each = seconds_per_case(planned.package, [c.image.facts for c in planned.todo if c.image])
    return None if each is None else each * len(planned.todo)


def _plan_facts(planned: Plan, seconds: float | None) -> dict[str, Any]:
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


def _print_plan(planned: Plan, seconds: float | None, verbose: bool) -> None:
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
