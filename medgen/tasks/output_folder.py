"""An output folder that is either complete or untouched."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from medgen.errors import InputError

KNOWN_ENDINGS = (".nii", ".nii.gz", ".json", ".png", ".html", ".tsv", ".dcm")


@contextmanager
def output_folder(folder: Path, names: Sequence[str], *, overwrite: bool) -> Iterator[Path]:
    """Yield a draft folder; when the block succeeds, its files move into ``folder``.

    The draft lies on the same disk, so moving is renaming. If the block fails or is interrupted,
    the draft and every folder made for it disappear. Other files in ``folder`` are never touched.

    Args:
        folder: Where the outputs belong.
        names: Every file (or folder, as a whole) this run may write. One that exists is refused
            or, with ``overwrite``, replaced; or removed if this run did not write it, so that no
            stale result stays.
        overwrite: Replace earlier outputs.

    Raises:
        InputError: An output exists, or the folder cannot be made.
    """
    refuse_wrong_target(folder, names, overwrite)
    made: list[Path] = []
    try:
        try:
            made = _make_parents(folder)
            # Beside the final folder, or inside it if it exists (it may be a mount point).
            home = folder if folder.is_dir() else folder.parent
            draft = Path(tempfile.mkdtemp(prefix=".medgen-", dir=home))
        except OSError as error:
            raise cannot_write(folder, error) from error
        try:
            yield draft
            try:
                _publish(draft, folder, names)
            except OSError as error:
                raise cannot_write(folder, error) from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    except BaseException:
        for parent in reversed(made):
            parent.rmdir()
        raise


def refuse_inside(folder: Path, source: Path) -> None:
    """Refuse an output folder that lies inside its input, where results would be taken for input.

    Raises:
        InputError: It does.
    """
    inside, outside = folder.resolve(), source.resolve()
    if source.is_dir() and (inside == outside or outside in inside.parents):
        raise InputError(
            f"the output folder {folder} lies inside the input",
            "Results would be taken for input. Choose another folder with -o.",
        )


def cannot_write(path: Path, error: OSError) -> InputError:
    """The error to show when the system refuses to write."""
    reason = error.strerror or str(error)
    hint = "Free some space, or choose a folder you may write to with -o. Nothing was left behind."
    return InputError(f"cannot write to {path}: {reason}", hint)


def refuse_wrong_target(folder: Path, names: Sequence[str], overwrite: bool) -> None:
    """Refuse a folder that cannot take these files, or holds one of them already.

    Raises:
        InputError: It names a file, or something would be overwritten.
    """
    if folder.name.lower().endswith(KNOWN_ENDINGS):
        msg = f"-o must name a folder, got {folder}: several files are written"
        raise InputError(msg, "Leave out the file ending.")
    if folder.exists() and not folder.is_dir():
        msg = f"-o must name a folder, but {folder} is a file"
        raise InputError(msg, "Choose another name.")
    existing = [name for name in names if (folder / name).exists()]
    if existing and not overwrite:
        more = f" and {len(existing) - 1} more" if len(existing) > 1 else ""
        msg = f"{folder} already holds {existing[0]}{more}"
        raise InputError(msg, "Choose another folder with -o, or pass --overwrite.")


def _make_parents(folder: Path) -> list[Path]:
    """Make the missing folders above ``folder`` and return them, outermost first."""
    missing = [parent for parent in folder.absolute().parents if not parent.exists()][::-1]
    made: list[Path] = []
    try:
        for parent in missing:
            parent.mkdir()
            made.append(parent)
    except OSError:
        for parent in reversed(made):
            parent.rmdir()
        raise
    return made


def _publish(draft: Path, folder: Path, names: Sequence[str]) -> None:
    written = {path.name for path in draft.iterdir()}
    if not folder.exists():
        draft.chmod(0o777 & ~_umask())
        draft.rename(folder)
        return
    for name in names:
        if (folder / name).is_dir():  # a folder of an earlier run is replaced as a whole
            shutil.rmtree(folder / name)
    for name in sorted(written):
        (draft / name).replace(folder / name)
    for name in set(names) - written:
        (folder / name).unlink(missing_ok=True)


def _umask() -> int:
    """The process's file mode mask; reading it means setting it for a moment."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
