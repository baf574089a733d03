"""Noise2Void: learns to remove noise from noisy images alone.

Krull et al., "Noise2Void: Learning Denoising from Single Noisy Images" (2019). A network that may
not see a voxel's own value can do no better than predict its mean given the surroundings. If noise
is independent between voxels and has mean zero, that is the clean value. So a few voxels (0.2 % in
the paper) are replaced by values of random neighbours, and the squared error of the prediction
from the *noisy* value counts at those voxels only. In training images ``image`` is all that is
read; nobody needs to know the truth.

With neighbouring slices as input only the middle one is masked, since the others have noise of
their own. The network is a U-Net (Ronneberger et al. 2015) without a connection from its input to
its output. Noise that is correlated between voxels, as behind interpolation or in parallel
imaging, is not removed: it can be predicted.

``output`` has the image's unit. No ``spread``: without a clean target the error is unknown.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from monai.networks.nets import BasicUNet
from pydantic import Field
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from medgen.config import Config
from medgen.losses import mean_inside
from medgen.methods._restoring import middle_slice, require_slices
from medgen.networks.folding import fold, unfold
from medgen.networks.sizes import require_multiples


class Noise2VoidConfig(Config):
    """Settings of the self-supervised denoising network."""

    spatial_dims: Literal[2, 3] = Field(2, description="2 for slices, 3 for volumes")
    input_slices: int = Field(1, ge=1, description="neighbouring slices as input; odd; 2-D only")
    channels: int = Field(1, ge=1, description="image channels")
    fold: int = Field(
        1, ge=1, description="voxels per axis folded into channels before the first layer"
    )
    features: tuple[int, int, int, int, int] = Field(
        (16, 32, 64, 128, 160), description="channels at the five resolutions of the U-Net"
    )
    blind_share: float = Field(
        0.01, gt=0, lt=0.5, description="share of voxels that are replaced; the paper has 0.002"
    )
    reach: int = Field(
        2, ge=1, description="largest distance per axis to the neighbour whose value is taken"
    )
    learning_rate: float = Field(1e-3, gt=0, description="AdamW learning rate")
    weight_decay: float = Field(1e-4, ge=0, description="AdamW weight decay")


class Noise2Void(nn.Module):
    """Predicts the clean image from a noisy one.

    Raises:
        InputError: ``input_slices`` is even, or more than one in 3-D.
    """

    Config = Noise2VoidConfig
    training_only: tuple[str, ...] = ()

    def __init__(self, config: Noise2VoidConfig) -> None:
        super().__init__()
        require_slices(config.spatial_dims, config.input_slices)
        self.config = config
        self.spatial_dims = dims = config.spatial_dims
        self.input_slices, self.divisor = config.input_slices, 16 * config.fold
        self.channels = self.out_channels = config.channels
        folded = config.fold**dims
        self.network = BasicUNet(
            spatial_dims=dims,
            in_channels=config.channels * config.input_slices * folded,
            out_channels=config.channels * folded,
            features=(*config.features, config.features[0]),
            norm="batch",
        )
        # On CPUs 2-D convolutions run about 1.5 times faster in this layout.
        self.layout = torch.channels_last if dims == 2 else torch.channels_last_3d
        self.network.to(memory_format=self.layout)  # type: ignore[call-overload]

    def optimizers(self) -> dict[str, Optimizer]:
        """One optimiser for the one network."""
        rate, decay = self.config.learning_rate, self.config.weight_decay
        return {"network": AdamW(self.network.parameters(), lr=rate, weight_decay=decay)}

    def forward(self, image: Tensor) -> Tensor:
        """Noisy image ``(B, slices * C, *s)`` to the clean one ``(B, C, *s)``."""
        require_multiples(image.shape[2:], self.divisor)
        folded = fold(image, self.config.fold).contiguous(memory_format=self.layout)
        clean: Tensor = unfold(self.network(folded), self.config.fold)
        return clean

    def losses(self, batch: dict[str, Tensor]) -> Iterator[tuple[str, Tensor, dict[str, Tensor]]]:
        """Squared error at the blind voxels, from the noisy values they had."""
        image = batch["image"]
        noisy = middle_slice(image, self.channels)
        replaced, blind = blind_spots(noisy, self.config.blind_share, self.config.reach)
        seen = image.clone()
        middle_slice(seen, self.channels).copy_(replaced)
        error = mean_inside((self(seen) - noisy).square(), blind)
        yield "network", error, {"blind_error": error.detach()}

    def predict(self, image: Tensor) -> dict[str, Tensor]:
        """``output`` ``(B, C, *spatial)``; here nothing is masked."""
        return {"output": self(image).float()}


def blind_spots(image: Tensor, share: float, reach: int) -> tuple[Tensor, Tensor]:
    """Replace some voxels by the value of a random neighbour, never by their own.

    Numbers come from torch's global generator.

    Args:
        image: ``(B, C, *spatial)``; longer than ``reach`` along every axis.
        share: Probability that a voxel is replaced.
        reach: Largest distance to the neighbour along each axis; the window wraps round the edges.

    Returns:
        The image with replaced voxels, and where they are, 0 or 1 ``(B, 1, *spatial)``.
    """
    dims = image.ndim - 2
    blind = torch.rand_like(image[:, :1]) < share
    # One displacement for each blind voxel of each image, the same in all its channels.
    where = blind.nonzero(as_tuple=True)
    window = (2 * reach + 1) ** dims
    # Without the middle of the window, which is the voxel itself.
    drawn = torch.randint(window - 1, where[0].shape, device=image.device)
    drawn = drawn + (drawn >= window // 2).long()
    source: list[Tensor] = []
    for axis in range(dims):
        step = drawn // (2 * reach + 1) ** axis % (2 * reach + 1) - reach
        source.append((where[2 + axis] + step) % image.shape[2 + axis])
    replaced = image.clone()
    every = slice(None)
    into: Any = (where[0], every, *where[2:])
    out_of: Any = (where[0], every, *source)
    replaced[into] = image[out_of]
    return replaced, blind.to(image.dtype)
