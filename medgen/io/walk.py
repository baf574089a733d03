"""Walk a file, a folder or an archive on disk: in a fixed order, once each, whatever lies in it."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple


class Location(NamedTuple):
    """Where one object lies: a file, or a member of a zip file.

    Attributes:
        file: The file.
        member: A key of :func:`zip_members`, or None for the file itself.
    """

    file: Path
    member: str | None = None


def zip_members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The files in a zip by name; where a name repeats, NUL and a number are added to it.

    No name in a zip can hold a NUL. Names are keys, never paths.
    """
    members: dict[str, zipfile.ZipInfo] = {}
    seen: dict[str, int] = {}
    for member in archive.infolist():
        if not member.is_dir():
            name = member.filename
            seen[name] = seen.get(name, 0) + 1
            members[name if seen[name] == 1 else f"{name}\0{seen[name]}"] = member
    return members


@contextmanager
def opened(location: Location) -> Iterator[IO[bytes]]:
    """The bytes of an object, from its file or from inside its zip; nothing is unpacked to disk."""
    if location.member is None:
        with location.file.open("rb") as stream:
            yield stream
    else:
        with (
            zipfile.ZipFile(location.file) as archive,
            archive.open(zip_members(archive)[location.member]) as member,
        ):
            yield member


def walk(root: Path, unreadable: list[Path] | None = None) -> Iterator[Path]:
    """Every regular file below a folder, sorted by name within each folder.

    Links are followed, because archives and data sets are often made of them, but no folder is
    entered twice, so loops end. Names that start with a dot are left out: they hold what other
    programs keep beside the data.

    Args:
        root: A folder.
        unreadable: Receives the folders that could not be opened; they are skipped.

    Yields:
        Paths below ``root``.
    """
    entered: set[tuple[int, int]] = set()
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        try:
            status = folder.stat()
            if (status.st_dev, status.st_ino) in entered:
                continue
            entered.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError:
            if unreadable is not None:
                unreadable.append(folder)
            continue
        folders = []
        for entry in entries:
            if entry.name.startswith("."):
                continue
            try:
                if entry.is_dir():
                    folders.append(folder / entry.name)
                elif entry.is_file():
                    yield folder / entry.name
            except OSError:  # a link that leads to itself
                continue
        waiting.extend(reversed(folders))
