"""One score map from the outputs of a method: evidence, intensity prior, median, border erosion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field, field_validator
from scipy import ndimage, special

from medgen.config import Config
from medgen.errors import InputError

Evidence = Literal[
    "probability", "score", "residual_positive", "residual_negative", "residual_absolute"
]
ScanScore = Literal["millilitre", "mean", "highest"]
_EVIDENCE: dict[Evidence, str] = {
    "probability": "the probability of an anomaly",
    "score": "the method's own score",
    "residual_positive": "how much brighter the scan is than restored",
    "residual_negative": "how much darker the scan is than restored",
    "residual_absolute": "the difference between the scan and the restored scan",
}
# Voxels sorted at a time by the median filter: 32 MB of float32 for a 5x5x5 window.
MEDIAN_CHUNK = 1 << 16


class Scoring(Config):
    """How the outputs of a method become one score map, and what counts as a finding.

    The steps run in the order of the fields. Two priors are offered, both off by default, because
    each is a threshold detector for bright lesions by itself: right for FLAIR and T2, wrong for
    T1, and never to be reported without the row that leaves it out.
    """

    evidence: Evidence = Field(
        "probability",
        description="What the map is made of: the method's anomaly 'probability' (0..1, the "
        "sigmoid of its 'log_odds'), its "
        "direct 'score', or the difference between the image and the restored healthy image: "
        "'residual_positive' max(image - restored, 0), 'residual_negative' max(restored - image, "
        "0), 'residual_absolute' |image - restored|; the mean over channels.",
    )
    intensity_prior: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Weight w of the soft intensity prior (0 is off). The map becomes "
        "evidence * ((1 - w) + w * e), e being the histogram-equalised intensity inside the brain "
        "(0 the darkest voxel, 1 the brightest).",
    )
    prior_side: Literal["bright", "dark", "auto"] = Field(
        "bright",
        description="Which intensities the soft prior favours: 'bright' as above, 'dark' with "
        "1 - e instead of e, or 'auto': a mixture of both, decided once per scan by how much of "
        "the evidence lies where the scan is brighter than restored (lesions are bright on FLAIR "
        "and T2, dark on T1).",
    )
    hyperintensity_percentile: float = Field(
        0.0,
        ge=0,
        lt=100,
        description="Baur's hard intensity prior (0 is off; Baur et al. 2021 use 90): the map is "
        "zero where the image lies below this percentile of the brain's intensities.",
    )
    median: int = Field(
        0, ge=0, description="Width of the median filter in voxels: odd, or 0 for none."
    )
    erosion_mm: float = Field(
        0.0,
        ge=0,
        description="The map is zero within this distance (mm) of the nearest voxel outside the "
        "brain mask.",
    )
    scan_score: ScanScore = Field(
        "millilitre",
        description="One number for a scan: the mean of the map's highest millilitre, of all of "
        "it, or of its highest hundredth.",
    )
    minimum_volume_mm3: float = Field(
        10.0, ge=0, description="Connected findings smaller than this (mm3) are dropped."
    )

    @property
    def has_prior(self) -> bool:
        """Whether the map is more than the method's own evidence."""
        return bool(self.intensity_prior or self.hyperintensity_percentile)

    @property
    def in_words(self) -> str:
        """What the map is made of, in a sentence's part."""
        made_of = _EVIDENCE[self.evidence]
        if self.intensity_prior:
            side = {
                "bright": "bright voxels", "dark": "dark voxels",
                "auto": "bright or dark voxels, whichever departs from the restored scan",
            }[self.prior_side]  # fmt: skip
            made_of += f", times a prior for {side} (weight {self.intensity_prior:g})"
        if self.hyperintensity_percentile:
            made_of += (
                f", only where the scan is above percentile {self.hyperintensity_percentile:g} of "
                "its brain"
            )
        return made_of

    @field_validator("median")
    @classmethod
    def _odd(cls, width: int) -> int:
        if width and width % 2 == 0:
            msg = f"the median filter needs an odd width (or 0 for none), got {width}"
            raise ValueError(msg)
        return width


def score_map(
    image: ArrayLike,
    outputs: Mapping[str, ArrayLike],
    mask: ArrayLike,
    scoring: Scoring,
    *,
    spacing_mm: Sequence[float] | None = None,
) -> NDArray[np.float32]:
    """Anomaly score of every voxel; higher is more abnormal, 0 outside the mask.

    Args:
        image: Prepared image ``(C, X, Y[, Z])``.
        outputs: What the method predicted, each ``(C', X, Y[, Z])``: ``log_odds``,
            ``score`` and/or ``restored``.
        mask: Brain mask ``(X, Y[, Z])`` or ``(1, X, Y[, Z])``.
        scoring: What to use and how.
        spacing_mm: Voxel size per axis; needed by ``erosion_mm`` only.

    Returns:
        Map ``(X, Y[, Z])``. A probability stays in 0..1; a residual has the image's unit.

    Raises:
        InputError: If the evidence is not among the outputs, shapes differ, or values are not
            finite.
    """
    voxels = np.asarray(image, dtype=np.float32)
    inside = as_mask(mask, voxels.shape[1:])
    scores = evidence_map(voxels, outputs, inside, scoring)
    intensity = voxels.mean(axis=0)
    if scoring.intensity_prior:
        weight = np.float32(scoring.intensity_prior)
        prior = equalised(intensity, inside)
        bright = _brightness_of_evidence(voxels, outputs, scores, scoring.prior_side)
        prior = bright * prior + (1 - bright) * (1 - prior)
        scores *= (1 - weight) + weight * prior
    if scoring.hyperintensity_percentile and inside.any():
        limit = np.percentile(intensity[inside], scoring.hyperintensity_percentile)
        scores[intensity < limit] = 0
    scores = median_in_mask(scores, inside, scoring.median)
    if scoring.erosion_mm:
        if spacing_mm is None:
            msg = f"erosion_mm={scoring.erosion_mm:g} needs the voxel size: give spacing_mm"
            raise InputError(msg)
        scores[~eroded(inside, scoring.erosion_mm, spacing_mm)] = 0
    return scores


def evidence_map(
    image: ArrayLike, outputs: Mapping[str, ArrayLike], mask: ArrayLike, scoring: Scoring
) -> NDArray[np.float32]:
    """What the method itself says of every voxel, before priors and filters; 0 outside the mask.

    Args:
        image: As for :func:`score_map`, as are the others.
        outputs: What the method predicted.
        mask: Brain mask.
        scoring: Says which of the outputs is used.

    Raises:
        InputError: If the evidence is not among the outputs, shapes differ, or values are not
            finite.
    """
    voxels = np.asarray(image, dtype=np.float32)
    inside = as_mask(mask, voxels.shape[1:])
    found = np.where(inside, _evidence(voxels, outputs, scoring.evidence), np.float32(0))
    if not np.isfinite(found).all():
        msg = f"the method's {scoring.evidence!r} holds values that are not finite"
        raise InputError(msg, "Check the input for NaN and the model with 'medgen models verify'.")
    return found


def _brightness_of_evidence(
    image: NDArray[np.float32],
    outputs: Mapping[str, ArrayLike],
    scores: NDArray[np.float32],
    side: str,
) -> np.float32:
    """How far bright voxels rather than dark ones are the suspicious ones in this scan, 0..1."""
    if side != "auto":
        return np.float32(side == "bright")
    if "restored" not in outputs:
        msg = "prior_side 'auto' needs the output 'restored', which this method does not give"
        raise InputError(msg, "Set prior_side to 'bright' or 'dark' in the scoring settings.")
    change = scores * (image - np.asarray(outputs["restored"], dtype=np.float32)).mean(axis=0)
    total = np.abs(change).sum(dtype=np.float64)
    # A share, not a sign: where little speaks for either side, a rounding must not decide.
    return np.float32(0.5 + 0.5 * change.sum(dtype=np.float64) / total if total else 0.5)


def _evidence(
    image: NDArray[np.float32], outputs: Mapping[str, ArrayLike], evidence: Evidence
) -> NDArray[np.float32]:
    """The evidence ``(X, Y[, Z])`` as :class:`Scoring` names it."""
    key = {"probability": "log_odds", "score": "score"}.get(evidence, "restored")
    if key not in outputs:
        msg = f"the evidence {evidence!r} needs the output {key!r}; this method gives " + (
            ", ".join(sorted(outputs)) or "none"
        )
        raise InputError(msg, "Choose another 'evidence' in the scoring settings.")
    output = np.asarray(outputs[key], dtype=np.float32)
    expected = image.shape if key == "restored" else (1, *image.shape[1:])
    if output.shape != expected:
        msg = f"the output {key!r} must have shape {expected}, got {output.shape}"
        raise InputError(msg)
    if key == "log_odds":
        probability: NDArray[np.float32] = special.expit(output[0])
        return probability
    if key == "score":
        return output[0]
    residual = image - output
    if evidence == "residual_positive":
        residual = np.maximum(residual, 0)
    elif evidence == "residual_negative":
        residual = np.maximum(-residual, 0)
    else:
        residual = np.abs(residual)
    return residual.mean(axis=0)


def equalised(image: ArrayLike, mask: ArrayLike) -> NDArray[np.float32]:
    """Histogram-equalised intensity inside the mask: the share of mask voxels that are darker.

    Equal values share their mean rank, so the result does not depend on the voxels' order.

    Args:
        image: ``(X, Y[, Z])``.
        mask: ``(X, Y[, Z])``.

    Returns:
        Values in 0..1, 0 outside the mask.
    """
    voxels = np.asarray(image)
    inside = as_mask(mask, voxels.shape)
    result = np.zeros(voxels.shape, dtype=np.float32)
    _, level, counts = np.unique(voxels[inside], return_inverse=True, return_counts=True)
    if counts.size:
        ranks = np.cumsum(counts) - counts / 2
        result[inside] = (ranks / counts.sum())[level]
    return result


def median_in_mask(image: ArrayLike, mask: ArrayLike, width: int) -> NDArray[np.float32]:
    """Median filter that sees only voxels inside the mask, so the brain's rim is not pulled to 0.

    Each voxel becomes the median of the mask voxels in the ``width``-wide window around it (the
    mean of the two middle ones if their number is even).

    Args:
        image: ``(X, Y[, Z])``, finite.
        mask: ``(X, Y[, Z])``.
        width: Odd window width in voxels; 0 or 1 changes nothing.

    Returns:
        The filtered image, 0 outside the mask.
    """
    inside = as_mask(mask, np.shape(image))
    result = np.where(inside, np.asarray(image, dtype=np.float32), np.float32(0))
    if width <= 1 or not inside.any():
        return result
    box = bounding_box(inside)
    # Infinity sorts behind every mask voxel, so the window's first `count` values are the mask's.
    padded = np.pad(
        np.where(inside[box], result[box], np.float32(np.inf)),
        width // 2,
        constant_values=np.inf,
    )
    windows = np.lib.stride_tricks.sliding_window_view(padded, (width,) * padded.ndim)
    voxels = np.argwhere(inside[box])
    filtered = np.empty(len(voxels), dtype=np.float32)
    for start in range(0, len(voxels), MEDIAN_CHUNK):
        at = tuple(voxels[start : start + MEDIAN_CHUNK].T)
        chunk = windows[at].reshape(len(at[0]), -1)
        chunk.sort(axis=1)
        count = np.isfinite(chunk).sum(axis=1)
        row = np.arange(len(chunk))
        filtered[start : start + len(chunk)] = (
            chunk[row, (count - 1) // 2] / 2 + chunk[row, count // 2] / 2
        )
    result[inside] = filtered
    return result


def eroded(
    mask: NDArray[np.bool_], distance_mm: float, spacing_mm: Sequence[float]
) -> NDArray[np.bool_]:
    """Mask voxels farther than ``distance_mm`` (centre to centre) from any voxel outside.

    The border of the array counts as outside.
    """
    result = np.zeros_like(mask)
    if mask.any():
        box = bounding_box(mask)
        distance = ndimage.distance_transform_edt(np.pad(mask[box], 1), sampling=spacing_mm)
        result[box] = distance[(slice(1, -1),) * mask.ndim] > distance_mm
    return result


def bounding_box(mask: NDArray[np.bool_]) -> tuple[slice, ...]:
    """Smallest box of slices around the true voxels of a mask that has some."""
    box = []
    for axis in range(mask.ndim):
        line = mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis))
        where = np.flatnonzero(line)
        box.append(slice(int(where[0]), int(where[-1]) + 1))
    return tuple(box)


def as_mask(mask: ArrayLike, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """A boolean mask of this spatial shape; a leading channel of one is dropped."""
    inside = np.asarray(mask).astype(bool)
    if inside.shape == (1, *shape):
        inside = inside[0]
    if inside.shape != shape:
        msg = f"the mask must have the map's shape {shape}, got {inside.shape}"
        raise InputError(msg)
    return inside
