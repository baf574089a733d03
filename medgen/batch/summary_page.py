"""The cohort on one page, ``index.html``, beside ``summary.tsv`` and ``summary.json``.

The page opens from disk and never asks the network. The cases travel inside it as JSON; a script
on the page draws, sorts and filters them. Only that one script may run, named by its hash, and it
puts text on the page as text, so nothing that stood in a file's header can become code.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from medgen.batch.summary import (
    DISCLAIMER,
    STATES,
    Cohort,
    Row,
    State,
    finite,
    summary,
    table,
    values,
)
from medgen.io.files import atomic_path
from medgen.report.pages import script_json

STATE_LABELS: dict[State, str] = {
    "done": "Done",
    "failed": "Failed",
    "skipped": "Skipped",
    "waiting": "Waiting",
    "interrupted": "Interrupted",
}
# Tiles shown even at zero: that none failed is worth reading.
ALWAYS = {"done", "failed"}
WITHOUT_SCRIPT = 100  # cases in the plain table of a browser without JavaScript
EXAMPLES = 3  # cases named for one reason


def write_summary(folder: Path, cohort: Cohort) -> None:
    """Write ``summary.tsv``, ``summary.json`` and ``index.html`` into the run's folder.

    Each appears under its name only when it is complete; those of an earlier call are replaced.

    Args:
        folder: The run's folder, to which the paths in the rows are relative.
        cohort: What there is to say; an unfinished run is welcome.

    Raises:
        InputError: The disk is full or the folder cannot be written.
    """
    as_json = json.dumps(summary(cohort), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    texts = {
        "summary.tsv": table(cohort),
        "summary.json": as_json,
        "index.html": page(cohort),
    }
    for name, text in texts.items():
        with atomic_path(Path(folder) / name, overwrite=True) as temporary:
            temporary.write_bytes(_storable(text))


def _storable(text: str) -> bytes:
    """UTF-8; half characters, which headers in a wrong code can hold, become ``?``."""
    return text.encode("utf-8", errors="replace")


def page(cohort: Cohort) -> str:
    """The contents of ``index.html``."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("medgen.batch"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    assert environment.loader is not None
    style, script = (
        # Browsers hash a page after turning its line ends into \n.
        environment.loader.get_source(environment, name)[0].replace("\r\n", "\n")
        for name in ("index.css", "index.js")
    )
    problems = groups(cohort.rows)
    return environment.get_template("index.html").render(
        cohort=cohort,
        disclaimer=DISCLAIMER,
        tiles=_tiles(cohort),
        facts=_facts(cohort),
        versions=", ".join(f"{name} {version}" for name, version in cohort.versions.items()),
        problems=[group for group in problems if group.state in ("failed", "interrupted")],
        left_out=[group for group in problems if group.state == "skipped"],
        waiting=cohort.counts.get("waiting", 0),
        has_flags=any(row.flags for row in cohort.rows),
        set_aside=sorted(cohort.set_aside, key=lambda item: -item["objects"]),
        objects=sum(item["objects"] for item in cohort.set_aside),
        plain_rows=[(row, link(row.report)) for row in cohort.rows[:WITHOUT_SCRIPT]],
        labels=STATE_LABELS,
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
        data=script_json(_data(cohort, problems)),
    )


def _hash(text: str) -> str:
    """The name by which a Content-Security-Policy knows an inline script or style."""
    # The template puts one line end before and one after the text.
    digest = hashlib.sha256(f"\n{text}\n".encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode('ascii')}"


@dataclass
class Group:
    """Cases that failed or were skipped for one reason, whatever its numbers are.

    Attributes:
        state: Their state.
        topic: The reason without its numbers.
        reason: The reason as the first of them gives it.
        hint: What to do about it.
        same: Whether all give it word for word.
        cases: Their labels.
    """

    state: State
    topic: str
    reason: str
    hint: str | None
    same: bool = True
    cases: list[str] = field(default_factory=list)

    @property
    def examples(self) -> str:
        """The first few cases by name."""
        more = len(self.cases) - EXAMPLES
        return ", ".join(self.cases[:EXAMPLES]) + (f" and {more} more" if more > 0 else "")


def topic(text: str) -> str:
    """A sentence with ``#`` for every word that holds a digit: equal for what is alike."""
    words = text.split()
    return " ".join("#" if any(c.isdigit() for c in word) else word for word in words)


def groups(rows: Iterable[Row]) -> list[Group]:
    """The reasons of cases that are not done, the most frequent first."""
    found: dict[tuple[State, str], Group] = {}
    for row in rows:
        if row.state not in ("failed", "skipped", "interrupted"):
            continue
        reason = row.reason or "No reason was recorded."
        group = found.setdefault(
            (row.state, topic(reason)), Group(row.state, topic(reason), reason, row.hint)
        )
        group.same = group.same and group.reason == reason
        group.cases.append(row.case)
    return sorted(found.values(), key=lambda group: -len(group.cases))


def link(path: str | None) -> str | None:
    """A path inside the run's folder as a relative link; no name can make it anything else."""
    return None if path is None else "./" + quote(path.encode("utf-8", "replace"))


def _data(cohort: Cohort, problems: list[Group]) -> dict[str, Any]:
    """Everything the script draws, ready for JSON; what is empty is left out of a case."""
    flags = Counter(topic(flag) for row in cohort.rows for flag in dict.fromkeys(row.flags))
    first_flags = {topic(flag): flag for row in reversed(cohort.rows) for flag in row.flags}
    topics = [
        {"kind": "flag", "topic": key, "text": first_flags[key], "count": count}
        for key, count in flags.most_common()
    ]
    topics += [
        {"kind": g.state, "topic": g.topic, "text": g.reason, "count": len(g.cases)}
        for g in problems
    ]
    return {
        "states": [{"state": state, "label": STATE_LABELS[state]} for state in STATES],
        "columns": [dict(column) for column in cohort.columns],
        "topics": topics,
        "rows": [_case(row, cohort) for row in cohort.rows],
    }


def _case(row: Row, cohort: Cohort) -> dict[str, Any]:
    seconds = finite(row.seconds)
    case: dict[str, Any] = {
        "case": row.case,
        "state": row.state,
        "reason": row.reason,
        "hint": row.hint,
        "flags": list(row.flags),
        "topics": [["flag", topic(flag)] for flag in row.flags],
        "values": {key: value for key, value in values(row, cohort).items() if value is not None},
        "attempts": row.attempts if row.attempts > 1 else None,
        "seconds": None if seconds is None else round(seconds, 2),
        "folder": link(row.folder),
        "report": link(row.report),
        "thumbnail": link(row.thumbnail),
        "chosen": row.chosen,
    }
    if row.state in ("failed", "skipped", "interrupted"):
        case["topics"].append([row.state, topic(row.reason or "No reason was recorded.")])
    return {key: value for key, value in case.items() if value not in (None, [], {})}


def _tiles(cohort: Cohort) -> list[tuple[State, str, int]]:
    counted = [(state, STATE_LABELS[state], cohort.counts.get(state, 0)) for state in STATES]
    return [tile for tile in counted if tile[2] or tile[0] in ALWAYS]


def _facts(cohort: Cohort) -> dict[str, str]:
    """What ran, when and how fast."""
    done = cohort.counts.get("done", 0)
    seconds = finite(cohort.seconds)
    took = "" if seconds is None else duration(seconds)
    if seconds and done:
        took += f" ({duration(seconds / done)} a case done)"
    facts = {
        "Pipeline": cohort.pipeline,
        "Task": cohort.task,
        "Model": cohort.model or "",
        "Input": {"dicom": "DICOM archive", "bids": "BIDS data set", "nifti": "NIfTI files"}.get(
            cohort.input_kind, cohort.input_kind
        ),
        "Started": moment(cohort.started),
        "Ended": moment(cohort.finished) if cohort.finished else "not yet",
        "Took": took,
    }
    return {name: text for name, text in facts.items() if text}


def moment(iso: str) -> str:
    """A moment to the minute; what is no ISO 8601 stays as it is."""
    try:
        return datetime.fromisoformat(iso).strftime("%Y-%m-%d %H:%M")
    except ValueError:
        return iso


def duration(seconds: float) -> str:
    """Seconds in words, with two units at most."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
