"""The ledger of a run: what became of every case, in SQLite beside the results.

Only the process that runs the cohort writes to it, one transaction per outcome, so a case is done
when and only when its row says so. SQLite's rollback journal is used, and not its write-ahead log,
because the latter does not work on network disks.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Self

from medgen.errors import InputError, MedgenError

VERSION = 1
State = Literal["waiting", "done", "failed", "skipped"]

_TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE cases (
    id TEXT PRIMARY KEY, state TEXT NOT NULL, reason TEXT, hint TEXT, chosen TEXT,
    attempts INTEGER NOT NULL DEFAULT 0, stamp TEXT, input_sha256 TEXT, folder TEXT,
    result TEXT NOT NULL DEFAULT '{}', seconds REAL, finished TEXT
) WITHOUT ROWID;
CREATE TABLE attempts (
    case_id TEXT NOT NULL, number INTEGER NOT NULL, finished TEXT NOT NULL, seconds REAL,
    outcome TEXT NOT NULL, detail TEXT, PRIMARY KEY (case_id, number)
) WITHOUT ROWID;
"""


class LedgerError(MedgenError):
    """The ledger cannot be written, so the run must stop: nothing may be done unrecorded."""


@dataclass(frozen=True)
class Entry:
    """What the ledger knows of one case.

    Attributes:
        id: The case's label; names no patient.
        state: ``waiting`` until an outcome is recorded.
        reason: Why it failed or was skipped.
        hint: What to do about it.
        chosen: Why this image was chosen.
        attempts: Tries so far.
        stamp: Number of files, bytes and newest change of the input when it was last seen.
        input_sha256: Hash of the input's contents, once it was read.
        folder: Outputs, relative to the run's folder.
        result: Task-dependent: ``values``, ``flags``, ``report``, ``thumbnail``, ``outputs``.
        seconds: Time of the successful try.
        finished: When the outcome was recorded.
    """

    id: str
    state: State = "waiting"
    reason: str | None = None
    hint: str | None = None
    chosen: str | None = None
    attempts: int = 0
    stamp: str | None = None
    input_sha256: str | None = None
    folder: str | None = None
    result: dict[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    finished: str | None = None


class Ledger:
    """An open ledger. Use as a context manager."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        """Open, or make, a ledger.

        Raises:
            InputError: It is from another version of medgen, or no ledger at all.
        """
        self.path = path
        self._read_only = read_only
        self._empty = False
        # Not "ro": after a kill in the middle of a transaction, a reader must undo it first.
        mode = "rw" if read_only else "rwc"
        uri = f"{path.resolve().as_uri()}?mode={mode}"
        try:
            self._db = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=30)
            self._check_version()
        except sqlite3.Error as error:
            msg = f"{path} is not a ledger of medgen, or is damaged: {error}"
            raise InputError(msg, "Choose another folder with -o, or move the file away.") from None

    def _check_version(self) -> None:
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version == VERSION:
            return
        tables = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if version == 0 and tables == 0 and self._read_only:
            self._empty = True  # another process is just making it, or was ended when it did
            return
        if version == 0 and tables == 0:
            with self._transaction():
                for statement in _TABLES.split(";"):
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version = {VERSION}")
            return
        self._db.close()
        what = "a newer medgen" if version > VERSION else "another program or an older medgen"
        raise InputError(
            f"{self.path} is from {what}: format {version}, this medgen reads format {VERSION}",
            "Use the medgen that made it, or choose another folder with -o.",
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """All or nothing.

        Raises:
            LedgerError: The disk is full or gone.
        """
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
        except sqlite3.OperationalError as error:
            msg = f"cannot write the ledger {self.path}: {error}"
            hint = "Free some space and start the same command again; finished cases are kept."
            raise LedgerError(msg, hint) from error

    def meta(self) -> dict[str, str]:
        """What the run is: pipeline, model, versions, when it started."""
        return dict(self._rows("SELECT key, value FROM meta"))

    def begin(
        self, meta: Mapping[str, str], entries: Iterable[Entry], forget: Iterable[str] = ()
    ) -> None:
        """What this run is and what there is to do, at once: neither counts without the other.

        Args:
            meta: Facts of the run, added or replaced.
            entries: Cases, as for :meth:`put`.
            forget: Cases that are none any more.
        """
        with self._transaction():
            self._db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", list(meta.items()))
            self._db.executemany("DELETE FROM cases WHERE id = ?", [(name,) for name in forget])
            self._put(entries)

    def entries(self) -> dict[str, Entry]:
        """Every case by id, in the order of the ids."""
        columns = [column.name for column in fields(Entry)]
        rows = self._rows("SELECT * FROM cases ORDER BY id")
        entries = (dict(zip(columns, row, strict=True)) for row in rows)
        return {
            values["id"]: Entry(**{**values, "result": json.loads(values["result"])})
            for values in entries
        }

    def attempts(self, case_id: str) -> list[dict[str, Any]]:
        """The tries of one case, the first one first."""
        rows = self._rows(
            "SELECT number, finished, seconds, outcome, detail FROM attempts WHERE case_id = ? "
            "ORDER BY number",
            (case_id,),
        )
        names = ("number", "finished", "seconds", "outcome", "detail")
        return [dict(zip(names, row, strict=True)) for row in rows]

    def put(self, entries: Iterable[Entry]) -> None:
        """Record cases, replacing what was known of them, in one transaction."""
        with self._transaction():
            self._put(entries)

    def _put(self, entries: Iterable[Entry]) -> None:
        self._db.executemany(
            "INSERT OR REPLACE INTO cases VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (e.id, e.state, e.reason, e.hint, e.chosen, e.attempts, e.stamp, e.input_sha256,
                 e.folder, json.dumps(e.result, allow_nan=False), e.seconds, e.finished)
                for e in entries
            ],
        )  # fmt: skip

    def _rows(self, query: str, values: tuple[str, ...] = ()) -> Iterator[tuple[Any, ...]]:
        """What a query finds.

        Raises:
            LedgerError: The file is damaged, or was locked for too long.
        """
        if self._empty:
            return
        try:
            yield from self._db.execute(query, values)
        except sqlite3.Error as error:
            hint = "Start the same command again; if that does not help, move the file away."
            raise LedgerError(f"cannot read the ledger {self.path}: {error}", hint) from error

    def add_attempt(self, case_id: str, outcome: str, seconds: float, detail: str | None) -> None:
        """Record one try of a case."""
        with self._transaction():
            self._db.execute(
                "INSERT INTO attempts SELECT ?, 1 + count(*), ?, ?, ?, ? FROM attempts "
                "WHERE case_id = ?",
                (case_id, now(), round(seconds, 3), outcome, detail, case_id),
            )


def now() -> str:
    """The time as recorded: ISO 8601 with the zone."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def ledger_paths(folder: Path) -> list[Path]:
    """Every ledger in a run's folder: one, or one per shard."""
    return sorted(folder.glob("ledger*.sqlite"))


def all_entries(folder: Path) -> dict[str, Entry]:
    """Every case of every ledger in a run's folder, as its latest outcome says.

    Where ledgers differ (a part of a cohort, and later the whole), an outcome counts more than
    waiting, and a later one more than an earlier one.
    """
    merged: dict[str, Entry] = {}
    for path in ledger_paths(folder):
        with Ledger(path, read_only=True) as ledger:
            for case_id, entry in ledger.entries().items():
                if case_id not in merged or _rank(entry) > _rank(merged[case_id]):
                    merged[case_id] = entry
    return dict(sorted(merged.items()))


def _rank(entry: Entry) -> tuple[bool, float, bool]:
    finished = 0.0
    with suppress(ValueError):
        finished = datetime.fromisoformat(entry.finished or "").timestamp()
    return entry.state != "waiting", finished, entry.state == "done"


def all_meta(folder: Path) -> dict[Path, dict[str, str]]:
    """What each ledger in a run's folder says of the run; those that say nothing are left out."""
    found = {}
    for path in ledger_paths(folder):
        with Ledger(path, read_only=True) as ledger:
            if meta := ledger.meta():
                found[path] = meta
    return found
