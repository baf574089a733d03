"""What :mod:`medgen.restoration_sets` is told: data, damage and sizes of a restoration task."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from medgen.config import Config
from medgen.corruption.holes import KINDS
from medgen.corruption.noise import NOISE

Task = Literal["inpaint", "super_resolve", "denoise", "translate"]
Contrast = Literal["t1", "t2", "flair", "random"]


class RestorationConfig(Config):
    """Settings of the pairs; ranges are ``[least, largest]``."""

    spatial_dims: Literal[2, 3] = Field(2, description="2 for slices, 3 for volumes")
    task: Task = Field(description="which damage is to be undone")
    anatomy: dict[str, Any] | None = Field(
        None,
        description="settings of the drawn anatomy: `kind` label_maps or phantoms, and theirs",
    )
    images: dict[str, Any] | None = Field(
        None, description="settings of a folder of real scans; see medgen.real_scans"
    )
    image_share: float = Field(
        0.5, ge=0, le=1, description="part of a batch from real scans, if there is anatomy too"
    )
    seed: int = 0
    input_slices: int = Field(1, ge=1, description="neighbouring slices per 2-D image")
    batch_size: int = Field(16, ge=1, description="images per batch")
    size: tuple[int, ...] = Field((96, 128), description="image size: in-plane, or all three axes")
    spacing_mm: float = Field(1.5, gt=0, description="voxel size of the images")
    slices_per_slab: int = Field(4, ge=1, description="2-D images cut from one drawn slab")
    slice_stride: int = Field(3, ge=1, description="distance between these images")
    slab_margin: int = Field(
        0,
        ge=0,
        description="inpaint, 2-D: slices drawn beyond the outer images on either side, from which "
        "their holes are filled as well",
    )
    pool: int = Field(
        0,
        ge=0,
        description="training batches that are drawn, kept in memory (by each worker process), and "
        "shuffled and mirrored from then on; 0: every batch is drawn anew",
    )
    noise: dict[str, tuple[float, float]] = Field(
        {},
        description="kinds of noise (gaussian, rician, poisson, grainy) and the range of their "
        "standard deviation, as part of the intensity range; left out: what the task needs",
    )
    motion: float = Field(
        0.0, ge=0, le=1, description="denoise: how often the head moved while it was scanned"
    )
    shading: tuple[float, float] = Field(
        (0.0, 0.0),
        description="denoise: range of a bias field that is to be removed, as the standard "
        "deviation of its logarithm; what the truth itself has stays",
    )
    factors: tuple[tuple[float, ...], ...] = Field(
        ((1, 2, 2), (1, 4, 4), (4, 1, 1), (2, 2, 2)),
        description="super_resolve: voxel sizes in target voxels, per axis of the slab (through "
        "the slices first; the three axes in 3-D); one is drawn; 1 keeps an axis",
    )
    psf: tuple[float, float] = Field(
        (0.7, 1.3),
        description="super_resolve: range of the full width at half maximum of the point-spread "
        "function, in low-resolution voxels",
    )
    holes: dict[str, tuple[float, float]] = Field(
        {"blob": (4, 50), "box": (4, 40), "stroke": (3, 12)},
        description="inpaint: kinds of holes (blob, lesion_shape, stroke, box) and the range of "
        "their size in mm; lesion_shape needs anatomy.lesions",
    )
    largest_hole: float = Field(
        0.5, gt=0, lt=1, description="inpaint: largest part of a slab's tissue that is cut"
    )
    holes_per_volume: int = Field(
        1,
        ge=1,
        description="inpaint, 3-D: slices, evenly apart, in which a hole is centred; up to two "
        "more are cut, as they are in a slab of slices",
    )
    sources: tuple[Contrast, ...] = Field(
        ("t1", "t2", "flair", "random"), description="translate: contrasts of the input"
    )
    targets: tuple[Literal["t1", "t2", "flair"], ...] = Field(
        ("t1", "t2", "flair"),
        description="translate: contrasts of the output; with several, one-hot planes in this "
        "order tell the network which one is wanted",
    )

    @model_validator(mode="after")
    def _sensible(self) -> RestorationConfig:
        for field, known in (("noise", NOISE), ("holes", KINDS)):
            ranges = getattr(self, field)
            wrong = sorted(set(ranges) - set(known))
            if wrong:
                msg = f"{field} must be among {', '.join(known)}; got {', '.join(wrong)}"
                raise ValueError(msg)
            if any(not 0 <= low <= high for low, high in ranges.values()):
                raise ValueError(f"{field}: ranges must be [least, largest], got {ranges}")
        if len(self.size) != self.spatial_dims:
            msg = f"size must have {self.spatial_dims} numbers, got {self.size}"
            raise ValueError(msg)
        if self.task == "super_resolve" and not all(
            len(factors) == 3 and min(factors) >= 1 < max(factors) for factors in self.factors
        ):
            msg = f"factors must be three numbers from 1 on, one above 1; got {self.factors}"
            raise ValueError(msg)
        if self.task == "inpaint" and (
            not self.holes or any(a <= 0 for a, _ in self.holes.values())
        ):
            raise ValueError(f"holes must name kinds with sizes above 0, got {self.holes}")
        if not 0 <= self.shading[0] <= self.shading[1]:
            raise ValueError(f"shading must be a range from 0 on, got {self.shading}")
        if not 0 < self.psf[0] <= self.psf[1]:
            raise ValueError(f"psf must be a range above 0, got {self.psf}")
        if not self.sources or not self.targets:
            raise ValueError("sources and targets must not be empty")
        return self


# Noise of a task whose settings name none: what scans have, and what denoising is for.
USUAL_NOISE: dict[str, dict[str, tuple[float, float]]] = {
    "inpaint": {"gaussian": (0.0, 0.03), "rician": (0.0, 0.03)},
    "super_resolve": {"gaussian": (0.0, 0.02), "rician": (0.0, 0.02)},
    "denoise": {"gaussian": (0.01, 0.15), "rician": (0.01, 0.15), "poisson": (0.01, 0.15)},
    "translate": {"gaussian": (0.0, 0.04), "rician": (0.0, 0.04)},
}
