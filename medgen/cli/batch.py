"""``medgen batch``: whole archives; parse, call the cohort engine, show how far it is."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from medgen.cli import options
from medgen.cli.batch_view import (
    plan_facts,
    print_counts,
    print_plan,
    print_problem,
    watching,
    words,
)
from medgen.cli.console import configure, print_json, say, stdout

if TYPE_CHECKING:
    from medgen.batch.prepare import Options, Plan

SOME_FAILED = 3

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
    with watching() as watcher:
        counts = run_cohort(wishes, watcher)
    if json:
        print_json({"counts": counts, "summary": str(output / "summary.json")})
    else:
        print_counts(counts, output, time.monotonic() - start)
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
    with watching() as watcher:
        planned = make_plan(wishes, secret, watcher)
    seconds = _estimate(planned)
    if json:
        print_json(plan_facts(planned, seconds))
    else:
        print_plan(planned, seconds, verbose)


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
    stdout().print(words(counts))
    if verbose:
        for path in ledger_paths(output):
            with Ledger(path, read_only=True) as ledger:
                for entry in ledger.entries().values():
                    if entry.state in ("failed", "skipped"):
                        print_problem(entry, ledger.attempts(entry.id))


@batch.command("summarise")
def summarise(output: RunFolder, json: options.Json = False, debug: options.Debug = False) -> None:
    """Write summary.tsv, summary.json and index.html of a run again, of all its shards."""
    configure(debug=debug)
    from medgen.batch.summarise import summarise as write

    counts = write(output)
    if json:
        print_json({"counts": counts, "summary": str(output / "summary.json")})
    else:
        print_counts(counts, output, None)


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


def _estimate(planned: Plan) -> float | None:
    """Seconds for all cases on this machine; None if it cannot be said."""
    from medgen.batch.estimate import seconds_per_case

    if not planned.packages or not planned.todo:
        return None
    say("[dim]Measuring how long a case takes[/]")
    facts = [case.image.facts for case in planned.todo if case.image]
    each = seconds_per_case(planned.pipeline.task, planned.packages, facts)
    return None if each is None else each * len(planned.todo)
