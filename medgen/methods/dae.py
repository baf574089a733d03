"""DAE: a network that removes coarse noise from healthy images also removes lesions.

Kascenas et al., "Denoising Autoencoders for Unsupervised Anomaly Detection in Brain MRI"
(MIDL 2022). A U-Net with skip connections restores the image ``x`` from ``x + n``, where ``n`` is
Gaussian noise with standard deviation 0.2 drawn on a coarse grid (16 points along each axis),
enlarged linearly, shifted at random (circularly) and added to the foreground only; the loss is the
mean squared error in the foreground. The coarse grid makes the noise as large as a lesion, so that
it cannot be removed by smoothing. In 3-D the grid has a third axis.

``restored`` has the image's unit; the paper's anomaly score is its absolute difference from the
image, median-filtered (``residual_absolute``, median 5).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Adam, Optimizer

from medgen.config import Config
from medgen.losses import mean_inside
from medgen.networks.grouped_unet import grouped_unet
from medgen.networks.sizes import require_multiples

GROUPS = 8


class DAEConfig(Config):
    """Settings of the denoising autoencoder."""

    spatial_dims: Literal[2, 3] = Field(3, description="2 for slices, 3 for volumes")
    channels: int = Field(1, ge=1, description="image channels (sequences)")
    features: tuple[int, int, int, int, int] = Field(
        (32, 64, 128, 256, 256),
        description=f"channels at the five resolutions of the U-Net, multiples of {GROUPS}",
    )
    noise_deviation: float = Field(
        0.2, gt=0, description="standard deviation of the noise on its grid, in the image's unit"
    )
    noise_grid: int = Field(16, ge=2, description="points of the noise's grid along each axis")
    learning_rate: float = Field(1e-4, gt=0, description="Adam (AMSGrad) learning rate")
    weight_decay: float = Field(1e-5, ge=0, description="Adam weight decay")


class DAE(nn.Module):
    """Removes coarse noise.

    Raises:
        InputError: ``features`` cannot be divided into groups for normalisation.
    """

    Config = DAEConfig
    divisor = 16
    input_slices = 1

    def __init__(self, config: DAEConfig) -> None:
        super().__init__()
        self.config = config
        self.spatial_dims = config.spatial_dims
        self.network = grouped_unet(
            config.spatial_dims, config.channels, config.channels, config.features, GROUPS
        )

    def optimizers(self) -> dict[str, Optimizer]:
        """One optimiser for the one network."""
        rate, decay = self.config.learning_rate, self.config.weight_decay
        weights = self.network.parameters()
        return {"network": Adam(weights, lr=rate, weight_decay=decay, amsgrad=True)}

    def noise(self, image: Tensor) -> Tensor:
        """Coarse noise of the image's shape, from torch's global generator."""
        coarse = (*image.shape[:2], *[self.config.noise_grid] * self.spatial_dims)
        mode = "bilinear" if self.spatial_dims == 2 else "trilinear"
        drawn = self.config.noise_deviation * torch.randn(coarse, device=image.device)
        fine = F.interpolate(drawn, image.shape[2:], mode=mode, align_corners=True)
        shifts = [int(torch.randint(size, ())) for size in image.shape[2:]]
        return torch.roll(fine, shifts, dims=tuple(range(2, image.ndim)))

    def forward(self, image: Tensor) -> Tensor:
        """Noisy image to clean image, both ``(B, C, *spatial)``."""
        require_multiples(image.shape[2:], self.divisor)
        clean: Tensor = self.network(image)
        return clean

    def losses(self, batch: dict[str, Tensor]) -> Iterator[tuple[str, Tensor, dict[str, Tensor]]]:
        """Mean squared error, inside the mask, of the healthy image restored from a noisy one."""
        healthy, mask = batch["healthy"], batch["mask"]
        noisy = healthy + self.noise(healthy) * mask
        error = (self(noisy) - healthy).square()
        yield "network", mean_inside(error, mask), {}

    def represent(self, image: Tensor) -> Tensor:
        """Feature vectors ``(B, features[4])``: the coarsest level, averaged over places."""
        require_multiples(image.shape[2:], self.divisor)
        network = self.network
        value = network.conv_0(image)
        for down in (network.down_1, network.down_2, network.down_3, network.down_4):
            value = down(value)
        return value.flatten(2).mean(2)

    def predict(self, image: Tensor) -> dict[str, Tensor]:
        """``restored`` ``(B, C, *spatial)`` in the image's unit; no noise is added."""
        return {"restored": self(image)}
