"""Why a region is a finding: what the method says, what a prior adds, how the scan departs.

The map of a finding is high because the method's own evidence is, or because a prior lifts it. The
two multiply, so that their logarithms add. With M and E the means of map and evidence in the
finding, and m and e those in the whole brain,

    log(M / m)  =  log(E / e)  +  the rest,

and the share of the evidence is ``log(E / e) / log(M / m)``. It exceeds 1 where the prior holds the
finding down, and is 1 without a prior. It is a description of the numbers, no proof of a cause.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medgen.scoring.findings import Finding
from medgen.scoring.maps import as_mask

# Below any score that means something; keeps the logarithm of nothing finite.
TINY = 1e-6


@dataclass(frozen=True)
class Explanation:
    """What drove one finding. All numbers are plain Python numbers.

    Attributes:
        label: Of the finding.
        evidence: What the map is made of, as in ``scoring.evidence``.
        evidence_mean: Its mean in the finding, before priors and filters, in its own unit.
        evidence_share: Share of the finding's height above the brain that is the evidence's; the
            rest is the priors'. None if the finding is no higher than the brain.
        difference: Mean of scan minus restored scan in the finding, in the scan's unit; None if
            the model restores nothing.
        brightness: Share of the brain that is darker than the finding is on average, 0..1.
    """

    label: int
    evidence: str
    evidence_mean: float
    evidence_share: float | None
    difference: float | None
    brightness: float


def explain(
    findings: Sequence[Finding],
    labels: NDArray[np.int32],
    scores: ArrayLike,
    mask: ArrayLike,
    scan: ArrayLike,
    *,
    evidence: str,
    evidence_scores: ArrayLike | None = None,
    restored: ArrayLike | None = None,
) -> list[Explanation]:
    """An explanation of every finding, in their order.

    Args:
        findings: Of :func:`~medgen.scoring.findings.find_regions`.
        labels: With them ``(X, Y[, Z])``.
        scores: The map they were found in ``(X, Y[, Z])``.
        mask: Brain mask ``(X, Y[, Z])``.
        scan: The scan ``(X, Y[, Z])``.
        evidence: Name of what the map is made of.
        evidence_scores: The evidence before priors ``(X, Y[, Z])``; None if there is no prior.
        restored: The restored scan ``(X, Y[, Z])`` in the scan's unit; or None.
    """
    if not findings:
        return []
    values, image = np.asarray(scores), np.asarray(scan)
    own = values if evidence_scores is None else np.asarray(evidence_scores)
    inside = as_mask(mask, values.shape)
    order = np.sort(image[inside], axis=None)
    whole = [float(array[inside].mean(dtype=np.float64)) for array in (values, own)]
    found = []
    for finding in findings:
        box = tuple(slice(first, last) for first, last in finding.bbox_voxel)
        region = labels[box] == finding.label
        shown = image[box][region].astype(np.float64)
        map_mean, own_mean = (
            float(array[box][region].mean(dtype=np.float64)) for array in (values, own)
        )
        difference = None
        if restored is not None:
            expected = np.asarray(restored)[box][region].astype(np.float64)
            difference = float((shown - expected).mean())
        share: float | None = 1.0
        if evidence_scores is not None:
            share = _share(own_mean, whole[1], map_mean, whole[0])
        darker = np.searchsorted(order, shown.mean()) / max(order.size, 1)
        found.append(
            Explanation(finding.label, evidence, own_mean, share, difference, float(darker))
        )
    return found


def _share(
    evidence: float, brain_evidence: float, score: float, brain_score: float
) -> float | None:
    height = np.log(max(score, TINY) / max(brain_score, TINY))
    own = np.log(max(evidence, TINY) / max(brain_evidence, TINY))
    return float(own / height) if height > 0 else None
