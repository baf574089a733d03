"""From what a user asks for to a plan: look at every header, choose, compare with the ledger."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from medgen.batch.cluster import Layout, check_address, lay_out
from medgen.batch.discover import Found, Image, Kind, discover, kind_of
from medgen.batch.estimate import WITHOUT_MODEL_GB, memory_needs_gb
from medgen.batch.ledger import Entry, all_entries, now
from medgen.batch.pipeline import (
    Convert,
    Deidentify,
    Detect,
    Pipeline,
    Restoring,
    load_pipeline,
    steps_of,
)
from medgen.batch.plan import (
    Case,
    Considered,
    bids_name,
    check_for,
    choose,
    reconcile,
    settled_without_work,
)
from medgen.batch.shards import Shard
from medgen.errors import InputError

if TYPE_CHECKING:
    from medgen.package import ModelPackage


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
        packages: The models by the names that the pipeline gives them; empty for a task without
            any.
        found: What the archive holds.
        cases: Every case, of all shards.
        verdicts: The verdict on every image.
        todo: Cases of this shard that need work.
        entries: To record before the work begins.
        layout: How this machine would be used; None with a scheduler.
        case_gb: Most memory one case is estimated to need.
        gone: Cases to forget, because everything is done again and they are none any more.
    """

    pipeline: Pipeline
    packages: dict[str, ModelPackage]
    found: Found
    cases: list[Case]
    verdicts: list[Considered]
    todo: list[Case]
    entries: list[Entry]
    layout: Layout | None
    case_gb: float
    gone: list[str] = field(default_factory=list)


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
    packages = packages_of(pipeline)
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
    names = {case.id for case in cases}
    lost = [e for e in known.values() if e.id not in names and options.shard.holds(e.id)]
    if not options.overwrite:
        entries += settled_without_work(lost)
    needs = memory_needs_gb(
        pipeline.task, packages, [case.image.facts for case in todo if case.image]
    )
    if any(need <= free for need in needs):  # if none fits, the limit is wrong and not the cases
        large = {c.id: need for c, need in zip(todo, needs, strict=True) if need > free}
        entries = [_too_large(e, large[e.id], free) if e.id in large else e for e in entries]
        todo = [case for case in todo if case.id not in large]
    case_gb = max(
        (need for need in needs if need <= free), default=max(needs, default=WITHOUT_MODEL_GB)
    )
    layout = None
    if options.scheduler is None:
        layout = lay_out(
            options.device if packages else "cpu", case_gb=case_gb, cases=len(todo), free_gb=free,
            workers=options.workers,
        )  # fmt: skip
    return Plan(
        pipeline, packages, found, cases, verdicts, todo, entries, layout, case_gb,
        [entry.id for entry in lost] if options.overwrite else [],
    )  # fmt: skip


def _too_large(entry: Entry, need: float, free: float) -> Entry:
    """One case that would not fit fails, and the others are done."""
    reason = f"it needs about {need:.1f} GB, and {free:.1f} GB may be used"
    hint = "Raise the limit with --max-memory (GB), and use --retry-failed."
    return replace(entry, state="failed", reason=reason, hint=hint, finished=now())


def refuse_unfit(options: Options, pipeline: Pipeline, kind: Kind) -> None:
    """Raise if pipeline, archive and output folder do not go together."""
    if options.scheduler is not None:
        check_address(options.scheduler)
    if kind not in pipeline.inputs:
        msg = f"pipeline {pipeline.name} works on {' or '.join(pipeline.inputs)}, this is {kind}"
        raise InputError(msg, "Choose another pipeline, or say what it is with --input.")
    output, source = options.output.resolve(), options.source.resolve()
    inside = output == source or (source in output.parents and kind != "bids")
    if kind == "bids" and source in output.parents:
        inside = output.relative_to(source).parts[0].startswith("sub-")
    if inside or output in source.parents:
        msg = f"the output folder {options.output} and the archive must not contain each other"
        raise InputError(msg, "Results would be taken for input. Choose another folder with -o.")
    if options.output.exists() and not options.output.is_dir():
        raise InputError(f"-o must name a folder, but {options.output} is a file")


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


def packages_of(pipeline: Pipeline) -> dict[str, ModelPackage]:
    """The models of a pipeline by the names it gives them; none of a task without any.

    Raises:
        PackageError: There is no such model, or it was made for something else.
    """
    from medgen.package import load_package

    if isinstance(pipeline.task, Detect):
        return {pipeline.task.model: load_package(pipeline.task.model, "detect-anomalies")}
    if not isinstance(pipeline.task, Restoring):
        return {}
    from medgen.tasks.chain import model_names
    from medgen.tasks.restoration_scan import find_model

    packages = {}
    for verb, name in model_names(steps_of(pipeline.task)):
        if verb == "detect-anomalies":
            packages[name] = load_package(name, verb)
        elif (package := find_model(verb, name)[0]) is not None:
            packages[name] = package
    return packages


def _intact(output: Path, entry: Entry) -> bool:
    """Whether the outputs of a finished case are all there."""
    there = [path.exists() for path in outputs_of(output, entry)]
    return all(there) and len(there) >= entry.result.get("files", 0)


def outputs_of(output: Path, entry: Entry) -> list[Path]:
    """Outputs of a case; a name with a star stands for all files of its kind in the folder."""
    if entry.folder is None:
        return []
    folder = output / entry.folder
    names = [*entry.result.get("outputs", {}).values(), entry.result.get("thumbnail")]
    found: list[Path] = []
    for name in filter(None, names):
        found += sorted(folder.glob(name)) if "*" in name else [folder / name]
    return found


def _unchanged(image: Image, entry: Entry) -> bool:
    """Whether an input that was touched still has the contents it had."""
    from medgen.batch.verbs import hash_sources
    from medgen.io.dicom_files import UNREADABLE

    try:
        return entry.input_sha256 == hash_sources(image.sources)
    except (InputError, *UNREADABLE):
        return False
