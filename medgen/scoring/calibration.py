"""What a score and a threshold mean, learnt from scans of healthy people kept out of training."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field, model_validator
from scipy import special

from medgen.config import Config
from medgen.errors import InputError
from medgen.scoring.findings import large_components
from medgen.scoring.maps import as_mask, bounding_box
from medgen.scoring.sweep import Sweep, sweep

# A scan is as abnormal as its most abnormal millilitre: less than a gyrus, more than noise.
SCAN_SCORE_VOLUME_MM3 = 1000.0
# Also caps the false volume, or a map with one peak could grow a single finding over the brain.
FALSE_VOLUME_MM3 = 1000.0

# Score map (X, Y[, Z]), brain mask (X, Y[, Z]) and the volume of one voxel in mm3.
Normal = tuple[ArrayLike, ArrayLike, float]


def scan_score(scores: ArrayLike, mask: ArrayLike, voxel_volume_mm3: float) -> float:
    """One number for a scan: the mean of the highest millilitre of its map inside the mask.

    Args:
        scores: Score map ``(X, Y[, Z])``.
        mask: Brain mask. If it holds less than a millilitre, all of it counts.
        voxel_volume_mm3: Volume of one voxel (a pixel of a 2-D image is as thick as its slice).

    Raises:
        InputError: If the mask is empty.
    """
    values = np.asarray(scores)
    values = values[as_mask(mask, values.shape)]
    if not values.size:
        msg = "the mask is empty: there is nothing to score"
        raise InputError(msg)
    count = min(max(round(SCAN_SCORE_VOLUME_MM3 / voxel_volume_mm3), 1), values.size)
    # Sorted before the sum, so that the last digit does not depend on the voxels' order.
    highest = np.sort(np.partition(values, values.size - count)[values.size - count :])
    return float(highest.mean(dtype=np.float64))


class Calibration(Config):
    """Scores of scans of healthy people, and the threshold chosen on them."""

    scan_scores: tuple[float, ...] = Field(
        min_length=1, description="Scan scores of the normal scans, from low to high."
    )
    threshold: float = Field(description="Score from which on a voxel belongs to a finding.")
    target_false_findings_per_scan: float = Field(
        ge=0, description="Findings allowed per normal scan, on average."
    )
    target_false_volume_mm3_per_scan: float = Field(
        ge=0, description="Volume of findings (mm3) allowed per normal scan, on average."
    )
    minimum_volume_mm3: float = Field(ge=0, description="Smaller regions were no findings.")
    expected_false_findings_per_scan: float = Field(
        ge=0, description="Mean number of findings at the threshold, on these normal scans."
    )
    expected_false_volume_mm3_per_scan: float = Field(
        ge=0, description="Mean volume of findings (mm3) at the threshold, on these normal scans."
    )
    left_out_false_findings_per_scan: float | None = Field(
        None,
        description="The same count with each subject's scans judged by a threshold chosen on "
        "the other subjects': the honest estimate for the next one. None for one subject only.",
    )
    subjects: int | None = Field(
        None, ge=1, description="People the scans show. None: not recorded, each scan another's."
    )

    drawn: bool = Field(False, description="The normal scans were simulated, not acquired.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if list(self.scan_scores) != sorted(self.scan_scores):
            msg = "scan_scores must be sorted from low to high"
            raise ValueError(msg)
        if self.subjects is not None and self.subjects > len(self.scan_scores):
            msg = f"{len(self.scan_scores)} scans cannot show {self.subjects} subjects"
            raise ValueError(msg)
        return self

    @classmethod
    def from_normals(
        cls,
        normals: Sequence[Normal],
        target_false_findings_per_scan: float,
        minimum_volume_mm3: float = 0.0,
        *,
        target_false_volume_mm3_per_scan: float = FALSE_VOLUME_MM3,
        subjects: Sequence[str] | None = None,
    ) -> Calibration:
        """The smallest threshold that keeps both targets, there and at every higher threshold.

        "At every higher threshold" matters: far below, all false findings merge into one.

        Args:
            normals: Map, mask and voxel volume (mm3) of each normal scan, on the grid on which
                findings will be made, none used in training.
            target_false_findings_per_scan: Findings allowed per scan, on average.
            minimum_volume_mm3: Smaller regions are no findings.
            target_false_volume_mm3_per_scan: Volume of findings allowed per scan, on average.
            subjects: Whose each scan is; without it, every scan counts as another person's.

        Raises:
            InputError: Without scans, or with another number of subjects than of scans.
        """
        if not normals:
            msg = "calibration needs at least one normal scan, got none"
            raise InputError(msg)
        owners = [str(n) for n in range(len(normals))] if subjects is None else list(subjects)
        if len(owners) != len(normals):
            msg = f"calibration needs a subject for each of {len(normals)} scans, got {len(owners)}"
            raise InputError(msg)
        scan_scores = tuple(sorted(scan_score(*normal) for normal in normals))
        targets = (target_false_findings_per_scan, target_false_volume_mm3_per_scan)
        volumes = np.array([volume for _, _, volume in normals], dtype=np.float64)
        sweeps = [
            sweep(
                scores,
                mask,
                minimum_voxels=minimum_volume_mm3 / volume,
                most_findings=targets[0] * len(normals),
                most_voxels=targets[1] * len(normals) / volume,
            )
            for scores, mask, volume in normals
        ]
        threshold = _smallest_threshold(sweeps, volumes, *targets)
        found = np.array([_found(*normal, threshold, minimum_volume_mm3) for normal in normals])
        return cls(
            scan_scores=scan_scores,
            threshold=threshold,
            target_false_findings_per_scan=targets[0],
            target_false_volume_mm3_per_scan=targets[1],
            minimum_volume_mm3=minimum_volume_mm3,
            expected_false_findings_per_scan=float(found[:, 0].mean()),
            expected_false_volume_mm3_per_scan=float(found[:, 1].mean()),
            left_out_false_findings_per_scan=_left_out(
                normals, sweeps, volumes, targets, minimum_volume_mm3, owners
            ),
            subjects=len(set(owners)),
        )

    def p_value(self, score: float) -> float:
        """Conformal p-value of a scan score: ``(1 + normals that score as high) / (n + 1)``.

        Among healthy scans like the normal ones, a value of p or less comes up in at most a share
        p of them, whatever the distribution of the scores. That takes the scans as exchangeable;
        several scans of few people are so only roughly.
        """
        as_high = len(self.scan_scores) - bisect_left(self.scan_scores, score)
        return (1 + as_high) / (len(self.scan_scores) + 1)

    @property
    def threshold_rule(self) -> str:
        """What the threshold promises, on how many scans, and how finely they can say it."""
        scans = len(self.scan_scores)
        subjects = self.subjects or scans
        kind = "drawn " if self.drawn else ""
        normal_scans, others = f"{scans} {kind}normal scan{'s' * (scans != 1)}", "others"
        caution = " They were drawn, not acquired: real scans may differ." if self.drawn else ""
        if subjects != scans:
            brains = f"{subjects} brain{'s' * (subjects != 1)}"
            normal_scans, others = f"{scans} {kind}scans of {brains}", "other brains"
            caution += (
                f" Both the limit and the p-values treat the {scans} scans as exchangeable, which "
                f"scans of {brains} are only roughly."
            )
        count = round(self.expected_false_findings_per_scan * scans)
        # Exact (Garwood) upper limit of a Poisson mean.
        upper = float(special.gammaincinv(count + 1, 0.95)) / scans
        left_out = (
            ""
            if self.left_out_false_findings_per_scan is None
            else f"; {self.left_out_false_findings_per_scan:.2g} per scan when each is judged by "
            f"a threshold chosen on the {others}"
        )
        return (
            f"{self.threshold:.4g} is the smallest threshold with at most "
            f"{self.target_false_findings_per_scan:g} false findings of "
            f"{self.minimum_volume_mm3:g} mm3 or more and at most "
            f"{self.target_false_volume_mm3_per_scan:g} mm3 of them per normal scan, there and at "
            f"every higher threshold. On {normal_scans} it gave {count} "
            f"({self.expected_false_findings_per_scan:.2g} per scan, "
            f"{self.expected_false_volume_mm3_per_scan:.3g} mm3 per scan{left_out}); with "
            f"95 % confidence that shows an expected number below {upper:.2g} per scan, no less. "
            f"The smallest p-value they can give is 1/{scans + 1} = {1 / (scans + 1):.2g}.{caution}"
        )


def _smallest_threshold(
    sweeps: Sequence[Sweep],
    volumes: NDArray[np.float64],
    target_findings: float,
    target_volume: float,
) -> float:
    """The smallest float32 threshold with both means within the targets, it and all above."""
    # Where one sweep stopped, the targets are broken already: lower levels need no count.
    stop = max((s.levels[-1] for s in sweeps if not s.complete), default=-np.inf)
    levels = np.unique(np.concatenate([s.levels for s in sweeps]))[::-1]
    levels = levels[levels >= stop]
    counts = [s.at(levels) for s in sweeps]
    findings = np.mean([found for found, _ in counts], axis=0)
    volume = np.mean([v * size for (_, v), size in zip(counts, volumes, strict=True)], axis=0)
    broken = np.flatnonzero((findings > target_findings) | (volume > target_volume))
    if broken.size:
        return float(np.nextafter(np.float32(levels[broken[0]]), np.float32(np.inf)))
    return float(levels[-1])


def _left_out(
    normals: Sequence[Normal],
    sweeps: Sequence[Sweep],
    volumes: NDArray[np.float64],
    targets: tuple[float, float],
    minimum_volume_mm3: float,
    owners: Sequence[str],
) -> float | None:
    """Mean number of findings per scan at the threshold that the other subjects' scans choose."""
    if len(set(owners)) < 2:
        return None
    counts = []
    for owner in dict.fromkeys(owners):
        other = [i for i, name in enumerate(owners) if name != owner]
        threshold = _smallest_threshold([sweeps[i] for i in other], volumes[other], *targets)
        counts += [
            _found(*normal, threshold, minimum_volume_mm3)[0]
            for normal, name in zip(normals, owners, strict=True)
            if name == owner
        ]
    return float(np.mean(counts))


def _found(
    scores: ArrayLike,
    mask: ArrayLike,
    voxel_volume_mm3: float,
    threshold: float,
    minimum_volume_mm3: float,
) -> tuple[int, float]:
    """Number and volume (mm3) of the findings of one map."""
    values = np.asarray(scores)
    above = (values >= threshold) & as_mask(mask, values.shape)
    if not above.any():
        return 0, 0.0
    minimum_voxels = minimum_volume_mm3 / voxel_volume_mm3
    labels, count = large_components(above[bounding_box(above)], minimum_voxels)
    return count, float((labels > 0).sum() * voxel_volume_mm3)
