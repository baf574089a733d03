"""From the ledgers of a run to ``summary.tsv``, ``summary.json`` and ``index.html``."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from medgen.batch.discover import Found
from medgen.batch.ledger import Entry, all_entries, all_meta, ledger_paths, now
from medgen.batch.shards import HIDDEN
from medgen.batch.summary import Cohort, Column, Row
from medgen.batch.summary_page import write_summary
from medgen.errors import InputError
from medgen.io.files import atomic_path
from medgen.io.walk import Location
from medgen.run_record import versions

_MADE: tuple[Column, ...] = (
    {"key": "voxels", "label": "voxels", "unit": "", "format": "",
     "meaning": "Size of the result."},
    {"key": "spacing_mm", "label": "voxel size", "unit": "mm", "format": "",
     "meaning": "Sides of a voxel of the result."},
    {"key": "uncertainty", "label": "uncertainty", "unit": "", "format": ".3g",
     "meaning": "Median of the uncertainty map, in values of the result."},
)  # fmt: skip
_FILLED: tuple[Column, ...] = (
    {"key": "invented_ml", "label": "invented", "unit": "ml", "format": ".2f",
     "meaning": "Volume that was filled: no data of the scan lies behind it."},
    {"key": "seam", "label": "seam", "unit": "", "format": ".2f",
     "meaning": "Jump across the border of the filling, relative to jumps beside it; 1 cannot be "
     "seen."},
)  # fmt: skip
_FINER: tuple[Column, ...] = (
    {"key": "inconsistency_max", "label": "inconsistency", "unit": "", "format": ".2g",
     "meaning": "Largest difference of the result, made coarse again, from the scan."},
)  # fmt: skip
_QUIETER: tuple[Column, ...] = (
    {"key": "noise_before", "label": "noise before", "unit": "", "format": ".3g",
     "meaning": "Standard deviation of white noise in the scan."},
    {"key": "noise_after", "label": "noise after", "unit": "", "format": ".3g",
     "meaning": "The same in the result."},
)  # fmt: skip
_TRANSLATED: tuple[Column, ...] = (
    {"key": "edges_kept", "label": "edges kept", "unit": "", "format": ".2f",
     "meaning": "Part of the scan's edges that the result shows (models without pairs only)."},
    {"key": "edges_new", "label": "edges new", "unit": "", "format": ".2f",
     "meaning": "Part of the result's edges that the scan has not."},
)  # fmt: skip
COLUMNS: dict[str, tuple[Column, ...]] = {
    "inpaint": (*_MADE, *_FILLED),
    "super-resolve": (*_MADE, *_FINER),
    "denoise": (*_MADE, *_QUIETER),
    "translate": (*_MADE, *_TRANSLATED),
    # What the last step measured; the rest stays empty.
    "chain": (*_MADE, *_FILLED, *_FINER, *_QUIETER, *_TRANSLATED),
    "detect-anomalies": (
        {"key": "scan_score", "label": "score", "unit": "", "format": ".3f",
         "meaning": "Scan score; larger is more abnormal."},
        {"key": "p_value", "label": "p", "unit": "", "format": ".2g",
         "meaning": "Part of healthy reference scans that score this high or higher."},
        {"key": "findings", "label": "findings", "unit": "", "format": "d",
         "meaning": "Connected regions above the threshold."},
        {"key": "findings_ml", "label": "volume", "unit": "ml", "format": ".2f",
         "meaning": "Volume of all findings."},
        {"key": "largest_ml", "label": "largest", "unit": "ml", "format": ".2f",
         "meaning": "Volume of the largest finding."},
        {"key": "highest_peak", "label": "peak", "unit": "", "format": ".2f",
         "meaning": "Highest map value in a finding."},
    ),
    "deidentify": (
        {"key": "objects", "label": "objects", "unit": "", "format": "d",
         "meaning": "Objects written."},
        {"key": "set_aside", "label": "set aside", "unit": "", "format": "d",
         "meaning": "Objects not written, because they may show or tell who the patient is."},
    ),
    "dicom-to-bids": (
        {"key": "objects", "label": "objects", "unit": "", "format": "d",
         "meaning": "DICOM objects read."},
        {"key": "suffix", "label": "suffix", "unit": "", "format": "",
         "meaning": "BIDS suffix the image was given."},
        {"key": "voxels", "label": "voxels", "unit": "", "format": "",
         "meaning": "Size of the image."},
    ),
}  # fmt: skip
# Added with --keep-ids. Everything else in a summary is free of identifiers.
IDENTITIES: tuple[Column, ...] = (
    {"key": "patient_id", "label": "patient ID", "unit": "", "format": "",
     "meaning": "PatientID of the source."},
    {"key": "study_uid", "label": "study UID", "unit": "", "format": "",
     "meaning": "StudyInstanceUID of the source."},
    {"key": "source", "label": "source", "unit": "", "format": "",
     "meaning": "First file of the source."},
)  # fmt: skip


def summarise(
    folder: Path,
    found: Found | None = None,
    *,
    keep_ids: Mapping[str, Sequence[Location]] | None = None,
) -> dict[str, int]:
    """Write the summary of a run from its ledgers, of all shards together.

    Args:
        folder: The run's folder.
        found: What the archive held; what was known of it before when None.
        keep_ids: Sources of each case, if identifiers are wanted.

    Returns:
        Number of cases by state.

    Raises:
        InputError: The folder holds no run.
    """
    if not ledger_paths(folder):
        msg = f"{folder} holds no run of medgen: there is no ledger in it"
        raise InputError(msg, "Name the folder that was given to `medgen batch run` with -o.")
    with _alone(folder):
        return _write(folder, found, keep_ids)


def _write(
    folder: Path, found: Found | None, keep_ids: Mapping[str, Sequence[Location]] | None
) -> dict[str, int]:
    """Read the ledgers and write what they say."""
    meta: dict[str, str] = next(iter(all_meta(folder).values()), {})
    entries = list(all_entries(folder).values())
    counts: dict[Any, int] = dict(Counter(entry.state for entry in entries))
    task = meta.get("task", "")
    columns = COLUMNS.get(task, ())
    rows = [_row(entry) for entry in entries]
    if keep_ids is not None:
        columns = (*columns, *IDENTITIES)
        rows = [_with_identity(row, keep_ids.get(row.case, ())) for row in rows]
    cohort = Cohort(
        title=meta.get("pipeline", "").replace("_", " ").capitalize(),
        pipeline=meta.get("pipeline", ""),
        description=meta.get("description", ""),
        task=task,
        model=meta.get("model") or None,
        input_kind=meta.get("kind", ""),
        counts=counts,
        set_aside=_set_aside(folder, found),
        started=meta.get("started", ""),
        finished=None if counts.get("waiting") else _ended(entries),
        seconds=_seconds(meta.get("started", ""), _ended(entries)),
        versions=versions(),
        columns=columns,
        rows=rows,
    )
    write_summary(folder, cohort)
    return counts


def _row(entry: Entry) -> Row:
    if entry.state != "done":  # what an earlier try wrote is not this one's result
        entry = replace(entry, folder=None, result={})

    def path(name: str | None) -> str | None:
        return f"{entry.folder}/{name}" if entry.folder and name else None

    return Row(
        case=entry.id,
        state=entry.state,
        reason=entry.reason,
        hint=entry.hint,
        flags=tuple(entry.result.get("flags", ())),
        values=entry.result.get("values", {}),
        attempts=entry.attempts,
        seconds=entry.seconds,
        folder=entry.folder,
        report=path(entry.result.get("report")),
        thumbnail=path(entry.result.get("thumbnail")),
        chosen=entry.chosen,
    )


def _with_identity(row: Row, sources: Sequence[Location]) -> Row:
    if not sources:
        return row
    from medgen.io.identity import identity_of

    known = identity_of(sources[0])
    return replace(row, values={**(row.values or {}), **known, "source": str(sources[0].file)})


def _set_aside(folder: Path, found: Found | None) -> list[Any]:
    """What of the archive is no case; kept between runs for `medgen batch summarise`."""
    path = folder / HIDDEN / "set_aside.json"
    if found is not None:
        with atomic_path(path, overwrite=True) as draft:
            draft.write_text(json.dumps(found.set_aside), encoding="utf-8")
        return found.set_aside
    try:
        kept: list[Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return kept


def _ended(entries: Sequence[Entry]) -> str:
    """When the last outcome was recorded, whenever it is told."""
    return max((e.finished for e in entries if e.finished), key=_moment, default=now())


def _seconds(started: str, ended: str) -> float | None:
    try:
        return max(0.0, _moment(ended) - _moment(started))
    except ValueError:
        return None


def _moment(iso: str) -> float:
    return datetime.fromisoformat(iso).timestamp()


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One summary at a time: of parts that end together, the last must have read all outcomes."""
    from filelock import FileLock

    (folder / HIDDEN).mkdir(exist_ok=True)
    with FileLock(folder / HIDDEN / "summary.lock"):
        yield
