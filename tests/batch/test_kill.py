"""Whatever is killed, and whenever: no finished case is lost or done again, none is wrong."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from commands import environment, words
from hostile_cohorts import nifti_cohort
from test_run import contents, states

pytestmark = pytest.mark.slow
CASES = 10


def heed_interrupts() -> None:
    """As in a terminal: a shell starts what runs in the background with SIGINT ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def start(pipeline: Path, archive: Path, out: Path, shelf: Path) -> subprocess.Popen[bytes]:
    command = words("run", pipeline, archive, "-o", out, "--workers", "1", "-q")
    return subprocess.Popen(
        command, env=environment(shelf), start_new_session=True, preexec_fn=heed_interrupts
    )  # fmt: skip


def count_done(out: Path) -> int:
    with suppress(sqlite3.Error, OSError):
        uri = f"{(out / 'ledger.sqlite').as_uri()}?mode=ro"
        with sqlite3.connect(uri, uri=True, timeout=5) as db:
            return int(db.execute("SELECT count(*) FROM cases WHERE state='done'").fetchone()[0])
    return 0


def wait_for(condition, process: subprocess.Popen[bytes], seconds: float = 100) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        if condition():
            return
        time.sleep(0.02)
    assert process.poll() is not None, "nothing happened"


def family(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(process.pid).children(recursive=True)
    return []


def test_killed_again_and_again_equals_never_killed(
    tmp_path, medgen_batch, pipeline, shelf
) -> None:
    archive = tmp_path / "archive"
    nifti_cohort(archive, CASES)
    assert medgen_batch("run", pipeline, archive, "-o", tmp_path / "calm").returncode == 0
    out = tmp_path / "killed"
    rng = random.Random(0)
    finished_before: dict[Path, int] = {}
    for target in (1, 4, 7):
        process = start(pipeline, archive, out, shelf)
        wait_for(lambda target=target: count_done(out) >= target, process)
        time.sleep(rng.uniform(0, 0.3))
        children = family(process)
        process.send_signal(signal.SIGKILL)
        process.wait()
        _, alive = psutil.wait_procs(children, timeout=20)
        assert not alive, "workers outlive the run"
        for path, stamp in finished_before.items():
            assert path.stat().st_mtime_ns == stamp, "a finished case was done again"
        done = [case for case, state in states(out).items() if state == "done"]
        finished_before = {
            path: path.stat().st_mtime_ns for case in done for path in (out / case).iterdir()
        }
    last = medgen_batch("run", pipeline, archive, "-o", out)
    assert last.returncode == 0, last.stderr
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in finished_before.items())
    assert contents(out) == contents(tmp_path / "calm")


def test_a_killed_worker_costs_a_try_and_no_case(tmp_path, pipeline, shelf) -> None:
    archive, out = tmp_path / "archive", tmp_path / "out"
    nifti_cohort(archive, CASES)
    process = start(pipeline, archive, out, shelf)
    wait_for(lambda: count_done(out) >= 2, process)
    workers = [p for p in family(process) if "spawn_main" in " ".join(p.cmdline())]
    assert workers
    for worker in workers:
        with suppress(psutil.NoSuchProcess):
            worker.kill()
    assert process.wait(150) == 0
    assert set(states(out).values()) == {"done"} and len(states(out)) == CASES


@pytest.mark.parametrize(("how", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_politely(tmp_path, pipeline, shelf, how, code) -> None:
    archive, out = tmp_path / "archive", tmp_path / "out"
    nifti_cohort(archive, CASES)
    process = start(pipeline, archive, out, shelf)
    wait_for(lambda: count_done(out) >= 1, process)
    children = family(process)
    os.kill(process.pid, how)
    assert process.wait(60) == code
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive
    assert not (out / ".medgen" / "drafts").exists()
    assert (out / "index.html").exists()
    waiting = [case for case, state in states(out).items() if state == "waiting"]
    assert waiting and not any((out / case).exists() for case in waiting)


def test_the_second_of_two_runs_is_refused(tmp_path, medgen_batch, pipeline, shelf) -> None:
    archive, out = tmp_path / "archive", tmp_path / "out"
    nifti_cohort(archive, CASES)
    process = start(pipeline, archive, out, shelf)
    try:
        wait_for(lambda: count_done(out) >= 1, process)
        second = medgen_batch("run", pipeline, archive, "-o", out)
        assert second.returncode == 2 and "another run" in second.stderr
        assert str(process.pid) in second.stderr
    finally:
        process.kill()
        process.wait()


def mounted(folder: Path, size: str) -> bool:
    """A small disk of its own, where that is allowed (Linux, as root)."""
    folder.mkdir()
    if sys.platform != "linux" or os.geteuid() != 0 or not shutil.which("mount"):
        return False
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True).returncode == 0


def test_a_full_disk_stops_the_run_and_keeps_what_is_done(tmp_path, medgen_batch, pipeline) -> None:
    archive, disk = tmp_path / "archive", tmp_path / "disk"
    nifti_cohort(archive, CASES)
    if not mounted(disk, "300k"):
        pytest.skip("a small disk can be mounted only by root on Linux")
    try:
        out = disk / "out"
        full = medgen_batch("run", pipeline, archive, "-o", out)
        assert full.returncode == 1, full.stderr
        assert "Free some space" in full.stderr
        before = states(out)
        assert set(before.values()) == {"done", "waiting"}, "the disk is not the cases' fault"
        subprocess.run(["mount", "-o", "remount,size=50m", str(disk)], check=True)
        again = medgen_batch("run", pipeline, archive, "-o", out)
        assert again.returncode == 0, again.stderr
        assert set(states(out).values()) == {"done"}
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)
