"""What of a restoration can be known from headers alone: for dry runs and for cohorts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from medgen.errors import InputError
from medgen.manifest import Manifest
from medgen.tasks.contrasts import check_contrast, contrast_of
from medgen.tasks.finer_grid import FinerGrid, finer_grid
from medgen.tasks.limits import check_facts, plan
from medgen.tasks.restoration_scan import of_any_modality
from medgen.volume import Geometry


def check_scan_facts(
    facts: Mapping[str, Any], manifest: Manifest, limit_gb: float, *, force: bool = False
) -> tuple[str, ...]:
    """Refuse a scan that a restoration model would not take.

    Args:
        facts: Of the scan, as :func:`medgen.io.describe` gives them.
        manifest: The model.
        limit_gb: Most memory to use.
        force: Take another contrast or modality than the model was trained on, too.

    Returns:
        Notes for people.

    Raises:
        InputError: The model would not take it.
    """
    check_facts(facts, of_any_modality(manifest) if force else manifest, limit_gb)
    return check_contrast(contrast_of(facts), facts["modality"], manifest, force=force)


def plan_scan(
    path: Path,
    manifest: Manifest,
    limit_gb: float,
    *,
    frame: int | None = None,
    series: str | None = None,
    force: bool = False,
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Header facts of the image that would be used, and notes, after all checks on headers.

    Raises:
        InputError: The path cannot be read, or the model would not take what it holds.
    """
    checked = of_any_modality(manifest) if force else manifest
    facts = plan(path, checked, limit_gb, frame=frame, series=series)
    return facts, check_contrast(contrast_of(facts), facts["modality"], manifest, force=force)


def check_mask_facts(mask: Path, facts: Mapping[str, Any], *, resample_mask: bool) -> None:
    """Refuse a mask that cannot be read, or whose size shows that it is on another grid.

    Args:
        mask: The file.
        facts: Of the scan.
        resample_mask: Whether another grid is fine.

    Raises:
        InputError: It cannot be used.
    """
    from medgen import io

    mask_facts = io.preview(mask)
    if mask_facts["shape"] != facts["shape"] and not resample_mask:
        raise InputError(
            "the mask lies on another grid than the scan\n"
            f"  scan: {_grid(facts)}\n  mask: {_grid(mask_facts)}",
            "Use --resample-mask to bring the mask to the scan's grid.",
        )


def plan_finer_grid(facts: Mapping[str, Any], **wish: Any) -> FinerGrid:
    """The grid that super-resolution would make of a scan.

    Args:
        facts: Of the scan.
        **wish: As of :func:`medgen.tasks.finer_grid.finer_grid`.

    Raises:
        InputError: The wish makes no sense for this scan.
    """
    shape = tuple(facts["shape"])
    spacing = facts["spacing_mm"] or (1.0,) * len(shape)
    affine = np.diag([*spacing, *(1.0,) * (4 - len(shape))])
    return finer_grid(Geometry(shape, affine), **wish)


def _grid(facts: Mapping[str, Any]) -> str:
    size = " x ".join(map(str, facts["shape"]))
    spacing = facts["spacing_mm"]
    return f"{size} voxels" + (
        f" of {' x '.join(f'{mm:.4g}' for mm in spacing)} mm" if spacing else ""
    )
