"""The processes of a study."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from medgen.tasks.benchmark_runs import run_all


def begin_and_wait(file: Path) -> None:
    """A cell that takes long: leaves the number of its process, then sleeps."""
    file.write_text(str(os.getpid()))
    time.sleep(300)


def fails(message: str) -> str:
    return message


def raises(message: str) -> None:
    raise ValueError(message)


@pytest.mark.parametrize("jobs", (1, 2))
def test_cells_that_fail_are_named(jobs: int) -> None:
    assert run_all({"a": "no", "b": "never"}, fails, jobs) == {"a": "no", "b": "never"}


def test_a_process_that_raises_is_named() -> None:
    assert run_all({"a": "why"}, raises, 2) == {"a": "ValueError: why"}


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize("number", (signal.SIGKILL, signal.SIGTERM))
def test_no_process_outlives_its_study(tmp_path: Path, number: int) -> None:
    """A study that is killed cannot tell its processes to end; one that is asked to end does."""
    script = tmp_path / "study.py"
    script.write_text(
        "import signal\n"
        "import sys\n"
        "from pathlib import Path\n"
        "from test_benchmark_runs import begin_and_wait, run_all\n"
        "if __name__ == '__main__':\n"
        "    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # as the program does\n"
        "    run_all({'a': Path(sys.argv[1])}, begin_and_wait, 2)\n"
    )
    begun = tmp_path / "begun"
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    study = subprocess.Popen(
        [sys.executable, script, begun], env={**os.environ, "PYTHONPATH": paths}
    )
    try:
        worker = int(_eventually(lambda: begun.read_text() if begun.exists() else ""))
    finally:
        study.send_signal(number)
        study.wait(60)
    assert _eventually(lambda: "" if _runs(worker) else "gone") == "gone"


def _eventually(look: Callable[[], str], seconds: float = 60) -> str:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if found := look():
            return found
        time.sleep(0.1)
    return ""


def _runs(process: int) -> bool:
    try:
        # A dead process that nobody has taken leave of yet does not run.
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
