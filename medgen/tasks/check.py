"""Say what a file or folder is and which models would take it, from headers alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medgen.errors import InputError, PackageError
from medgen.io import choose_frame
from medgen.manifest import Manifest
from medgen.package import list_packages
from medgen.tasks.limits import check_facts, default_memory_gb


def check_source(path: str | Path) -> dict[str, Any]:
    """What a path holds.

    Returns:
        ``source``; ``ok`` (it can be opened); then either ``error`` and ``hint``, or ``images``:
        the header facts of each image or series, with ``models``: whether each model takes it
        (``takes``) and if not ``why``.
    """
    from medgen import io

    try:
        found = io.describe(path)
    except InputError as error:
        return {"source": str(path), "ok": False, "error": error.message, "hint": error.hint}
    models = [entry for _, _, entry in list_packages() if not isinstance(entry, PackageError)]
    limit = default_memory_gb()
    images = [
        {**facts, "models": [_verdict(facts, model, limit) for model in models]} for facts in found
    ]
    return {"source": str(path), "ok": True, "images": images}


def _verdict(facts: Mapping[str, Any], model: Manifest, limit_gb: float) -> dict[str, Any]:
    try:
        if facts["blocking"]:
            raise InputError(facts["blocking"]["error"], facts["blocking"]["hint"])
        check_facts(facts, model, limit_gb)
        choose_frame(facts["path"], facts["frames"], None)
    except InputError as error:
        return {"name": model.name, "takes": False, "why": error.message}
    return {"name": model.name, "takes": True, "why": ""}
