"""Writing files so that nothing is ever half-written, and saying clearly why when it fails."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from medgen.errors import InputError

# What the person can repair; any other error of the operating system is passed on as it is.
_OTHER_DISK = "Free some space, or choose another disk with -o."
_OTHER_FOLDER = "Choose a folder you may write to with -o."
_REASONS = {
    errno.ENOSPC: ("the disk is full", _OTHER_DISK),
    errno.EDQUOT: ("your disk quota is used up", _OTHER_DISK),
    errno.EFBIG: ("the file is too large for this disk", _OTHER_DISK),
    errno.EACCES: ("you may not write there", _OTHER_FOLDER),
    errno.EPERM: ("you may not write there", _OTHER_FOLDER),
    errno.EROFS: ("the disk is read-only", _OTHER_FOLDER),
    errno.ENOTDIR: ("a part of the path is a file, not a folder", "Choose another path with -o."),
    errno.EEXIST: ("a part of the path is a file, not a folder", "Choose another path with -o."),
    errno.EISDIR: ("it is a folder", "Name a file."),
    errno.ENAMETOOLONG: ("the name is too long", "Choose a shorter path with -o."),
}
_EXISTS_HINT = "Choose another output with -o, or allow replacing it with --overwrite."


def refuse_existing(paths: Iterable[str | os.PathLike[str]], overwrite: bool) -> None:
    """Raise before any work is done if an output is already there.

    Args:
        paths: Files that are going to be written.
        overwrite: True allows all of them.

    Raises:
        InputError: Names the first file that exists, and how many others do.
    """
    if overwrite:
        return
    found = [path for path in map(Path, paths) if path.exists() or path.is_symlink()]
    if found:
        others = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise InputError(f"the output exists already: {found[0]}{others}", _EXISTS_HINT)


@contextmanager
def atomic_path(path: str | os.PathLike[str], overwrite: bool = False) -> Iterator[Path]:
    """Give a temporary path to write to, and rename it to ``path`` only when all went well.

    The temporary file lies in the same folder and keeps the ending, because writers choose the
    format by it. Missing parent folders are made. When the block fails, nothing stays behind.

    Args:
        path: The file to write.
        overwrite: Whether an existing file may be replaced.

    Yields:
        The path to write to; the block must create a file there.

    Raises:
        InputError: If the file exists, or the disk is full, read-only or not yours to write to.
    """
    target = Path(path)
    refuse_existing([target], overwrite)
    made: list[Path] = []
    # A leading dot hides it from listings and from tools that collect `*.nii.gz`.
    temporary = target.with_name(f".writing-{secrets.token_hex(4)}-{target.name[-100:]}")
    with _explained(target):
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        try:
            made = _make_folder(target.parent)
            yield temporary
            flush(temporary)
            refuse_existing([target], overwrite)  # it may have appeared meanwhile
            temporary.replace(target)
            flush(target.parent)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            _remove_empty(made)
            raise


@contextmanager
def atomic_folder(path: str | os.PathLike[str], overwrite: bool = False) -> Iterator[Path]:
    """Give a temporary folder to fill, and move its files into ``path`` only when all went well.

    Files already in ``path`` under other names stay untouched.

    Args:
        path: The folder to fill; made if missing.
        overwrite: Whether files of the same name in it may be replaced.

    Yields:
        An empty folder on the same disk.

    Raises:
        InputError: As :func:`atomic_path`, or if ``path`` is a file.
    """
    target = Path(path)
    if target.exists() and not target.is_dir():
        raise InputError(f"the output must be a folder, but {target} is a file", _EXISTS_HINT)
    made: list[Path] = []
    temporary = target.parent / f".writing-{secrets.token_hex(4)}-{target.name[-100:]}"
    with _explained(target):
        try:
            made = _make_folder(target.parent)
            temporary.mkdir()
            yield temporary
            files = sorted(file for file in temporary.rglob("*") if file.is_file())
            outputs = [target / file.relative_to(temporary) for file in files]
            refuse_existing(outputs, overwrite)
            for file in files:
                flush(file)
            if target.exists():
                for file, output in zip(files, outputs, strict=True):
                    output.parent.mkdir(parents=True, exist_ok=True)
                    file.replace(output)
            else:
                temporary.rename(target)
            flush(target)
        except BaseException:
            _remove_tree(temporary)
            _remove_empty(made)
            raise
        _remove_tree(temporary)


@contextmanager
def _explained(target: Path) -> Iterator[None]:
    """Turn what the operating system says about writing into an error with advice."""
    try:
        yield
    except OSError as error:
        if error.errno not in _REASONS:
            raise
        reason, hint = _REASONS[error.errno]
        raise InputError(f"cannot write {target}: {reason}", hint) from error


def _make_folder(folder: Path) -> list[Path]:
    """Make a folder and its parents; return those that were missing, deepest first."""
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def _remove_empty(folders: list[Path]) -> None:
    with suppress(OSError):  # somebody else may have put a file there meanwhile
        for folder in folders:
            folder.rmdir()


def _remove_tree(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def flush(path: Path) -> None:
    """Make sure the bytes are on the disk: a full network disk may only say so now."""
    flags = os.O_RDONLY
    if path.is_dir():
        if os.name == "nt":  # folders cannot be opened there
            return
    elif os.name == "nt":
        flags = os.O_RDWR
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems cannot
            raise
    finally:
        os.close(handle)
