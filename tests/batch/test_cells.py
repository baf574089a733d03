"""The cells of a study, one by one and on the engine of cohorts."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from medgen.batch.cells import runner
from medgen.tasks.benchmark_runs import run_all


def begin_and_wait(file: Path) -> None:
    """A cell that takes long: leaves the number of its process, then sleeps."""
    file.write_text(str(os.getpid()))
    time.sleep(300)


def raises(message: str) -> None:
    raise ValueError(message)


def loads_with_children(length: int) -> None:
    """As training does: a worker of Dask's may have no children unless that is asked for."""
    batches = list(DataLoader(TensorDataset(torch.arange(length)), batch_size=4, num_workers=1))
    assert sum(len(batch) for (batch,) in batches) == length


def dies_once(folder: Path) -> None:
    """Its process is killed in the first try, as by a system without memory."""
    if not folder.exists():
        folder.mkdir()
        os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))


def dies(_: str) -> None:
    os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))


def waits_for_the_other(files: tuple[Path, Path]) -> None:
    mine, other = files
    mine.touch()
    assert _eventually(lambda: "there" if other.exists() else "") == "there"


@pytest.mark.parametrize("jobs", (1, 2))
def test_cells_that_fail_are_named(jobs: int) -> None:
    failed = {"a": "ValueError: no", "b": "ValueError: never"}
    assert run_all({"a": "no", "b": "never"}, raises, runner(jobs)) == failed
    assert run_all({}, raises, runner(jobs)) == {}


def test_cells_run_at_the_same_time(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    assert run_all({"a": (a, b), "b": (b, a)}, waits_for_the_other, runner(2)) == {}


def test_a_cell_may_start_processes() -> None:
    assert run_all({"a": 10}, loads_with_children, runner(2)) == {}


def test_a_cell_whose_process_dies_is_tried_once_more(tmp_path: Path) -> None:
    assert run_all({"a": tmp_path / "begun"}, dies_once, runner(2)) == {}
    failed = run_all({"a": "", "b": ""}, dies, runner(2))
    assert failed.keys() == {"a", "b"}
    assert all("process died; if memory ran out" in message for message in failed.values())


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize("number", (signal.SIGKILL, signal.SIGTERM, signal.SIGINT))
def test_no_process_outlives_its_study(tmp_path: Path, number: int) -> None:
    """A study that is killed cannot tell its processes to end; one that is asked to end does."""
    script = tmp_path / "study.py"
    script.write_text(
        "import signal\n"
        "import sys\n"
        "from pathlib import Path\n"
        "from test_cells import begin_and_wait, run_all, runner\n"
        "if __name__ == '__main__':\n"
        "    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # as the program does\n"
        "    run_all({'a': Path(sys.argv[1])}, begin_and_wait, runner(2))\n"
    )
    begun = tmp_path / "begun"
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    study = subprocess.Popen(
        [sys.executable, script, begun],
        env={**os.environ, "PYTHONPATH": paths},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        worker = int(_eventually(lambda: begun.read_text() if begun.exists() else ""))
    finally:
        if number == signal.SIGINT:
            os.killpg(study.pid, number)  # a terminal sends Ctrl-C to all of them
        else:
            study.send_signal(number)
        said = study.communicate(timeout=60)[1]
    assert _eventually(lambda: "" if _runs(worker) else "gone") == "gone"
    assert "Process Dask Worker" not in said


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
