"""The words and the environment of a ``medgen batch`` command in a process of its own."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def environment(shelf: Path) -> dict[str, str]:
    return {**os.environ, "MEDGEN_MODELS": str(shelf), "NO_COLOR": "1", "COLUMNS": "200"}


def words(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "medgen", "batch", *map(str, arguments)]
