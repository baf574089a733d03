"""What a cohort came to, as a table and as JSON: one row a case, none left out.

The table is ``summary.tsv`` (one line a case, for spreadsheets and scripts), the JSON is
``summary.json`` (everything, exactly). Neither holds an absolute path or NaN.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Any, Literal, NotRequired, TypedDict, TypeVar, get_args

State = Literal["done", "failed", "skipped", "waiting", "interrupted"]
STATES: tuple[State, ...] = get_args(State)
Value = float | int | str | None
T = TypeVar("T", bound=Value)

# Version of the layout of summary.json.
FORMAT = 1
DISCLAIMER = "Not a medical device. Research use only."
MISSING = "n/a"  # as in BIDS tables
# The table's own columns, before and after those of the task.
BEFORE = ("case", "state")
AFTER = (
    "flags", "reason", "hint", "chosen", "attempts", "seconds", "folder", "report", "thumbnail",
)  # fmt: skip
NUMBER_FORMAT = re.compile(r"d|\.[0-9][fg]|")
# Spreadsheets take text that starts like this, also full width, for a formula and run it.
FORMULA_STARTS = ("=", "+", "-", "@", "＝", "＋", "－", "＠")
# Control characters and whatever else some program takes for the end of a line.
ESCAPES = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))}
ESCAPES |= {0x2028: "\\u2028", 0x2029: "\\u2029"}
ESCAPES |= {ord("\\"): "\\\\", ord("\t"): "\\t", ord("\n"): "\\n", ord("\r"): "\\r"}


class Mark(TypedDict):
    """A value worth a line in the plot, such as a threshold."""

    value: float
    label: str


class Column(TypedDict):
    """A column that belongs to the task.

    Attributes:
        key: Name in ``Row.values`` and in the table.
        label: Heading for people.
        unit: Unit of the numbers, or "".
        format: How the page shows numbers: ``d`` whole, ``.2f`` decimals, ``.2g`` significant
            digits, "" as they are. The table and the JSON keep the numbers as they are.
        meaning: One sentence, shown on demand.
        marks: Values to mark in the plot.
        attention: Which side of the first mark stands out: ``high`` or ``low``.
    """

    key: str
    label: str
    unit: str
    format: str
    meaning: str
    marks: NotRequired[Sequence[Mark]]
    attention: NotRequired[Literal["high", "low"]]


class SetAsideCount(TypedDict):
    """Objects of the input that are no case, and why."""

    reason: str
    objects: int


@dataclass(frozen=True)
class Row:
    """One case.

    Attributes:
        case: Label without identifiers, unique in the cohort.
        state: Its recorded outcome.
        reason: Why it failed or was skipped, a sentence for a radiographer.
        hint: What to do about it.
        flags: Quality flags and fallbacks, short sentences.
        values: What the task measured, by column key.
        attempts: How often it was tried.
        seconds: Time of the last attempt.
        folder: Its outputs, relative to the run's folder, with ``/``.
        report: Its ``report.html``, relative likewise.
        thumbnail: A small PNG, relative likewise.
        chosen: Why this series was chosen.

    Raises:
        ValueError: A path is absolute or leads out of the run's folder.
    """

    case: str
    state: State
    reason: str | None = None
    hint: str | None = None
    flags: tuple[str, ...] = ()
    values: Mapping[str, Value] | None = None
    attempts: int = 0
    seconds: float | None = None
    folder: str | None = None
    report: str | None = None
    thumbnail: str | None = None
    chosen: str | None = None

    def __post_init__(self) -> None:
        for path in (self.folder, self.report, self.thumbnail):
            if path is None:
                continue
            parts = PurePosixPath(path)
            if parts.is_absolute() or ".." in parts.parts or "\\" in path or path[1:2] == ":":
                msg = "outputs of a case must be named relative to the run's folder, with /"
                raise ValueError(msg)


@dataclass(frozen=True)
class Cohort:
    """A run over many cases.

    Attributes:
        title: Heading of the page.
        pipeline: Name of the pipeline.
        description: What the pipeline does.
        task: Which task ran.
        model: Name and version; None without a model.
        input_kind: ``dicom``, ``bids`` or ``nifti``.
        counts: Cases by state.
        set_aside: What of the input is no case.
        started: When the run began (ISO 8601).
        finished: When it ended; None while it runs.
        seconds: How long it took so far.
        versions: Versions of the software.
        columns: Columns of the task; the page plots the first that holds numbers.
        rows: The cases.

    Raises:
        ValueError: A column has the name of one of the table's own, or an unknown format.
    """

    title: str
    pipeline: str
    description: str
    task: str
    model: str | None
    input_kind: str
    counts: Mapping[State, int]
    set_aside: Sequence[SetAsideCount]
    started: str
    finished: str | None
    seconds: float | None
    versions: Mapping[str, str]
    columns: Sequence[Column]
    rows: Sequence[Row]

    def __post_init__(self) -> None:
        keys = [column["key"] for column in self.columns]
        clash = {key for key in keys if key in BEFORE + AFTER or keys.count(key) > 1}
        if clash:
            msg = f"columns must have names of their own, got {sorted(clash)}"
            raise ValueError(msg)
        for column in self.columns:
            if not NUMBER_FORMAT.fullmatch(column["format"]):
                msg = f"format of {column['key']} must be d, .2f or .2g, got {column['format']!r}"
                raise ValueError(msg)


def finite(value: T) -> T | None:
    """The value; None for NaN and infinities, which strict JSON cannot hold."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def values(row: Row, cohort: Cohort) -> dict[str, Value]:
    """The case's values, one for each column of the task."""
    found = row.values or {}
    return {column["key"]: finite(found.get(column["key"])) for column in cohort.columns}


def summary(cohort: Cohort) -> dict[str, Any]:
    """The contents of ``summary.json``: strict JSON, the table's text exactly as it was."""
    cases = []
    for row in cohort.rows:
        case = asdict(row) | {"values": values(row, cohort), "flags": list(row.flags)}
        case["seconds"] = finite(row.seconds)
        cases.append(case)
    return {
        "format": FORMAT,
        "title": cohort.title,
        "pipeline": cohort.pipeline,
        "description": cohort.description,
        "task": cohort.task,
        "model": cohort.model,
        "input_kind": cohort.input_kind,
        "started": cohort.started,
        "finished": cohort.finished,
        "seconds": finite(cohort.seconds),
        "counts": {state: cohort.counts.get(state, 0) for state in STATES},
        "set_aside": [dict(item) for item in cohort.set_aside],
        "versions": dict(cohort.versions),
        "columns": [dict(column) for column in cohort.columns],
        "disclaimer": DISCLAIMER,
        "cases": cases,
    }


def table(cohort: Cohort) -> str:
    r"""The contents of ``summary.tsv``: tab-separated, one line a case, a header line first.

    Missing values are ``n/a``. In text, tabs, line ends and backslashes are written ``\t``,
    ``\n``, ``\r`` and ``\\``, other control characters ``\x00``, so that a case is always one
    line; quotes follow the rules of CSV.
    Text that a spreadsheet would run as a formula gets a leading apostrophe, the mark by which
    spreadsheets know text; numbers stay numbers. The JSON has the text without any of this.
    """
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    keys = [column["key"] for column in cohort.columns]
    writer.writerow([*BEFORE, *keys, *AFTER])
    for row in cohort.rows:
        cells = asdict(row) | values(row, cohort) | {"flags": "; ".join(row.flags)}
        writer.writerow([cell(cells[key]) for key in (*BEFORE, *keys, *AFTER)])
    return text.getvalue()


def cell(value: Value) -> str:
    """One cell of the table, as :func:`table` describes."""
    value = finite(value)
    if value is None or value == "":
        return MISSING
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, int):
        return str(value)
    guard = "'" if value.lstrip().startswith(FORMULA_STARTS) else ""
    return guard + value.translate(ESCAPES)
