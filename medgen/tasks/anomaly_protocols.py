"""Named protocols: how a method's outputs become a score map, and what is then measured.

The protocol is worth more than the model (Behrendt et al. 2023): numbers of different protocols
must not be compared. Each is data, with the paper it follows and where it departs from it, and is
applied by the functions below to all methods alike. Imports no torch.

Small regions are removed by an *area opening* of the map: thresholded anywhere, the opened map is
the thresholded map without regions of fewer voxels. So the removal holds at every threshold, and
average precision sees it too, while the papers remove regions at one threshold only.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator
from scipy import ndimage

from medgen.config import Config
from medgen.errors import InputError
from medgen.scoring import Scoring, score_map
from medgen.scoring.maps import Evidence, ScanScore, bounding_box

if TYPE_CHECKING:
    from medgen.preparation import Prepared

Outputs = Mapping[str, NDArray[np.float32]]
# What each kind of evidence is made of.
OUTPUT_OF: dict[str, str] = {"probability": "log_odds", "score": "score"}


class Protocol(Config):
    """How maps are made and what is measured."""

    name: str = Field(description="one of the named protocols")
    source: str = Field("", description="the paper it follows")
    differs: str = Field("", description="where it departs from the paper")
    evidence: tuple[Evidence, ...] = Field(
        ("residual_absolute", "score", "probability"),
        description="what the map is made of: the first that a method offers",
    )
    hyperintensity_percentile: float = Field(
        0.0,
        ge=0,
        lt=100,
        description="the map is zero where the image lies below this percentile of the region; "
        "rows without this prior are always reported too; 0: none",
    )
    median: int = Field(0, ge=0, description="width of the median filter in voxels, odd; 0: none")
    erosion_voxels: int = Field(
        0,
        ge=0,
        description="iterations by which the region is eroded, slice by slice (with a cross of 3 x "
        "3 prepared voxels); the map is zero beyond",
    )
    minimum_voxels: int = Field(
        1, ge=1, description="regions of fewer voxels are removed, at every threshold"
    )
    scan_score: ScanScore = Field(
        "millilitre",
        description="one number for a scan: the mean of the map's highest millilitre, of all of "
        "it, or of its highest hundredth",
    )
    voxels: bool = Field(True, description="measure voxels and lesions; needs lesion masks")
    fixed_threshold: bool = Field(
        False, description="needs a validation set, on which the threshold is fixed"
    )
    shipped: bool = Field(
        False, description="each model's own scoring and calibrated threshold; packages only"
    )

    @field_validator("median")
    @classmethod
    def _odd(cls, width: int) -> int:
        if width and width % 2 == 0:
            raise ValueError(f"the width of a median filter must be odd, got {width}")
        return width


PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            name="baur2021",
            source="Baur et al., Autoencoders for unsupervised anomaly segmentation in brain MR "
            "images: a comparative study (Med Image Anal 69:101952, 2021), and its code",
            differs="voxels of the scan's own grid, not slices 20 to 130 at 128 x 128; the "
            "percentile is that of the brain; holes of a region do not count as its voxels; the "
            "median sees nothing outside the brain",
            evidence=("residual_positive", "score", "probability"),
            hyperintensity_percentile=90.0,
            median=5,
            erosion_voxels=12,
            minimum_voxels=8,
        ),
        Protocol(
            name="kascenas2022",
            source="Kascenas et al., Denoising autoencoders for unsupervised anomaly detection in "
            "brain MRI (MIDL 2022)",
            differs="one sequence unless the images have several channels; the scan's own grid; "
            "the median sees nothing outside the brain",
            median=5,
        ),
        Protocol(
            name="behrendt2023",
            source="Behrendt et al., Patched diffusion models for unsupervised anomaly detection "
            "in brain MRI (MIDL 2023)",
            differs="the scan's own grid; the threshold has the best Dice of all on the validation "
            "set, which is what the paper's search looks for",
            median=5,
            erosion_voxels=3,
            minimum_voxels=7,
            fixed_threshold=True,
        ),
        Protocol(
            name="image_level",
            source="images as a whole, as Nakao et al. (2021) and MedIAnomaly (Cai et al. 2024)",
            evidence=("score", "residual_absolute", "probability"),
            scan_score="mean",
            voxels=False,
        ),
        Protocol(
            name="as_shipped",
            source="what a user of the package gets: its own scoring, and findings at its "
            "calibrated threshold",
            shipped=True,
        ),
    )
}


class Variant(NamedTuple):
    """A protocol as it stands in a table: with its prior, or without."""

    name: str
    protocol: Protocol


def protocol(wanted: str | Mapping[str, Any]) -> Protocol:
    """A named protocol, perhaps with changes: ``{name: image_level, scan_score: highest}``.

    Raises:
        InputError: Unknown name or setting.
    """
    from medgen.training.config import validated

    values = {"name": wanted} if isinstance(wanted, str) else dict(wanted)
    name = values.pop("name", None)
    if name not in PROTOCOLS:
        nearest = difflib.get_close_matches(str(name), PROTOCOLS, n=1, cutoff=0.4)
        question = f" Did you mean {nearest[0]!r}?" if nearest else ""
        raise InputError(f"unknown protocol {name!r}.{question}", f"Known: {', '.join(PROTOCOLS)}.")
    if not values:
        return PROTOCOLS[name]
    changes = ", ".join(f"{key} {value}" for key, value in sorted(values.items()))
    base = PROTOCOLS[name].model_dump()
    differs = "; ".join(part for part in (base["differs"], f"changed: {changes}") if part)
    own = {"name": f"{name}, {changes}", "differs": differs}  # both forms may stand in one study
    return validated(Protocol, {**base, **values, **own}, f"protocol {name}")


def variants(protocols: Sequence[Protocol]) -> list[Variant]:
    """The protocols, and again without its prior each that has one.

    Raises:
        InputError: One is named twice.
    """
    names = [one.name for one in protocols]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"the protocol {twice!r} is named twice", "Name it once.")
    found = []
    for one in protocols:
        found.append(Variant(one.name, one))
        if one.hyperintensity_percentile:
            without = one.model_copy(update={"hyperintensity_percentile": 0.0})
            found.append(Variant(f"{one.name}, no prior", without))
    return found


def evidence_of(protocol: Protocol, outputs: Outputs) -> Evidence:
    """What the map is made of.

    Raises:
        InputError: The method offers none of what the protocol can use.
    """
    for evidence in protocol.evidence:
        if OUTPUT_OF.get(evidence, "restored") in outputs:
            return evidence
    raise InputError(
        f"protocol {protocol.name} needs one of {', '.join(protocol.evidence)}; the method gives "
        f"{', '.join(sorted(outputs)) or 'nothing'}"
    )


def scored(
    prepared: Prepared,
    outputs: Outputs,
    protocol: Protocol,
    *,
    evidence: Evidence | None = None,
    shipped: Scoring | None = None,
) -> NDArray[np.float32]:
    """The score map of a scan on its own grid, 0 outside the region.

    Args:
        prepared: The scan.
        outputs: What the method predicted of it.
        protocol: How to score.
        evidence: Use this instead of what the protocol prefers.
        shipped: The scoring of the model's package, which ``as_shipped`` uses.

    Raises:
        InputError: The outputs are not what the protocol needs.
    """
    inside = np.asarray(prepared.mask)[0]
    scoring = shipped
    if not protocol.shipped:
        scoring = Scoring(
            evidence=evidence or evidence_of(protocol, outputs),
            hyperintensity_percentile=protocol.hyperintensity_percentile,
            median=protocol.median,
        )
    if scoring is None:
        raise InputError("protocol as_shipped needs a model package; a run has no scoring yet")
    scores = score_map(
        np.asarray(prepared.image), outputs, inside, scoring, spacing_mm=prepared.grid.spacing_mm
    )
    if protocol.erosion_voxels:
        kept = eroded_in_slices(inside, protocol.erosion_voxels)
        if not kept.any():
            raise InputError(
                f"protocol {protocol.name} erodes the region by {protocol.erosion_voxels} voxels, "
                f"which leaves nothing of {' x '.join(map(str, inside.shape))} prepared voxels",
                "Leave the protocol out, or change its erosion_voxels.",
            )
        scores[~kept] = 0
    # Interpolation reaches half a voxel beyond the region.
    on_scan = np.where(prepared.source_mask, prepared.to_source(scores[None])[0], np.float32(0))
    return without_small_regions(on_scan, protocol.minimum_voxels)


def eroded_in_slices(mask: NDArray[np.bool_], iterations: int) -> NDArray[np.bool_]:
    """The mask eroded with a cross of 3 x 3 in each slice of its last axis (2-D: in itself)."""
    cross = ndimage.generate_binary_structure(2, 1)
    if mask.ndim == 3:
        cross = cross[:, :, None]
    return np.asarray(ndimage.binary_erosion(mask, cross, iterations=iterations))


def without_small_regions(scores: NDArray[np.float32], minimum_voxels: int) -> NDArray[np.float32]:
    """Area opening of a map of scores from 0 up: no threshold above 0 has a small region left.

    Args:
        scores: ``(X, Y[, Z])``, not negative.
        minimum_voxels: Connected regions (26 or 8 neighbours) of fewer voxels fall to the highest
            score at which they are part of one that is large enough.
    """
    if minimum_voxels <= 1 or not scores.any():
        return scores
    import SimpleITK as sitk  # forty times as fast as scikit-image's, with the same result

    box = bounding_box(scores != 0)
    opened = np.zeros_like(scores)
    if scores[box].size >= minimum_voxels:  # ITK leaves an image alone that is smaller as a whole
        image = sitk.GetImageFromArray(np.pad(scores[box], 1))
        spacing_counts, diagonals = False, True
        padded = sitk.AreaOpening(image, float(minimum_voxels), spacing_counts, diagonals)
        opened[box] = sitk.GetArrayViewFromImage(padded)[(slice(1, -1),) * scores.ndim]
    return opened
