"""PaDiM: features of healthy images have a Gaussian density; far from it is abnormal.

Defard et al., "PaDiM: a Patch Distribution Modeling Framework for Anomaly Detection and
Localization" (ICPR workshops 2021). A frozen network, trained beforehand without labels, describes
every place of an image by the features ``x`` of its first stages, brought to one grid, of which a
random part is kept. Healthy images give their mean ``m`` and covariance ``S``; the anomaly score is
the Mahalanobis distance ``sqrt((x - m)^T S^-1 (x - m))``, smoothed and enlarged. ``S`` is made
regular by a part of its own mean variance (the paper adds 0.01, for the scale of its network).

Places have a Gaussian each, which knows where in the image things belong and expects the anatomy
at the same place of the field of view; or they share one, which takes images of any size and place
(as in Rippel et al., "Modeling the Distribution of Normal Data in Pre-Trained Deep Features for
Anomaly Detection", ICPR 2020, for whole images).

There is no gradient and no optimiser: a training step updates both moments exactly (Chan et al.
1979). Of ``S`` the Cholesky factor is kept, of which any rounding still gives a covariance. In 3-D
the network sees axial slices, and the grid has a third axis. Three channels are seen in colour;
otherwise each is seen by itself, in grey.

``score`` is the distance divided by the square root of the number of features: about 1 where an
image is as usual, without an upper bound.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Generator, Tensor
from torch.nn import functional as F

from medgen.errors import InputError
from medgen.methods._frozen import Frozen, FrozenConfig
from medgen.networks.features import COLOUR, FrozenFeatures

STRIDE = 4  # voxels between the places that share a Gaussian
# Numbers in all covariances together: 256 MB in float32.
LARGEST = 2**26
# Added to variances before they are factored: a part of the mean one, and a number above 0.
ROUNDING, TINY = 1e-6, 1e-12


class PaDiMConfig(FrozenConfig):
    """Settings of the density of features."""

    stages: int = Field(3, ge=1, le=4, description="how many of its stages describe a place")
    dimensions: int = Field(
        64, ge=1, description="features that are kept of each place, chosen at random"
    )
    positions: Literal["each", "shared"] = Field(
        "each", description="a Gaussian for every place of the grid, or one for all places"
    )
    grid: int = Field(32, ge=2, description="places along each axis, if each has its Gaussian")
    shrinkage: float = Field(
        0.01, gt=0, description="part of the mean variance added to every variance"
    )
    smoothing: float = Field(
        1.0, ge=0, description="standard deviation of the smoothing of distances, in places"
    )
    seed: int = Field(0, description="seed of the choice of features")


class PaDiM(Frozen):
    """Measures how far the features of each place are from those of healthy images.

    Raises:
        InputError: More features are to be kept than there are, or the Gaussians need too much
            memory.
    """

    Config = PaDiMConfig
    config: PaDiMConfig
    chosen: Tensor
    mean: Tensor
    factor: Tensor
    count: Tensor

    def __init__(self, config: PaDiMConfig) -> None:
        super().__init__()
        self.config = config
        self.spatial_dims = config.spatial_dims
        self.extractor = FrozenFeatures(config.widths, range(1, config.stages + 1))
        total = self.extractor.length
        total *= 1 if config.channels == COLOUR else config.channels
        kept, places = config.dimensions, 1
        if config.positions == "each":
            places = config.grid**config.spatial_dims
        if kept > total:
            msg = f"dimensions is {kept}, but the stages have {total} features"
            raise InputError(msg, "Set dimensions lower, or use more stages.")
        if places * kept**2 > LARGEST:
            raise InputError(
                f"{places} places with covariances of {kept} features need "
                f"{places * kept**2 * 4 / 1e9:.1f} GB",
                "Lower grid or dimensions, or set positions to shared.",
            )
        order = torch.randperm(total, generator=Generator().manual_seed(config.seed))
        self.register_buffer("chosen", order[:kept].sort().values)
        self.register_buffer("mean", torch.zeros(places, kept))
        self.register_buffer("factor", torch.zeros(places, kept, kept))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def losses(self, batch: dict[str, Tensor]) -> Iterator[tuple[str, Tensor, dict[str, Tensor]]]:
        """Yields no loss; updates the Gaussians with the batch's ``healthy`` images."""
        with torch.no_grad():
            found = self.embed(batch["healthy"])
            vectors = found.flatten(2).permute(0, 2, 1)
            if self.config.positions == "shared":
                # Places outside the foreground would make the background the norm.
                inside = F.interpolate(batch["mask"], found.shape[2:], mode="area") > 0.5
                vectors = vectors[inside.flatten(1)][:, None]
            if len(vectors):
                self.update(vectors)
        yield from ()

    @torch.no_grad()
    def update(self, vectors: Tensor) -> None:
        """Take features ``(N, places, dimensions)`` into the Gaussians of the places."""
        new, vectors = len(vectors), vectors.double()
        total = self.count + new
        part = new / total.double()  # of all vectors, how many are new
        mean = vectors.mean(0)
        centred = (vectors - mean).permute(1, 2, 0)
        spread = centred @ centred.transpose(1, 2) / new
        shift = mean - self.mean
        between = (1 - part) * part * shift[:, :, None] * shift[:, None, :]
        factor = self.factor.double()
        covariance = (1 - part) * factor @ factor.transpose(1, 2) + part * spread + between
        # What does not vary at all, such as the background, has no Cholesky factor.
        least = ROUNDING * covariance.diagonal(dim1=1, dim2=2).mean() + TINY
        unit = torch.eye(self.config.dimensions, device=covariance.device)
        self.factor.copy_(torch.linalg.cholesky(covariance + least * unit))
        self.mean.copy_(self.mean + part * shift)
        self.count.copy_(total)

    def embed(self, image: Tensor) -> Tensor:
        """Chosen features ``(B, dimensions, *grid)`` of images ``(B, C, *spatial)``."""
        size = self._grid(image.shape[2:])
        found = self.extractor.places(image, size[:2])[:, self.chosen]
        if self.spatial_dims == 3:
            found = F.interpolate(found, size, mode="trilinear")
        return found

    def predict(self, image: Tensor) -> dict[str, Tensor]:
        """``score`` ``(B, 1, *spatial)``: distance from healthy features, about 1 if usual."""
        found = self.embed(image)
        vectors = found.flatten(2).permute(2, 1, 0)  # (places, dimensions, B)
        if self.config.positions == "shared":
            vectors = vectors.permute(1, 2, 0).flatten(1)[None]  # (1, dimensions, B * places)
        white = torch.linalg.solve_triangular(
            torch.linalg.cholesky(self._regular()), vectors - self.mean[:, :, None], upper=False
        )
        distance = white.square().mean(1).sqrt()
        if self.config.positions == "each":
            distance = distance.T
        distance = distance.reshape(len(image), 1, *found.shape[2:])
        mode = "trilinear" if self.spatial_dims == 3 else "bilinear"
        smooth = _smoothed(distance, self.config.smoothing)
        return {"score": F.interpolate(smooth, image.shape[2:], mode=mode)}

    def _grid(self, size: Sequence[int]) -> list[int]:
        """Places along each axis of an image."""
        if self.config.positions == "each":
            return [self.config.grid] * self.spatial_dims
        return [math.ceil(size[0] / STRIDE), math.ceil(size[1] / STRIDE), *size[2:]]

    @property
    def covariance(self) -> Tensor:
        """Covariances ``(places, dimensions, dimensions)``, also of a factor that was rounded."""
        return self.factor @ self.factor.transpose(1, 2)

    def _regular(self) -> Tensor:
        """Covariances that can be inverted; the identity as long as there are none."""
        covariance = self.covariance
        unit = torch.eye(self.config.dimensions, device=covariance.device)
        variance = covariance.diagonal(dim1=1, dim2=2).mean()
        regular = covariance + self.config.shrinkage * variance * unit
        return torch.where(variance > 0, regular, unit)


def _smoothed(image: Tensor, deviation: float) -> Tensor:
    """``(B, 1, *spatial)`` blurred by a Gaussian; borders are replicated."""
    if deviation == 0:
        return image
    reach = math.ceil(3 * deviation)
    taps = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, device=image.device) / deviation) ** 2)
    taps = taps / taps.sum()
    for axis in range(2, image.ndim):
        size = image.shape[axis]
        places = torch.arange(-reach, size + reach, device=image.device).clamp(0, size - 1)
        windows = image.index_select(axis, places).unfold(axis, len(taps), 1)
        image = (windows * taps).sum(-1)
    return image
