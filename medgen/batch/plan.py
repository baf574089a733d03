"""From what an archive holds to what will be done: which images become cases, and why the rest not.

Nothing is read but headers, and nothing is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Literal

from medgen.batch.discover import Found, Image, stamp_of
from medgen.batch.ledger import Entry, now
from medgen.batch.pipeline import Convert, Deidentify, Detect, Pipeline, Restoring, steps_of
from medgen.batch.rules import first_broken, preference, reasons_for
from medgen.errors import InputError

# Raises an InputError if the task cannot use an image with these facts.
Check = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class Case:
    """One unit of work, or the reason why there is none.

    Attributes:
        id: Label of the image or, if a study has none that fits, of the study.
        image: The image to work on; None if the case is settled without work.
        chosen: Why this image.
        state: ``waiting`` for work; ``skipped`` or ``failed`` if settled.
        reason: Why it is settled.
        hint: What to do about it.
    """

    id: str
    image: Image | None
    chosen: str | None = None
    state: Literal["waiting", "skipped", "failed"] = "waiting"
    reason: str | None = None
    hint: str | None = None


@dataclass(frozen=True)
class Considered:
    """What became of one image of the archive, for the table ``selection.tsv``."""

    label: str
    study: str
    verdict: Literal["chosen", "not needed", "rejected", "unusable"]
    reason: str


def choose(found: Found, pipeline: Pipeline, check: Check) -> tuple[list[Case], list[Considered]]:
    """Cases of an archive, sorted by label, and the verdict on every image.

    An image that breaks a rule is rejected. One that fits the rules but cannot be used (slices are
    missing, the model does not take it) is unusable: its case fails, with the reason, unless the
    study has another image that fits.

    Args:
        found: What the archive holds.
        pipeline: The rules.
        check: Whether the task can use an image.
    """
    cases: list[Case] = []
    verdicts: list[Considered] = []
    images = sorted(found.images, key=lambda image: (image.group, image.label))
    if pipeline.case == "image":
        groups: Iterable[tuple[str, Iterable[Image]]] = ((i.label, [i]) for i in images)
    else:
        groups = groupby(images, key=lambda image: image.group)
    for name, members in groups:
        case, seen = _choose_one(name, list(members), pipeline, check)
        verdicts += seen
        if case is not None:
            cases.append(case)
    return sorted(cases, key=lambda case: case.id), verdicts


def _choose_one(
    name: str, images: list[Image], pipeline: Pipeline, check: Check
) -> tuple[Case | None, list[Considered]]:
    """The case of one study (or of one image), and the verdicts on its images."""
    verdicts: list[Considered] = []
    fitting: list[Image] = []
    for image in images:
        broken = first_broken(pipeline.images.require, image.facts)
        if broken is None:
            fitting.append(image)
        else:
            verdicts.append(Considered(image.label, image.group, "rejected", broken.reason))
    if not fitting:
        if pipeline.case == "image":
            return None, verdicts  # the verdict says all there is to say
        reasons = "; ".join(sorted({v.reason for v in verdicts}))
        return Case(name, None, state="skipped", reason=f"no image fits: {reasons}"), verdicts
    prefer = pipeline.images.prefer
    # Between equals the one with the finest coarsest voxel side, then the first by label.
    fitting.sort(
        key=lambda i: (preference(prefer, i.facts), i.facts.get("coarsest_mm") or 1e9, i.label)
    )
    unusable: list[tuple[Image, InputError]] = []
    for place, image in enumerate(fitting):
        try:
            check(image.facts)
        except InputError as error:
            unusable.append((image, error))
            verdicts.append(Considered(image.label, image.group, "unusable", error.message))
            continue
        chosen = _why(image, fitting, pipeline, unusable)
        verdicts.append(Considered(image.label, image.group, "chosen", chosen))
        for other in fitting[place + 1 :]:
            verdicts.append(
                Considered(other.label, other.group, "not needed", f"{image.label} was preferred")
            )
        return Case(image.label, image, chosen), verdicts
    first, problem = unusable[0]
    return Case(first.label, None, None, "failed", problem.message, problem.hint), verdicts


def _why(
    image: Image, fitting: list[Image], pipeline: Pipeline, unusable: list[tuple[Image, InputError]]
) -> str:
    """Why this image was chosen, in a line."""
    reasons = reasons_for(pipeline.images.prefer, image.facts)
    if reasons:
        text = "; ".join(reasons)
    elif len(fitting) == 1:
        text = "it fits all rules" if pipeline.case == "image" else "the only image that fits"
    else:
        text = "the finest of those that fit"
    if unusable:
        text += f" (a preferred image cannot be used: {unusable[0][1].message})"
    return text


def _readable(facts: Mapping[str, Any]) -> None:
    if facts.get("blocking"):
        raise InputError(facts["blocking"]["error"], facts["blocking"]["hint"])


def check_for(pipeline: Pipeline, limit_gb: float) -> Check:
    """What the pipeline's task asks of an image, from headers alone.

    Raises:
        PackageError: The model is unknown.
    """
    task = pipeline.task
    if isinstance(task, Detect):
        from medgen.io import choose_frame
        from medgen.package import load_package
        from medgen.tasks.limits import check_facts

        manifest = load_package(task.model, "detect-anomalies").manifest

        def takes(facts: Mapping[str, Any]) -> None:
            _readable(facts)
            check_facts(facts, manifest, limit_gb)
            choose_frame("the image", facts["frames"], None)

        return takes
    if isinstance(task, Convert):

        def named(facts: Mapping[str, Any]) -> None:
            _readable(facts)
            bids_name(task, facts)
            if facts.get("channels", 1) > 1:
                raise InputError("it is in colour, which BIDS has no image for", "Leave it out.")

        return named
    if isinstance(task, Restoring):
        return _restorable(task, limit_gb)
    assert isinstance(task, Deidentify)
    return lambda facts: None  # objects are copied, so they need not make a volume


def _restorable(task: Restoring, limit_gb: float) -> Check:
    """What the first step asks of an image; the others get what it makes."""
    from medgen.io import choose_frame
    from medgen.tasks.chain import SuperResolveStep
    from medgen.tasks.restoration_plan import check_scan_facts, plan_finer_grid
    from medgen.tasks.restoration_scan import find_model

    first = steps_of(task)[0]
    _, manifest = find_model(first.name, first.model)

    def takes(facts: Mapping[str, Any]) -> None:
        _readable(facts)
        check_scan_facts(facts, manifest, limit_gb, force=task.force)
        choose_frame("the image", facts["frames"], None)
        if isinstance(first, SuperResolveStep):
            plan_finer_grid(
                facts, scale=first.scale, spacing_mm=first.spacing_mm, isotropic=first.isotropic
            )

    return takes


def bids_name(task: Convert, facts: Mapping[str, Any]) -> tuple[str, str]:
    """Datatype folder and suffix of an image.

    Raises:
        InputError: No entry of the pipeline's ``naming`` fits it.
    """
    for entry in task.naming:
        if first_broken(entry.when, facts) is None:
            return entry.datatype, entry.suffix
    raise InputError(
        "no BIDS name fits its header", "Add an entry to `naming` in the pipeline file."
    )


def reconcile(
    cases: list[Case],
    known: Mapping[str, Entry],
    *,
    retry_failed: bool,
    redo: bool,
    intact: Callable[[Entry], bool],
    unchanged: Callable[[Image, Entry], bool],
) -> tuple[list[Case], list[Entry]]:
    """Compare what should be done with what the ledger says was done.

    Args:
        cases: From :func:`choose`.
        known: Entries of the ledger.
        retry_failed: Try failed cases again.
        redo: Do everything again.
        intact: Whether the outputs of a finished case are still there.
        unchanged: Whether an input whose stamp differs has the contents it had.

    Returns:
        The cases to work on, and the entries to record before the work begins.
    """
    todo: list[Case] = []
    entries: list[Entry] = []
    for case in cases:
        entry = known.get(case.id)
        if case.state != "waiting":
            if redo or entry is None or entry.state != "done":
                entries.append(Entry(case.id, case.state, case.reason, case.hint))
            continue
        assert case.image is not None
        stamp = stamp_of(case.image.sources)
        keep = entry is not None and not redo and entry.state in ("done", "failed")
        if keep and entry is not None and entry.state == "failed":
            keep = not retry_failed and entry.stamp == stamp
        if keep and entry is not None and entry.state == "done":
            keep = intact(entry) and (entry.stamp == stamp or unchanged(case.image, entry))
            if keep and entry.stamp != stamp:  # so that its contents need not be read next time
                entries.append(replace(entry, stamp=stamp))
        if not keep:
            todo.append(case)
            # What an earlier try wrote is remembered until a later one replaces or removes it.
            old = entry or Entry(case.id)
            entries.append(
                Entry(
                    case.id, chosen=case.chosen, attempts=old.attempts, stamp=stamp,
                    folder=old.folder, result=old.result,
                )
            )  # fmt: skip
    return todo, entries


def settled_without_work(lost: list[Entry]) -> list[Entry]:
    """Entries for cases that still wait or failed, and that the archive does not hold any more.

    They would wait, or count as failed, for ever. What is done stays done.
    """
    reason = "it is not in the archive any more, or another image of its study is chosen now"
    return [
        Entry(entry.id, "skipped", reason, attempts=entry.attempts, finished=now())
        for entry in lost
        if entry.state in ("waiting", "failed")
    ]
