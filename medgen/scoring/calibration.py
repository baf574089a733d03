"""What a score and a threshold mean, learnt from scans of healthy people kept out of training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field, model_validator
from scipy import special

from medgen.config import Config
from medgen.errors import InputError
from medgen.scoring.conformal import (
    first_per_person,
    highest_per_person,
    p_values,
    rank_of_limit,
    rate_of_this_draw,
)
from medgen.scoring.findings import large_components
from medgen.scoring.maps import ScanScore, as_mask, bounding_box
from medgen.scoring.sweep import Sweep, sweep

# A scan is as abnormal as its most abnormal millilitre: less than a gyrus, more than noise.
SCAN_SCORE_VOLUME_MM3 = 1000.0
HIGHEST = 0.01  # of all voxels, which are "the highest"
# Also caps the false volume, or a map with one peak could grow a single finding over the brain.
FALSE_VOLUME_MM3 = 1000.0

# Score map (X, Y[, Z]), brain mask (X, Y[, Z]) and the volume of one voxel in mm3.
Normal = tuple[ArrayLike, ArrayLike, float]


def scan_score(
    scores: ArrayLike, mask: ArrayLike, voxel_volume_mm3: float, kind: ScanScore = "millilitre"
) -> float:
    """One number for a scan: the mean of its map inside the mask, or of a part of it.

    Args:
        scores: Score map ``(X, Y[, Z])``.
        mask: Brain mask. If it holds less than a millilitre, all of it counts.
        voxel_volume_mm3: Volume of one voxel (a pixel of a 2-D image is as thick as its slice).
        kind: The mean of the highest millilitre, of the highest hundredth, or of all.

    Raises:
        InputError: If the mask is empty.
    """
    values = np.asarray(scores)
    values = values[as_mask(mask, values.shape)]
    if not values.size:
        msg = "the mask is empty: there is nothing to score"
        raise InputError(msg)
    wanted: dict[ScanScore, float] = {
        "millilitre": SCAN_SCORE_VOLUME_MM3 / voxel_volume_mm3,
        "highest": HIGHEST * values.size,
        "mean": values.size,
    }
    count = min(max(round(wanted[kind]), 1), values.size)
    # Sorted before the sum, so that the last digit does not depend on the voxels' order.
    highest = np.sort(np.partition(values, values.size - count)[values.size - count :])
    return float(highest.mean(dtype=np.float64))


class Calibration(Config):
    """Scores of scans of healthy people, and the threshold chosen on them."""

    scan_scores: tuple[float, ...] = Field(
        min_length=1,
        description="Scan scores of the normal scans, from low to high; if `scans` is set, the "
        "highest of each person.",
    )
    threshold: float = Field(description="Score from which on a voxel belongs to a finding.")
    target_false_findings_per_scan: float | None = Field(
        None, ge=0, description="Findings allowed per normal scan, on average."
    )
    target_false_volume_mm3_per_scan: float | None = Field(
        None, ge=0, description="Volume of findings (mm3) allowed per normal scan, on average."
    )
    target_false_positive_rate: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Or instead: share of normal people allowed to show any finding.",
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
    scans: int | None = Field(
        None, ge=1, description="Scans measured, if a score stands for a person with several."
    )
    spatial_dims: Literal[2, 3] = Field(
        3, description="Of the normal scans: the scores of slices are another quantity."
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
        if (self.target_false_findings_per_scan is None) == (
            self.target_false_positive_rate is None
        ):
            msg = "the threshold keeps either a number of false findings or a false-positive rate"
            raise ValueError(msg)
        if (self.target_false_findings_per_scan is None) != (
            self.target_false_volume_mm3_per_scan is None
        ):
            msg = "a number of false findings needs a volume of false findings, and only with it"
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
        kind: ScanScore = "millilitre",
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
            kind: Which number stands for a scan, see :func:`scan_score`.

        Raises:
            InputError: Without scans, or with another number of subjects than of scans.
        """
        owners = _subject_of_each(normals, subjects)
        scan_scores = tuple(sorted(scan_score(*normal, kind) for normal in normals))
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
        totals = _Totals(sweeps, volumes)
        threshold = totals.threshold(*targets)
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
                normals, totals, targets, minimum_volume_mm3, owners
            ),
            subjects=len(set(owners)),
        )

    @classmethod
    def with_false_positive_rate(
        cls,
        normals: Sequence[Normal],
        rate: float,
        minimum_volume_mm3: float = 0.0,
        *,
        subjects: Sequence[str] | None = None,
        kind: ScanScore = "millilitre",
    ) -> Calibration:
        """The threshold at which at most this share of normal people shows any finding.

        Conformal: a scan shows a finding at and below one level of its own, where the first region
        becomes large enough. The threshold lies just above the k-th lowest of these levels, see
        :mod:`medgen.scoring.conformal`. Each person counts once, with the highest of the scans.

        Args:
            normals: As for :meth:`from_normals`.
            rate: Between 0 and 1.
            minimum_volume_mm3: Smaller regions are no findings.
            subjects: Whose each scan is; without it, every scan counts as another person's.
            kind: Which number stands for a scan, see :func:`scan_score`.

        Raises:
            InputError: Too few people for the rate; says how many it takes.
        """
        owners = _subject_of_each(normals, subjects)
        rank = rank_of_limit(len(set(owners)), rate)
        levels = [_level_of_first_finding(*normal, minimum_volume_mm3) for normal in normals]
        limit = np.sort(highest_per_person(levels, owners))[rank - 1]
        threshold = float(np.nextafter(np.float32(limit), np.float32(np.inf)))
        found = np.array([_found(*normal, threshold, minimum_volume_mm3) for normal in normals])
        scores = highest_per_person([scan_score(*normal, kind) for normal in normals], owners)
        return cls(
            scan_scores=tuple(sorted(scores.tolist())),
            threshold=threshold,
            target_false_positive_rate=rate,
            minimum_volume_mm3=minimum_volume_mm3,
            expected_false_findings_per_scan=float(found[:, 0].mean()),
            expected_false_volume_mm3_per_scan=float(found[:, 1].mean()),
            subjects=scores.size,
            scans=len(normals) if len(normals) > scores.size else None,
        )

    def one_score_per_person(self, scores: Sequence[float], subjects: Sequence[str]) -> Calibration:
        """The same threshold, with the highest of each person's scan scores as the reference.

        Scans of one person are not exchangeable with those of others; their highest scores are, so
        that p-values keep their promise.

        Args:
            scores: Scan score of every normal scan.
            subjects: Whose each scan is.
        """
        highest = sorted(highest_per_person(scores, subjects).tolist())
        several = len(scores) if len(scores) > len(highest) else None
        update = {"scan_scores": tuple(highest), "scans": several, "subjects": len(highest)}
        return self.model_copy(update=update)

    def comparable(self, scores: Sequence[float], people: Sequence[str]) -> list[float]:
        """One score of each person, of the kind that the reference holds.

        The highest of a person's scans, if that is what stands in ``scan_scores``; else the first:
        the highest of several would be no scan like the reference's.

        Args:
            scores: Scan score of every scan.
            people: Whose each is.
        """
        choose = highest_per_person if self.scans is not None else first_per_person
        return [float(score) for score in choose(scores, people)]

    def p_value(self, score: float) -> float:
        """Conformal p-value of a scan score: ``(1 + normals that score as high) / (n + 1)``.

        Among healthy scans like the normal ones, a value of p or less comes up in at most a share
        p of them, whatever the distribution of the scores. That takes the scans as exchangeable;
        several scans of few people are so only roughly.
        """
        return float(p_values(self.scan_scores, score))

    @property
    def threshold_rule(self) -> str:
        """What the threshold promises, on how many scans, and how finely they can say it."""
        by_count = self.target_false_positive_rate is None
        promise = self._promise_of_count() if by_count else self._promise_of_rate()
        smallest = 1 / (len(self.scan_scores) + 1)
        return (
            f"{self.threshold:.4g} is the smallest threshold {promise} The smallest p-value they "
            f"can give is 1/{len(self.scan_scores) + 1} = {smallest:.2g}.{self._caution()}"
        )

    def _promise_of_count(self) -> str:
        scans, count = self._scans, round(self.expected_false_findings_per_scan * self._scans)
        # Exact (Garwood) upper limit of a Poisson mean.
        upper = float(special.gammaincinv(count + 1, 0.95)) / scans
        others = "others" if self._owners is None else f"other {self._owners.partition(' ')[2]}"
        left_out = (
            ""
            if self.left_out_false_findings_per_scan is None
            else f"; {self.left_out_false_findings_per_scan:.2g} per scan when each is judged by "
            f"a threshold chosen on the {others}"
        )
        return (
            f"with at most {self.target_false_findings_per_scan:g} false findings of "
            f"{self._smallest} and at most "
            f"{self.target_false_volume_mm3_per_scan:g} mm3 of them per normal scan, there and at "
            f"every higher threshold. On {self._normal_scans} it gave {self._found_on_them}"
            f"{left_out}); with 95 % confidence that shows an expected number below {upper:.2g} "
            f"per scan, no less."
        )

    def _promise_of_rate(self) -> str:
        rate, people = self.target_false_positive_rate or 0.0, len(self.scan_scores)
        limit = rate_of_this_draw(people, rank_of_limit(people, rate))
        return (
            f"that lets at most {100 * rate:.3g} % of normal people show a finding of "
            f"{self._smallest}, on average over sets of scans like these "
            f"(conformal); with 95 % confidence, this set lets less than {100 * limit:.2g} %. "
            f"On {self._normal_scans} it gave {self._found_on_them})."
        )

    @property
    def _smallest(self) -> str:
        """The size from which a region is a finding; pictures seldom say how large a pixel is."""
        pixel = " (a pixel without a size counts as 1)" if self.spatial_dims == 2 else ""
        return f"{self.minimum_volume_mm3:g} mm3{pixel} or more"

    @property
    def _scans(self) -> int:
        return self.scans or len(self.scan_scores)

    @property
    def _owners(self) -> str | None:
        """``3 brains``, where there are fewer of them than scans."""
        count, kind = self.subjects or self._scans, "subject" if self.scans else "brain"
        return None if count == self._scans else f"{count} {kind}{'s' * (count != 1)}"

    @property
    def _normal_scans(self) -> str:
        kind = "drawn " if self.drawn else ""
        if self._owners is not None:
            return f"{self._scans} {kind}scans of {self._owners}"
        return f"{self._scans} {kind}normal scan{'s' * (self._scans != 1)}"

    @property
    def _found_on_them(self) -> str:
        return (
            f"{round(self.expected_false_findings_per_scan * self._scans)} "
            f"({self.expected_false_findings_per_scan:.2g} per scan, "
            f"{self.expected_false_volume_mm3_per_scan:.3g} mm3 per scan"
        )

    def _caution(self) -> str:
        caution = " They were drawn, not acquired: real scans may differ." if self.drawn else ""
        if self._owners is not None:
            one_each = self.scans is not None
            both = "Both the limit and the p-values treat" if not one_each else "The limit treats"
            if not one_each or self.target_false_positive_rate is None:
                caution += (
                    f" {both} the {self._scans} scans as exchangeable, which scans of "
                    f"{self._owners} are only roughly."
                )
            if one_each:
                caution += " For the p-values the highest score of each subject counts."
        return caution


def _subject_of_each(normals: Sequence[Normal], subjects: Sequence[str] | None) -> list[str]:
    """Whose each scan is."""
    if not normals:
        msg = "calibration needs at least one normal scan, got none"
        raise InputError(msg)
    owners = [str(n) for n in range(len(normals))] if subjects is None else list(subjects)
    if len(owners) != len(normals):
        msg = f"calibration needs a subject for each of {len(normals)} scans, got {len(owners)}"
        raise InputError(msg)
    return owners


def _level_of_first_finding(
    scores: ArrayLike, mask: ArrayLike, voxel_volume_mm3: float, minimum_volume_mm3: float
) -> float:
    """The highest threshold at which a map shows a finding; the lowest value if it never does."""
    minimum = minimum_volume_mm3 / voxel_volume_mm3
    levels = sweep(scores, mask, minimum_voxels=minimum, most_findings=0).levels
    if not levels.size:
        raise InputError("the mask is empty: there is nothing to score")
    return float(levels[-1])


class _Totals:
    """Findings and false volume of all normal scans together, at every threshold.

    Attributes:
        levels: All thresholds at which something changes, from high to low.
        findings: Their number at each, over all scans.
        volume: Their volume (mm3) at each.
    """

    def __init__(self, sweeps: Sequence[Sweep], volumes: NDArray[np.float64]) -> None:
        self.sweeps, self.volumes = sweeps, volumes
        self.levels = np.unique(np.concatenate([s.levels for s in sweeps]))[::-1]
        self.findings, self.volume = self._of(range(len(sweeps)))

    def threshold(
        self, target_findings: float, target_volume: float, without: Sequence[int] = ()
    ) -> float:
        """The smallest float32 threshold with both means within the targets, it and all above.

        Args:
            target_findings: Most per scan.
            target_volume: Most per scan, in mm3.
            without: Numbers of the scans that are left out.
        """
        left = [sweep for n, sweep in enumerate(self.sweeps) if n not in without]
        findings, volume = self._of(without)
        # Where one sweep stopped, the targets are broken already: lower levels need no count.
        stop = max((s.levels[-1] for s in left if not s.complete), default=-np.inf)
        kept = self.levels >= max(stop, min(s.levels[-1] for s in left))
        findings = (self.findings - findings)[kept] / len(left)
        volume = (self.volume - volume)[kept] / len(left)
        levels = self.levels[kept]
        broken = np.flatnonzero((findings > target_findings) | (volume > target_volume))
        if broken.size:
            return float(np.nextafter(np.float32(levels[broken[0]]), np.float32(np.inf)))
        return float(levels[-1])

    def _of(self, numbers: Sequence[int]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The same of these scans only, one at a time: levels are many."""
        findings, volume = np.zeros(self.levels.size), np.zeros(self.levels.size)
        for number in numbers:
            found, voxels = self.sweeps[number].at(self.levels)
            findings += found
            volume += voxels * self.volumes[number]
        return findings, volume


def _left_out(
    normals: Sequence[Normal],
    totals: _Totals,
    targets: tuple[float, float],
    minimum_volume_mm3: float,
    owners: Sequence[str],
) -> float | None:
    """Mean number of findings per scan at the threshold that the other subjects' scans choose."""
    if len(set(owners)) < 2:
        return None
    counts = []
    for owner in dict.fromkeys(owners):
        own = [i for i, name in enumerate(owners) if name == owner]
        threshold = totals.threshold(*targets, without=own)
        counts += [_found(*normals[i], threshold, minimum_volume_mm3)[0] for i in own]
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
