"""A Dask cluster of its own processes: it is used, and its death loses nothing."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from commands import environment, words
from hostile_cohorts import nifti_cohort
from test_kill import CASES, count_done, wait_for
from test_run import contents, states

pytestmark = pytest.mark.slow


@pytest.fixture
def cluster(tmp_path: Path, shelf: Path):
    """Starts a scheduler and one worker; gives the address and the scheduler's process."""
    processes: list[subprocess.Popen[str]] = []

    def dask(*arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "dask", *arguments], cwd=tmp_path, env=environment(shelf),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        processes.append(process)
        return process

    def begin() -> tuple[str, subprocess.Popen[str]]:
        file = tmp_path / f"scheduler-{len(processes)}.json"
        scheduler = dask(
            "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard",
            "--scheduler-file", str(file),
        )  # fmt: skip
        while not file.exists() or not file.read_text().strip():
            assert scheduler.poll() is None
            time.sleep(0.05)
        address = json.loads(file.read_text())["address"]
        dask("worker", address, "--nthreads", "1", "--resources", "lanes=1", "--no-dashboard")
        return address, scheduler

    yield begin
    for process in processes:
        children = []
        with suppress(psutil.NoSuchProcess):
            children = psutil.Process(process.pid).children(recursive=True)
        for running in (process, *children):
            with suppress(psutil.NoSuchProcess):
                running.kill()
        process.wait()


def test_the_scheduler_is_killed_and_another_goes_on(
    tmp_path, cluster, medgen_batch, pipeline, shelf
) -> None:
    archive, out = tmp_path / "archive", tmp_path / "out"
    nifti_cohort(archive, CASES)
    address, scheduler = cluster()
    command = words("run", pipeline, archive, "-o", out, "--scheduler", address)
    process = subprocess.Popen(
        command, env=environment(shelf), stderr=subprocess.PIPE, text=True
    )  # fmt: skip
    wait_for(lambda: count_done(out) >= 2, process)
    scheduler.send_signal(signal.SIGKILL)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1 and "does not answer" in errors, errors
    assert "Traceback" not in errors
    done = {case for case, state in states(out).items() if state == "done"}
    assert 2 <= len(done) < CASES and "failed" not in states(out).values()
    address, _ = cluster()
    again = medgen_batch("run", pipeline, archive, "-o", out, "--scheduler", address)
    assert again.returncode == 0, again.stderr
    assert f"{CASES - len(done)} cases to do" in again.stderr
    calm = medgen_batch("run", pipeline, archive, "-o", tmp_path / "calm")
    assert calm.returncode == 0
    assert contents(out) == contents(tmp_path / "calm")
