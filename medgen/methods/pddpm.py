"""pDDPM: each patch is drawn anew from noise by a diffusion model that sees what surrounds it.

Behrendt et al., "Patched Diffusion Models for Unsupervised Anomaly Detection in Brain MRI" (MIDL
2023). A patch ``p`` of a healthy image ``x`` (in -1..1) is noised up to a random step ``t`` of the
forward process of Ho et al. (2020), ``x_t = sqrt(a_t) x + sqrt(1 - a_t) n`` with the cosine
schedule, the rest stays as it is, and a U-Net that is told ``t`` gives the image without noise. The
loss is its mean absolute error inside the patch. Of a new image every patch is noised up to half of
the steps and restored at once (no sampling of the steps between); the patches, which cover the
image like tiles, are put together. A lesion does not survive the noise, and the surroundings say
which anatomy belongs in its place.

The paper's noise is simplex noise with six octaves, as large lesions need noise that is coarse too
(Wyatt et al., AnoDDPM, 2022). Here each octave is Gaussian noise on a grid, enlarged linearly,
which has the same scales. In prediction its seed is a setting and every image gets the same noise,
so that the result is a function of the image.

``restored`` has the image's unit. The U-Net has self-attention in its middle only; ``features`` of
128, 256, 256 and 3 ``blocks`` make it as large as the paper's, which wants a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise, product
from typing import Literal

import torch
from monai.networks.schedulers import DDPMScheduler
from pydantic import Field
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from torch.optim import Adam, Optimizer

from medgen.config import Config
from medgen.errors import InputError
from medgen.losses import mean_inside
from medgen.networks.diffusion import DiffusionUNet
from medgen.networks.sizes import require_multiples

GROUPS = 8
# Of the coarse noise (Wyatt et al.): voxels between the points of the first grid, how many grids
# there are, each twice as fine, and how much weaker each is than the one before.
FIRST_CELL, OCTAVES, PERSISTENCE = 64, 6, 0.8


class PDDPMConfig(Config):
    """Settings of the patched diffusion model."""

    spatial_dims: Literal[2, 3] = Field(3, description="2 for slices, 3 for volumes")
    channels: int = Field(1, ge=1, description="image channels (sequences)")
    features: tuple[int, ...] = Field(
        (64, 128, 128),
        min_length=2,
        description=f"channels at each resolution of the U-Net, multiples of {GROUPS}",
    )
    blocks: int = Field(2, ge=1, description="residual blocks at each resolution")
    patches: int = Field(
        2, ge=1, description="patches along each axis; together they are the image"
    )
    noise: Literal["coarse", "gaussian"] = Field(
        "coarse", description="six octaves of noise, or white noise"
    )
    timesteps: int = Field(1000, ge=2, description="steps of the forward process")
    test_timestep: int = Field(
        500, ge=1, description="step up to which an image is noised to be restored"
    )
    noise_seed: int = Field(0, description="seed of the noise in prediction")
    learning_rate: float = Field(1e-4, gt=0, description="Adam learning rate")


class PDDPM(nn.Module):
    """Restores patches from noise.

    Raises:
        InputError: ``features`` cannot be divided into groups, or the step to restore from is none
            of the process.
    """

    Config = PDDPMConfig
    input_slices = 1
    kept: Tensor

    def __init__(self, config: PDDPMConfig) -> None:
        super().__init__()
        if any(width % GROUPS for width in config.features):
            msg = f"features must be multiples of {GROUPS}, got {config.features}"
            raise InputError(msg)
        if config.test_timestep > config.timesteps:
            msg = f"test_timestep is {config.test_timestep}, but there are {config.timesteps} steps"
            raise InputError(msg)
        self.config = config
        self.spatial_dims = config.spatial_dims
        self.divisor = 2 ** (len(config.features) - 1)
        self.network = DiffusionUNet(
            config.spatial_dims, config.channels, config.features, config.blocks, GROUPS
        )
        # Part of the image's variance that is left after each step. The scheduler itself would
        # move its tables to whatever device an image is on.
        kept = DDPMScheduler(config.timesteps, "cosine").alphas_cumprod
        self.register_buffer("kept", kept, persistent=False)

    def optimizers(self) -> dict[str, Optimizer]:
        """One optimiser for the one network."""
        return {"network": Adam(self.network.parameters(), lr=self.config.learning_rate)}

    def noise(self, image: Tensor, generator: Generator | None = None) -> Tensor:
        """Noise of the image's shape ``(B, C, *spatial)`` whose mean square is 1.

        Args:
            image: Says shape and device.
            generator: Of the CPU, to draw from; none: torch's own, on the image's device.
        """
        device = image.device if generator is None else None

        def white(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, device=device)

        if self.config.noise == "gaussian":
            return white(*image.shape).to(image.device)
        mode = "bilinear" if self.spatial_dims == 2 else "trilinear"
        found = torch.zeros(image.shape, device=device)
        for octave in range(OCTAVES):
            cell = FIRST_CELL / 2**octave
            coarse = [max(2, math.ceil(size / cell) + 1) for size in image.shape[2:]]
            drawn = white(*image.shape[:2], *coarse)
            fine = F.interpolate(drawn, image.shape[2:], mode=mode, align_corners=True)
            found = found + PERSISTENCE**octave * fine
        size = found.flatten(2).square().mean(2).sqrt().clamp(min=1e-3)
        found = found / size.reshape(*size.shape, *[1] * self.spatial_dims)
        return found.to(image.device)

    def forward(self, image: Tensor, noise: Tensor, patch: Tensor, step: Tensor) -> Tensor:
        """What a noised patch is restored to, given its surroundings.

        Args:
            image: ``(B, C, *spatial)`` in 0..1.
            noise: Same shape.
            patch: Where to put it, 0 or 1, ``(B, 1, *spatial)``.
            step: Of the forward process, 1 to ``timesteps``, ``(B,)``.

        Returns:
            ``(B, C, *spatial)`` in 0..1, meant inside the patch.
        """
        clean = 2 * image - 1
        kept = self.kept[step - 1].reshape(-1, *[1] * (image.ndim - 1))
        noised = kept.sqrt() * clean + (1 - kept).sqrt() * noise
        restored: Tensor = self.network(torch.where(patch > 0, noised, clean), step - 1)
        return (restored + 1) / 2

    def losses(self, batch: dict[str, Tensor]) -> Iterator[tuple[str, Tensor, dict[str, Tensor]]]:
        """Mean absolute error inside one random patch of each healthy image, and its mask."""
        healthy = batch["healthy"]
        require_multiples(healthy.shape[2:], self.divisor)
        tiles = self.tiles(healthy.shape[2:])
        patch = torch.zeros_like(batch["mask"])
        for own in patch:
            own[tiles[int(torch.randint(len(tiles), ()))]] = 1
        step = torch.randint(self.config.timesteps, (len(healthy),), device=healthy.device) + 1
        restored = self(healthy, self.noise(healthy), patch, step)
        yield "network", mean_inside((restored - healthy).abs(), patch * batch["mask"]), {}

    def predict(self, image: Tensor) -> dict[str, Tensor]:
        """``restored`` ``(B, C, *spatial)`` in the image's unit, each patch by itself."""
        require_multiples(image.shape[2:], self.divisor)
        generator = Generator().manual_seed(self.config.noise_seed)
        noise = self.noise(image[:1], generator)
        step = torch.full((len(image),), self.config.test_timestep, device=image.device)
        restored = torch.zeros_like(image)
        for tile in self.tiles(image.shape[2:]):
            patch = torch.zeros_like(image[:, :1])
            patch[:, *tile] = 1
            found = self(image, noise, patch, step)
            restored[:, *tile] = found[:, *tile]
        return {"restored": restored}

    def tiles(self, size: Sequence[int]) -> list[tuple[slice, ...]]:
        """The patches of an image of this size, channels first; each voxel lies in one."""
        axes = []
        for length in size:
            count = min(self.config.patches, length)
            ends = [round(length * n / count) for n in range(count + 1)]
            axes.append([slice(a, b) for a, b in pairwise(ends)])
        return [(slice(None), *tile) for tile in product(*axes)]
