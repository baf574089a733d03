"""The ledger keeps what it was told, refuses what is not its own, and says when it cannot write."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medgen.batch import ledger as module
from medgen.batch.ledger import Entry, Ledger, LedgerError, all_entries
from medgen.errors import InputError

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
ENTRIES = st.builds(
    Entry,
    id=TEXT,
    state=st.sampled_from(["waiting", "done", "failed", "skipped"]),
    reason=st.none() | TEXT,
    hint=st.none() | TEXT,
    attempts=st.integers(0, 9),
    result=st.dictionaries(TEXT, st.none() | TEXT | st.floats(-1e9, 1e9), max_size=3),
    seconds=st.none() | st.floats(0, 1e6),
)


@given(entries=st.lists(ENTRIES, max_size=6, unique_by=lambda entry: entry.id))
def test_what_is_put_is_found_again(entries, tmp_path_factory) -> None:
    path = tmp_path_factory.mktemp("ledger") / "ledger.sqlite"
    with Ledger(path) as ledger:
        ledger.put(entries)
    with Ledger(path, read_only=True) as ledger:
        assert ledger.entries() == {entry.id: entry for entry in entries}


def test_later_outcomes_replace_earlier_ones_and_tries_are_counted(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        ledger.put([Entry("a"), Entry("b")])
        ledger.put([Entry("a", state="done")])
        ledger.add_attempt("a", "memory", 1.0, None)
        ledger.add_attempt("b", "failed", 1.0, "why")
        ledger.add_attempt("a", "done", 2.0, None)
        assert ledger.entries()["a"].state == "done"
        assert [a["number"] for a in ledger.attempts("a")] == [1, 2]
        assert [a["outcome"] for a in ledger.attempts("a")] == ["memory", "done"]


def test_an_outcome_in_any_shard_counts(tmp_path: Path) -> None:
    for shard, entries in (("-1of2", [Entry("a", "done")]), ("-2of2", [Entry("a"), Entry("b")])):
        with Ledger(tmp_path / f"ledger{shard}.sqlite") as ledger:
            ledger.put(entries)
    assert {e.id: e.state for e in all_entries(tmp_path).values()} == {"a": "done", "b": "waiting"}


def test_a_ledger_of_another_version_is_refused(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "ledger.sqlite"
    with monkeypatch.context() as newer:
        newer.setattr(module, "VERSION", 2)
        Ledger(path).__exit__()
    before = path.read_bytes()
    with pytest.raises(InputError, match="a newer medgen: format 2"):
        Ledger(path)
    assert path.read_bytes() == before


def test_what_is_no_ledger_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    path.write_text("something else of the user's, long enough to be looked at" * 30)
    before = path.read_bytes()
    with pytest.raises(InputError, match="not a ledger"):
        Ledger(path)
    assert path.read_bytes() == before
    other = tmp_path / "ledger-other.sqlite"
    with sqlite3.connect(other) as db:
        db.execute("CREATE TABLE bills (amount)")
    db.close()
    with pytest.raises(InputError, match="another program"):
        Ledger(other)


def test_a_full_disk_loses_only_what_could_not_be_written(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with Ledger(path) as ledger:
        ledger.put([Entry("kept", "done")])
        pages = ledger._db.execute("PRAGMA page_count").fetchone()[0]
        ledger._db.execute(f"PRAGMA max_page_count = {pages + 1}")  # what a full disk does
        with pytest.raises(LedgerError, match="full"):
            ledger.put([Entry(f"lost-{n}", reason="x" * 2000) for n in range(50)])
    with Ledger(path, read_only=True) as ledger:
        assert list(ledger.entries()) == ["kept"]
