"""One folder holds one run: who may remove it, what it says of itself, and whose word counts."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hostile_cohorts import cohort, nifti_cohort
from test_shards import holder

from medgen.batch import prepare
from medgen.batch import run as module
from medgen.batch import summarise as summaries
from medgen.batch.ledger import Entry, Ledger, all_entries, all_meta
from medgen.batch.plan import settled_without_work
from medgen.batch.prepare import Options, Plan
from medgen.batch.run import run_cohort
from medgen.batch.shards import Shard
from medgen.errors import InputError

EARLY, LATE = "2026-01-31T23:59:59+0200", "2026-01-31T22:30:00+0000"


@pytest.fixture
def options(tmp_path, pipeline, shelf, monkeypatch) -> Options:
    """Of a run whose cases are settled at once, without workers."""
    monkeypatch.setenv("MEDGEN_MODELS", str(shelf))

    def work(options: Options, plan: Plan, secret: bytes, ledger: Ledger, watcher: object) -> None:
        ledger.put(
            Entry(e.id, "done", stamp=e.stamp, finished=LATE, folder=e.id)
            for e in plan.entries
            if e.state == "waiting"
        )

    monkeypatch.setattr(module, "_work", work)
    nifti_cohort(tmp_path / "nifti", 3)
    return Options(pipeline, tmp_path / "nifti", tmp_path / "out", device="cpu", workers=1)


def changed(options: Options, **changes: object) -> Options:
    return Options(**{**vars(options), **changes})


def other_pipeline(options: Options, folder: Path) -> Path:
    path = folder / "other.yaml"
    path.write_text(options.pipeline.read_text().replace("report: false", "report: true"))
    return path


def test_a_run_that_is_refused_leaves_the_folder_of_the_other_alone(options, monkeypatch) -> None:
    real = module.locked

    def late(folder: Path, shard: Shard):
        """Another run takes the folder between our look at it and our lock."""
        others.append(holder(folder, Shard()))
        return real(folder, shard)

    others: list[subprocess.Popen[str]] = []
    monkeypatch.setattr(module, "locked", late)
    try:
        with pytest.raises(InputError, match="another run"):
            run_cohort(options)
        assert (options.output / ".medgen" / "lock").exists()
    finally:
        others[0].kill()
        others[0].communicate()


def test_what_is_refused_after_the_pipeline_changed_does_not_claim_the_old_results(
    options, tmp_path
) -> None:
    assert run_cohort(options) == {"done": 3}
    other = changed(options, pipeline=other_pipeline(options, tmp_path))
    with pytest.raises(InputError, match="needs about"):
        run_cohort(changed(other, overwrite=True, max_memory_gb=0.1))
    with pytest.raises(InputError, match="differs in: pipeline"):
        run_cohort(other)
    assert run_cohort(options) == {"done": 3}


def test_parts_of_two_pipelines_are_not_mixed(options, tmp_path) -> None:
    run_cohort(changed(options, shard=Shard(1, 2)))
    other = changed(options, pipeline=other_pipeline(options, tmp_path))
    for shard in (Shard(2, 2), Shard()):
        with pytest.raises(InputError, match="differs in: pipeline"):
            run_cohort(changed(other, shard=shard))
    assert run_cohort(changed(other, overwrite=True)) == {"done": 3}
    assert len(all_meta(options.output)) == 1, "the parts' ledgers say nothing any more"


def test_a_run_without_its_key_does_not_do_everything_again(options, tmp_path) -> None:
    cohort(tmp_path / "dicom", 2)
    dicom = changed(options, source=tmp_path / "dicom")
    assert run_cohort(dicom) == {"done": 2}
    (options.output / ".medgen" / "secret").unlink()
    for _ in range(2):
        with pytest.raises(InputError, match="key of the run"):
            run_cohort(dicom)
    assert run_cohort(changed(dicom, overwrite=True)) == {"done": 2}


def test_cases_that_are_gone_neither_wait_nor_fail_for_ever(options) -> None:
    run_cohort(options)
    with Ledger(options.output / "ledger.sqlite") as ledger:
        ledger.put([Entry("old", "waiting"), Entry("bad", "failed"), Entry("good", "done")])
    assert run_cohort(options) == {"done": 4, "skipped": 2}
    assert "not in the archive any more" in str(all_entries(options.output)["old"].reason)
    assert run_cohort(changed(options, overwrite=True)) == {"done": 3}
    assert settled_without_work([Entry("a", "done"), Entry("b", "skipped")]) == []


def test_the_latest_outcome_counts_whichever_ledger_holds_it(tmp_path: Path) -> None:
    part, whole = tmp_path / "ledger-1of2.sqlite", tmp_path / "ledger.sqlite"
    for first, second in ((part, whole), (whole, part)):
        with Ledger(first) as ledger:
            ledger.put([Entry("a", "failed", finished=EARLY), Entry("b", "done", finished=EARLY)])
        with Ledger(second) as ledger:
            ledger.put([Entry("a", "done", finished=LATE), Entry("b", "waiting")])
        assert {e.id: e.state for e in all_entries(tmp_path).values()} == {"a": "done", "b": "done"}


def test_a_ledger_that_is_just_being_made_is_empty(tmp_path: Path) -> None:
    (tmp_path / "ledger-2of2.sqlite").touch()
    assert all_entries(tmp_path) == {} and all_meta(tmp_path) == {}
    with Ledger(tmp_path / "ledger-2of2.sqlite") as ledger:
        ledger.put([Entry("a")])
    assert list(all_entries(tmp_path)) == ["a"]


KILLED = """
import os, signal, sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("PRAGMA cache_size=1")
db.execute("BEGIN IMMEDIATE")
db.execute("UPDATE cases SET state = 'failed', reason = ?", ("y" * 5000,))
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs kill -9")
def test_a_part_that_was_killed_while_it_wrote_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "ledger-2of2.sqlite"
    with Ledger(path) as ledger:
        ledger.put([Entry(f"c{n}", "done", reason="x" * 3000) for n in range(40)])
    subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert path.with_name(f"{path.name}-journal").stat().st_size > 0
    assert {entry.state for entry in all_entries(tmp_path).values()} == {"done"}


def test_a_damaged_ledger_is_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with Ledger(path) as ledger:
        ledger.put([Entry(f"c{n}", "done", reason="x" * 900) for n in range(60)])
    content = bytearray(path.read_bytes())
    content[8192:] = b"\xff" * (len(content) - 8192)
    path.write_bytes(content)
    with pytest.raises(Exception, match=r"cannot read the ledger|is damaged") as caught:
        all_entries(tmp_path)
    assert not isinstance(caught.value, sqlite3.Error)


def test_of_two_parts_that_end_together_the_last_writes_the_whole_summary(
    tmp_path: Path, monkeypatch
) -> None:
    (tmp_path / ".medgen").mkdir()
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        ledger.put([Entry("a", "waiting")])
    real, first_has_read, go_on = summaries.write_summary, threading.Event(), threading.Event()

    def slow(folder: Path, cohort) -> None:
        if cohort.counts == {"waiting": 1}:
            first_has_read.set()
            go_on.wait(20)
        real(folder, cohort)

    monkeypatch.setattr(summaries, "write_summary", slow)
    first = threading.Thread(target=summaries.summarise, args=(tmp_path,))
    first.start()
    assert first_has_read.wait(20)
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        ledger.put([Entry("a", "done", finished=LATE)])
    second = threading.Thread(target=summaries.summarise, args=(tmp_path,))
    second.start()
    time.sleep(0.5)
    go_on.set()
    first.join(20)
    second.join(20)
    assert "\tdone\t" in (tmp_path / "summary.tsv").read_text()


def test_a_run_ends_when_its_last_case_does_and_not_when_it_is_told(options) -> None:
    run_cohort(options)
    assert json.loads((options.output / "summary.json").read_text())["finished"] == LATE


def test_one_case_that_would_not_fit_fails_alone(options, monkeypatch) -> None:
    needs = [0.5, 900.0, 0.7]
    monkeypatch.setattr(
        prepare, "memory_needs_gb", lambda task, packages, facts: needs[: len(facts)]
    )
    assert run_cohort(changed(options, max_memory_gb=4.0)) == {"done": 2, "failed": 1}
    (failed,) = [e for e in all_entries(options.output).values() if e.state == "failed"]
    assert "900.0 GB" in str(failed.reason) and failed.stamp
    assert run_cohort(changed(options, max_memory_gb=4.0)) == {"done": 2, "failed": 1}
    needs[0] = 1.0
    assert run_cohort(changed(options, max_memory_gb=4.0, retry_failed=True)) == {"done": 3}
