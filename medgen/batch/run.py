"""The four steps of a cohort: discover, plan, run, summarise; each case's outcome is recorded."""

from __future__ import annotations

import csv
import hashlib
import io
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medgen.batch.bids import write_description
from medgen.batch.cluster import existing_cluster, local_cluster
from medgen.batch.discover import Kind, has_secret, hashed, kind_of, secret_of
from medgen.batch.engine import Engine
from medgen.batch.ledger import Entry, Ledger, State, all_meta, ledger_paths, now
from medgen.batch.pipeline import Convert, Pipeline, load_pipeline
from medgen.batch.plan import Case
from medgen.batch.prepare import (
    Options,
    Plan,
    Watcher,
    make_plan,
    outputs_of,
    packages_of,
    place_of,
    refuse_unfit,
)
from medgen.batch.publish import discard, publish, remove, undisturbed
from medgen.batch.shards import HIDDEN, locked
from medgen.batch.summarise import summarise
from medgen.batch.summary import cell
from medgen.batch.work import Job, Outcome, work
from medgen.errors import InputError, MedgenError
from medgen.io.files import atomic_path
from medgen.run_record import fingerprint, run_record, timed
from medgen.tasks.detect_files import write_json

if TYPE_CHECKING:
    from distributed import Client

    from medgen.package import ModelPackage

SELECTION = "selection.tsv"


def run_cohort(options: Options, watcher: Watcher | None = None) -> dict[str, int]:
    """Do a whole cohort, or what is left of it.

    Args:
        options: What, on what, how.
        watcher: Is told what happens.

    Returns:
        Number of cases by state, over all shards.

    Raises:
        InputError: Nothing was begun; says why.
        MedgenError: The run had to stop (disk full, scheduler gone); what was recorded is kept.
    """
    watcher = watcher or Watcher()
    pipeline = load_pipeline(options.pipeline)
    kind = options.kind or kind_of(options.source)
    refuse_unfit(options, pipeline, kind)
    packages = packages_of(pipeline)
    timings: dict[str, float] = {}
    with (
        _folder(options.output) as new,
        locked(options.output, options.shard),
        _nothing_left(options, new),
        Ledger(options.output / f"ledger{options.shard.suffix}.sqlite") as ledger,
    ):
        before = _earlier(options.output, ledger)
        _refuse_lost_secret(options, kind, before)
        secret = secret_of(options.output)
        facts = _facts(pipeline, packages, kind, secret, options)
        _refuse_another_run(options, before, facts)
        with timed(timings, "discover and plan"):
            plan = make_plan(replace(options, kind=kind), secret, watcher)
        _write_tables(options, plan)
        if options.overwrite and options.shard.count == 1:
            _remove_other_ledgers(options.output, ledger.path)
        # With the first entry of this run, and not before it, the folder is this run's.
        ledger.begin({"started": before.get("started", now()), **facts}, plan.entries, plan.gone)
        watcher.planned(len(plan.todo), len(plan.cases) - len(plan.todo))
        try:
            if plan.todo:
                with timed(timings, "run"):
                    _work(options, plan, secret, ledger, watcher)
        except BaseException:
            discard(_drafts(options))
            with suppress(MedgenError):  # a full disk must not hide why the run stopped
                _summarise(options, plan)
            raise
        discard(_drafts(options))
        counts = _summarise(options, plan)
        _write_record(options, plan, counts, timings)
        return counts


def _write_record(
    options: Options, plan: Plan, counts: dict[str, int], timings: dict[str, float]
) -> None:
    """``run.json`` of this run, or of this shard; each case has its own beside its outputs."""
    models = [
        {"name": p.manifest.name, "version": p.manifest.version, "sha256": p.sha256}
        for p in plan.packages.values()
    ]
    record = run_record(
        "batch run PIPELINE ARCHIVE -o OUT", inputs=[fingerprint(options.pipeline)],
        outputs=[options.output / name for name in (SELECTION, "summary.tsv", "summary.json")],
        timings=timings, model=models[0] if len(models) == 1 else None, models=models,
        device=options.device, seed=options.seed,
        shard=f"{options.shard.number}/{options.shard.count}",
        workers="an existing Dask cluster" if options.scheduler else str(plan.layout),
        cases=counts, cases_of_this_run=len(plan.todo), images=len(plan.found.images),
        set_aside=plan.found.set_aside, notes=plan.found.notes,
    )  # fmt: skip
    with atomic_path(options.output / f"run{options.shard.suffix}.json", overwrite=True) as draft:
        write_json(draft, record)


def _summarise(options: Options, plan: Plan) -> dict[str, int]:
    return summarise(options.output, plan.found, keep_ids=_identities(options, plan))


def _work(options: Options, plan: Plan, secret: bytes, ledger: Ledger, watcher: Watcher) -> None:
    """Run the jobs, publish what is done, record every outcome."""
    entries = {entry.id: entry for entry in plan.entries}
    jobs = [_job(options, plan, case, secret) for case in plan.todo]
    folders = {c.id: place_of(plan.pipeline, c.image).folder for c in plan.todo if c.image}
    with _cluster(options, plan) as client:

        def retried(job: Job, outcome: Outcome) -> None:
            ledger.add_attempt(job.id, outcome.state, outcome.seconds, outcome.reason)

        engine = Engine(
            client, work, plan.pipeline.timeout_minutes * 60, plan.pipeline.attempts,
            on_retry=retried, on_start=lambda job: watcher.started(job.id),
            on_alone=lambda: watcher.say("the cluster has no workers; waiting for some"),
        )  # fmt: skip
        for job, outcome in engine.run(jobs):
            if outcome.state == "disk":
                raise MedgenError(
                    f"the run stopped: {outcome.reason}",
                    "Free some space and start the same command again; finished cases are kept.",
                )
            folder = folders[job.id]
            entry = _entry(entries[job.id], job, outcome, folder)
            with undisturbed():
                stale = outputs_of(options.output, entries[job.id])
                if outcome.state == "done":
                    publish(Path(outcome.draft), options.output / folder, stale=stale)
                else:
                    remove(stale)
                if outcome.state != "memory":  # those were recorded when they were tried again
                    ledger.add_attempt(job.id, outcome.state, outcome.seconds, outcome.detail)
                ledger.put([entry])
            watcher.ended(entry)


def _entry(planned: Entry, job: Job, outcome: Outcome, folder: str) -> Entry:
    """What the ledger keeps of an outcome."""
    attempts = planned.attempts + job.attempt
    if outcome.state == "done":
        return replace(
            planned, state="done", attempts=attempts, input_sha256=outcome.input_sha256,
            folder=folder, result=outcome.result, seconds=round(outcome.seconds, 3),
            finished=now(),
        )  # fmt: skip
    reason, hint = outcome.reason, outcome.hint
    state: State = "skipped" if outcome.state == "skipped" else "failed"
    if outcome.state == "memory":
        reason = f"{reason}, {job.attempt} times, each with less memory"
        hint = "Use fewer --workers or a machine with more memory, and --retry-failed."
    return replace(
        planned, state=state, attempts=attempts, reason=reason, hint=hint, folder=None, result={},
        seconds=round(outcome.seconds, 3), finished=now(),
    )  # fmt: skip


def _job(options: Options, plan: Plan, case: Case, secret: bytes) -> Job:
    assert case.image is not None
    where = place_of(plan.pipeline, case.image)
    memory = plan.layout.memory_gb if plan.layout else options.max_memory_gb or plan.case_gb * 2
    return Job(
        id=case.id,
        sources=case.image.sources,
        root=str(options.source),
        private=plan.found.kind == "dicom",
        task=plan.pipeline.task,
        drafts=str(_drafts(options).resolve()),
        stem=where.stem,
        models={name: str(p.folder.resolve()) for name, p in plan.packages.items()},
        device=options.device,
        seed=options.seed,
        memory_gb=memory / (plan.layout.lanes if plan.layout else 1),
        key=options.key or bytes.fromhex(hashed(secret, "key", "de-identification", 64)),
        patient=case.image.patient,
        facts={k: v for k, v in case.image.facts.items() if k not in ("path", "blocking")},
    )


@contextmanager
def _cluster(options: Options, plan: Plan) -> Iterator[Client]:
    if options.scheduler is not None:
        with existing_cluster(options.scheduler) as client:
            yield client
    else:
        assert plan.layout is not None
        with local_cluster(plan.layout) as client:
            yield client


@contextmanager
def _folder(output: Path) -> Iterator[bool]:
    """Make the run's folder; says whether it is new. It goes again if it stays empty."""
    new = not output.exists()
    try:
        (output / HIDDEN).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        msg = f"cannot make the folder {output}: {error.strerror}"
        raise InputError(msg, "Choose a folder you may write to with -o.") from error
    try:
        yield new
    except InputError:
        if new:
            with suppress(OSError):  # where a held lock cannot be removed, it lies there still
                output.rmdir()
        raise


@contextmanager
def _nothing_left(options: Options, new: bool) -> Iterator[None]:
    """Empty a new folder if the input is refused before anything was done.

    Only whoever holds the whole folder may do that: others may be at work in it by now.
    """
    try:
        yield
    except InputError:
        # The selection is written when the plan stands, and stays from then on.
        if new and options.shard.count == 1 and not (options.output / SELECTION).exists():
            shutil.rmtree(options.output, ignore_errors=True)
        raise


def _drafts(options: Options) -> Path:
    return options.output / HIDDEN / f"drafts{options.shard.suffix}"


def _earlier(folder: Path, ledger: Ledger) -> dict[str, str]:
    """What run the folder holds already: by this ledger, or else by one of another part."""
    return ledger.meta() or next(iter(all_meta(folder).values()), {})


def _facts(
    pipeline: Pipeline,
    packages: Mapping[str, ModelPackage],
    kind: Kind,
    secret: bytes,
    options: Options,
) -> dict[str, str]:
    """What this run is."""
    from importlib.metadata import version

    models = [f"{p.manifest.name} {p.manifest.version}" for p in packages.values()]
    hashes = [package.sha256 for package in packages.values()]
    several = hashlib.sha256("".join(hashes).encode()).hexdigest()
    return {
        "pipeline": pipeline.name,
        "pipeline_sha256": pipeline.sha256,
        "description": pipeline.description,
        "task": pipeline.task.name,
        "model": ", ".join(models),
        "model_sha256": "".join(hashes) if len(hashes) < 2 else several,
        "kind": kind,
        "seed": str(options.seed),
        "key": hashlib.sha256(options.key).hexdigest()[:16] if options.key else "",
        "labels": hashed(secret, "labels", "", 16) if kind == "dicom" else "",
        "medgen": version("medgen"),
    }


def _refuse_lost_secret(options: Options, kind: Kind, before: Mapping[str, str]) -> None:
    """Without its key a run would find none of its cases again, and do all of them twice."""
    if before and kind == "dicom" and not options.overwrite and not has_secret(options.output):
        raise InputError(
            f"the key of the run in {options.output} was deleted, so it cannot go on",
            "Choose another folder with -o, or do everything again with --overwrite.",
        )


def _refuse_another_run(
    options: Options, before: Mapping[str, str], facts: Mapping[str, str]
) -> None:
    """Refuse to mix two runs in one folder.

    Raises:
        InputError: The folder holds a run of another pipeline or model.
    """
    if before and not options.resume and not options.overwrite:
        msg = f"{options.output} holds a run already"
        raise InputError(msg, "Choose another folder with -o, or leave out --no-resume to go on.")
    identity = ("pipeline", "pipeline_sha256", "model_sha256", "kind", "seed", "key", "labels")
    changed = [key for key in identity if before and before.get(key) != facts[key]]
    if changed and not options.overwrite:
        what = ", ".join(dict.fromkeys(key.replace("_sha256", "") for key in changed))
        raise InputError(
            f"{options.output} holds a run of pipeline {before.get('pipeline')}; "
            f"this run differs in: {what}",
            "Choose another folder with -o, or do everything again with --overwrite.",
        )


def _remove_other_ledgers(folder: Path, own: Path) -> None:
    """What parts of the cohort did before counts no more: all of it is done again, here."""
    for path in ledger_paths(folder):
        if path != own:
            path.with_name(f"{path.name}-journal").unlink(missing_ok=True)
            path.unlink()


def _identities(options: Options, plan: Plan) -> Mapping[str, Any] | None:
    """Sources of each case, for a summary with identifiers; None unless they were asked for."""
    if not options.keep_ids:
        return None
    return {case.id: case.image.sources for case in plan.cases if case.image is not None}


def _write_tables(options: Options, plan: Plan) -> None:
    """``selection.tsv``: every image and why it was chosen or not; and what BIDS asks for."""
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    writer.writerow(["image", "study", "verdict", "reason"])
    for v in sorted(plan.verdicts, key=lambda v: v.label):
        writer.writerow(map(cell, (v.label, v.study, v.verdict, v.reason)))
    with atomic_path(options.output / SELECTION, overwrite=True) as draft:
        draft.write_text(text.getvalue(), encoding="utf-8")
    bids = plan.found.kind == "bids"
    if bids or isinstance(plan.pipeline.task, Convert):
        write_description(
            options.output, derivative=bids, source=options.source if bids else None,
            name=f"medgen {plan.pipeline.name}",
        )  # fmt: skip
