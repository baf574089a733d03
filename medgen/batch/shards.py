"""Parts of a cohort for several machines, and the locks that keep two runs out of one folder."""

from __future__ import annotations

import hashlib
import os
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from medgen.errors import InputError

# Holds locks, drafts and the secret. All but the secret may be deleted when no run is going on;
# without the secret a run cannot be resumed.
HIDDEN = ".medgen"


@dataclass(frozen=True)
class Shard:
    """Part ``number`` (from 1) of ``count`` equal parts of a cohort."""

    number: int = 1
    count: int = 1

    def holds(self, case_id: str) -> bool:
        """Whether a case belongs to this part; depends on its label alone."""
        digest = hashlib.sha256(case_id.encode()).digest()
        return int.from_bytes(digest[:8], "big") % self.count == self.number - 1

    @property
    def suffix(self) -> str:
        """Added to names of files that each part has its own of."""
        return "" if self.count == 1 else f"-{self.number}of{self.count}"


def parse_shard(text: str, environment: Mapping[str, str] = os.environ) -> Shard:
    """``i/N``, or ``slurm`` for the place of this job in a Slurm array.

    Raises:
        InputError: Neither, or i does not lie between 1 and N, or this is no array job.
    """
    if text == "slurm":
        return _slurm_shard(environment)
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text.strip())
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        msg = f"--shard must be i/N with i from 1 to N, or slurm; got {text!r}"
        raise InputError(msg, "For example --shard 3/8 for the third of eight parts.")
    return Shard(int(found[1]), int(found[2]))


def _slurm_shard(environment: Mapping[str, str]) -> Shard:
    names = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT")
    try:
        number, count = (int(environment[name]) for name in names)
        first = int(environment.get("SLURM_ARRAY_TASK_MIN", "0"))
        step = int(environment.get("SLURM_ARRAY_TASK_STEP", "1"))
    except (KeyError, ValueError):
        msg = f"--shard slurm needs {' and '.join(names)}, which Slurm sets in an array job"
        raise InputError(msg, "Submit with sbatch --array=1-8, or say --shard i/N.") from None
    place = (number - first) // max(step, 1) + 1
    if not 1 <= place <= count:
        msg = f"the Slurm array says task {number} of {count}, counted from {first}"
        raise InputError(msg, "Say --shard i/N instead.")
    return Shard(place, count)


@contextmanager
def locked(folder: Path, shard: Shard) -> Iterator[None]:
    """Hold a run's folder, or one part of it, until the block ends or the process dies.

    The operating system gives the lock back when the process ends, however it ends.

    Raises:
        InputError: Another run, or another way of dividing the cohort, holds it.
    """
    from filelock import FileLock, Timeout

    hidden = folder / HIDDEN
    hidden.mkdir(parents=True, exist_ok=True)

    def take(name: str, patience_s: float = 0) -> FileLock:
        lock = FileLock(hidden / name)
        try:
            lock.acquire(timeout=patience_s)
        except Timeout:
            raise _held(folder, hidden / name) from None
        return lock

    own = f"lock{shard.suffix}"
    with ExitStack() as stack:
        # Taking a part needs the whole for a moment, so the two cannot pass each other; many parts
        # start at once, so each waits for its turn.
        whole = take("lock", patience_s=0 if shard.count == 1 else 20)
        if shard.count > 1:
            try:
                _refuse_other_divisions(hidden, own, folder, shard)
                stack.callback(take(own).release)
            finally:
                whole.release()
        else:
            stack.callback(whole.release)
            _refuse_other_divisions(hidden, own, folder, shard)
        with suppress(OSError):  # only for the message of whoever comes second
            who = f"process {os.getpid()} on {socket.gethostname()}"
            (hidden / f"{own}.holder").write_text(who, encoding="utf-8")
        yield


def _refuse_other_divisions(hidden: Path, own: str, folder: Path, shard: Shard) -> None:
    from filelock import FileLock, Timeout

    for path in hidden.glob("lock-*of*"):
        if path.suffix or path.name == own or path.name.endswith(f"of{shard.count}"):
            continue
        try:
            FileLock(path).acquire(timeout=0).lock.release()
        except Timeout:
            raise _held(folder, path) from None


def _held(folder: Path, lock: Path) -> InputError:
    holder = ""
    with suppress(OSError, UnicodeDecodeError):
        holder = f" ({lock.with_name(lock.name + '.holder').read_text(encoding='utf-8')[:200]})"
    part = lock.name.removeprefix("lock").lstrip("-").replace("of", " of ")
    what = f"part {part} of it" if part else "it"
    return InputError(
        f"another run is working on {folder}: {what} is taken{holder}",
        "Wait for it, or choose another folder with -o.",
    )
