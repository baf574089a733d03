"""The files of one restoration: the image on its grid, how sure it is, provenance, pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medgen.run_record import run_record, timed
from medgen.tasks.detect_files import input_fingerprint, output_stem, write_json
from medgen.tasks.output_folder import cannot_write, output_folder

if TYPE_CHECKING:
    from medgen.io.dicom_out import Derivation
    from medgen.tasks.restoration import Restoration

RESEARCH_ONLY = "Not a medical device. Research use only."
# What a contrast is called in BIDS; other names stand for themselves.
_BIDS_SUFFIXES = {"t1": "T1w", "t2": "T2w", "flair": "FLAIR", "pd": "PDw"}
# Numbers of the series in a study, by verb, and the modality of what is made.
_SERIES_NUMBERS = {"inpaint": 81, "super-resolve": 82, "denoise": 83, "translate": 84}
_MODALITIES = {"ct": "CT", "mr": "MR", "t1": "MR", "t2": "MR", "flair": "MR", "pd": "MR"}
# What the tasks measure, in words.
MEASURES = {
    "filled_voxels": "voxels that were filled",
    "filled_ml": "their volume in ml",
    "seam": "jump across the border of the filling, relative to jumps beside it; 1 cannot be seen",
    "degradation": "how the result is made coarse again",
    "inconsistency_max": "then, largest difference from the scan",
    "inconsistency_mean": "then, mean difference from the scan",
    "inconsistency_max_before": "largest difference before the correction",
    "inconsistency_mean_before": "mean difference before the correction",
    "noise": "standard deviation of white noise in the scan, to compare with",
    "noise_before": "standard deviation of white noise in the scan",
    "noise_after": "standard deviation of white noise in the result",
    "edges_kept": "part of the scan's edges that the result shows, 0 to 1",
    "edges_new": "part of the result's edges that the scan does not have, 0 to 1",
    "tissue_dice": "overlap of intensity classes of scan and result, 0 to 1",
}


def output_names(
    verb: str,
    kind: str,
    sources: Sequence[str],
    *,
    report: bool = True,
    dicom: bool = False,
    bids: bool = False,
) -> dict[str, str]:
    """File name of each output, after the input's name.

    Args:
        verb: The task.
        kind: The word for the result, as in :class:`~medgen.tasks.restoration.Restoration`.
        sources: Where the scan was read from.
        report: Whether pictures are drawn.
        dicom: Whether a derived DICOM series is written; its name is that of a folder.
        bids: Name files as BIDS derivatives, so that several images can share a folder.

    Returns:
        Names by what they are. ``uncertainty`` and ``invented`` are written only if there are such
        maps.
    """
    stem = output_stem(sources)
    if bids:
        entities, _, suffix = stem.rpartition("_")
        made = f"{entities}_desc-{kind}_{suffix}"
        if verb == "translate":  # an image of another kind than it was made from
            made = f"{entities}_desc-synthetic_{_BIDS_SUFFIXES.get(kind, kind)}"
        beside = f"{entities}_desc-{kind}{suffix}_"
    else:
        made, beside = f"{stem}_desc-{kind}", ""
    maps = beside or f"{made}_"
    names = {
        "image": f"{made}.nii.gz",
        "uncertainty": f"{maps}uncertainty.nii.gz",
        "invented": f"{maps}invented.nii.gz",
        "restoration": f"{beside}restoration.json",
        "run": f"{beside}run.json",
    }
    if report:
        names |= {"overview": f"{beside}overview.png", "report": f"{beside}report.html"}
    if dicom:
        names["dicom"] = f"{stem}_{kind}_dicom"
    return names


def save_restoration(
    restoration: Restoration, folder: Path, *, overwrite: bool, report: bool, dicom: bool
) -> dict[str, Path]:
    """Write everything into a folder, all or nothing; see ``Restoration.save``."""
    if dicom:
        check_dicom(restoration)
    names = output_names(
        restoration.verb, restoration.kind, restoration.volume.provenance.sources,
        report=report, dicom=dicom,
    )  # fmt: skip
    with output_folder(folder, list(names.values()), overwrite=overwrite) as draft:
        kinds = write_files(restoration, draft, report=report, dicom=dicom)
    return {kind: folder / names[kind] for kind in kinds}


def check_dicom(restoration: Restoration) -> None:
    """Refuse a scan beside which no DICOM series can be filed.

    Raises:
        InputError: It was not read from DICOM, or lacks the UIDs that a citation needs.
    """
    from medgen.io import dicom_out

    dicom_out.check_source(restoration.volume)


def write_files(
    restoration: Restoration,
    folder: Path,
    *,
    report: bool = True,
    dicom: bool = False,
    bids: bool = False,
    command: str | None = None,
    also_read: Sequence[str | Path] = (),
    steps: Sequence[Restoration] = (),
) -> list[str]:
    """Write every output into an existing folder.

    Args:
        restoration: The result.
        folder: Where to write; :func:`~medgen.tasks.output_folder.output_folder` gives one.
        report: Also draw the pictures.
        dicom: Also write a derived DICOM series.
        bids: Name files as BIDS derivatives, as :func:`output_names` does.
        command: What to record in ``run.json``; without paths.
        also_read: Other inputs to record, such as a mask.
        steps: What was done to the scan before, if this is the last of several steps.

    Returns:
        The kinds of output written, as named by :func:`output_names`.

    Raises:
        InputError: The disk is full, the folder cannot be written, or a DICOM series is wanted of
            a scan that is not DICOM.
    """
    names = output_names(
        restoration.verb, restoration.kind, restoration.volume.provenance.sources,
        report=report, dicom=dicom, bids=bids,
    )  # fmt: skip
    if restoration.uncertainty is None:
        del names["uncertainty"]
    if restoration.invented is None:
        del names["invented"]
    try:
        _write(restoration, folder, names, command or restoration.verb, also_read, steps)
    except OSError as error:
        raise cannot_write(folder, error) from error
    return list(names)


def _write(
    restoration: Restoration,
    folder: Path,
    names: dict[str, str],
    command: str,
    also_read: Sequence[str | Path],
    steps: Sequence[Restoration],
) -> None:
    timings = dict(restoration.timings)
    sources = [*restoration.volume.provenance.sources, *map(str, also_read)]
    # zlib leaves the interpreter free, so the images compress while the pictures are drawn.
    with timed(timings, "write"), ThreadPoolExecutor() as pool:
        inputs = [pool.submit(input_fingerprint, source) for source in sources]
        jobs = [
            pool.submit(_write_image, restoration, folder / names[kind], kind)
            for kind in ("image", "uncertainty", "invented")
            if kind in names
        ]
        write_json(folder / names["restoration"], restoration_summary(restoration, steps))
        if "report" in names:
            _draw(restoration, folder, names)
        if "dicom" in names:
            _write_series(restoration, folder / names["dicom"])
        for job in jobs:
            job.result()
    record = run_record(
        command,
        inputs=[job.result() for job in inputs],
        outputs=[folder / name for kind, name in names.items() if kind != "run"],
        timings=timings,
        model=_model(restoration),
        steps=[{"task": step.verb, "model": _model(step)} for step in steps],
        device=restoration.device,
        seed=restoration.seed,
        estimated_memory_gb=round(restoration.estimated_memory_gb, 3),
        fallbacks=list(restoration.fallbacks),
        notes=list(restoration.notes),
    )
    write_json(folder / names["run"], record)


def _model(restoration: Restoration) -> dict[str, Any]:
    model = restoration.model
    return {"name": model.name, "version": model.version, "sha256": restoration.model_sha256}


def _write_image(restoration: Restoration, path: Path, which: str) -> None:
    from medgen.io import write_changed, write_nifti

    grid, scan = restoration.geometry, restoration.volume
    text = f"medgen {restoration.verb} by {restoration.model.name}; see the JSON files"
    if which == "image" and restoration.invented is not None:
        write_changed(
            path, restoration.output, restoration.invented, grid, like=scan, description=text
        )
    elif which == "image":
        write_nifti(path, restoration.output, grid, like=scan, description=text)
    elif which == "uncertainty" and restoration.uncertainty is not None:
        write_nifti(path, restoration.uncertainty, grid, like=scan, kind="map", description=text)
    elif restoration.invented is not None:
        write_nifti(path, restoration.invented, grid, like=scan, kind="label", description=text)


def _draw(restoration: Any, folder: Path, names: dict[str, str]) -> None:
    from medgen.report.comparison import comparison_overview, write_comparison

    comparison_overview(restoration, folder / names["overview"])
    write_comparison(restoration, folder / names["report"])


# --- words --------------------------------------------------------------------------------------


def restoration_summary(
    restoration: Restoration, steps: Sequence[Restoration] = ()
) -> dict[str, Any]:
    """The contents of ``restoration.json``, which ``--json`` also prints."""
    grid = restoration.geometry
    summary: dict[str, Any] = {
        "task": restoration.verb,
        "result": restoration.kind,
        "model": f"{restoration.model.name} {restoration.model.version}",
        "measures": {name: _plain(value) for name, value in restoration.measures.items()},
        "measures_meaning": {n: MEASURES[n] for n in restoration.measures if n in MEASURES},
        "uncertainty": _uncertainty(restoration),
        "invented": _invented(restoration),
        "units": units(restoration),
        "shape": list(grid.shape),
        "spacing_mm": [round(length, 6) for length in grid.spacing_mm],
        "notes": [*restoration.fallbacks, *restoration.notes],
    }
    if steps:
        summary["steps"] = [
            {
                "task": step.verb,
                "result": step.kind,
                "model": f"{step.model.name} {step.model.version}",
                "measures": {name: _plain(value) for name, value in step.measures.items()},
            }
            for step in steps
        ]
    return {**summary, "disclaimer": RESEARCH_ONLY}


def _plain(value: float | str) -> float | str | None:
    """A measure as JSON can hold it."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def units(restoration: Restoration) -> str | None:
    """Unit of the result: fixed by the model, or that of the scan; None if it has none."""
    block = restoration.model.restoration
    fixed = block.units if block is not None else None
    return fixed or (
        None if restoration.verb == "translate" else restoration.volume.provenance.units
    )


def _uncertainty(restoration: Restoration) -> dict[str, Any] | None:
    """What the map means and how large it is on the whole."""
    from medgen.report.comparison_scene import uncertainty_meaning

    if restoration.uncertainty is None:
        return None
    inside = restoration.uncertainty[restoration.uncertainty > 0]
    level, block = restoration.level, restoration.model.restoration
    calibration = block.spread if block is not None and level is not None else None
    return {
        "level": level,
        "meaning": uncertainty_meaning(restoration),
        "measured_coverage": None if calibration is None else calibration.coverage,
        "measured_on": None if calibration is None else calibration.data,
        "median": float(np.median(inside)) if inside.size else 0.0,
    }


def _invented(restoration: Restoration) -> dict[str, Any]:
    """How much of the result has no measurement behind it."""
    from medgen.report.comparison_scene import made

    if restoration.invented is None:
        return {"voxels": None, "ml": None, "meaning": made(restoration)}
    voxels, ml = invented_share(restoration)
    return {"voxels": voxels, "ml": ml, "meaning": made(restoration)}


def invented_share(restoration: Restoration) -> tuple[int, float | None]:
    """Voxels that were made up, and their volume in ml; a 2-D image has none."""
    assert restoration.invented is not None
    voxels = int(np.count_nonzero(restoration.invented))
    if restoration.invented.ndim == 2:
        return voxels, None
    return voxels, voxels * restoration.geometry.voxel_volume_mm3 / 1000


# --- DICOM --------------------------------------------------------------------------------------


def _write_series(restoration: Restoration, folder: Path) -> None:
    from medgen.io import dicom_out

    kept = None if restoration.invented is None else ~restoration.invented
    producer = dicom_out.Producer(
        restoration.model.name, restoration.model.version, restoration.model_sha256 or "none"
    )
    dicom_out.write_derived_series(
        folder, dicom_out.open_source(restoration.volume), producer, derivation(restoration),
        restoration.output, restoration.geometry, kept=kept,
    )  # fmt: skip


def derivation(restoration: Restoration) -> Derivation:
    """What a DICOM series must say was done."""
    from medgen.io.dicom_out import Derivation

    verb, model = restoration.verb, restoration.model
    by = f"by medgen {model.name} {model.version}"
    spacing = " x ".join(f"{mm:.3g}" for mm in restoration.geometry.spacing_mm)
    voxels = _invented(restoration)["voxels"]
    text = {
        "inpaint": f"{voxels} voxels filled {by}: they are made up. All others are the source's.",
        "super-resolve": f"Computed {by} on a grid of {spacing} mm. Detail finer than the "
        "source's voxels was estimated, not measured.",
        "denoise": f"Noise reduced {by}. Fine detail may have been removed or made up.",
        "translate": f"Synthetic {restoration.kind} image, computed {by} from the source. No such "
        "image was acquired.",
    }[verb]
    translated = verb == "translate"
    return Derivation(
        name=f"synthetic {restoration.kind}" if translated else restoration.kind,
        number=_SERIES_NUMBERS[verb],
        text=f"{text} {RESEARCH_ONLY}",
        codes=(("113085", "DCM", "Spatial resampling"),) if verb == "super-resolve" else (),
        # A filter computes what it says from what was measured; a network may make detail up.
        synthetic=verb in ("inpaint", "translate") or bool(restoration.model_sha256),
        modality=_MODALITIES.get(restoration.kind) if translated else None,
        units=units(restoration),
        acquired=not translated,
    )
