"""Which result belongs to which reference: files of two folders, matched by name."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from medgen.errors import InputError
from medgen.tasks.detect_files import IMAGE_ENDINGS

LISTED = 5  # names that an error message shows
# What medgen writes beside an image, and is no result to compare; and which of it is a mask.
BESIDE = ("overview", "_uncertainty", "_map")
MASKS = ("_invented", "_mask")


class Case(NamedTuple):
    """One subject: its name, whom it belongs to, its reference, and where to look."""

    name: str
    group: str
    reference: Path
    mask: Path | None


def cases(reference: Path, mask: Path | None, group_pattern: str | None) -> list[Case]:
    """Every image of REFERENCE, with its mask.

    Args:
        reference: One image, or a folder of images (of DICOM: one series).
        mask: One mask for all, or a folder of masks named like the references; or none.
        group_pattern: Regular expression whose first (...) is the patient in a file's name. Left
            out: every file is a patient of its own.

    Raises:
        InputError: Nothing there, an image without a mask, or a pattern that does not fit.
    """
    found = images(reference)
    masks = {} if mask is None else partners(found, mask, "mask", None)
    if lacking := [name for name in found if mask is not None and name not in masks]:
        raise InputError(f"{mask} has no mask for {_listed(lacking)}", "Name it like the image.")
    return [
        Case(name, group_of(name, path, group_pattern), path, masks.get(name))
        for name, path in found.items()
    ]


def images(folder: Path) -> dict[str, Path]:
    """Name without ending, from ``folder`` on, and path of every image; or of the one given.

    Raises:
        InputError: It does not exist.
    """
    if not folder.exists():
        raise InputError(f"there is no file or folder {folder}", "Check the path.")
    inside = folder.rglob("*") if folder.is_dir() else ()
    found = [path for path in sorted(inside) if _ending(path) and path.is_file()]
    found = [path for path in found if not _hidden(path.relative_to(folder))]
    if not found:  # one image, or a folder of DICOM files, which is one image too
        name = (
            _stem(Path(folder.name)) if _ending(folder) else "scan"
        )  # DICOM names may name a patient
        return {name: folder}
    named: dict[str, Path] = {}
    for path in found:
        first = named.setdefault(_stem(path.relative_to(folder)), path)
        if first != path:
            msg = f"{folder} holds two images of one name: {first.name} and {path.name}"
            raise InputError(msg, "Rename or move one of them.")
    return named


def partners(
    references: dict[str, Path], result: Path, what: str, only: str | None
) -> dict[str, Path]:
    """The file of a method (or the mask) of each reference that has one.

    A file belongs to the reference of the same name; else to the one whose name it, or the folder
    it lies in, begins with: what ``medgen denoise`` made of ``sub-1.nii.gz`` is found as
    ``sub-1_desc-denoised.nii.gz`` and as ``sub-1/sub-1_desc-denoised.nii.gz``, and by its BIDS
    name: ``sub-1_desc-denoised_T1w`` of ``sub-1_T1w``. Pictures, uncertainty and hole that medgen
    wrote beside it are passed over. Two files that are one image go with each other whatever their
    names.

    Raises:
        InputError: Several files fit one reference.
    """
    offered = images(result)
    if only is None:
        endings = BESIDE if what == "mask" else (*BESIDE, *MASKS)
        offered = {k: path for k, path in offered.items() if not _stem(path).endswith(endings)}
    else:
        offered = {k: path for k, path in offered.items() if fnmatch.fnmatch(path.name, only)}
    if len(references) == 1 and len(offered) == 1:
        return dict(zip(references, offered.values(), strict=True))
    if not result.is_dir() and what == "mask":
        return dict.fromkeys(references, result)
    found = {}
    for name in references:
        fitting = _fitting(name, offered, references)
        if what == "mask" and len(fitting) > 1:  # the image itself may lie beside its mask
            fitting = [path for path in fitting if _stem(path).endswith(MASKS)] or fitting
        if len(fitting) > 1:
            names = _listed([path.name for path in fitting])
            hint = "Say which files are meant, such as --only '*_denoised.nii.gz'."
            raise InputError(f"several files of {result} fit {name}: {names}", hint)
        if fitting:
            found[name] = fitting[0]
    return found


def _fitting(name: str, offered: dict[str, Path], references: dict[str, Path]) -> list[Path]:
    if name in offered:
        return [offered[name]]
    short = name.rsplit("/", 1)[-1]
    longer = [other for other in references if other != name and _begins(other, short)]
    return [
        path
        for key, path in offered.items()
        if any(_begins(part, short) for part in key.split("/"))
        # `sub-1_run-2_denoised` is not of `sub-1` if there is a `sub-1_run-2`.
        and not any(_begins(key.rsplit("/", 1)[-1], other.rsplit("/", 1)[-1]) for other in longer)
    ]


def _begins(name: str, start: str) -> bool:
    """Whether a name is another, or that with something after ``_``, or its BIDS derivative."""
    last = name.rsplit("/", 1)[-1]
    entities, _, suffix = start.rpartition("_")
    derived = last.startswith(f"{entities}_desc-") and last.endswith(f"_{suffix}")
    return last == start or last.startswith(start + "_") or (bool(entities) and derived)


def _ending(path: Path) -> str:
    return next((end for end in IMAGE_ENDINGS if path.name.lower().endswith(end)), "")


def _stem(path: Path) -> str:
    return path.as_posix()[: -len(_ending(path))]


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def group_of(name: str, path: Path, pattern: str | None) -> str:
    """Whom a file belongs to, by the first (...) of a pattern; itself without one."""
    if pattern is None:
        return name
    try:
        match = re.search(pattern, path.name)
        group = match.group(1) if match else None
    except (re.error, IndexError) as error:
        msg = f"--group-pattern {pattern!r} must be a regular expression with one (...): {error}"
        raise InputError(msg, "For `patient7_3.png` write '^([^_]+)_'.") from error
    if not group:
        raise InputError(f"--group-pattern {pattern!r} finds no patient in {path.name}")
    return group


def _listed(names: Sequence[str]) -> str:
    more = len(names) - LISTED
    return ", ".join(names[:LISTED]) + (f" and {more} more" if more > 0 else "")
