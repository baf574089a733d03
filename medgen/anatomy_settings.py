"""What :mod:`medgen.anatomy` is told: which heads, and how images of them are drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from medgen.config import Config


class AnatomyConfig(Config):
    """Settings of the image generator; lengths in voxels of ``spacing_mm``."""

    folder: Path | None = Field(None, description="folder with label maps (.nii or .nii.gz)")
    lesions: Path | None = Field(None, description=".npz of real lesion shapes")
    subjects: tuple[str, ...] = Field((), description="label maps to train on; empty means all")
    validation_subjects: tuple[str, ...] = Field((), description="label maps held out")
    seed: int = 0
    spatial_dims: Literal[2, 3] = 2
    input_slices: int = Field(1, ge=1, description="neighbouring slices per 2-D image")
    batch_size: int = Field(32, ge=1, description="images per batch")
    slices_per_slab: int = Field(4, ge=1, description="2-D images cut from one drawn slab")
    slice_stride: int = Field(3, ge=1, description="distance between these images")
    size: tuple[int, ...] = Field((112, 128), description="image size: in-plane, or all three axes")
    spacing_mm: float = Field(1.5, gt=0, description="voxel size of the drawn images")
    planes: dict[Literal["axial", "coronal", "sagittal"], float] = Field(
        {"axial": 1.0}, description="how often slabs are cut in each direction"
    )
    contrasts: dict[Literal["t1", "t2", "flair", "random"], float] = Field(
        {"t1": 0.25, "t2": 0.2, "flair": 0.35, "random": 0.2},
        description="how often each kind of contrast is drawn",
    )
    healthy_fraction: float = Field(0.15, ge=0, le=1, description="slabs without any lesion")
    with_skull: float = Field(0.05, ge=0, le=1, description="slabs that keep skull and scalp")
    faintest_lesion: float = Field(0.3, ge=0, description="least intensity difference drawn")
    outside: Literal["random", "prior"] = Field(
        "random",
        description="intensities around the brain: any, or such as the contrast has; what has to "
        "be predicted must not be random",
    )


class PhantomConfig(AnatomyConfig):
    """Settings of the generator over synthetic heads; needs no data."""

    heads: int = Field(4, ge=1, description="how many phantoms to train on")
    shape: tuple[int, int, int] = Field((56, 64, 56), description="voxels of a phantom")
