"""PCA: the healthy image is the nearest one in a linear subspace of healthy images.

The simplest model of normal anatomy, and what a linear autoencoder learns (Baldi and Hornik, 1989).
An image is shrunk to a small grid, projected onto the mean and the first components found in
training, and enlarged again. Its residual therefore also holds all detail finer than the grid.
It expects the anatomy at the same place of the field of view in training and in use, because it
knows nothing of translation.

Components are updated exactly, batch after batch, from the singular value decomposition of
the old components and the new images (Ross et al., "Incremental Learning for Robust Visual
Tracking", Int J Comput Vis 77, 2008). There is no gradient and no optimiser: a training step is
the update itself. ``restored`` has the image's unit.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from medgen.config import Config


class PCAConfig(Config):
    """Settings of the linear subspace."""

    spatial_dims: Literal[2, 3] = Field(3, description="2 for slices, 3 for volumes")
    channels: int = Field(1, ge=1, description="image channels (sequences)")
    components: int = Field(64, ge=1, description="dimensions of the subspace")
    grid: int = Field(32, ge=2, description="edge of the small grid in voxels, along every axis")


class PCA(nn.Module):
    """Projects images onto the subspace of the healthy ones."""

    Config = PCAConfig
    divisor = 1
    input_slices = 1
    mean: Tensor
    components: Tensor
    deviations: Tensor
    count: Tensor

    def __init__(self, config: PCAConfig) -> None:
        super().__init__()
        self.config = config
        self.spatial_dims = config.spatial_dims
        size = config.channels * config.grid**config.spatial_dims
        self.register_buffer("mean", torch.zeros(size))
        # Rows are orthonormal; those not yet learned are zero.
        self.register_buffer("components", torch.zeros(config.components, size))
        self.register_buffer("deviations", torch.zeros(config.components))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def optimizers(self) -> dict[str, Optimizer]:
        """None: the subspace has a closed form."""
        return {}

    def losses(self, batch: dict[str, Tensor]) -> Iterator[tuple[str, Tensor, dict[str, Tensor]]]:
        """Yields no loss; updates the subspace with the batch's ``healthy`` images."""
        self.update(self._shrink(batch["healthy"]))
        yield from ()

    @torch.no_grad()
    def update(self, vectors: Tensor) -> None:
        """Take images ``(B, size)`` into the mean, the components and their deviations."""
        old, new = int(self.count), len(vectors)
        mean, vectors = self.mean.double(), vectors.double()
        shift = vectors.mean(0) - mean
        rows = torch.cat(
            [
                self.components.double() * (self.deviations.double() * old**0.5)[:, None],
                vectors - vectors.mean(0),
                shift[None] * (old * new / (old + new)) ** 0.5,
            ]
        )
        # The right singular vectors of few long rows, from the small matrix of inner products.
        squares, left = torch.linalg.eigh(rows @ rows.T)
        squares, left = squares.flip(0), left.flip(1)
        kept = int((squares > squares[0] * 1e-10).sum().clamp(max=self.config.components))
        singular = squares[:kept].clamp(min=0).sqrt()
        total = old + new
        self.mean.copy_(mean + shift * (new / total))
        self.components.zero_()[:kept] = ((left[:, :kept].T @ rows) / singular[:, None]).float()
        self.deviations.zero_()[:kept] = (singular / total**0.5).float()
        self.count.fill_(total)

    def predict(self, image: Tensor) -> dict[str, Tensor]:
        """``restored`` ``(B, C, *spatial)`` in the image's unit."""
        centred = self._shrink(image) - self.mean
        nearest = self.mean + (centred @ self.components.T) @ self.components
        small = nearest.view(
            len(image), self.config.channels, *[self.config.grid] * (image.ndim - 2)
        )
        mode = "bilinear" if self.spatial_dims == 2 else "trilinear"
        return {"restored": F.interpolate(small, image.shape[2:], mode=mode, align_corners=False)}

    def _shrink(self, image: Tensor) -> Tensor:
        """Images ``(B, C, *spatial)`` as vectors ``(B, C * grid ** spatial_dims)``."""
        size = [self.config.grid] * self.spatial_dims
        return F.interpolate(image, size, mode="area").flatten(1)
