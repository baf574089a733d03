"""A detection turned towards the reader: grey windows, the colour scale, where findings are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from medgen.report.frame import Array, Frame, build_frame, content_box, grey_window
from medgen.volume import Volume


class FindingLike(Protocol):
    """What a report needs to know about one finding (see ``medgen.scoring.Finding``)."""

    @property
    def label(self) -> int: ...  # noqa: D102
    @property
    def volume_mm3(self) -> float: ...  # noqa: D102
    @property
    def peak(self) -> float: ...  # noqa: D102
    @property
    def mean(self) -> float: ...  # noqa: D102
    @property
    def centroid_voxel(self) -> Sequence[float]: ...  # noqa: D102
    @property
    def centroid_mm(self) -> Sequence[float]: ...  # noqa: D102
    @property
    def extent_mm(self) -> Sequence[float]: ...  # noqa: D102
    @property
    def slice_index(self) -> Mapping[int, int]: ...  # noqa: D102
    @property
    def bbox_voxel(self) -> Sequence[tuple[int, int]]: ...  # noqa: D102


class ExplanationLike(Protocol):
    """What a report needs to know of why a finding is one (``medgen.scoring.Explanation``)."""

    @property
    def label(self) -> int: ...  # noqa: D102
    @property
    def evidence(self) -> str: ...  # noqa: D102
    @property
    def evidence_mean(self) -> float: ...  # noqa: D102
    @property
    def evidence_share(self) -> float | None: ...  # noqa: D102
    @property
    def difference(self) -> float | None: ...  # noqa: D102
    @property
    def brightness(self) -> float: ...  # noqa: D102


class DetectionLike(Protocol):
    """What a report needs to know about a detection (see ``medgen.tasks.detect.Detection``)."""

    volume: Volume
    map: Array
    mask: Array
    restored: Array | None
    brain_mask: Array
    findings: Sequence[FindingLike]
    score: float
    p_value: float | None
    threshold: float
    threshold_meaning: str
    model: Any
    model_sha256: str
    explanations: Sequence[ExplanationLike]
    evidence: str
    notes: Sequence[str]
    timings: Mapping[str, float]
    device: str


@dataclass(frozen=True, eq=False)
class Scene(Frame):
    """What is shown, in the screen frame.

    Attributes:
        scan: ``(X, Y, Z)`` or, in colour, ``(X, Y, Z, 3)``, in the scan's own units.
        restored: The healthy image, like `scan`; None if there is none or the scan is in colour.
        map: Anomaly score ``(X, Y, Z)``.
        mask: Voxels that belong to a finding ``(X, Y, Z)``, bool.
        window: Scan values shown as black and as white.
        map_maximum: Anomaly score shown in the brightest colour; 0 is the darkest.
    """

    scan: Array
    restored: Array | None
    map: Array
    mask: Array
    window: tuple[float, float]
    map_maximum: float

    def focus(self, finding: FindingLike | None) -> tuple[int, int, int]:
        """Screen voxel to look at: the finding's largest cross-sections, or the centre."""
        if finding is None:
            x, y, z = (size // 2 for size in self.shape)
            return x, y, z
        at = self.to_screen([finding.slice_index.get(axis, 0) for axis in range(3)])
        return round(at[0]), round(at[1]), round(at[2])

    def box_corners(self, finding: FindingLike) -> tuple[list[int], list[int]]:
        """First and last screen voxel (both inside) of the finding's bounding box."""
        low = [first for first, _ in finding.bbox_voxel]
        high = [end - 1 for _, end in finding.bbox_voxel]
        ends = np.array([self.to_screen(low), self.to_screen(high)])
        first, last = np.rint(ends.min(axis=0)), np.rint(ends.max(axis=0))
        return first.astype(int).tolist(), last.astype(int).tolist()


def build_scene(
    detection: DetectionLike, margin_mm: float = 4.0, *, beside: DetectionLike | None = None
) -> Scene:
    """Turn a detection to the screen frame and crop away what is empty.

    Args:
        detection: Any object with the attributes of :class:`DetectionLike`.
        margin_mm: Empty border kept around the scan.
        beside: What another model found in the same scan: both are then cropped and windowed alike.
    """
    volume = detection.volume
    whole = build_frame(volume.geometry, volume.provenance)
    scan = colour_or_first(np.asarray(volume.voxels), whole)
    score, mask = whole.place(np.asarray(detection.map)), whole.place(detection.mask) > 0
    brain = whole.place(detection.brain_mask) > 0
    restored = None
    if detection.restored is not None and scan.ndim == 3:  # it is grey: nothing beside colour
        restored = whole.place(detection.restored)
    looked_at, shown = brain, brain | mask
    if beside is not None:
        looked_at = looked_at | (whole.place(beside.brain_mask) > 0)
        shown = shown | looked_at | (whole.place(beside.mask) > 0)
    window = grey_window(scan, looked_at)
    box = content_box(scan, shown, window, whole, margin_mm)
    return Scene(
        **vars(whole.cropped(box)),
        scan=scan[box],
        restored=None if restored is None else restored[box],
        map=score[box],
        mask=mask[box],
        window=window,
        map_maximum=_map_maximum(score, brain, mask, detection.threshold),
    )


def colour_or_first(voxels: Array, frame: Frame) -> Array:
    """A colour picture as ``(X, Y, Z, 3)``; of anything else the first channel ``(X, Y, Z)``."""
    if len(voxels) == 3 and voxels.ndim == 3:
        return np.stack([frame.place(channel) for channel in voxels], axis=-1)
    return frame.place(voxels[0])


def _map_maximum(score: Array, brain: Array, mask: Array, threshold: float) -> float:
    """Top of the colour scale: above the threshold, nearly every voxel, and most of a finding."""
    values = score[brain] if brain.any() else score.ravel()
    top = max(float(np.percentile(values, 99.9)), 1.5 * threshold, 1e-6)
    return max(top, float(np.percentile(score[mask], 95))) if mask.any() else top
