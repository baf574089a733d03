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
from medgen.batch.discover import Kind, hashed, kind_of, secret_of
from medgen.batch.engine import Engine
from medgen.batch.ledger import Entry, Ledger, State, now
from medgen.batch.pipeline import Convert, Pipeline, load_pipeline
from medgen.batch.plan import Case
from medgen.batch.prepare import (
    Options,
    Plan,
    Watcher,
    make_plan,
    outputs_of,
    package_of,
    place_of,
    refuse_unfit,
)
from medgen.batch.publish import discard, publish, undisturbed
from medgen.batch.shards import HIDDEN, locked
from medgen.batch.summarise import summarise
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
    package = package_of(pipeline)
    timings: dict[str, float] = {}
    with _folder(options.output), locked(options.output, options.shard):
        ledger_path = options.output / f"ledger{options.shard.suffix}.sqlite"
        with Ledger(ledger_path) as ledger:
            _same_run(ledger, pipeline, package, kind, options)
            secret = secret_of(options.output)
            with timed(timings, "discover and plan"):
                plan = make_plan(replace(options, kind=kind), secret, watcher)
            _write_tables(options, plan)
            ledger.put(plan.entries)
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
    model = None
    if plan.package is not None:
        manifest = plan.package.manifest
        model = {"name": manifest.name, "version": manifest.version, "sha256": plan.package.sha256}
    record = run_record(
        "batch run PIPELINE ARCHIVE -o OUT", inputs=[fingerprint(options.pipeline)],
        outputs=[options.output / name for name in (SELECTION, "summary.tsv", "summary.json")],
        timings=timings, model=model, device=options.device, seed=options.seed,
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
                if outcome.state == "done":
                    old = plan.known.get(job.id)
                    publish(Path(outcome.draft), options.output / folder, stale=outputs_of(old))
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
        planned, state=state, attempts=attempts, reason=reason, hint=hint,
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
        model=str(plan.package.folder.resolve()) if plan.package else None,
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
def _folder(output: Path) -> Iterator[None]:
    """Make the run's folder; remove it again if the input is refused before anything was done."""
    new = not output.exists()
    try:
        (output / HIDDEN).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        msg = f"cannot make the folder {output}: {error.strerror}"
        raise InputError(msg, "Choose a folder you may write to with -o.") from error
    try:
        yield
    except InputError:
        # The selection is written when the plan stands, and stays from then on.
        if new and not (output / SELECTION).exists():
            shutil.rmtree(output, ignore_errors=True)
        raise


def _drafts(options: Options) -> Path:
    return options.output / HIDDEN / f"drafts{options.shard.suffix}"


def _same_run(
    ledger: Ledger,
    pipeline: Pipeline,
    package: ModelPackage | None,
    kind: Kind,
    options: Options,
) -> None:
    """Refuse to mix two runs in one folder; note what this one is.

    Raises:
        InputError: The folder holds a run of another pipeline or model.
    """
    from importlib.metadata import version

    model = "" if package is None else f"{package.manifest.name} {package.manifest.version}"
    facts = {
        "pipeline": pipeline.name,
        "pipeline_sha256": pipeline.sha256,
        "description": pipeline.description,
        "task": pipeline.task.name,
        "model": model,
        "model_sha256": package.sha256 if package else "",
        "kind": kind,
        "seed": str(options.seed),
        "key": hashlib.sha256(options.key).hexdigest()[:16] if options.key else "",
        "medgen": version("medgen"),
    }
    before = ledger.meta()
    if before and not options.resume and not options.overwrite:
        msg = f"{options.output} holds a run already"
        raise InputError(msg, "Choose another folder with -o, or leave out --no-resume to go on.")
    identity = ("pipeline", "pipeline_sha256", "model_sha256", "kind", "seed", "key")
    changed = [key for key in identity if before and before.get(key) != facts[key]]
    if changed and not options.overwrite:
        what = ", ".join(key.replace("_sha256", "") for key in changed)
        raise InputError(
            f"{options.output} holds a run of pipeline {before.get('pipeline')}; "
            f"this run differs in: {what}",
            "Choose another folder with -o, or do everything again with --overwrite.",
        )
    ledger.set_meta({"started": before.get("started", now()), **facts})


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
        writer.writerow([v.label, v.study, v.verdict, v.reason])
    with atomic_path(options.output / SELECTION, overwrite=True) as draft:
        draft.write_text(text.getvalue(), encoding="utf-8")
    bids = plan.found.kind == "bids"
    if bids or isinstance(plan.pipeline.task, Convert):
        write_description(
            options.output, derivative=bids, source=options.source if bids else None,
            name=f"medgen {plan.pipeline.name}",
        )  # fmt: skip
