"""From a draft to its final place: a case's outputs appear there only when they are complete."""

from __future__ import annotations

import shutil
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from medgen.errors import MedgenError
from medgen.io.files import flush


def publish(draft: Path, folder: Path, *, stale: Sequence[Path] = ()) -> None:
    """Move every file of a draft into its folder, replacing an earlier try's.

    Renaming on one disk is atomic for each file; the ledger says when all of them are there. A
    folder that is not there yet appears as a whole.

    Args:
        draft: A complete draft, on the same disk.
        folder: Where the files belong; made if absent.
        stale: Outputs of an earlier try; removed if the draft does not replace them, so that no
            stale result stays.

    Raises:
        MedgenError: The disk refuses.
    """
    try:
        if not folder.exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            draft.chmod(folder.parent.stat().st_mode & 0o777)
            draft.rename(folder)
            flush(folder.parent)
            return
        names = sorted(p.relative_to(draft) for p in draft.rglob("*") if p.is_file())
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (draft / name).replace(folder / name)
        new = {folder / name for name in names}
        remove([path for path in stale if path not in new])
        flush(folder)
        shutil.rmtree(draft, ignore_errors=True)
    except OSError as error:
        msg = f"the run stopped: cannot write {folder}: {error.strerror or error}"
        hint = "Free some space and start the same command again; finished cases are kept."
        raise MedgenError(msg, hint) from error


def remove(stale: Sequence[Path]) -> None:
    """Remove outputs that are no longer true."""
    for path in stale:
        with suppress(OSError):
            path.unlink()


def discard(drafts: Path) -> None:
    """Remove what unfinished tries left."""
    shutil.rmtree(drafts, ignore_errors=True)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM wait for the block, so that what is published is recorded."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[int] = []
    handlers = {
        number: signal.signal(number, lambda received, frame: caught.append(received))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if caught:
            signal.raise_signal(caught[0])
