"""The gallery of made images: one HTML file that opens from disk and never asks the network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medgen.report.pages import render, script_json

# More make a page that browsers are slow to open; all images lie beside it as files anyway.
MOST_IMAGES = 400


def write_gallery(
    images: Sequence[Mapping[str, Any]],
    path: str | Path,
    *,
    title: str,
    facts: Mapping[str, str],
    notes: Sequence[str] = (),
    legend: Sequence[tuple[str, str]] = (),
    total: int | None = None,
) -> None:
    """Write the page.

    Args:
        images: Of each its ``picture`` (data URI), optionally ``labels`` (data URI), ``file``,
            ``name``, ``condition``, ``seed``, ``index``, ``distance`` and ``percentile``.
        path: File; an existing one is replaced.
        title: Of the page.
        facts: What made the images.
        notes: What a reader must know.
        legend: Label names and their CSS colours.
        total: Number of images made, if not all are shown.
    """
    text = render(
        "gallery.html",
        title=title,
        facts=facts,
        notes=notes,
        legend=legend,
        shown=len(images),
        total=len(images) if total is None else total,
        labelled=any("labels" in image for image in images),
        measured=any(image["distance"] is not None for image in images),
        data=script_json(list(images)),
    )
    Path(path).write_text(text, encoding="utf-8")
