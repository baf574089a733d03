"""The four steps of a cohort: discover, plan, run, summarise; each case's outcome is recorded."""

from __future__ import annotations

import csv
import hashlib
import io
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medgen.batch.bids import write_description
from medgen.batch.cluster import Layout, check_address, existing_cluster, lay_out, local_cluster
from medgen.batch.discover import Found, Image, Kind, discover, hashed, kind_of, secret_of
from medgen.batch.engine import Engine
from medgen.batch.estimate import case_memory_gb
from medgen.batch.ledger import Entry, Ledger, State, all_entries, now
from medgen.batch.pipeline import Convert, Deidentify, Detect, Pipeline, load_pipeline
from medgen.batch.plan import Case, Considered, bids_name, check_for, choose, reconcile
from medgen.batch.publish import discard, publish, undisturbed
from medgen.batch.shards import HIDDEN, Shard, locked
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


@dataclass(frozen=True)
class Options:
    """What to run, on what, and how.

    Attributes:
        pipeline: The pipeline file.
        source: The archive.
        output: The run's folder.
        kind: Kind of archive; found out when None.
        device: ``auto``, ``cpu``, ``cuda[:N]`` or ``mps``.
        workers: Number of worker processes; chosen when None.
        scheduler: Address of a Dask scheduler; this machine when None.
        shard: The part of the cohort to do.
        retry_failed: Try failed cases again.
        resume: Go on with a run that is in the folder; if not, refuse it.
        overwrite: Do everything again.
        max_memory_gb: Most memory to use in all; 80 % of what is free when None.
        seed: Seed of every case.
        keep_ids: Write what identifies the patients into the summary.
        key: Secret of the de-identification; made from the run's own when None.
    """

    pipeline: Path
    source: Path
    output: Path
    kind: Kind | None = None
    device: str = "auto"
    workers: int | None = None
    scheduler: str | None = None
    shard: Shard = field(default_factory=Shard)
    retry_failed: bool = False
    resume: bool = True
    overwrite: bool = False
    max_memory_gb: float | None = None
    seed: int = 0
    keep_ids: bool = False
    key: bytes | None = field(default=None, repr=False)


@dataclass
class Watcher:
    """What a caller may be told while a cohort runs. Every function may be replaced."""

    looked_at: Callable[[int], None] = lambda files: None
    planned: Callable[[int, int], None] = lambda todo, settled: None
    started: Callable[[str], None] = lambda case: None
    ended: Callable[[Entry], None] = lambda entry: None
    say: Callable[[str], None] = lambda message: None


@dataclass
class Plan:
    """What would be done.

    Attributes:
        pipeline: The checked pipeline.
        package: The model; None for a task without one.
        found: What the archive holds.
        cases: Every case, of all shards.
        verdicts: The verdict on every image.
        todo: Cases of this shard that need work.
        entries: To record before the work begins.
        layout: How this machine would be used; None with a scheduler.
        case_gb: Most memory one case is estimated to need.
    """

    pipeline: Pipeline
    package: ModelPackage | None
    found: Found
    cases: list[Case]
    verdicts: list[Considered]
    todo: list[Case]
    entries: list[Entry]
    layout: Layout | None
    case_gb: float
    known: dict[str, Entry] = field(default_factory=dict)


def make_plan(options: Options, secret: bytes, watcher: Watcher) -> Plan:
    """Look at every header, choose, and compare with what was done already. Writes nothing.

    Raises:
        InputError: The pipeline, the archive or the model cannot be used.
    """
    from medgen.tasks.limits import default_memory_gb

    pipeline = load_pipeline(options.pipeline)
    kind = options.kind or kind_of(options.source)
    refuse_unfit(options, pipeline, kind)
    free = options.max_memory_gb or default_memory_gb()
    package = _package(pipeline)
    check = check_for(pipeline, free)
    found = discover(
        options.source, kind, secret, whole_series=isinstance(pipeline.task, Deidentify),
        progress=watcher.looked_at,
    )  # fmt: skip
    cases, verdicts = choose(found, pipeline, check)
    known = all_entries(options.output) if options.output.is_dir() else {}
    mine = [case for case in cases if options.shard.holds(case.id)]
    todo, entries = reconcile(
        mine, known, retry_failed=options.retry_failed, redo=options.overwrite,
        intact=lambda entry: _intact(options.output, entry), unchanged=_unchanged,
    )  # fmt: skip
    images = [case.image for case in todo if case.image is not None]
    case_gb = case_memory_gb(package, [image.facts for image in images])
    layout = None
    if options.scheduler is None:
        layout = lay_out(
            options.device if package else "cpu", case_gb=case_gb, cases=len(todo), free_gb=free,
            workers=options.workers,
        )  # fmt: skip
    return Plan(pipeline, package, found, cases, verdicts, todo, entries, layout, case_gb, known)


def refuse_unfit(options: Options, pipeline: Pipeline, kind: Kind) -> None:
    """Raise if pipeline, archive and output folder do not go together."""
    if options.scheduler is not None:
        check_address(options.scheduler)
    if kind not in pipeline.inputs:
        msg = f"pipeline {pipeline.name} works on {' or '.join(pipeline.inputs)}, this is {kind}"
        raise InputError(msg, "Choose another pipeline, or say what it is with --input.")
    output, source = options.output.resolve(), options.source.resolve()
    inside = output == source or (source in output.parents and kind != "bids")
    if inside or output in source.parents:
        msg = f"the output folder {options.output} and the archive must not contain each other"
        raise InputError(msg, "Results would be taken for input. Choose another folder with -o.")
    if options.output.exists() and not options.output.is_dir():
        raise InputError(f"-o must name a folder, but {options.output} is a file")


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
    package = _package(pipeline)
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
                    publish(Path(outcome.draft), options.output / folder, stale=_files(old))
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


@dataclass(frozen=True)
class Place:
    """Where a case's outputs go."""

    folder: str
    stem: str | None


def place_of(pipeline: Pipeline, image: Image) -> Place:
    """Where an image's outputs go: as it was discovered, or as BIDS names a converted one."""
    if not isinstance(pipeline.task, Convert):
        return Place(image.folder, image.stem)
    datatype, suffix = bids_name(pipeline.task, image.facts)
    session = re.sub(r"[^0-9a-f]", "", image.group.removeprefix("study-"))
    # The series is part of the name, so that a series found later cannot take another's place.
    series = re.sub(r"[^0-9a-z]", "", image.label.rpartition("/series-")[2])
    start = f"sub-{image.patient}_ses-{session}"
    return Place(f"sub-{image.patient}/ses-{session}/{datatype}", f"{start}_acq-{series}_{suffix}")


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


def _package(pipeline: Pipeline) -> ModelPackage | None:
    if not isinstance(pipeline.task, Detect):
        return None
    from medgen.package import load_package

    return load_package(pipeline.task.model)


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


def _intact(output: Path, entry: Entry) -> bool:
    """Whether the outputs of a finished case are all there."""
    return all((output / name).exists() for name in _files(entry))


def _files(entry: Entry | None) -> list[str]:
    """Outputs of a case, relative to the run's folder."""
    if entry is None or entry.folder is None:
        return []
    names = [*entry.result.get("outputs", {}).values(), entry.result.get("thumbnail")]
    return [f"{entry.folder}/{name}" for name in names if name]


def _unchanged(image: Image, entry: Entry) -> bool:
    """Whether an input that was touched still has the contents it had."""
    from medgen.batch.verbs import hash_sources

    try:
        return entry.input_sha256 == hash_sources(image.sources)
    except (OSError, KeyError):
        return False


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
