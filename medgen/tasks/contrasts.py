"""What contrast a scan has, as far as its header, name and values say, and who takes it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medgen.errors import InputError
from medgen.manifest import Manifest
from medgen.volume import Volume

# Words of series descriptions and file names, in the order in which they decide: a T2-weighted
# FLAIR is a FLAIR, and susceptibility images are no T2.
_WORDS: tuple[tuple[str, str], ...] = (
    ("flair", r"flair|dark[ _-]?fluid"),
    ("dwi", r"dwi|adc|dti|diff(usion)?|trace[wm]?"),
    ("t2star", r"t2[ _-]?(star|\*)w?|swi|swan|gre|hemo"),
    ("bold", r"bold|fmri"),
    ("pd", r"pd[w]?|proton[ _-]?density"),
    ("t1c", r"t1[ _-]?(w[ _-]?)?(c|ce|gd|km|post|\+c)|t1c\+"),
    ("t1", r"t1w?|mprage|mp2rage|bravo|spgr|flash|tfe|vibe"),
    ("t2", r"t2w?|t2[ _-]?tse"),
    ("ct", r"ct|nect|cect"),
    ("pet", r"pet|fdg|suv"),
)
# No MR or PET image is this dark; air in CT is near -1000 HU.
DARKEST_MR = -500.0


def contrast_in(text: str) -> str | None:
    """The contrast that a series description or a file name names, or None.

    >>> contrast_in("sub-01_T2w.nii.gz"), contrast_in("Ax T2 FLAIR fs"), contrast_in("scan")
    ('t2', 'flair', None)
    """
    for contrast, pattern in _WORDS:
        if re.search(rf"(?<![a-z0-9])({pattern})(?![a-z0-9])", text.lower()):
            return contrast
    return None


def contrast_of(facts: Mapping[str, Any]) -> str | None:
    """The contrast of an entry of :func:`medgen.io.describe`, or None if nothing names it."""
    name = "" if facts["kind"] == "dicom" else Path(facts["path"]).name
    return contrast_in(facts.get("series_description") or "") or contrast_in(name)


def contrast_of_volume(volume: Volume) -> str | None:
    """The contrast of a scan in memory by the name of its file, or None."""
    given = volume.provenance
    names = [] if given.format == "dicom" else [Path(source).name for source in given.sources]
    return next((found for name in names if (found := contrast_in(name))), None)


def check_contrast(
    contrast: str | None, modality: str | None, manifest: Manifest, *, force: bool = False
) -> tuple[str, ...]:
    """Refuse a scan of a contrast that a restoration model was not trained on.

    Args:
        contrast: As :func:`contrast_of` finds it.
        modality: DICOM modality code, if known.
        manifest: The model.
        force: Only note it.

    Returns:
        Notes for people.

    Raises:
        InputError: The scan is known to be of another contrast, and ``force`` is off.
    """
    block = manifest.restoration
    accepted = {name.lower() for name in block.sources} if block is not None else {"any"}
    if "any" in accepted or (modality or "").lower() in accepted:
        return ()
    wanted = ", ".join(sorted(accepted))
    if contrast is None:
        return (f"the scan's contrast is unknown; model {manifest.name} was trained on {wanted}",)
    if contrast in accepted:
        return ()
    msg = f"this scan is {contrast}, but model {manifest.name!r} was trained on {wanted}"
    if force:
        return (f"forced: {msg}",)
    raise InputError(msg, "Choose another model, or use --force to try it all the same.")


def check_values(volume: Volume, manifest: Manifest, *, force: bool = False) -> tuple[str, ...]:
    """Refuse a scan without a stated modality whose values are Hounsfield units, for an MR model.

    Returns:
        Notes for people.

    Raises:
        InputError: It is one, and ``force`` is off.
    """
    accepted = manifest.contract.modalities
    if volume.provenance.modality is not None or not accepted or "CT" in accepted:
        return ()
    darkest = float(volume.voxels.min())
    if darkest > DARKEST_MR:
        return ()
    msg = (
        f"the scan's darkest value is {darkest:g}, as in CT (air is -1000 HU); model "
        f"{manifest.name!r} was made for {' or '.join(accepted)}"
    )
    if force:
        return (f"forced: {msg}",)
    raise InputError(msg, "Choose another model, or use --force to try it all the same.")
