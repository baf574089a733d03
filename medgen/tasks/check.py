"""Say what a file, folder or archive holds and which models would take it, from headers alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medgen import io
from medgen.errors import InputError, PackageError
from medgen.io.walk import walk
from medgen.manifest import RESTORATION_TASKS, Manifest
from medgen.package import list_packages
from medgen.tasks.contrasts import check_contrast, contrast_of
from medgen.tasks.limits import check_facts, default_memory_gb

if TYPE_CHECKING:
    from medgen.io.dicom_index import Archive

# Tasks whose models take scans.
SCAN_TASKS = ("detect-anomalies", *RESTORATION_TASKS)
# Files that a folder of images without DICOM may hold; DICOM is known by its content instead.
IMAGE_NAMES = (".nii", ".nii.gz", ".png", ".jpg", ".jpeg", ".tif", ".tiff")


def check_source(
    path: str | Path, *, progress: Callable[[int], None] | None = None
) -> dict[str, Any]:
    """What a path holds.

    Args:
        path: A file, a zip or DICOMDIR, or a folder to be searched to its depth.
        progress: Told now and then how many files were looked at.

    Returns:
        Plain values, stable for programs:

        - ``source``: the path. ``ok``: whether it holds an image that could be opened; if not,
          ``error`` and ``hint``.
        - ``kind``: ``file``, ``folder`` or ``bids``.
        - ``images``: per image or DICOM series the dictionary of :func:`medgen.io.describe`, with
          ``group``: what it belongs to (``study 1``, or a folder below ``source``); ``models``:
          for each model its ``name``, its ``task``, whether it ``takes`` the image, and ``why``
          not. DICOM in an archive also has ``parts``: how many images its series holds
          (``--series 4/2`` chooses the second part of series 4).
        - ``set_aside``: DICOM objects that are no images to work on: ``reason``, number of
          ``objects``, ``modality``, ``series_number``, ``series_description``, ``series_uid``,
          ``study_uid`` and ``group``.
        - ``failed``: image files that could not be opened: ``path``, ``error``, ``hint``.
        - ``files``: how many were looked at; ``other_files``: how many of them are no images;
          ``unreadable_folders``: how many folders could not be opened.
        - ``summary``: numbers of ``studies``, ``images``, ``blocked`` images (none of their frames
          can be read), images ``usable`` by each model, and objects ``set_aside`` per reason.
    """
    path = Path(path)
    result: dict[str, Any] = {
        "source": str(path), "ok": False, "kind": "file", "images": [], "set_aside": [],
        "failed": [], "files": 0, "other_files": 0, "unreadable_folders": 0,
    }  # fmt: skip
    try:
        result |= _folder(path, progress) if path.is_dir() else _file(path)
        if not result["images"]:
            result["images"] = _pictures(path, result)
        result["ok"] = True
    except InputError as error:
        result |= {"error": error.message, "hint": error.hint}
    _judge(result["images"])
    return result | {"summary": _summary(result)}


# --- finding ---------------------------------------------------------------------------------


def _file(path: Path) -> dict[str, Any]:
    """One file: an image, or the objects that a zip or DICOMDIR leads to.

    Raises:
        InputError: It is missing or cannot be opened.
    """
    try:
        images = io.describe(path)
    except InputError:
        if not _holds_something(path):
            raise
        found = _archive(io.index_dicom(path))
        if not found["set_aside"]:
            raise
        return found
    if images[0]["kind"] != "dicom":
        return {"images": [{**image, "group": ""} for image in images], "files": 1}
    return _archive(io.index_dicom(path))


def _holds_something(path: Path) -> bool:
    try:
        return path.is_file() and path.stat().st_size > 0
    except OSError:  # it may not be looked at
        return False


def _folder(path: Path, progress: Callable[[int], None] | None) -> dict[str, Any]:
    """DICOM series, and other images that lie below a folder."""
    archive = io.index_dicom(path, progress=progress)
    found = _archive(archive) | {"kind": "folder", "failed": []}
    if (path / "dataset_description.json").is_file():
        found["kind"] = "bids"
    files = (file for file in walk(path) if file.name.lower().endswith(IMAGE_NAMES))
    for number, file in enumerate(files):
        if progress is not None:
            progress(archive.files + number)
        try:
            images = io.describe(file)
        except InputError as error:
            found["failed"].append({"path": str(file), "error": error.message, "hint": error.hint})
            found["other_files"] -= 1
            continue
        if images[0]["kind"] != "dicom":  # DICOM by such a name was met above
            below = file.relative_to(path).parent
            group = "" if below == Path() else below.as_posix()
            found["images"] += [{**image, "group": group} for image in images]
            found["other_files"] -= 1
    return found


def _archive(archive: Archive) -> dict[str, Any]:
    """An index of DICOM as plain values, with the studies numbered in their order."""
    studies: dict[tuple[str, str], str] = {}
    images = []
    parts = Counter(series.series_uid for series in archive.images)
    for series in archive.images:
        key = (series.patient_key, series.study_uid)
        group = studies.setdefault(key, f"study {len(studies) + 1}")
        images.append({**series.facts, "parts": parts[series.series_uid], "group": group})
    by_uid = {uid: group for (_, uid), group in studies.items()}
    set_aside = [
        {
            "reason": entry.reason, "objects": entry.objects, "modality": entry.modality,
            "series_number": entry.number or None,
            "series_description": entry.description or None,
            "series_uid": entry.series_uid or None, "study_uid": entry.study_uid or None,
            "group": by_uid.get(entry.study_uid, ""),
        }
        for entry in archive.set_aside
    ]  # fmt: skip
    return {
        "images": images, "set_aside": set_aside, "files": archive.files,
        "other_files": archive.foreign, "unreadable_folders": len(archive.unreadable),
    }  # fmt: skip


def _pictures(path: Path, found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Pictures that an archive sets aside are images all the same where there is nothing else.

    Raises:
        InputError: There is nothing to work on.
    """
    if found["set_aside"]:
        return [{**image, "group": ""} for image in io.describe(path)]
    if found["failed"]:
        raise InputError(
            f"none of the {len(found['failed'])} image files in {path} can be opened",
            "Copy or download them again.",
        )
    raise InputError(
        f"the folder {path} holds no image: none of its {found['files']} files is DICOM, NIfTI "
        "or a picture",
        "Check the path.",
    )


# --- judging ---------------------------------------------------------------------------------


def _judge(images: Iterable[dict[str, Any]]) -> None:
    """Add to each image which models would take it."""
    models = [
        entry
        for _, _, entry in list_packages()
        if not isinstance(entry, PackageError) and entry.task in SCAN_TASKS
    ]
    limit = default_memory_gb()
    for facts in images:
        facts["models"] = [_verdict(facts, model, limit) for model in models]


def _verdict(facts: Mapping[str, Any], model: Manifest, limit_gb: float) -> dict[str, Any]:
    try:
        if facts["blocking"]:
            raise InputError(facts["blocking"]["error"], facts["blocking"]["hint"])
        check_facts(facts, model, limit_gb)
        if model.task in RESTORATION_TASKS:
            check_contrast(contrast_of(facts), facts["modality"], model)
        io.choose_frame(facts["path"], facts["frames"], None)
    except InputError as error:
        return {"name": model.name, "task": model.task, "takes": False, "why": error.message}
    return {"name": model.name, "task": model.task, "takes": True, "why": ""}


def _summary(result: Mapping[str, Any]) -> dict[str, Any]:
    images: Sequence[Mapping[str, Any]] = result["images"]
    usable = Counter(
        model["name"] for image in images for model in image["models"] if model["takes"]
    )
    names = [model["name"] for model in images[0]["models"]] if images else []
    dicom = {image["group"] for image in images if image["kind"] == "dicom"}
    return {
        "studies": len(dicom),
        "images": len(images),
        "blocked": sum(image["blocking"] is not None for image in images),
        "usable": {name: usable[name] for name in names},
        "set_aside": _reasons(result["set_aside"]),
    }


def _reasons(set_aside: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Objects per reason, most first."""
    counts: Counter[str] = Counter()
    for entry in set_aside:
        counts[entry["reason"]] += entry["objects"]
    return dict(counts.most_common())
