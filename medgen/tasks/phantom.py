"""Write a phantom: a synthetic scan, its lesion and its tissues, as files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medgen.phantoms import Contrast, brain
from medgen.run_record import run_record, timed
from medgen.tasks.detect_files import write_json
from medgen.tasks.output_folder import cannot_write, output_folder

SUFFIX = {"t1": "T1w", "t2": "T2w", "flair": "FLAIR"}


def write_phantom(
    folder: Path,
    shape: Sequence[int],
    *,
    spacing_mm: float = 1.5,
    contrast: Contrast = "t1",
    skull: bool = False,
    lesion_radius_mm: float | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> dict[str, Path]:
    """Draw a phantom (see :func:`medgen.phantoms.brain`) and write it as NIfTI.

    Args:
        folder: Made if absent.
        shape: ``(X, Y, Z)`` or ``(X, Y)``.
        spacing_mm: Voxel size.
        contrast: ``t1``, ``t2`` or ``flair``.
        skull: Draw skull and scalp too.
        lesion_radius_mm: Plant a lesion of about this radius.
        seed: Chooses the head, the noise and the place of the lesion.
        overwrite: Replace an earlier phantom.

    Returns:
        Paths of ``image``, ``lesion``, ``labels`` and ``run``.

    Raises:
        InputError: The settings make no sense, an output exists, or cannot be written.
    """
    from medgen.io import write_nifti

    names = {
        "image": f"phantom_{SUFFIX.get(contrast, contrast)}.nii.gz",
        "lesion": "phantom_desc-lesion_mask.nii.gz",
        "labels": "phantom_dseg.nii.gz",
        "run": "run.json",
    }
    settings: dict[str, Any] = {
        "shape": list(shape), "spacing_mm": spacing_mm, "contrast": contrast, "skull": skull,
        "lesion_radius_mm": lesion_radius_mm, "seed": seed,
    }  # fmt: skip
    timings: dict[str, float] = {}
    with output_folder(folder, list(names.values()), overwrite=overwrite) as draft:
        with timed(timings, "draw"):
            phantom = brain(
                shape, spacing_mm=spacing_mm, seed=seed, contrast=contrast, skull=skull,
                lesion_radius_mm=lesion_radius_mm,
            )  # fmt: skip
        grid = phantom.image.geometry
        try:
            with timed(timings, "write"):
                write_nifti(draft / names["image"], phantom.image.voxels[0], grid, kind="image")
                write_nifti(draft / names["lesion"], phantom.lesion, grid, kind="label")
                write_nifti(draft / names["labels"], phantom.labels, grid, kind="label")
            outputs = [draft / name for kind, name in names.items() if kind != "run"]
            record = run_record(
                "phantom -o OUT", inputs=[], outputs=outputs, timings=timings, synthetic=True,
                settings=settings,
            )  # fmt: skip
            write_json(draft / names["run"], record)
        except OSError as error:
            raise cannot_write(folder, error) from error
    return {kind: folder / name for kind, name in names.items()}
