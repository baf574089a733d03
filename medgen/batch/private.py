"""Keep out of messages what may name a patient: the paths of a DICOM archive, and its values."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from medgen.errors import MedgenError
from medgen.io.walk import Location

INSTEAD = "the series"
# Shorter names, such as 1 or I10, may stand in a message for something else.
_SHORTEST_NAME = 4


def without_paths(text: str, sources: Iterable[Location], root: str) -> str:
    """A message without paths below a private archive, names of its files, or members of zips.

    Args:
        text: The message.
        sources: What the message may be about.
        root: The archive.
    """
    names = {root}
    for location in sources:
        members = [location.member] if location.member else []
        names |= {str(location.file), *map(str, location.file.parents), location.file.name}
        names |= {*members, *(Path(name).name for name in members)}
    long_enough = {name for name in names if len(name) >= _SHORTEST_NAME}
    for name in sorted(_as_written(long_enough), key=_longest_first):
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", INSTEAD, text)
    return text


def without_root(text: str, root: str) -> str:
    """A message with paths as seen from the archive, whose own place is nobody's business."""
    folder = root if Path(root).is_dir() else str(Path(root).parent)
    return text.replace(folder.rstrip(os.sep) + os.sep, "") if folder != "." else text


def harmless(error: Exception) -> str:
    """What an exception says, if that cannot be a value from a header.

    Other libraries quote in their errors what they could not read, and that may be a name.
    """
    if isinstance(error, MedgenError):
        return error.message
    return (error.strerror or "") if isinstance(error, OSError) else ""


def _as_written(texts: Iterable[str]) -> set[str]:
    """Texts also as Python quotes them in an error."""
    return {form for text in texts for form in (text, repr(text)[1:-1])}


def _longest_first(text: str) -> tuple[int, str]:
    return -len(text), text
